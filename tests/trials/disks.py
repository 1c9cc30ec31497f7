"""Full disks: a verb writes to a small file system and ends with one sentence; with more room it goes on."""

from __future__ import annotations

import contextlib
import random
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from trials import kills, makers
from trials.harness import Failures, Outcome, Row, forked, refused, run, sound, verb
from trials.makers import Things

PAGE = 4096
AMPLE = 64 << 20


class Disk:
    """A small tmpfs where the system lets this process mount one; elsewhere files that may not grow."""

    def __init__(self, folder: Path):
        self.folder, self.mounted, self.bytes = folder, False, AMPLE
        folder.mkdir(exist_ok=True)

    def __enter__(self) -> Disk:
        self.mounted = self._mount(f"size={AMPLE}")
        return self

    def __exit__(self, *_: object) -> None:
        if self.mounted:
            subprocess.run(["umount", "-l", self.folder], check=False)

    def _mount(self, options: str) -> bool:
        with contextlib.suppress(OSError):
            done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", self.folder], capture_output=True)
            return done.returncode == 0
        return False

    def used(self) -> int:
        """Bytes that files take, in whole pages."""
        paths = [path for path in self.folder.rglob("*") if path.is_file()]
        return sum(-(-path.stat().st_size // PAGE) * PAGE for path in paths)

    def room(self, count: int) -> None:
        """Leave this many bytes."""
        self.bytes = count
        if self.mounted:
            size = max(self.used() + count, PAGE) // PAGE * PAGE
            subprocess.run(["mount", "-o", f"remount,size={size}", self.folder], check=True)

    def verb(self, *argv: object) -> Outcome:
        def limited() -> int:
            if not self.mounted:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (self.bytes, resource.RLIM_INFINITY))
            return verb(*argv)

        return forked(limited)


class Case:
    """A verb on the disk: ``begin`` puts there what it needs, ``whole`` tells whether it has done its work."""

    def __init__(self, disk: Disk, argv: Sequence[object], begin: Callable[[], Any], whole: Callable[[], Any]):
        self.disk, self.argv, self.begin, self.whole = disk, argv, begin, whole
        clear(disk)
        begin()
        before = disk.used()
        sound(disk.verb(*argv))
        self.known = whole()
        self.needs = disk.used() - before


def clear(disk: Disk) -> None:
    disk.room(AMPLE)
    for path in disk.folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def disk_try(case: Case, kept: Callable[[], str], rng: random.Random) -> tuple[bool, str]:
    """Whether the disk was too small, and what is wrong with how the verb took it."""
    clear(case.disk)
    case.begin()
    room = rng.randrange(int(case.needs * 1.1) + PAGE)
    case.disk.room(room)
    outcome = case.disk.verb(*case.argv)
    where = f"xmodal {' '.join(map(str, case.argv[:2]))}, {room:,} of {case.needs:,} bytes free"
    if outcome.code and (wrong := refused(outcome, (3, 4)) or kept()):
        return True, f"{where}: {wrong}"
    if outcome.code and "space" not in outcome.err and "large" not in outcome.err:
        return True, f"{where}: it does not say that the disk is full: {outcome.said}"
    case.disk.room(AMPLE)
    if outcome.code and (again := case.disk.verb(*case.argv)).code:
        return True, f"{where}; with room, exit code {again.code}: {again.said}"
    return bool(outcome.code), "" if case.whole() == case.known else f"{where}: then another result"


def cases(things: Things, disk: Disk) -> Iterator[tuple[Case, Callable[[], str]]]:
    """The verbs, each with what has to be kept of what was there before."""
    folder = disk.folder
    out, own, data = folder / "out", folder / "run", folder / "data"

    def nothing() -> None:
        pass

    def steps_kept() -> str:
        return "; ".join(sound(forked(lambda: (0, kills.unsound_steps(out)))).value)

    def nothing_there() -> str:
        return "half of it stands under its name" if out.exists() and any(out.iterdir()) else ""

    def still_whole() -> str:
        check = run("data", "check", data)
        return f"the data set is damaged: {check.said}" if check.code else ""

    def finger() -> Any:
        return sound(forked(lambda: (0, makers.fingerprint(out)))).value

    def evaluated() -> Any:
        return sorted((path.name, path.read_text()) for path in (own / "eval").glob("*.json"))

    def copy_run() -> None:
        shutil.copytree(things.run, own, ignore=shutil.ignore_patterns("eval"))

    def files() -> Any:
        return kills.files_of(out)

    yield Case(disk, makers.training(things.data, out), nothing, finger), steps_kept
    yield Case(disk, makers.importing(things.precomp, out), nothing, files), nothing_there
    export = ["export", "--workdir", things.run, "--out", out]
    yield Case(disk, export, nothing, files), nothing_there
    index = ["index", "--bundle", things.bundle, "--data", things.data, "--out", out]
    yield Case(disk, index, nothing, files), nothing_there
    yield Case(disk, ["eval", "--workdir", own], copy_run, evaluated), lambda: ""
    features = ["data", "text-features", "tfidf", data]
    yield Case(disk, features, lambda: shutil.copytree(things.data, data), lambda: makers.tree(data)), still_whole


def disks(things: Things, tries: int, seed: int, first: int) -> Row:
    """Full disks while training, importing, exporting, indexing, evaluating and adding text features."""
    failures, done, number = Failures(), 0, first
    with Disk(things.root / "disk") as disk:
        every = list(cases(things, disk))
        while done < tries and number < first + 4 * tries:
            case, kept = every[number % len(every)]
            full, wrong = disk_try(case, kept, random.Random(f"{seed}/disk/{number}"))
            failures.add(f"try {number}: {wrong}" if wrong else "")
            done, number = done + (full or bool(wrong)), number + 1
        how = "tmpfs" if disk.mounted else "limit of a file's size"
    return Row(done, failures, {"disk": how})
