"""The service: every limit at its edge and one beyond, never a 5xx, answers of one gallery, a clean end."""

import asyncio
import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import galleries
import pytest

pytest.importorskip("fastapi", reason="the service needs the extra serve")

from PIL import Image
from starlette.testclient import TestClient

from xmodal_jax.errors import UsageError
from xmodal_jax.serve import guard, main
from xmodal_jax.serve.app import ROUTES, make_app
from xmodal_jax.serve.batcher import Batcher, Full
from xmodal_jax.serve.live import Live, open_state


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return galleries.gallery(tmp_path_factory.mktemp("serve"))


class Served:
    """The guarded application without a socket."""

    def __init__(self, path, open=open_state, **options):
        self.live, self.batcher, self.metrics = Live(path, open), Batcher(), guard.Metrics()
        self.lines = []
        app = make_app(self.live, self.batcher, self.metrics)
        guarded = guard.Guard(app, metrics=self.metrics, routes=ROUTES, log=self.lines.append, **options)
        self.client = TestClient(guarded, base_url="http://127.0.0.1:8080", raise_server_exceptions=False)

    def post(self, path="/search", **body):
        return self.client.post(path, json=body)

    def close(self):
        self.batcher.close()
        self.live.close()


@pytest.fixture(scope="module")
def served(folder):
    service = Served(folder)
    yield service
    service.close()


def png(width, height):
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()


def test_a_sentence_ranks_pictures_and_a_picture_captions(served):
    found = served.post(text="a red square", k=3).json()
    assert [set(hit) >= {"row", "id", "captions", "score", "picture"} for hit in found["hits"]] == [True] * 3
    scores = [hit["score"] for hit in found["hits"]]
    assert scores == sorted(scores, reverse=True)
    row = found["hits"][0]["row"]
    ranked = served.post(item=row, k=1000).json()["hits"]
    assert len(ranked) == 2 * galleries.COUNT
    assert sum(hit["own"] for hit in ranked) == 2
    picture = served.client.get(f"/items/{row}/picture")
    assert picture.headers["content-type"] == "image/png"
    again = served.client.post("/search/picture?k=5", content=picture.content, headers={"content-type": "image/png"})
    assert len(again.json()["hits"]) == 5
    seen = served.post("/attend", item=row, text="a red square").json()
    assert seen["words"] == ["a", "red", "square"]
    assert all(sum(word) == pytest.approx(1, abs=0.01) for word in seen["weights"])
    assert len(seen["weights"][0]) == len(seen["boxes"])


def test_a_picture_that_browsers_do_not_show_is_sent_as_png(served, tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    Image.new("RGB", (3000, 2), "red").save(path)
    monkeypatch.setattr(served.live.state.gallery, "picture", lambda row: path)
    sent = served.client.get("/items/0/picture")
    assert sent.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(sent.content)) as picture:
        assert picture.size == (1024, 1) and picture.getpixel((0, 0)) == (255, 0, 0)
    path.write_bytes(b"broken")
    refused = served.client.get("/items/0/picture")
    assert refused.status_code == 404 and str(tmp_path) not in refused.text


def test_what_the_system_cannot_do_is_said(served):
    silent = [
        (served.post("/caption", item=0), "no caption decoder"),
        (served.client.post("/caption/picture", content=png(8, 8)), "no caption decoder"),
        (served.post("/paraphrase", text="a"), "no decoder that puts sentences in other words"),
    ]
    for answer, why in silent:
        assert answer.status_code == 404
        assert why in answer.json()["detail"]
    assert served.client.get("/items/0").json()["said"] is None
    facts = served.client.get("/healthz").json()
    assert not facts["speaks_of_images"]
    assert not facts["speaks_of_sentences"]
    assert served.post("/search", item=galleries.COUNT).status_code == 404
    assert served.client.get("/items/-1").status_code == 404
    assert served.client.get("/items/0/../../etc/passwd").status_code == 404
    assert served.client.get(f"/items/{1 << 40}/picture").status_code == 404


