"""What the attacks are made on: a small data set, a run, a bundle and a gallery, all of one system at its smallest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from helpers import planted

from trials.harness import forked, imported, run, sound, verb

TINY = ("train", "--config", "vse.py:vsepp,tiny", "--config.model.feature=region", "--config.data.minimum_count=1")
STEPS = 8
OFTEN = (f"--config.steps={STEPS}", "--config.eval.every_steps=4", "--config.checkpoint.every_steps=2")
SENTENCE = "red0 big1 dog2"
TIMES = {"wall_s", "step_s", "waited_s"}


class Things(NamedTuple):
    root: Path
    data: Path
    run: Path
    bundle: Path
    gallery: Path
    precomp: Path  # the source of an import


def training(data: Path, workdir: Path) -> list[str]:
    """The arguments of the training that is attacked."""
    return [*TINY, *OFTEN, "--config.log.every_steps=1", f"--config.data.dir={data}", "--workdir", str(workdir)]


def importing(source: Path, out: Path) -> list[str]:
    return ["data", "import", "precomp", str(source), "--out", str(out), "--features", "ims"]


def precomp(folder: Path) -> Path:
    """A small source in the layout of the published features."""
    import numpy as np

    random = np.random.default_rng(0)
    folder.mkdir()
    for split, count in (("train", 12), ("dev", 4), ("test", 4)):
        np.save(folder / f"{split}_ims.npy", random.normal(size=(count, 3, 8)).astype(np.float32))
        lines = [f"red{n % 4} big{k % 4} sea{n} {split}{k}" for n in range(count) for k in range(5)]
        (folder / f"{split}_caps.txt").write_text("\n".join(lines) + "\n")
        start = {"train": 0, "dev": 12, "test": 16}[split]
        (folder / f"{split}_ids.txt").write_text("".join(f"{start + n}\n" for n in range(count) for _ in range(5)))
    return folder


def make(root: Path) -> Things:
    """Everything, below ``root``; what the verbs import is imported here on the way."""
    names = ("data", "run", "bundle", "gallery", "precomp")
    things = Things(root, *(root / name for name in names))
    sound(forked(lambda: int(planted(things.data, train=20, other=8) is None)))
    sound(forked(lambda: int(precomp(things.precomp) is None)))
    lines = [
        training(things.data, things.run),
        ["eval", "--workdir", things.run],
        ["show", things.run],
        ["results", things.run],
        ["export", "--workdir", things.run, "--out", things.bundle],
        ["eval", "--bundle", things.bundle, "--data", things.data],
        ["index", "--bundle", things.bundle, "--data", things.data, "--out", things.gallery],
        ["search", things.gallery, SENTENCE, "--json"],
        ["data", "check", things.data],
        importing(things.precomp, root / "imported"),
    ]
    imported([lambda line=line: verb(*line) for line in lines])
    return things


def fingerprint(workdir: Path) -> dict[str, Any]:
    """What a finished run is, bit by bit: its steps, every array of the last one, and its log but for the times."""
    from xmodal_jax.training import log
    from xmodal_jax.training.checkpoint import Checkpoints, flat

    checkpoints = Checkpoints(workdir, read_only=True)
    step = checkpoints.steps()[-1]
    state = {part: flat(checkpoints.restore_plain(step, part)) for part in ("model", "training")}
    hashes = {
        f"{part}/{name}": hashlib.sha256(repr((leaf.shape, str(leaf.dtype))).encode() + leaf.tobytes()).hexdigest()
        for part, leaves in state.items()
        for name, leaf in leaves.items()
    }
    lines = [{k: v for k, v in line.items() if k not in TIMES} for line in log.read(workdir / "metrics.jsonl")]
    return {"steps": checkpoints.steps(), "best": checkpoints.best(), "arrays": hashes, "log": json.dumps(lines)}


def search(gallery: Path) -> list[str]:
    return ["search", str(gallery), SENTENCE, "--json"]


def tree(folder: Path) -> dict[str, str]:
    """SHA-256 by name of all files below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


__all__ = ["STEPS", "Things", "fingerprint", "importing", "make", "run", "search", "training", "tree"]
