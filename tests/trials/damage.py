"""Flipped bits and cut files: the verb that uses what was damaged answers as before, or says so in one sentence."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trials import makers
from trials.harness import Failures, Outcome, Row, forked, refused, run, sound, verb
from trials.makers import Things

KINDS = ("run", "data", "bundle", "gallery")


class Use(NamedTuple):
    """Command lines that use a damaged file, and what they answer while all is whole."""

    lines: Sequence[Sequence[object]]
    answers: Sequence[str]


def grouped(folder: Path) -> list[list[Path]]:
    """Files by what they are, so that the log of a run is damaged as often as one of its fifty files of checkpoints."""
    groups: dict[str, list[Path]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size):
        name = path.relative_to(folder)
        known = name.parts[-1] if "checkpoints" not in name.parts else f"checkpoints {name.parts[-1][:8]}"
        groups.setdefault("data" if re.fullmatch(r"checkpoints [0-9a-f]{8}", known) else known, []).append(name)
    return list(groups.values())


class Scene:
    """Copies under one name, so that sentences and answers name the same paths every time."""

    def __init__(self, things: Things):
        self.things, self.here = things, things.root / "damaged"
        self.known: dict[str, Use] = {}
        self.sources = {name: getattr(things, name) for name in KINDS}
        self.files = {name: grouped(folder) for name, folder in self.sources.items()}

    def fresh(self, kind: str) -> Path:
        shutil.rmtree(self.here, ignore_errors=True)
        return Path(shutil.copytree(self.sources[kind], self.here / kind))

    def lines(self, kind: str, name: str) -> list[list[Any]]:
        """The command lines that read a file."""
        here = self.here / kind
        if kind == "bundle":
            return [["eval", "--bundle", here, "--data", self.things.data]]
        if kind == "gallery":
            return [makers.search(here)]
        if kind == "data":
            split = next((word for word in ("train", "dev") if word in name), "test")
            return [["eval", "--bundle", self.things.bundle, "--data", here, "--split", split]]
        if number := re.match(r"(?:checkpoints/|manifests/)(\d+)", name):
            return [["eval", "--workdir", here, "--step", number[1]], ["eval", "--workdir", here]]
        if name in ("metrics.jsonl", "finished.json", "parameters.txt"):
            return [["show", here], ["results", here]]
        if name.startswith("eval/"):
            return [["compare", here, self.things.root / "other"]] if name.endswith(".npz") else [["results", here]]
        return [["eval", "--workdir", here], ["show", here]]

    def use(self, kind: str, name: str) -> Use:
        lines = self.lines(kind, name)
        key = repr(lines)
        if key not in self.known:
            self.fresh(kind)
            self.known[key] = Use(lines, [sound(run(*line)).out for line in lines])
        return self.known[key]


def judged(outcome: Outcome, answer: str) -> str:
    """Empty where an outcome is the known answer, or a refusal in one sentence; otherwise what is wrong."""
    if outcome.code == 0:
        return "" if outcome.out == answer else "another answer in silence"
    return refused(outcome, (3, 4))


def flip(path: Path, rng: random.Random) -> str:
    raw = bytearray(path.read_bytes())
    place, bit = rng.randrange(len(raw)), rng.randrange(8)
    raw[place] ^= 1 << bit
    path.write_bytes(raw)
    return f"bit {bit} of byte {place} flipped"


def cut(path: Path, rng: random.Random) -> str:
    raw = path.read_bytes()
    place, zeros = rng.randrange(len(raw)), rng.random() < 0.5
    path.write_bytes(raw[:place] + (bytes(len(raw) - place) if zeros else b""))
    return f"zeros from byte {place} on" if zeros else f"cut to {place} bytes"


def train_again(scene: Scene, whole: Any) -> str:
    """A training on damaged data ends with its sentence or is the training that it was."""
    out = scene.here / "trained"

    def work() -> tuple[int, Any]:
        code = verb(*makers.training(scene.here / "data", out))
        return code, makers.fingerprint(out)["arrays"] if code == 0 else None

    outcome = forked(work)
    if outcome.code == 0:
        return "" if outcome.value == whole else "another training in silence"
    return refused(outcome, (3, 4))


def damage_try(scene: Scene, whole: Any, way: Any, rng: random.Random) -> tuple[str, str]:
    """What was damaged and what is wrong with the answers."""
    kind = rng.choices(KINDS, (3, 2, 2, 3))[0]
    name = rng.choice(rng.choice(scene.files[kind]))
    use = scene.use(kind, name.as_posix())
    path = scene.fresh(kind) / name
    before = path.read_bytes()
    how = f"{kind}/{name}: {way(path, rng)}"
    if path.read_bytes() == before:
        return how, ""
    for line, answer in zip(use.lines, use.answers, strict=True):
        if wrong := judged(run(*line), answer):
            return how, f"xmodal {line[0]}: {wrong}"
    if kind == "data":
        check = run("data", "check", scene.here / kind)
        if check.code != 3 or "Traceback" in check.err:
            return how, f"xmodal data check: exit code {check.code}: {check.said}"
        if rng.random() < 0.25 and (wrong := train_again(scene, whole)):
            return how, f"xmodal train: {wrong}"
    return how, ""


def damage(things: Things, tries: int, seed: int, first: int, name: str) -> Row:
    """``tries`` damages of one kind, a file each."""
    if not (other := things.root / "other").exists():
        sound(run(*makers.training(things.data, other), "--config.seed=1"))
        sound(run("eval", "--workdir", other))
    scene, failures = Scene(things), Failures()
    scene.fresh("data")

    def work() -> tuple[int, Any]:
        code = verb(*makers.training(scene.here / "data", scene.here / "trained"))
        return code, makers.fingerprint(scene.here / "trained")["arrays"]

    whole = sound(forked(work)).value
    for number in range(first, first + tries):
        how, wrong = damage_try(
            scene, whole, {"flip": flip, "cut": cut}[name], random.Random(f"{seed}/{name}/{number}")
        )
        if wrong:
            failures.add(f"try {number}: {how}: {wrong}")
    return Row(tries, failures, {})


def flips(things: Things, tries: int, seed: int, first: int) -> Row:
    return damage(things, tries, seed, first, "flip")


def cuts(things: Things, tries: int, seed: int, first: int) -> Row:
    return damage(things, tries, seed, first, "cut")
