"""What stands before the application: sizes, tokens, hosts, headers, request ids, one log line a request.

It is plain ASGI, because a framework reads the body before it looks at limits.
"""

from __future__ import annotations

import collections
import hmac
import json
import sys
import time
import uuid
from collections.abc import Callable
from typing import Any

BODY = 10_000_000  # bytes of a request
JSON_BODY = 65_536  # of one that is not a picture; deeper nesting than this allows is stopped by the parser
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
OPEN = ("/", "/page.js", "/page.css", "/icon.svg", "/healthz")  # served without a token: they hold no data
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


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
        log: Callable[[str], None] | None = lambda line: print(line, file=sys.stderr, flush=True),
    ):
        self.app, self.metrics, self.routes, self.token = app, metrics, routes, token
        self.loopback, self.log = loopback, log

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
                headers = {name.encode(): value.encode() for name, value in {**HEADERS, "x-request-id": number}.items()}
                given = {name.lower() for name, _ in message["headers"]}
                extra = [(name, value) for name, value in headers.items() if name not in given]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        try:
            await self._guarded(scope, receive, answer)
        except _TooLarge:
            await _refuse(answer, 413, f"The body is larger than {self._limit(scope):,} bytes.")
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
        host = headers.get("host", "")
        if self.loopback and host.rsplit(":", 1)[0] not in LOOPBACK and host not in LOOPBACK:
            return await _refuse(send, 421, "This service answers to 127.0.0.1 and localhost only.")
        if self.token is not None and scope["path"] not in OPEN:
            given = headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {self.token}".encode()):
                return await _refuse(send, 401, "A token is needed: Authorization: Bearer TOKEN.", bearer=True)
        limit, length = self._limit(scope), headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > limit:
            raise _TooLarge
        seen, started = 0, False

        async def counted() -> Any:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise _TooLarge
            return message

        async def unless_too_large(message: Any) -> None:  # the framework takes the exception for a broken body
            nonlocal started
            if seen > limit and not started:
                raise _TooLarge
            started = True
            await send(message)

        return await self.app(scope, counted, unless_too_large)

    @staticmethod
    def _limit(scope: Any) -> int:
        return BODY if scope["path"] in PICTURES else JSON_BODY


class _TooLarge(Exception):
    pass


async def _refuse(send: Any, status: int, detail: str, *, bearer: bool = False) -> None:
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if bearer:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
