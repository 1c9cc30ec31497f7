"""Progress of long work with rate and time left: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def clock(seconds: float) -> str:
    """``3725 -> "1:02:05"``."""
    minutes, second = divmod(int(max(seconds, 0)), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"


class Progress:
    """One task of ``total`` units (0: not known), written to stderr; use as a context manager.

    On a terminal it is a rich bar; in a log file one line every ``every`` seconds, so that logs stay short.
    """

    def __init__(
        self,
        task: str,
        total: int,
        *,
        unit: str = "it",
        start: int = 0,
        every: float = 10.0,
        quiet: bool = False,
    ):
        self.task, self.total, self.unit, self.every, self.quiet = task, total, unit, every, quiet
        self.done = self.start = start
        self.began = self.said = time.monotonic()
        self.bar = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty() and not self.quiet:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
            )
            self.bar = Bar(*columns, console=Console(stderr=True))
            self.bar.start()
            self.bar_task = self.bar.add_task(self.task, total=self.total or None, completed=self.start, note="")
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()
        elif not self.quiet and self.done > self.start:
            print(self.line(""), file=sys.stderr, flush=True)

    def line(self, note: str) -> str:
        passed = time.monotonic() - self.began
        rate = (self.done - self.start) / max(passed, 1e-9)
        text = f"{self.task}: {self.done:,}"
        text += f"/{self.total:,}" if self.total else ""
        text += f" {self.unit}, {rate:,.1f}/s, {clock(passed)} passed"
        text += f", {clock((self.total - self.done) / rate)} left" if self.total and rate > 0 else ""
        return f"{text}, {note}" if note else text

    def note(self, text: str) -> None:
        """Say something beside the bar, as a line of its own."""
        if self.quiet:
            return
        if self.bar is not None:
            self.bar.console.print(f"{self.task}: {self.done:,}/{self.total:,} {text}")
        else:
            print(self.line(text), file=sys.stderr, flush=True)

    def advance(self, by: int = 1, note: str = "") -> None:
        """Count ``by`` more units; ``note`` (loss, accuracy ...) is shown beside them."""
        self.done += by
        if self.quiet:
            return
        if self.bar is not None:
            rate = (self.done - self.start) / max(time.monotonic() - self.began, 1e-9)
            self.bar.update(self.bar_task, advance=by, note=f"{rate:,.1f} {self.unit}/s {note}")
        elif time.monotonic() - self.said >= self.every:
            self.said = time.monotonic()
            print(self.line(note), file=sys.stderr, flush=True)


def track(items: Iterable[T], task: str, total: int, *, unit: str = "it", quiet: bool = False) -> Iterator[T]:
    """Yield ``items`` while showing progress."""
    with Progress(task, total, unit=unit, quiet=quiet) as progress:
        for item in items:
            yield item
            progress.advance()
