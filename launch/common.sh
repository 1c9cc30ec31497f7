# Sourced by demo.sh and test.sh. Sets root, venv and python; `prepare EXTRA` makes the environment ready.
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv
python=$venv/bin/python

say() { printf 'launch: %s\n' "$*" >&2; }
fail() {
  say "$*"
  exit 1
}

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' >/dev/null 2>&1; }

# A name on the path may be a shim that does not start, or a Python without its venv module (Debian splits it off).
find_python() {
  local candidate
  for candidate in ${PYTHON:+"$PYTHON"} python3.12 python3.11 python3 python; do
    if fits "$candidate" && "$candidate" -c 'import ensurepip, venv' >/dev/null 2>&1; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  fail "no Python 3.11 or 3.12 with its venv module was found; install one (Debian and Ubuntu:" \
    "python3 and python3-venv) or name it: PYTHON=/path/to/python3.12 bash launch/${0##*/}"
}

make_environment() {
  local base
  if ! "$python" -c '' >/dev/null 2>&1; then
    base=$(find_python)
    say "making $venv with $base"
    "$base" -m venv --clear "$venv"
  fi
  fits "$python" || fail "$venv holds $("$python" -V), but 3.11 or 3.12 is needed; remove that folder and run again"
  "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip --upgrade >&2
  say "using $venv ($("$python" -V))"
}

# The stamp spares a rerun the minute that pip takes to find out that nothing is to do.
install_packages() {
  local extra=$1 key name
  key=$("$python" -c 'import hashlib, sys
digest = hashlib.sha256(repr(sys.argv[1:] + [sys.version]).encode())
for name in ("pyproject.toml", "launch/constraints.txt"):
    digest.update(open(f"{sys.argv[1]}/{name}", "rb").read())
print(digest.hexdigest())' "$root")
  for name in "$extra" dev; do # dev holds everything that the other extras hold
    if [ "$(cat "$venv/.installed-$name" 2>/dev/null)" = "$key" ]; then
      say "xmodal_jax[$name] is installed with the pinned versions"
      return
    fi
  done
  say "installing xmodal_jax[$extra] with the pinned versions; this takes minutes and 3 GB of disk the first time"
  rm -f "$venv/.installed-$extra"
  (cd "$root" && "$python" -m pip install --disable-pip-version-check -c launch/constraints.txt -e ".[$extra]" >&2) ||
    fail "the installation failed (see above); run the same command again to go on"
  printf '%s\n' "$key" >"$venv/.installed-$extra"
}

prepare() {
  make_environment
  install_packages "$1"
}
