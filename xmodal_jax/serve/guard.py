"""What stands before the application: sizes, tokens, hosts, headers, request ids, one log line a request.

It is plain ASGI, because a framework reads the body before it looks at limits.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import hmac
import json
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any

from xmodal_jax.serve.batcher import UNTIL

BODY = 10_000_000  # bytes of a request
JSON_BODY = 65_536  # of one that is not a picture; deeper nesting than this allows is stopped by the parser
IN_FLIGHT = 64_000_000  # of the bodies of all requests together
KEPT = 4_000_000  # of these for questions: pictures on their way must not shut them out
SEND = 60  # seconds that a client may take to receive its answer
PICTURES = ("/search/picture", "/caption/picture")
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # of the latency histogram, seconds
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
# Served without a token: they hold no data.
OPEN = ("/", "/page.js", "/look.js", "/page.css", "/icon.svg", "/healthz", "/readyz", "/docs", "/openapi.json")
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
RETRY = {"Retry-After": "1"}


class Metrics:
    """Counters in the text form of Prometheus."""

    def __init__(self) -> None:
        self.requests: collections.Counter[tuple[str, int]] = collections.Counter()
        self.buckets: collections.Counter[float] = collections.Counter()
        self.seconds = 0.0

    def see(self, path: str, status: int, seconds: float) -> None:
        self.requests[path, status] += 1
        self.seconds += seconds
        self.buckets[next((edge for edge in BUCKETS if seconds <= edge), float("inf"))] += 1

    def text(self, gauges: dict[str, float]) -> str:
        lines = ["# TYPE xmodal_requests_total counter"]
        lines += [
            f'xmodal_requests_total{{path="{path}",status="{status}"}} {count}'
            for (path, status), count in sorted(self.requests.items())
        ]
        lines.append("# TYPE xmodal_request_seconds histogram")
        total = 0
        for edge in (*BUCKETS, float("inf")):
            total += self.buckets[edge]
            lines.append(f'xmodal_request_seconds_bucket{{le="{"+Inf" if edge > 1e9 else edge}"}} {total}')
        lines += [f"xmodal_request_seconds_sum {self.seconds:.6f}", f"xmodal_request_seconds_count {total}"]
        for name, value in gauges.items():
            lines += [f"# TYPE xmodal_{name} gauge", f"xmodal_{name} {value}"]
        return "\n".join(lines) + "\n"


class Guard:
    """ASGI middleware.

    Args:
        app: what is guarded.
        metrics: counts each request under its route, never under a path that a client made up.
        routes: the paths that count under their own name.
        token: what `Authorization: Bearer` must carry, None for nothing.
        loopback: only requests that name this machine are answered, so that no page of another site reaches it
            through a host name of its own (DNS rebinding).
        deadline: seconds that a request may take until its answer begins, the reading of its body included.
        most: requests with a body that may be there at a time, read, decoded, waiting or answered.
        log: where the line of each request goes, None for nowhere.
    """

    def __init__(
        self,
        app: Any,
        *,
        metrics: Metrics,
        routes: frozenset[str] = frozenset(),
        token: str | None = None,
        loopback: bool = True,
        deadline: float = 10.0,
        most: int = 288,
        log: Callable[[str], None] | None = lambda line: print(line, file=sys.stderr, flush=True),
    ):
        self.app, self.metrics, self.routes, self.token = app, metrics, routes, token
        self.loopback, self.log = loopback, log
        self.deadline, self.most = deadline, most
        self.asked = self.reserved = 0  # requests with a body, and bytes that they may have, now

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        began, number = time.perf_counter(), uuid.uuid4().hex[:12]
        sent: dict[str, int] = {}

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                sent["status"] = message["status"]
                with contextlib.suppress(RuntimeError):  # its time is over already
                    clock.reschedule(asyncio.get_running_loop().time() + SEND)
                headers = {name.encode(): value.encode() for name, value in {**HEADERS, "x-request-id": number}.items()}
                given = {name.lower() for name, _ in message["headers"]}
                extra = [(name, value) for name, value in headers.items() if name not in given]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        try:
            async with asyncio.timeout(self.deadline) as clock:
                await self._guarded(scope, receive, answer)
        except _Refused as refused:
            await _refuse(answer, *refused.args)
        except TimeoutError:
            if "status" not in sent:  # else the client was too slow to take its answer, and uvicorn closes
                await _refuse(answer, 429, f"This took more than {self.deadline:g} seconds; try again later.", RETRY)
        except _Left:
            pass
        finally:
            seconds = time.perf_counter() - began
            path = scope["path"] if scope["path"] in self.routes else "other"
            path = "/items" if scope["path"].startswith("/items/") else path
            status = sent.get("status", 499)  # the client left
            self.metrics.see(path, status, seconds)
            if self.log:
                facts = {"time": round(time.time(), 3), "id": number, "method": scope["method"], "path": path}
                self.log(json.dumps({**facts, "status": status, "ms": round(1000 * seconds, 1)}))

    async def _guarded(self, scope: Any, receive: Any, send: Any) -> None:
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "").lower()
        if self.loopback and host.rsplit(":", 1)[0] not in LOOPBACK and host not in LOOPBACK:
            raise _Refused(421, "This service answers to 127.0.0.1 and localhost only.")
        if headers.get("sec-fetch-site") == "cross-site" and scope.get("query_string"):
            raise _Refused(403, "Another site's page may not ask questions here.")
        if self.token is not None and (scope["path"] not in OPEN or scope.get("query_string")):
            given = headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {self.token}".encode()):
                raise _Refused(401, "A token is needed: Authorization: Bearer TOKEN.", {"www-authenticate": "Bearer"})
        body = self._reserve(scope, headers)
        try:
            UNTIL.set(time.monotonic() + self.deadline)
            await self.app(scope, await self._read(scope, receive), send)
        finally:
            self.asked -= body > 0
            self.reserved -= body

    def _reserve(self, scope: Any, headers: Mapping[str, str]) -> int:
        """Bytes that the body of a request may have, 0 without one; they are its own until it has been answered."""
        limit, length = self._limit(scope), headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 12 or int(length) > limit:
            raise _Refused(413, f"The body is larger than {limit:,} bytes.")
        body = limit if "transfer-encoding" in headers else int(length)
        most, room = (self.most // 2, IN_FLIGHT - KEPT) if scope["path"] in PICTURES else (self.most, IN_FLIGHT)
        if body and (self.asked >= most or self.reserved + body > room):
            raise _Refused(429, "Too many requests wait; try again in a second.", RETRY)
        self.asked += body > 0
        self.reserved += body
        return body

    async def _read(self, scope: Any, receive: Any) -> Callable[[], Awaitable[Any]]:
        """Take in the whole body, and give it to the application as one message."""
        limit, parts, more = self._limit(scope), [], True
        size = 0
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Left
            size += len(message.get("body", b""))
            if size > limit:
                raise _Refused(413, f"The body is larger than {limit:,} bytes.")
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        whole: list[Any] = [{"type": "http.request", "body": b"".join(parts), "more_body": False}]

        async def given() -> Any:
            return whole.pop() if whole else await receive()

        return given

    @staticmethod
    def _limit(scope: Any) -> int:
        return BODY if scope["path"] in PICTURES else JSON_BODY


class _Refused(Exception):
    """Status, sentence, and further headers of an answer that is given before the application is asked."""


class _Left(Exception):
    """The client has closed the connection before its request was whole."""


async def _refuse(send: Any, status: int, detail: str, more: Mapping[str, str] = MappingProxyType({})) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **more}
    coded = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": coded})
    await send({"type": "http.response.body", "body": body})
