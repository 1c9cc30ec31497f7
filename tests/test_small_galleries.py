"""A small gallery is scored whole, so that the default costs no recall; where candidates are cut, outputs say so."""

import json

import numpy as np
import pytest
from test_gallery import data, indexed, scan, scan_gallery, vse  # noqa: F401  (fixtures)

from xmodal_jax import cli
from xmodal_jax.inference import index
from xmodal_jax.inference import search as searching
from xmodal_jax.inference.gallery import Gallery
from xmodal_jax.inference.search import Searcher


@pytest.fixture(scope="module")
def scans(scan_gallery):  # noqa: F811
    return Gallery(scan_gallery)


def test_a_small_gallery_is_scored_whole_by_default(scans, monkeypatch):
    monkeypatch.setattr(searching, "DEPTH", {"images": 2, "texts": 2})  # even where a large one would have few
    searcher = Searcher(scans)
    monkeypatch.setattr(searcher, "engine_of", lambda side: pytest.fail("a coarse search was asked"))
    assert searcher.scored(scans.images, 1) == 21
    assert searcher.scored(scans.texts, 1) == len(scans.texts)
    want = scans.bundle.score(scans.images.take(slice(None)), ["red0 dog1"])[:, 0]
    assert searcher.by_text(["red0 dog1"], 1)[0][0].row == int(np.argmax(want))
    searcher.by_image(0, 1)


def test_of_a_large_gallery_the_candidates_are_scored(scans, monkeypatch):
    monkeypatch.setattr(searching, "SMALL", 20)
    searcher = Searcher(scans)
    assert [searcher.depth(side, 3) for side in (scans.images, scans.texts)] == [100, 500]
    assert searcher.depth(scans.images, 30) == 300
    assert Searcher(scans, rerank="all").scored(scans.images, 3) == 21
    assert Searcher(scans, rerank=4).scored(scans.images, 3) == 4


def test_inner_products_rank_all(vse, data, tmp_path):  # noqa: F811
    gallery = Gallery(indexed(vse, data, tmp_path / "g"))
    assert Searcher(gallery).depth(gallery.images, 3) == 0
    assert Searcher(gallery).scored(gallery.images, 3) == 21


def test_cut_candidates_are_told(scans, capsys):
    assert cli.run(["search", str(scans.path), "red0", "-k", "2", "--rerank", "4"]) == 0
    err = capsys.readouterr().err
    assert err == (
        "scored in full: the 4 of 21 images that a coarse search puts first; --rerank all scores every one\n"
    )
    assert cli.run(["search", str(scans.path), "red0", "-k", "2", "--rerank", "4", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["scored"], answer["of"]) == (4, 21)
    assert cli.run(["search", str(scans.path), "--image", "test-1", "-k", "2"]) == 0
    assert capsys.readouterr().err == ""


def test_the_next_command_asks_for_what_the_gallery_has(vse, data, tmp_path, capsys):  # noqa: F811
    gallery = Gallery(indexed(vse, data, tmp_path / "a gallery"))
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == f"next: xmodal search '{gallery.path}' '{gallery.texts.lines[0]['caption']}'"


def test_the_next_command_fits_a_line(data):  # noqa: F811
    items = index.items_of(data, "test", ["region"])
    long, odd = "dog " * 30, "a\tdog"
    assert index.example(items._replace(captions=[[long, odd], ["a dog"]])) == "'a dog'"
    assert index.example(items._replace(captions=[[long], [odd]])) == f"--image {items.ids[0]}"
