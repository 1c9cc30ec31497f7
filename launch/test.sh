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
# Files in their order: by number of tests, as pytest-xdist would have it, the slowest file comes last and alone.
check pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations 40 "$@"
say "all checks passed in $SECONDS s"
