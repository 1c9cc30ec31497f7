"""Connections: not too many, and none that says nothing for ever.

uvicorn closes a connection that is idle after an answer, but waits without end for the first request of a new one, and
for the rest of a header.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

MOST = 512  # connections at a time; an idle one makes room for a new one
PATIENCE = 15  # seconds until a whole header has come, from the connection's start or the last answer on


class Connection(H11Protocol):
    """uvicorn's protocol with a clock that runs while no request is being answered."""

    most, patience = MOST, PATIENCE
    clock: asyncio.TimerHandle | None = None

    @property
    def waits(self) -> bool:
        """Whether no request is being answered here."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        everyone: Any = self.connections
        if len(everyone) > self.most:
            idle = [other for other in everyone if other.waits and other is not self]
            oldest = min(idle, key=lambda other: other.clock.when() if other.clock else 0.0, default=self)
            everyone.discard(oldest)
            oldest.transport.abort()
        self.wind()

    def connection_lost(self, exc: Exception | None) -> None:
        self.stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self.waits:
            self.stop()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.waits and not self.transport.is_closing():
            self.wind()

    def wind(self) -> None:
        self.stop()
        self.clock = self.loop.call_later(self.patience, self.give_up)

    def stop(self) -> None:
        if self.clock is not None:
            self.clock.cancel()
            self.clock = None

    def give_up(self) -> None:
        if self.waits:
            self.transport.abort()