# Limits


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"text": "a" + " a" * 999 + " ", "k": 1}, 200),
        ({"text": "a" * 2000, "k": 1}, 422),  # no word that is known
        ({"text": "a" + " a" * 1000, "k": 1}, 422),
        ({"text": "a", "k": 1000}, 200),
        ({"text": "a", "k": 1001}, 422),
        ({"text": "a", "k": 0}, 422),
        ({"text": "a", "k": 1.5}, 422),
        ({"text": "a", "k": True}, 422),
        ({"text": "  "}, 422),
        ({"text": None}, 422),
        ({"text": "a", "item": 0}, 422),
        ({"item": "0"}, 422),
        ({"item": -1}, 422),
        ({}, 422),
        ([], 422),
        ({"text": "a \u0000\u202e\U0001f984", "k": 1}, 200),
        ({"text": "\u0000\u202e\U0001f984", "k": 1}, 422),
        ({"text": "a http://127.0.0.1/", "k": 1}, 200),
        ({"text": "a ../../etc/passwd", "k": 1}, 200),
    ],
)
def test_limits_of_a_question(served, body, status):
    answer = served.client.post("/search", json=body)
    assert answer.status_code == status, answer.text
    assert status == 200 or answer.json()["detail"]


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b'{"text": "\\ud800"}', 422),
        (b'{"text": "a", "k": NaN}', 422),
        (b'{"text": "a", "k": 1e999}', 422),
        (b'{"text": "a", "k": ' + b"9" * 5000 + b"}", 400),
        (b"[" * 60_000, 400),
        (b'{"text": "\xff"}', 400),
        (b"", 422),
        (b" " * guard.JSON_BODY, 400),
        (b" " * (guard.JSON_BODY + 1), 413),
    ],
)
def test_bodies_that_are_no_questions(served, raw, status):
    answer = served.client.post("/search", content=raw, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    assert answer.json()["detail"]


def test_a_body_without_a_length_is_counted(served):
    def pieces():
        for _ in range(9):
            yield b" " * 10_000

    answer = served.client.post("/search", content=pieces(), headers={"content-type": "application/json"})
    assert answer.status_code == 413


def test_limits_of_a_picture(served):
    def give(content):
        return served.client.post("/search/picture?k=1", content=content, headers={"content-type": "image/png"})

    assert give(png(5000, 4000)).status_code == 200  # 20 million pixels
    beyond = give(png(5001, 4000))
    assert beyond.status_code == 422
    assert "pixels" in beyond.json()["detail"]
    image = png(64, 64)
    assert give(image + b"\0" * (guard.BODY - len(image))).status_code == 200
    assert give(image + b"\0" * (guard.BODY + 1 - len(image))).status_code == 413
    for broken in (b"", b"GIF89a", b"<svg/>", image[: len(image) // 2], os.urandom(1000)):
        assert give(broken).status_code == 422


def test_every_answer_carries_its_headers(served):
    for path in ("/", "/page.js", "/healthz", "/nothing", "/items/0"):
        answer = served.client.get(path)
        assert "script-src 'self'" in answer.headers["content-security-policy"]
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert len(answer.headers["x-request-id"]) == 12
    assert served.client.get("/healthz").json()["images"] == galleries.COUNT


def test_the_log_names_no_question_and_no_made_up_path(served):
    served.lines.clear()
    served.post(text="a secret wish", k=1)
    served.client.get("/a-secret-path")
    lines = [json.loads(line) for line in served.lines]
    assert [line["path"] for line in lines] == ["/search", "other"]
    assert "secret" not in "".join(served.lines)
    text = served.client.get("/metrics").text
    assert 'xmodal_requests_total{path="/search",status="200"}' in text
    assert "secret" not in text


def test_other_host_names_are_not_answered(served):
    assert served.client.get("/healthz", headers={"host": "evil.example"}).status_code == 421
    assert served.client.get("/healthz", headers={"host": "localhost:8080"}).status_code == 200


def test_elsewhere_a_token_is_needed(folder):
    service = Served(folder, token="sesame", loopback=False)
    try:
        right = {"authorization": "Bearer sesame"}
        assert service.client.get("/").status_code == service.client.get("/healthz").status_code == 200
        for headers in ({}, {"authorization": "Bearer sesam"}, {"authorization": "Basic sesame"}):
            assert service.client.get("/items/0", headers=headers).status_code == 401
        assert service.client.get("/items/0", headers=right).status_code == 200
    finally:
        service.close()
    with pytest.raises(UsageError, match="XMODAL_TOKEN"):
        main.check_address("0.0.0.0", 8080, None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match="choose another --port"):
            main.check_address("127.0.0.1", taken.getsockname()[1], None)


# The queue


def test_requests_of_a_kind_are_served_together_and_too_many_are_refused():
    gate, started, seen = threading.Event(), threading.Event(), []

    def work(items):
        started.set()
        gate.wait(10)
        seen.append(list(items))
        return [2 * item for item in items]

    async def ask():
        batcher = Batcher(most=5, batch=3)
        first = asyncio.create_task(batcher.ask("a", work, 0, 5))
        while not started.is_set():
            await asyncio.sleep(0.01)
        rest = [asyncio.create_task(batcher.ask(kind, work, i, 5)) for i, kind in enumerate("aabaa", 1)]
        await asyncio.sleep(0.05)
        with pytest.raises(Full):
            await batcher.ask("a", work, 9, 5)
        gate.set()
        answers = await asyncio.gather(first, *rest)
        batcher.close()
        with pytest.raises(Full):
            await batcher.ask("a", work, 9, 5)
        return answers

    assert asyncio.run(ask()) == [0, 2, 4, 6, 8, 10]
    assert seen == [[0], [1, 2, 4], [3], [5]]


def test_nobody_waits_longer_than_the_deadline():
    async def ask():
        batcher = Batcher()
        slow = asyncio.create_task(batcher.ask("a", lambda items: time.sleep(0.5) or items, 0, 5))
        await asyncio.sleep(0.1)
        with pytest.raises(Full):
            await batcher.ask("b", lambda items: items, 1, 0.1)
        assert await slow == 0
        batcher.close()
        return batcher.batches

    assert asyncio.run(ask()) == {1: 1}  # the one that nobody waited for was not run


def test_an_error_reaches_its_own_batch_only():
    def fail(items):
        raise ValueError("broken")

    async def ask():
        batcher = Batcher()
        with pytest.raises(ValueError, match="broken"):
            await batcher.ask("a", fail, 0, 5)
        assert await batcher.ask("b", lambda items: items, 1, 5) == 1
        batcher.close()

    asyncio.run(ask())


# Replacing a gallery


def test_a_gallery_is_swapped_whole_and_a_broken_one_is_not_taken(folder, tmp_path, capsys):
    here = tmp_path / "gallery"
    shutil.copytree(folder, here)
    other = galleries.gallery(tmp_path / "other", seed=1, count=5)
    live = Live(here)
    old = live.state
    here.rename(tmp_path / "away")
    assert not live.look()
    shutil.copytree(other, here)
    (here / "images.jsonl").write_text("{}")
    assert not live.look()
    assert live.state is old
    assert "still the old gallery" in capsys.readouterr().err
    shutil.rmtree(here)
    other.rename(here)
    assert live.look()
    assert (live.state.count, live.swaps) == (5, 1)
    assert len(old.by_text([("a", 1000)])[0]["hits"]) == galleries.COUNT  # who asked before still gets all of the old
    live.close()


# A real process


@pytest.mark.slow
def test_sigterm_finishes_what_is_in_flight(folder, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "xmodal_jax", "serve", str(folder), "--port", str(port)]
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + 200
        ready = False
        while not ready:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until
            time.sleep(0.2)
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5):
                ready = True
        answers = []

        def ask():
            body = json.dumps({"text": "a red square", "k": 5}).encode()
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/search", body, {"content-type": "application/json"}
            )
            with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=60) as answer:
                answers.append(len(json.load(answer)["hits"]))  # those that come too late are refused

        askers = [threading.Thread(target=ask) for _ in range(8)]
        for asker in askers:
            asker.start()
        while not re.search(r'"path": "/search"', log.read_text()):
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        for asker in askers:
            asker.join()
        assert process.wait(timeout=30) == 0, log.read_text()
        assert answers.count(5) >= 1
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
