"""SIGKILL at random moments: by the clock, and at the n-th change of the file system, which hits claims and renames."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trials import makers
from trials.harness import Child, Failures, Outcome, Row, forked, refused, run, sound, verb
from trials.makers import Things

CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.move", "shutil.copyfile"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
DAMP = ("README.md", "manifest.json", ".stablehlo")  # they name the day or lines of code, or hash what does


def watched(root: Path, last: int, work: Callable[[], int]) -> Callable[[], tuple[int, int]]:
    """``work`` that ends by SIGKILL just before change number ``last`` below ``root``; it counts them."""
    seen, place = [0], str(root)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(args[2], int) and args[2] & WRITING
        if (writes or event in CHANGES) and str(args[0]).startswith(place):
            if seen[0] == last:
                os.kill(os.getpid(), signal.SIGKILL)
            seen[0] += 1

    def working() -> tuple[int, int]:
        sys.addaudithook(hook)
        return work(), seen[0]

    return working


class Victim:
    """A verb that is killed: its arguments, how long it takes, and how many changes it makes."""

    def __init__(self, out: Path, argv: Sequence[object]):
        self.out, self.argv = out, argv
        self.whole = sound(forked(watched(out, -1, lambda: verb(*argv))))

    def kill(self, rng: random.Random) -> tuple[str, Outcome]:
        """Run and kill it once; says where, and how it ended (it may have been quicker)."""
        if rng.random() < 0.5:
            place = rng.randrange(max(self.whole.value, 1))
            return f"before change {place}", forked(watched(self.out, place, lambda: verb(*self.argv)))
        moment = rng.uniform(0, self.whole.seconds)
        child = Child(lambda: verb(*self.argv))
        time.sleep(moment)
        child.kill()
        return f"after {moment:.3f} s", child.wait()


def clear(out: Path) -> None:
    for path in (out, out.with_name(f"{out.name}.partial")):
        shutil.rmtree(path, ignore_errors=True)


def unsound_steps(workdir: Path) -> list[str]:
    """Steps of a run folder that count but are not what was written."""
    from xmodal_jax.training.checkpoint import Checkpoints

    if not (workdir / "checkpoints").is_dir():
        return []
    checkpoints = Checkpoints(workdir, read_only=True)
    return [f"step {step}: {why}" for step in checkpoints.steps() if (why := checkpoints.problem(step))]


def finished_run(victim: Victim) -> tuple[int, Any]:
    """Go on with a killed training to its end; what it is then, or what is wrong."""
    if half := unsound_steps(victim.out):
        return 1, half
    code = verb(*victim.argv)
    return code, makers.fingerprint(victim.out) if code == 0 else None


def train_try(victim: Victim, whole: Any, rng: random.Random, most: int) -> tuple[int, str]:
    """One training, killed up to ``most`` times and then left alone: how many kills, and what is wrong."""
    clear(victim.out)
    places: list[str] = []
    for _ in range(most):
        place, outcome = victim.kill(rng)
        if outcome.code == -signal.SIGKILL:
            places.append(place)
        elif outcome.code:
            return len(places), f"killed {', '.join(places)}; then exit code {outcome.code}: {outcome.said}"
    end = forked(lambda: finished_run(victim))
    if end.code:
        return len(places), f"killed {', '.join(places)}; then exit code {end.code}: {end.value or end.said}"
    differing = [part for part in whole if whole[part] != end.value[part]]
    return len(places), f"killed {', '.join(places)}; then another {differing}" if differing else ""


class Made(NamedTuple):
    """A folder that a verb makes, as it is when nobody disturbs it."""

    victim: Victim
    check: Sequence[object]  # the command line that tells whether it is whole
    answer: str
    files: dict[str, str]

    def whole(self) -> bool:
        """Whether it stands there, whole."""
        if files_of(self.victim.out) != self.files:
            return False
        done = run(*self.check)
        return done.code == 0 and done.out == self.answer


def files_of(folder: Path) -> dict[str, str]:
    return {name: value for name, value in makers.tree(folder).items() if not name.endswith(DAMP)}


def make_try(made: Made, rng: random.Random) -> tuple[int, str]:
    """Kill a verb that makes a folder: what stands under its name is whole, and the next run makes the same one."""
    victim = made.victim
    clear(victim.out)
    place, outcome = victim.kill(rng)
    killed = int(outcome.code == -signal.SIGKILL)
    if victim.out.exists() and any(victim.out.iterdir()) and not made.whole():
        return killed, f"killed {place}: half of it stands under its name"
    again = run(*victim.argv)
    if again.code:
        if (wrong := refused(again, (3, 4))) or "remove" not in again.said:
            return killed, f"killed {place}: {wrong or again.said}"
        if not made.whole():
            clear(victim.out)
            again = run(*victim.argv)
            if again.code:
                return killed, f"killed {place}; then exit code {again.code}: {again.said}"
    return killed, "" if made.whole() else f"killed {place}; then another folder"


def kill_trainings(things: Things, tries: int, seed: int, first: int) -> Row:
    """Trainings of eight steps with four saves, each killed up to three times."""
    out = things.root / "killed"
    victim = Victim(out, makers.training(things.data, out))
    whole = sound(forked(lambda: (0, makers.fingerprint(out)))).value
    done, failures, number = 0, Failures(), first
    while done < tries:
        kills, wrong = train_try(victim, whole, random.Random(f"{seed}/kill/{number}"), min(3, tries - done))
        failures.add(f"try {number}: {wrong}" if wrong else "")
        done, number = done + kills, number + 1
    return Row(done, failures, {"trainings": number - first})


def kill_makers(things: Things, tries: int, seed: int, first: int) -> Row:
    """Imports, exports and indexing, killed once each."""
    root = things.root / "half"
    root.mkdir(exist_ok=True)
    lines: list[tuple[Path, Sequence[object], Sequence[object]]] = [
        (out := root / "data", makers.importing(things.precomp, out), ["data", "check", out]),
        (
            out := root / "bundle",
            ["export", "--workdir", things.run, "--out", out],
            ["eval", "--bundle", out, "--data", things.data],
        ),
        (
            out := root / "gallery",
            ["index", "--bundle", things.bundle, "--data", things.data, "--out", out],
            makers.search(out),
        ),
    ]
    victims = [Made(Victim(out, argv), check, sound(run(*check)).out, files_of(out)) for out, argv, check in lines]
    done, failures, number = 0, Failures(), first
    while done < tries:
        kills, wrong = make_try(victims[number % len(victims)], random.Random(f"{seed}/half/{number}"))
        failures.add(f"try {number}: {wrong}" if wrong else "")
        done, number = done + kills, number + 1
    return Row(done, failures, {})
