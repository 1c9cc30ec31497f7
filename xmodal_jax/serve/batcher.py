"""The queue before the device: bounded, in order, requests of one kind served together."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import contextvars
import math
import threading
import time
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

UNTIL: contextvars.ContextVar[float] = contextvars.ContextVar("until", default=math.inf)  # end of a request's time
BATCH = 32  # requests of one kind that are served together


class Full(Exception):
    """The queue holds all it may: the client should come back later."""


class Job(NamedTuple):
    """One request. Those of equal ``kind`` may be served by one call."""

    kind: Hashable
    work: Callable[[list[Any]], list[Any]]  # the items of several jobs to their answers, in order
    item: Any
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    until: float  # `time.monotonic` after which nobody waits any more


class Batcher:
    """Runs jobs one batch at a time in a thread of its own.

    Args:
        most: jobs that may wait.
        batch: jobs of one kind that are served together.
    """

    def __init__(self, *, most: int = 256, batch: int = BATCH):
        self.most, self.batch = most, batch
        self._waiting: collections.deque[Job] = collections.deque()
        self._change = threading.Condition()
        self._stopping = False
        self.batches = collections.Counter[int]()  # how many of each size were run
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return len(self._waiting)

    async def ask(self, kind: Hashable, work: Callable[[list[Any]], list[Any]], item: Any, seconds: float) -> Any:
        """The answer to ``item``, once its batch is done.

        Raises:
            Full: too many wait already, or ``seconds`` passed, or what :data:`UNTIL` leaves of the request's time.
        """
        seconds = min(seconds, UNTIL.get() - time.monotonic())
        loop = asyncio.get_running_loop()
        job = Job(kind, work, item, loop.create_future(), loop, time.monotonic() + seconds)
        with self._change:
            if len(self._waiting) >= self.most or self._stopping:
                raise Full
            self._waiting.append(job)
            self._change.notify()
        try:
            return await asyncio.wait_for(job.future, seconds)
        except TimeoutError:
            raise Full from None

    @property
    def ready(self) -> bool:
        """Whether a further job would be taken."""
        return self._thread.is_alive() and not self._stopping and len(self._waiting) < self.most

    def close(self) -> None:
        """Finish what waits, then end the thread."""
        with self._change:
            self._stopping = True
            self._change.notify()
        self._thread.join()

    def _next(self) -> list[Job]:
        """The oldest job with what else of its kind waits; empty at the end."""
        with self._change:
            while not self._waiting and not self._stopping:
                self._change.wait()
            now = time.monotonic()
            alive = [job for job in self._waiting if job.until > now]
            kind = alive[0].kind if alive else None
            mine = [job for job in alive if job.kind == kind][: self.batch]
            chosen = set(map(id, mine))
            self._waiting = collections.deque(job for job in alive if id(job) not in chosen)
            return mine

    def _run(self) -> None:
        while True:
            jobs = self._next()
            if not jobs:
                with self._change:
                    if self._stopping and not self._waiting:
                        return
                continue
            try:
                answers = jobs[0].work([job.item for job in jobs])
                outcomes = [(job, answer, None) for job, answer in zip(jobs, answers, strict=True)]
            except BaseException as error:  # of the batch: each of its requests reports it
                outcomes = [(job, None, error) for job in jobs]
            self.batches[len(jobs)] += 1
            for job, answer, error in outcomes:
                with contextlib.suppress(RuntimeError):  # its loop has been closed
                    job.loop.call_soon_threadsafe(_settle, job.future, answer, error)


def _settle(future: asyncio.Future[Any], answer: Any, error: BaseException | None) -> None:
    if future.done():  # the client has gone
        return
    if error is None:
        future.set_result(answer)
    else:
        future.set_exception(error)
