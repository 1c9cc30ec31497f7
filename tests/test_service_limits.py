"""Bodies, connections and words of the service: time and memory are bounded from the first byte on."""

import asyncio
import contextlib
import io
import json
import re
import socket
import threading
import time

import galleries
import pytest

pytest.importorskip("fastapi", reason="the service needs the extra serve")

import uvicorn
from PIL import Image
from test_serve import Served

from xmodal_jax.inference.gallery import Gallery
from xmodal_jax.inference.search import Searcher
from xmodal_jax.serve import guard
from xmodal_jax.serve.batcher import UNTIL, Batcher, Full
from xmodal_jax.serve.connections import Connection
from xmodal_jax.serve.live import State


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = galleries.gallery(tmp_path_factory.mktemp("limits"))
    service = Served(folder, lambda path: State(gallery := Gallery(path), Searcher(gallery)))
    yield service
    service.close()


# Bodies


async def echo(scope, receive, send):
    """An application that answers with the length of the body."""
    message = await receive()
    assert not message["more_body"]
    body = str(len(message["body"])).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def scope_of(path="/search", **headers):
    pairs = [(name.replace("_", "-").encode(), str(value).encode()) for name, value in headers.items()]
    return {"type": "http", "path": path, "method": "POST", "headers": [(b"host", b"localhost"), *pairs]}


class Client:
    """One request, whose body comes as the test says."""

    def __init__(self, guarded, path="/search", **headers):
        self.messages, self.sent = asyncio.Queue(), []
        self.task = asyncio.create_task(guarded(scope_of(path, **headers), self.messages.get, self.keep))

    async def keep(self, message):
        self.sent.append(message)

    def give(self, body, more):
        self.messages.put_nowait({"type": "http.request", "body": body, "more_body": more})

    async def status(self):
        await asyncio.wait_for(self.task, 10)
        return self.sent[0]["status"]


def guarded(**options):
    return guard.Guard(echo, metrics=guard.Metrics(), log=None, **options)


def test_the_reading_of_a_body_counts_in_the_deadline():
    async def ask():
        app = guarded(deadline=0.3)
        slow = Client(app, content_length=100)
        slow.give(b"{", True)
        began = time.monotonic()
        status = await slow.status()
        assert 0.2 < time.monotonic() - began < 5
        assert app.reserved == app.asked == 0
        return status, json.loads(slow.sent[1]["body"])["detail"]

    assert asyncio.run(ask()) == (429, "This took more than 0.3 seconds; try again later.")


def test_what_is_left_of_the_deadline_is_the_queues():
    async def ask():
        batcher = Batcher()
        UNTIL.set(time.monotonic() + 0.1)
        began = time.monotonic()
        with pytest.raises(Full):
            await batcher.ask("a", lambda items: time.sleep(0.5) or items, 0, 100)
        assert time.monotonic() - began < 0.4
        batcher.close()

    asyncio.run(ask())


def test_bodies_in_flight_are_bounded():
    async def ask():
        app = guarded()
        room = guard.IN_FLIGHT // guard.BODY
        waiting = [Client(app, "/search/picture", content_length=guard.BODY) for _ in range(room - 1)]
        unknown = Client(app, "/search/picture", transfer_encoding="chunked")  # may have as many bytes as any
        await asyncio.sleep(0.05)
        assert app.reserved == room * guard.BODY
        refused = Client(app, "/search/picture", content_length=guard.BODY)
        assert await refused.status() == 429
        assert (b"Retry-After", b"1") in refused.sent[0]["headers"]
        assert await small(app) == 200  # questions still have room
        unknown.give(b"abc", False)
        assert await unknown.status() == 200
        late = Client(app, "/search/picture", content_length=guard.BODY)
        late.give(b"x" * guard.BODY, False)
        assert await late.status() == 200
        for client in waiting:
            client.messages.put_nowait({"type": "http.disconnect"})
            await client.task
            assert client.sent == []  # a client that leaves is no error
        assert app.reserved == app.asked == 0
        assert app.metrics.requests["other", 499] == room - 1

    async def small(app):
        client = Client(app, content_length=2)
        client.give(b"{}", False)
        return await client.status()

    asyncio.run(ask())


