#!/usr/bin/env bash
# bash launch/tpu.sh NAME ZONE [arguments of `xmodal train`]: trains on all hosts of a TPU slice, each of which has the
# repository with its .venv in ~/xmodal_jax; --workdir and the data lie on a file system that all of them mount.
set -euo pipefail
[ $# -ge 2 ] || { sed -n 2,3p "$0" >&2; exit 2; }
name=$1 zone=$2
shift 2
exec gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="cd xmodal_jax && .venv/bin/xmodal train --distributed $(printf '%q ' "$@")"
