"""A served gallery that is cut, copied in slowly or signed wrongly: the service goes on, and takes what is whole."""

import json
import os
import shutil
import threading
import time

import galleries
import pytest

pytest.importorskip("fastapi", reason="the service needs the extra serve")

from test_serve import Served

from xmodal_jax.inference.gallery import Gallery
from xmodal_jax.inference.search import Searcher
from xmodal_jax.serve import live as living
from xmodal_jax.serve.live import Live, State


def plain(path):
    """A state that was not warmed."""
    gallery = Gallery(path)
    return State(gallery, Searcher(gallery))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return galleries.gallery(tmp_path_factory.mktemp("live"))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return galleries.gallery(tmp_path_factory.mktemp("other"), seed=1, count=5)


@pytest.fixture
def live(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(living, "LOOK", 1000)  # the tests look themselves
    shutil.copytree(folder, tmp_path / "gallery")
    live = Live(tmp_path / "gallery", plain)
    yield live
    live.close()


def test_a_gallery_cut_short_in_place_is_an_answer_and_not_the_end(folder, tmp_path, capsys):
    here = tmp_path / "gallery"
    shutil.copytree(folder, here)
    service = Served(here, plain)
    try:
        assert service.post(text="a red square", k=3).status_code == 200
        for path in here.rglob("*.npy"):
            os.truncate(path, 100)
        for body in ({"text": "a red square", "k": 3}, {"item": 0, "k": 3}):
            answer = service.client.post("/search", json=body)
            assert answer.status_code == 503
            assert str(tmp_path) not in answer.text
        assert "cut short" in capsys.readouterr().err
        assert service.client.get("/healthz").status_code == 200
    finally:
        service.close()


def test_one_copied_in_slowly_is_taken_once_it_is_whole(live, other, capsys):
    here = live.path
    shutil.rmtree(here)
    here.mkdir()
    files = sorted((path for path in other.rglob("*") if path.is_file()), key=lambda path: path.name != "manifest.json")
    for path in files:  # the manifests first: it has its new name early
        assert not live.look()
        place = here / path.relative_to(other)
        place.parent.mkdir(parents=True, exist_ok=True)
        raw = path.read_bytes()
        place.write_bytes(raw[: len(raw) // 2])
        assert not live.look()
        place.write_bytes(raw)
    assert live.look()
    assert live.state.count == 5


def test_one_signed_wrongly_is_taken_when_that_is_mended(live, other, capsys):
    here = live.path
    shutil.rmtree(here)
    shutil.copytree(other, here)
    sound = (here / "manifest.json").read_text()
    (here / "manifest.json").write_text(json.dumps(json.loads(sound) | {"sha256": "0" * 64}))
    for _ in range(3):
        assert not live.look()
    assert capsys.readouterr().err.count("still the old gallery") == 1  # not once every two seconds
    (here / "manifest.json").write_text(sound)
    assert live.look()


def test_the_same_broken_gallery_is_not_read_again_and_again(live, other):
    here, opened = live.path, []
    shutil.rmtree(here)
    shutil.copytree(other, here)
    raw = bytearray((here / "images.jsonl").read_bytes())
    raw[5] ^= 1
    (here / "images.jsonl").write_bytes(raw)
    live._open = lambda path: opened.append(path) or plain(path)
    for _ in range(4):
        live.look()
    assert len(opened) == 1


@pytest.mark.parametrize("error", [KeyError("counts"), MemoryError(), RuntimeError("RESOURCE_EXHAUSTED")])
def test_no_error_ends_the_watching(folder, other, tmp_path, error, monkeypatch, capsys):
    monkeypatch.setattr(living, "LOOK", 0.01)
    here = tmp_path / "gallery"
    shutil.copytree(folder, here)
    live, tried = Live(here, plain), threading.Event()

    def fail(_):
        tried.set()
        raise error

    live._open = fail
    shutil.rmtree(here)
    shutil.copytree(other, here)
    assert tried.wait(20)
    live._open = plain
    until = time.monotonic() + 20
    while not live.swaps and time.monotonic() < until:
        os.utime(here / "images.jsonl")
        time.sleep(0.05)
    assert live.state.count == 5
    assert type(error).__name__ in capsys.readouterr().err
    live.close()


def test_a_closed_terminal_does_not_end_the_watching(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(living, "LOOK", 0.01)
    live, asked = Live(folder, plain), threading.Event()

    def fail():
        asked.set()
        raise OSError("no such terminal")

    monkeypatch.setattr(live, "look", fail)
    for _ in range(3):
        asked.clear()
        assert asked.wait(20)
    live.close()
