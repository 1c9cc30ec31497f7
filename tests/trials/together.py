"""Two processes at work in one folder: one of them is refused in a sentence, and the result is that of one alone."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from trials import kills, makers
from trials.harness import Child, Failures, Row, forked, refused, run, sound, verb
from trials.makers import Things

Pair = Callable[[random.Random], str]


def side_by_side(first: Sequence[object], second: Sequence[object], delay: float) -> str:
    """Run both, the second after ``delay`` seconds; what is wrong with how they end."""
    one = Child(lambda: verb(*first))
    time.sleep(delay)
    two = Child(lambda: verb(*second))
    ends = [child.wait() for child in (one, two)]
    wrong = [refused(end, (2, 3, 4)) for end in ends if end.code]
    if any(wrong):
        return "; ".join(filter(None, wrong))
    if all(end.code for end in ends) and first == second:
        return f"both were refused: {ends[0].said} / {ends[1].said}"
    return ""


def pairs(things: Things) -> dict[str, Pair]:
    """The pairs of verbs by name."""
    root = things.root / "together"
    root.mkdir(exist_ok=True)
    out = root / "run"
    train = makers.training(things.data, out)
    took = sound(run(*train)).seconds
    whole = sound(forked(lambda: (0, makers.fingerprint(out)))).value

    def trained(rng: random.Random, other: Sequence[object]) -> str:
        shutil.rmtree(out, ignore_errors=True)
        if wrong := side_by_side(train, other, rng.uniform(0, took)):
            return wrong
        end = forked(lambda: (verb(*train), makers.fingerprint(out)))
        return "" if not end.code and end.value == whole else f"another run, exit code {end.code}: {end.said}"

    def twice(argv: Sequence[object], place: Path, seconds: float, made: dict[str, str]) -> Pair:
        def pair(rng: random.Random) -> str:
            kills.clear(place)
            if wrong := side_by_side(argv, argv, rng.uniform(0, seconds)):
                return wrong
            return "" if kills.files_of(place) == made else "another folder"

        return pair

    found: dict[str, Pair] = {
        "train and train": lambda rng: trained(rng, train),
        "train and eval --watch": lambda rng: trained(rng, ["eval", "--workdir", out, "--watch", "--interval", "0.05"]),
        "train and export": lambda rng: trained(rng, ["export", "--workdir", out, "--out", fresh(root / "exported")]),
        "train and show": lambda rng: trained(rng, ["show", out]),
    }
    lines = {
        "index and index": ["index", "--bundle", things.bundle, "--data", things.data, "--out", root / "gallery"],
        "export and export": ["export", "--workdir", things.run, "--out", root / "bundle"],
        "import and import": makers.importing(things.precomp, root / "data"),
    }
    for name, argv in lines.items():
        place = root / ("data" if name.startswith("import") else str(Path(str(argv[-1])).name))
        seconds = sound(run(*argv)).seconds
        found[name] = twice(argv, place, seconds, kills.files_of(place))
    return found


def fresh(folder: Path) -> Path:
    kills.clear(folder)
    return folder


def together(things: Things, tries: int, seed: int, first: int) -> Row:
    """All pairs in turn."""
    every = list(pairs(things).items())
    failures = Failures()
    for number in range(first, first + tries):
        name, pair = every[number % len(every)]
        if wrong := pair(random.Random(f"{seed}/together/{number}")):
            failures.add(f"try {number}: {name}: {wrong}")
    return Row(tries, failures, {})
