"""`xmodal search`: its table, its JSON, pictures as queries, and its refusals."""

import json
import sys

import numpy as np
import pytest
from test_gallery import bundle_of, data, indexed, scan, scan_gallery, vse  # noqa: F401  (fixtures)
from test_search import scans, vse_gallery  # noqa: F401  (fixtures)

from xmodal_jax import cli
from xmodal_jax.inference import measure as measuring
from xmodal_jax.inference.gallery import Gallery
from xmodal_jax.inference.search import Hit, Searcher
from xmodal_jax.verbs import search as commands


def run(capsys, *argv):
    code = cli.run(["search", *map(str, argv)])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_table(vse_gallery, capsys):  # noqa: F811
    code, out, err = run(capsys, vse_gallery.path, "red0 unicorn", "-k", 3)
    lines = out.splitlines()
    assert code == 0
    assert len(lines) == 4
    assert lines[0].split() == ["rank", "score", "id", "caption"]
    assert lines[1].split()[0] == "1"
    assert "(+" in lines[1]
    assert err == "not in the vocabulary: unicorn\n"


def test_json_tells_all(scans, capsys):  # noqa: F811
    code, out, err = run(capsys, scans.path, "red0 unicorn", "-k", 2, "--json")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert answer["query"] == {"text": "red0 unicorn"}
    assert answer["unknown"] == ["unicorn"]
    want = Searcher(scans).by_text(["red0 unicorn"], 2)[0]
    assert [Hit(**hit) for hit in answer["hits"]] == want
    code, out, _ = run(capsys, scans.path, "--image", "test-7", "-k", 2, "--json")
    assert [Hit(**hit) for hit in json.loads(out)["hits"]] == Searcher(scans).by_image(7, 2)


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["unicorns"], 2, "No word of the query is in the vocabulary (unicorns)"),
        ([""], 2, "The query is empty"),
        (["red0 " * 500], 2, "at most 2,000 are read"),
        (["red0", "-k", "1001"], 2, "k goes from 1 to 1,000"),
        (["red0", "--image", "test-1"], 2, "Give a sentence, or --image"),
        ([], 2, "Give a sentence, or --image"),
        (["red0", "--rerank", "most"], 2, '--rerank takes a positive number or "all", not most'),
        (["--image", "nobody"], 3, '"nobody" is neither an image of'),
        (["--image", __file__], 2, "cannot make them from a picture"),
    ],
)
def test_refusals_are_one_sentence(argv, code, says, vse_gallery, capsys):  # noqa: F811
    got, out, err = run(capsys, vse_gallery.path, *argv)
    assert (got, out) == (code, "")
    assert says in err
    assert len(err.strip().splitlines()) == 1


def test_a_missing_extra_is_one_sentence(vse_gallery, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "faiss", None)
    code, _, err = run(capsys, vse_gallery.path, "red0", "--engine", "faiss")
    assert code == 2
    assert 'pip install "xmodal_jax[ann]"' in err


def test_a_picture_is_a_query(data, tmp_path, capsys):  # noqa: F811
    image = pytest.importorskip("PIL.Image", reason="pillow (extra image) is not installed")
    bundle = bundle_of("vse.py:vsepp", tmp_path / "b", extractor="scenes")
    gallery = indexed(bundle, data, tmp_path / "g")
    from xmodal_jax.inference import pixels as module

    region = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    features = {"region": region, "boxes": np.zeros((3, 4), np.float32)}
    old = module.EXTRACTORS["scenes"]
    module.EXTRACTORS["scenes"] = lambda picture: features
    try:
        image.new("RGB", (8, 8)).save(tmp_path / "p.png")
        capsys.readouterr()
        code, out, _ = run(capsys, gallery, "--image", tmp_path / "p.png", "-k", 3, "--json")
        assert code == 0
        hits = [Hit(**hit) for hit in json.loads(out)["hits"]]
        searcher = Searcher(Gallery(gallery))
        assert hits == searcher.by_image(np.asarray(image.new("RGB", (8, 8))), 3)
        padded = np.zeros((5, 8), np.float32)
        padded[:3] = region
        m = searcher.bundle
        want = m.score(m.embed_images(padded[None], [[1, 1, 1, 0, 0]]), searcher.gallery.texts.vectors)
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(want[0])[::-1][:3], atol=1e-6)
    finally:
        module.EXTRACTORS["scenes"] = old


def test_captions_cannot_command_the_terminal():
    hit = Hit(1, 0.5, 0, "a\x1b[2J", ["x\x1b]0;y\n" + "long " * 100, "z"], None)
    lines = commands.table([hit], 80)
    assert "\x1b" not in "".join(lines)
    assert "\n" not in "".join(lines)
    assert len(lines[1]) == 80
    assert lines[1].endswith("...  (+1)")


def test_measure_on_the_command_line(scans, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setattr(measuring, "TIMED", 1)
    code, out, _ = run(capsys, scans.path, "--measure")
    assert code == 0
    assert len(out.splitlines()) == 10
    assert "kept@10" in out
