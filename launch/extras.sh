#!/usr/bin/env bash
# bash launch/extras.sh [EXTRA ...]: what each extra promises (core: the package without any), on a small real input in a
# virtual environment that holds the wheel with that extra and nothing else. All are tried; the exit status tells.
set -euo pipefail
. "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"

all="core image photos serve ann qdrant hdf5 fisher train"
for extra in "$@"; do
  case " $all " in *" $extra "*) ;; *) fail "there is no check of the extra $extra; choose from $all" ;; esac
done
[ $# -gt 0 ] || set -- $all

# Each check runs in an empty folder, with xmodal and python of its environment first on the path.

check_core() {
  xmodal doctor
  python - "$inputs" <<'PY'
import sys
import numpy as np
import xmodal_jax
m = xmodal_jax.load(f"{sys.argv[1]}/bundle")
features = {name: np.ones((3, *(4 if isinstance(n, str) else n for n in shape)), np.float32) for name, shape in m.features.items()}
images = m.embed_images(features)
scores = m.score(images, m.embed_texts(["a red square", "two circles"]))
assert scores.shape == (3, 2) and np.isfinite(scores).all(), scores
PY
  xmodal search "$inputs/gallery" "a red square" -k 3
  xmodal search "$inputs/gallery" --image scene-0-000003 -k 3
}

check_image() {
  python - "$inputs" <<'PY'
import sys
import numpy as np
import xmodal_jax
m = xmodal_jax.load(f"{sys.argv[1]}/bundle")
scores = m.score(m.embed_images([f"{sys.argv[1]}/scenes/images/scene-0-{i:06}.png" for i in range(3)]), ["a red square"])
assert scores.shape == (3, 1) and len(np.unique(scores)) == 3, scores
PY
  xmodal search "$inputs/gallery" --image "$inputs/scenes/images/scene-0-000003.png" -k 3
}

check_photos() {
  python - <<'PY'
from xmodal_jax.layers.backbones import weights
for network in ("lite0", "lite2"):
    assert weights.load(network, "package")["params"], network
PY
}

check_serve() {
  local port service
  port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  xmodal serve "$inputs/gallery" --port "$port" &
  service=$!
  python - "$port" "$inputs/scenes/images/scene-0-000003.png" <<'PY' || { kill "$service"; return 1; }
import json, sys, time, urllib.error, urllib.request
def ask(path, body=None, kind="application/json"):
    request = urllib.request.Request(f"http://127.0.0.1:{sys.argv[1]}{path}", body, {"Content-Type": kind})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read()
for _ in range(240):
    try:
        page = ask("/")
        break
    except urllib.error.URLError:
        time.sleep(0.5)
assert b"<html" in page
assert len(json.loads(ask("/search", b'{"text": "a red square", "k": 3}'))["hits"]) == 3
picture = open(sys.argv[2], "rb").read()
assert len(json.loads(ask("/search/picture?k=3", picture, "image/png"))["hits"]) == 3
PY
  kill -TERM "$service"
  wait "$service"
}

check_ann() { xmodal search "$inputs/gallery" "a red square" -k 3 --engine faiss; }

check_qdrant() { xmodal search "$inputs/gallery" "a red square" -k 3 --engine qdrant:here; }

check_hdf5() {
  python <<'PY'
import h5py, json
import numpy as np
with h5py.File("features.hdf5", "w") as file:
    for i in range(6):
        file[f"{i}_features"] = np.full((3 + i % 3, 8), i, np.float32)
images = [{"filename": f"{i}.jpg", "cocoid": i, "split": s, "sentences": [{"raw": f"picture {i}"}]}
          for i, s in enumerate(["train"] * 4 + ["val", "test"])]
json.dump({"images": images}, open("dataset_small.json", "w"))
PY
  xmodal data import karpathy dataset_small.json --features features.hdf5 --out data
}

check_fisher() {
  cp -R "$inputs/scenes" scenes
  python <<'PY'
import json
import numpy as np
words = {w for line in open("scenes/train.captions.jsonl") for text in json.loads(line)["captions"] for w in text.split()}
random = np.random.default_rng(0)
open("vectors.txt", "w").writelines(f"{w} {' '.join(map(str, random.normal(size=5)))}\n" for w in sorted(words))
PY
  xmodal data text-features fisher scenes --vectors vectors.txt --components 3 --mixture gmm --whiten ica
}

check_train() {
  xmodal data scenes --out scenes --images 60
  xmodal train --config vse.py:vsepp,scenes,tiny --config.data.dir=scenes --config.steps=2 --workdir run
  xmodal eval --workdir run --split test --report report
}

prepare train
inputs=$(mktemp -d)/inputs
trap 'rm -rf "${inputs%/inputs}"' EXIT
cd "${inputs%/inputs}"
unset PYTHONPATH
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu} PYTHONNOUSERSITE=1

say "building the wheel; making pictures, a bundle and a gallery"
(
  PATH=$venv/bin:$PATH
  "$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir wheel "$root" &&
    xmodal data scenes --out "$inputs/scenes" --images 60 &&
    xmodal train --config vse.py:vsepp,scenes,tiny --config.data.dir="$inputs/scenes" --workdir run &&
    xmodal export --workdir run --out "$inputs/bundle" &&
    xmodal index --bundle "$inputs/bundle" --data "$inputs/scenes" --out "$inputs/gallery"
) >inputs.log 2>&1 || { cat inputs.log >&2; fail "the wheel or the inputs of the checks could not be made (see above)"; }
wheel=$(echo "$PWD"/wheel/*.whl)

try() {
  local extra=$1 named=$wheel
  [ "$extra" = core ] || named+="[$extra]"
  mkdir "$extra"
  cd "$extra"
  "$python" -m venv env
  PATH=$PWD/env/bin:$PATH
  python -m pip install --quiet --disable-pip-version-check -c "$root/launch/constraints.txt" "$named"
  python -m pip check
  "check_$extra"
}

failed=""
for extra in "$@"; do
  SECONDS=0
  set +e # not as a condition, within which a shell goes on after a command that fails
  (set -e; try "$extra") >"$extra.log" 2>&1
  status=$?
  set -e
  if [ "$status" -eq 0 ]; then
    say "$extra: passed, installed and run in $SECONDS s"
  else
    tail -n 30 "$extra.log" >&2
    say "$extra: a virtual environment with this extra alone does not do what it promises (see above)"
    failed+=" $extra"
  fi
  rm -rf "./$extra"
done
[ -z "$failed" ] || fail "the checks failed of:$failed"
