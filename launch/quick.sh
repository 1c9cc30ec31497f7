#!/usr/bin/env bash
# XMODAL_VENV=.venv-3.13 PYTHON=python3.13 bash launch/quick.sh [arguments of pytest]: installs the dev extra there and
# runs the few tests that tell whether a Python and its packages will do; launch/test.sh runs them all.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

prepare dev
cd "$root"
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$root/.jax_cache}"

# None of test_configs.py, which trains every system; of test_export.py what trains one, evaluates and exports it and loads
# the bundle in another process.
tests=(
  tests/test_packaging.py tests/test_launch.py tests/test_config.py tests/test_losses.py tests/test_records.py tests/test_text.py
  tests/test_export.py::test_a_bundle_needs_neither_models_nor_tensorflow
)
say "running: the quick tests on Python $(minor "$python")"
"$python" -m pytest -n auto --maxprocesses 4 --dist loadfile -m "not slow" "$@" "${tests[@]}"
