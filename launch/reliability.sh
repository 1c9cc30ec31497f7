#!/usr/bin/env bash
# bash launch/reliability.sh [quick] [--only ATTACK ...] [--seed S] [--first N --tries 1]: installs the dev extra into .venv
# and attacks everything that is kept or served; without arguments the figures and the table of docs/reliability.md are
# made anew. Every failure is printed with what repeats it, and is the exit code.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

prepare dev
cd "$root"
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$root/.jax_cache}" PYTHONPATH="$root/tests:$root"

[ $# -gt 0 ] || set -- --json docs/reliability.json
code=0
"$python" -m trials "$@" || code=$?
case " $* " in *" --json docs/reliability.json "*) "$python" -m trials.figures ;; esac
exit "$code"
