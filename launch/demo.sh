#!/usr/bin/env bash
# bash launch/demo.sh [arguments of `xmodal demo`]: installs the package into .venv and runs the demo in this folder.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

prepare train,serve
say "running: xmodal demo $*"
exec "$venv/bin/xmodal" demo "$@"
