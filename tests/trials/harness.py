"""Tries that cost a fork and not the start of a Python: verbs run in children of a process that imported everything.

This process never touches a device itself, so that its children may: XLA's threads would not survive a fork.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from xmodal_jax import cli

SENTENCE = re.compile(r"^xmodal: ", re.MULTILINE)
PATIENCE = 180  # seconds that a child may take


class Outcome(NamedTuple):
    """How a child ended."""

    code: int  # negative: by that signal
    out: str
    err: str
    value: Any
    seconds: float

    @property
    def said(self) -> str:
        """The last line of what it said of a failure."""
        return (self.err.strip().splitlines() or ["nothing"])[-1][:300]


class Failures(list[str]):
    """What went wrong, each with the number of the try; printed at once, as a long run may be ended early."""

    def add(self, text: str) -> None:
        """Note and print a failure; nothing where ``text`` is empty."""
        if text:
            self.append(text)
            print(f"FAILED {text}", flush=True)


class Row(NamedTuple):
    """What came of one attack."""

    tries: int
    failures: Failures
    notes: dict[str, Any]


def verb(*argv: object) -> int:
    """`xmodal ...` in this process, ending as the console script does."""
    try:
        return cli.run([str(word) for word in argv])
    except SystemExit as stop:
        return int(stop.code or 0)
    except Exception:
        traceback.print_exc()
        return 1


class Child:
    """A forked child that runs ``work``, which gives an exit code or an exit code and a value."""

    def __init__(self, work: Callable[[], int | tuple[int, Any]]):
        self.folder = Path(tempfile.mkdtemp(prefix="xmodal-child-"))
        self.began = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        self.id = os.fork()
        if self.id == 0:
            self._run(work)

    def _run(self, work: Callable[[], int | tuple[int, Any]]) -> None:
        code = 1
        try:
            os.setpgid(0, 0)
            for stream, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(self.folder / name, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600), stream)
            random.seed()
            done = work()
            code, value = done if isinstance(done, tuple) else (done, None)
            (self.folder / "value").write_bytes(pickle.dumps(value))
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(BaseException):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.id, signal.SIGKILL)

    def text(self, name: str = "out") -> str:
        path = self.folder / name
        return path.read_text(errors="replace") if path.is_file() else ""

    def ended(self) -> int | None:
        """The exit code, once there is one."""
        done, status = os.waitpid(self.id, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if done else None

    def wait(self, seconds: float = PATIENCE) -> Outcome:
        """The outcome; a child that takes longer than ``seconds`` is killed and ends by signal 9."""
        until = time.monotonic() + seconds
        while (code := self.ended()) is None:
            if time.monotonic() > until:
                self.kill()
                until = float("inf")
            time.sleep(0.002)
        took = time.monotonic() - self.began
        path = self.folder / "value"
        value = pickle.loads(path.read_bytes()) if path.is_file() and code >= 0 else None
        outcome = Outcome(code, self.text(), self.text("err"), value, took)
        shutil.rmtree(self.folder)
        return outcome


def forked(work: Callable[[], int | tuple[int, Any]], *, seconds: float = PATIENCE) -> Outcome:
    """What comes of ``work`` in a child."""
    return Child(work).wait(seconds)


def run(*argv: object) -> Outcome:
    """`xmodal ...` in a child."""
    return forked(lambda: verb(*argv))


def sound(outcome: Outcome) -> Outcome:
    """The outcome, which has to be a success: otherwise there is nothing to attack."""
    if outcome.code:
        raise RuntimeError(f"exit code {outcome.code}:\n{outcome.out[-2000:]}\n{outcome.err[-4000:]}")
    return outcome


def refused(outcome: Outcome, codes: Iterable[int]) -> str:
    """Empty where a child ended with one of ``codes`` and one sentence; otherwise what is wrong with that."""
    if outcome.code not in set(codes):
        return f"exit code {outcome.code}: {outcome.said}"
    if "Traceback" in outcome.err or len(SENTENCE.findall(outcome.err)) != 1:
        return f"not one sentence: {outcome.said}"
    return ""


def imported(works: Sequence[Callable[[], int]]) -> None:
    """Import here what these works import in a child, so that later children have it."""
    for work in works:

        def listing(work: Callable[[], int] = work) -> tuple[int, list[str]]:
            return work(), list(sys.modules)

        for name in sound(forked(listing)).value:
            if name != "__main__" and name not in sys.modules:
                with contextlib.suppress(Exception):
                    importlib.import_module(name)
