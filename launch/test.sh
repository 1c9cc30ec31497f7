#!/usr/bin/env bash
# bash launch/test.sh [arguments of pytest]: installs the dev extra into .venv and runs every check.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

prepare dev
cd "$root"
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$root/.jax_cache}"

check() {
  say "running: $*"
  "$python" -m "$@"
}
check ruff check .
check ruff format --check .
check pyright --pythonpath "$python"
check pytest -n auto --maxprocesses 4 --dist loadfile "$@"
say "all checks passed in $SECONDS s"