@pytest.mark.parametrize("size", [guard.IN_FLIGHT // 40, 1])
def test_pictures_on_their_way_do_not_shut_questions_out(size):
    async def ask():
        app = guarded(most=80)
        every = [Client(app, "/search/picture", content_length=size) for _ in range(60)]
        await asyncio.sleep(0.05)
        assert app.asked == min(40, (guard.IN_FLIGHT - guard.KEPT) // size)
        question = Client(app, content_length=guard.JSON_BODY)
        question.give(b"x" * guard.JSON_BODY, False)
        assert await question.status() == 200
        for client in every:
            client.messages.put_nowait({"type": "http.disconnect"})
            await client.task
        assert app.reserved == app.asked == 0

    asyncio.run(ask())


def test_requests_with_a_body_are_counted():
    async def ask():
        app = guarded(most=2)
        first, second = Client(app, content_length=1), Client(app, content_length=1)
        await asyncio.sleep(0.05)
        assert await Client(app, content_length=1).status() == 429
        for client in (first, second):
            client.give(b"x", False)
            assert await client.status() == 200

    asyncio.run(ask())


@pytest.mark.parametrize("length", ["-1", "1e3", "9" * 4000, "ten"])
def test_lengths_that_are_none(length):
    async def ask():
        return await Client(guarded(), content_length=length).status()

    assert asyncio.run(ask()) == 413


def test_more_than_was_announced_is_refused():
    async def ask():
        client = Client(guarded(), content_length=10)
        client.give(b"x" * guard.JSON_BODY, True)
        client.give(b"x", True)
        return await client.status()

    assert asyncio.run(ask()) == 413


# Connections


@contextlib.contextmanager
def listening(most, patience):
    """The port of a server with these limits."""
    kind = type("Small", (Connection,), {"most": most, "patience": patience})
    server = uvicorn.Server(uvicorn.Config(guarded(deadline=5), port=0, http=kind, ws="none", log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(10)


def ask(connection):
    connection.sendall(b"POST /search HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\nhi")
    return connection.recv(4096)


def ended(connection, seconds=5.0):
    connection.settimeout(seconds)
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False


def test_idle_connections_make_room():
    with listening(8, 60) as port, contextlib.ExitStack() as stack:

        def connect():
            return stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))

        working = connect()
        working.sendall(b"POST /search HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\nh")
        time.sleep(0.2)
        idle = [connect() for _ in range(30)]
        time.sleep(0.3)
        assert b"200" in ask(connect())
        assert sum(ended(connection, 0.05) for connection in idle) >= 20
        working.sendall(b"i")  # in the middle of a request: not the one to go
        assert b"200" in working.recv(4096)


def test_a_header_has_to_come_in_time():
    with listening(8, 0.4) as port, contextlib.ExitStack() as stack:
        silent, slow, kept = (
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10)) for _ in range(3)
        )
        began = time.monotonic()
        assert b"200" in ask(kept)
        with contextlib.suppress(OSError):
            for letter in b"POST /search HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 40:
                slow.sendall(bytes([letter]))
                time.sleep(0.03)
        assert ended(slow) and ended(silent)
        kept.close()
        assert time.monotonic() - began < 5


# Words and addresses


def test_host_names_have_no_case(served):
    for host in ("LOCALHOST:8080", "LocalHost", "[::1]:8080"):
        assert served.client.get("/healthz", headers={"host": host}).status_code == 200
    assert served.client.get("/healthz", headers={"host": "localhost.evil.example"}).status_code == 421


def test_ready(served):
    assert served.client.get("/readyz").json() == {"status": "ready"}
    most, served.batcher.most = served.batcher.most, 0
    assert served.client.get("/readyz").status_code == 503
    served.batcher.most = most


def test_the_docs_name_every_address_and_need_no_other_host(served):
    answer = served.client.get("/docs")
    assert answer.status_code == 200
    for path in served.client.get("/openapi.json").json()["paths"]:
        assert path in answer.text
    assert not re.search(r"<script|https?://", answer.text)


PYTHON = re.compile(r"\b(Text|Item|Pair|Asked|dict|dictionary|class|object at|Traceback|function|Error|None|_io)\b")


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/search", b"{}", '"text": it is missing.'),
        ("/search", b"[]", "The body is no JSON object of the keys that this address takes."),
        ("/search", b"7", "The body is no JSON object of the keys that this address takes."),
        ("/search", b"", "The body is no JSON object of the keys that this address takes."),
        ("/search", b"{", "The body is no JSON."),
        ("/search", b'{"item": "0"}', '"item": it is a whole number.'),
        ("/search", b'{"item": 0, "text": "a"}', '"text": there is no such key.'),
        ("/search", b'{"text": 5}', '"text": it is a string.'),
        ("/search", b'{"text": "\\ud800"}', '"text": it has half a character (a lone surrogate).'),
        ("/search", b'{"text": "a", "k": 1.5}', '"k": it is a whole number.'),
        ("/search", b'{"text": "a", "k": 1001}', '"k": it is at most 1,000.'),
        ("/search", b'{"text": "a", "k": 0}', '"k": it is at least 1.'),
        ("/attend", b'{"text": " ", "item": 0}', '"text": it has at least 1 character.'),
        ("/search/picture?k=x", b"x", '"k": it is a whole number.'),
        ("/search/picture", b"no picture", "the picture is not a readable JPEG, PNG, WEBP, GIF, BMP, TIFF picture."),
    ],
)
def test_faults_are_told_in_plain_words(served, path, body, says):
    answer = served.client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert answer.json()["detail"] == says
    assert not PYTHON.search(answer.json()["detail"].replace("no JSON object", ""))


def test_rows_that_are_no_numbers(served):
    answer = served.client.get("/items/first")
    assert (answer.status_code, answer.json()["detail"]) == (422, '"row": it is a whole number.')


def test_a_broken_picture_speaks_of_no_bytes(served):
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(file, "PNG")
    raw = file.getvalue()
    for broken in (raw[:200], raw[:60] + b"\0" * 20 + raw[80:]):
        answer = served.client.post("/search/picture", content=broken)
        assert answer.status_code == 422
        assert answer.json()["detail"] == "the picture is not a readable JPEG, PNG, WEBP, GIF, BMP, TIFF picture."


def test_an_error_of_our_own_is_one_plain_sentence(served, monkeypatch):
    monkeypatch.setattr(served.live.state, "describe", lambda row: {}[("secret", row)])
    answer = served.client.get("/items/0")
    assert answer.status_code == 500
    assert answer.json() == {"detail": "Something is wrong with this service; its log says what."}
