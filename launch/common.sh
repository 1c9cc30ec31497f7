# Sourced by demo.sh, test.sh and quick.sh. Sets root, venv and python; `prepare EXTRA` makes the environment ready.
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=${XMODAL_VENV:-$root/.venv}
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac
python=$venv/bin/python
versions="3.11, 3.12 or 3.13"

say() { printf 'launch: %s\n' "$*" >&2; }
fail() {
  say "$*"
  exit 1
}

minor() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }
starts() { [ -n "$(minor "$1")" ]; }
fits() { case $(minor "$1") in 3.11 | 3.12 | 3.13) ;; *) return 1 ;; esac }
has_venv() { "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; }

# Who names an interpreter wants that one: nothing else is taken in its place.
check_named() {
  local advice="name a Python $versions or leave PYTHON out"
  starts "$PYTHON" || fail "PYTHON=$PYTHON does not start; $advice"
  fits "$PYTHON" || fail "PYTHON=$PYTHON is Python $(minor "$PYTHON"), which is not supported; $advice"
  has_venv "$PYTHON" || fail "PYTHON=$PYTHON lacks its venv module (Debian and Ubuntu: python3-venv); $advice"
}

# A name on the path may be a shim that does not start, or a Python without its venv module (Debian splits it off).
# 3.12 comes first, as neither the newest, for which packages come last, nor the oldest, for which new releases of JAX
# are no longer made.
find_python() {
  local candidate
  for candidate in python3.12 python3.13 python3.11 python3 python; do
    if fits "$candidate" && has_venv "$candidate"; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  fail "no Python $versions with its venv module was found; install one (Debian and Ubuntu:" \
    "python3 and python3-venv) or name it: PYTHON=/path/to/python3.12 bash launch/${0##*/}"
}

make_environment() {
  local base=${PYTHON:-}
  [ -z "$base" ] || check_named
  if ! starts "$python"; then
    # What is made again is emptied first, so it must not be a folder of other things.
    [ ! -e "$venv" ] || [ "$venv" = "$root/.venv" ] || [ -f "$venv/pyvenv.cfg" ] ||
      fail "XMODAL_VENV=$venv is there but is no virtual environment; name a folder that does not exist yet"
    [ -n "$base" ] || base=$(find_python)
    say "making $venv with $base"
    "$base" -m venv --clear "$venv"
  fi
  fits "$python" ||
    fail "$venv holds Python $(minor "$python"), but $versions is needed; remove that folder and run again"
  [ -z "$base" ] || [ "$(minor "$base")" = "$(minor "$python")" ] ||
    fail "PYTHON=$base is Python $(minor "$base"), but $venv holds $(minor "$python"); remove that folder, name" \
      "another by XMODAL_VENV, or leave PYTHON out"
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
