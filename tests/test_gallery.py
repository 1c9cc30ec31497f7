"""Galleries: they hold what the bundle says, go on after a kill, and refuse damage and strange paths."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import WORDS, planted, resealed

import xmodal_jax
from xmodal_jax import cli
from xmodal_jax import config as configs
from xmodal_jax.errors import CheckpointError, NumericError, UsageError
from xmodal_jax.export import run as export
from xmodal_jax.inference import gallery as galleries
from xmodal_jax.inference import index
from xmodal_jax.inference.gallery import Gallery
from xmodal_jax.inference.stored import Stored
from xmodal_jax.text.vocabulary import SPECIAL, Vocabulary
from xmodal_jax.training.model import example_batch, make_model
from xmodal_jax.training.step import initialise
from xmodal_jax.types import Facts, Feature

CARD = export.Card("Random numbers.", "none", None, "Not measured.")


def bundle_of(spec, out, *, feature="region", seed=0, extractor=None):
    """A bundle of a system at ``tiny`` with random parameters that reads the planted data."""
    config = configs.load(f"{spec},tiny", [f"--config.model.feature={feature}"])
    vocabulary = Vocabulary([*SPECIAL, *WORDS])
    shapes = {"region": {"region": Feature((None, 8))}, "global": {"global": Feature((8,))}}[feature]
    facts = Facts(shapes, vocabulary=len(vocabulary), regions=5, words=max(config.data.lengths))
    model = make_model(config, facts)
    init = initialise(model, example_batch(model.inputs, facts), seed)
    variables = {"params": init.params, **init.model_state}
    random = np.random.default_rng(seed)
    variables = jax.tree.map(
        lambda x: x + 0.1 * random.normal(size=x.shape).astype(x.dtype) if x.dtype.kind == "f" else x, variables
    )
    parts = {"config": config, "model": model, "variables": variables, "vocabulary": vocabulary, "facts": facts}
    export.write(out, **parts, card=CARD, extractor=extractor)
    return out


def indexed(bundle, data, out, *more):
    assert cli.run(["index", "--bundle", str(bundle), "--data", str(data), "--out", str(out), *more]) == 0
    return out


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return planted(tmp_path_factory.mktemp("gallery") / "data", train=2, other=21)


@pytest.fixture(scope="session")
def vse(tmp_path_factory):
    return bundle_of("vse.py:vsepp", tmp_path_factory.mktemp("vse") / "b")


@pytest.fixture(scope="session")
def scan(tmp_path_factory):
    return bundle_of("scan.py:t2i_lse", tmp_path_factory.mktemp("scan") / "b")


@pytest.fixture(scope="session")
def stt(tmp_path_factory):
    return bundle_of("stt.py:stt", tmp_path_factory.mktemp("stt") / "b")


@pytest.fixture(scope="session")
def stt_gallery(stt, data, tmp_path_factory):
    return indexed(stt, data, tmp_path_factory.mktemp("stt_gallery") / "g")


@pytest.fixture(scope="session")
def scan_gallery(scan, data, tmp_path_factory):
    return indexed(scan, data, tmp_path_factory.mktemp("scan_gallery") / "g")


def everything(data, bundle):
    """Embeddings of the test split made in one go, its ids and its captions."""
    m = xmodal_jax.load(bundle)
    items = index.items_of(data, "test", list(m.features))
    ((features, mask, boxes),) = list(items.read(0))
    captions = [text for group in items.captions for text in group]
    return m, m.embed_images(features, mask), m.embed_texts(captions), items, captions, boxes


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_is_stored_is_what_the_bundle_says(scan, data, tmp_path, dtype, monkeypatch):
    m, images, texts, items, captions, boxes = everything(data, scan)
    monkeypatch.setattr(index, "BLOCK", 8)
    g = Gallery(indexed(scan, data, tmp_path / "g", "--dtype", dtype))
    assert (len(g.images), len(g.texts)) == (21, len(captions))
    for side, want in ((g.images, images), (g.texts, texts)):
        assert list(side.leaves) == list(want)
        for name, leaf in side.leaves.items():
            assert isinstance(leaf, Stored)
            assert leaf.dtype == (dtype if want[name].dtype == np.float32 else want[name].dtype)
            np.testing.assert_allclose(leaf, want[name], atol=2e-3 if dtype == "float16" else 2e-6)
    assert g.dot is None
    assert g.images.vectors is g.images.coarse
    np.testing.assert_allclose(np.linalg.norm(g.texts.vectors[:].astype(np.float32), axis=1), 1, atol=2e-3)
    np.testing.assert_array_equal(g.images.boxes, boxes)
    assert [line["id"] for line in g.images.lines] == items.ids
    for row, line in enumerate(g.images.lines):
        lines = [g.texts.lines[c] for c in line["captions"]]
        assert [text["caption"] for text in lines] == list(items.captions[row])
        assert {text["image"] for text in lines} == {row}
    assert g.row("test-3") == 3
    assert g.row("nobody") is None
    assert g.bundle.fingerprint == m.fingerprint
    assert "21 images" in repr(g)


def test_what_a_system_says_of_images_is_stored(stt, stt_gallery, scan_gallery, data):
    m, *_, items, _, _ = everything(data, stt)
    ((features, mask, _),) = list(items.read(0))
    want = m.caption(features, mask)
    assert len(set(want)) > 3
    g = Gallery(stt_gallery)
    assert g.decoding == {"method": "greedy", "longest": 20}
    assert [line["said"] for line in g.images.lines] == want
    assert not (stt_gallery / "said.jsonl").exists()
    silent = Gallery(scan_gallery)
    assert silent.decoding is None
    assert not any("said" in line for line in silent.images.lines)


def test_a_gallery_from_before_systems_spoke_is_read_and_not_taken_for_a_new_one(stt, stt_gallery, data, tmp_path):
    def older(manifest, lines):
        del manifest["decoding"]
        for line in lines:
            del line["said"]

    old = resealed(stt_gallery, tmp_path / "old", older)
    assert Gallery(old).decoding is None
    with pytest.raises(CheckpointError, match="made with another decoding; choose another --out or remove it"):
        index.build(old, xmodal_jax.load(stt), index.items_of(data, "test", ["region"]))


@pytest.mark.parametrize("said", [{"said": None}, {"said": 7}, {}])
def test_sentences_that_are_none_are_refused(stt_gallery, tmp_path, said):
    def break_one(_, lines):
        del lines[3]["said"]
        lines[3] |= said

    with pytest.raises(CheckpointError, match=r"images\.jsonl does not fit"):
        Gallery(resealed(stt_gallery, tmp_path / "g", break_one))


def test_pooled_is_the_mean_of_real_fragments():
    feature = np.array([[[3.0, 0], [1, 0], [0, 9]], [[0, 0], [7, 7], [7, 7]]])
    parts = {"region/feature": feature, "region/mask": np.array([[1, 1, 0], [1, 0, 0]], bool), "gram": feature}
    np.testing.assert_allclose(galleries.pooled(parts), [[1, 0], [0, 0]])
    np.testing.assert_allclose(galleries.pooled(np.array([[3.0, 4.0]])), [[0.6, 0.8]], rtol=1e-6)
    np.testing.assert_allclose(galleries.pooled({**parts, "whole": np.array([[0, 2.0]])}), [[0, 1]])
    with pytest.raises(UsageError, match="give a second bundle with --coarse"):
        galleries.pooled({"other": feature})


@pytest.mark.parametrize(
    ("spec", "dot"), [("vse.py:vsepp", (1, 0)), ("vse.py:sigmoid", ...), ("vse.py:order", None), ("dvsa.py:dvsa", None)]
)
def test_inner_products_are_found_out(spec, dot, data, tmp_path):
    g = Gallery(indexed(bundle_of(spec, tmp_path / "b"), data, tmp_path / "g"))
    m = g.bundle
    if dot is None:
        assert g.dot is None
        assert g.images.coarse is not None
        return
    assert g.images.coarse is None
    assert dot is ... or g.dot == dot
    assert g.dot is not None
    a, b = g.dot
    inner = g.images.vectors[:].astype(np.float32) @ g.texts.vectors[:].astype(np.float32).T
    np.testing.assert_allclose(a * inner + b, m.score(np.array(g.images.vectors), np.array(g.texts.vectors)), atol=1e-5)


def test_a_score_that_falls_with_the_inner_product_is_none():
    class Linear:
        def __init__(self, sign):
            self.sign = sign

        def score(self, images, texts):
            return self.sign * images @ texts.T + 3

    rising: Any = Linear(2)
    falling: Any = Linear(-2)
    random = np.random.default_rng(0)
    images, texts = random.normal(size=(6, 4)), random.normal(size=(5, 4))
    assert galleries.dot_of(rising, images, texts) == pytest.approx((2, 3))
    assert galleries.dot_of(rising, images[:1], texts) is None  # too few to tell
    assert galleries.dot_of(rising, images, texts[:, :3]) is None
    assert galleries.dot_of(falling, images, texts) is None


KILLED = """
import os, signal, sys
from xmodal_jax import cli
from xmodal_jax.inference import index
index.BLOCK, index.EVERY = 4, 0.0
left = int(sys.argv[1])
save = index.State.save

def dying(self, *args, **kwargs):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)  # the block is written, the state does not know
    save(self, *args, **kwargs)

index.State.save = dying
sys.exit(cli.run(sys.argv[2:]))
"""


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("system", ["scan", "stt"])
def test_a_killed_index_goes_on_and_ends_the_same(system, data, tmp_path, monkeypatch, capsys, request):
    monkeypatch.setattr(index, "BLOCK", 4)
    command = ["index", "--bundle", str(request.getfixturevalue(system)), "--data", str(data), "--out"]

    def killed(deaths):
        run = [sys.executable, "-c", KILLED, str(deaths), *command, str(tmp_path / "g")]
        return subprocess.run(run, capture_output=True, text=True, timeout=300, check=False).returncode

    assert cli.run([*command, str(tmp_path / "whole")]) == 0
    assert killed(4) == -signal.SIGKILL  # within the images
    state = json.loads((tmp_path / "g.partial" / "state.json").read_text())
    assert state["done"] == {"images": 3, "texts": 0}
    assert not (tmp_path / "g").exists()
    said = tmp_path / "g.partial" / "said.jsonl"
    assert not said.exists() if system == "scan" else len(said.read_text().splitlines()) == 16  # a block too many
    assert killed(6) == -signal.SIGKILL  # within the texts
    capsys.readouterr()
    assert cli.run([*command, str(tmp_path / "g")]) == 0
    assert "going on, 29 of " in capsys.readouterr().err  # 21 images and two blocks of captions
    assert files_of(tmp_path / "g") == files_of(tmp_path / "whole")
    assert not (tmp_path / "g.partial").exists()


def test_another_job_is_not_mixed_in(vse, scan, data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(index.Builder, "texts", lambda *_: pytest.fail("stop"))
    bundle, items = xmodal_jax.load(vse), index.items_of(data, "test", ["region"])
    with pytest.raises(pytest.fail.Exception):
        index.build(tmp_path / "g", bundle, items)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="begun with another bundle;"):
        index.build(tmp_path / "g", xmodal_jax.load(scan), items)
    with pytest.raises(CheckpointError, match="begun with another data, dtype;"):
        index.build(tmp_path / "g", bundle, index.items_of(data, "dev", ["region"]), dtype="float32")
    (tmp_path / "g.partial" / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"state\.json is damaged"):
        index.build(tmp_path / "g", bundle, items)
    (tmp_path / "g.partial" / "state.json").unlink()
    built = index.build(tmp_path / "g", bundle, items)
    assert index.build(tmp_path / "g", bundle, items) == built
    assert "nothing to do" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="was made with another dtype;"):
        index.build(tmp_path / "g", bundle, items, dtype="float32")
    with pytest.raises(CheckpointError, match=r"not an xmodal_jax gallery \(it has no|does not describe"):
        index.build(data, bundle, items)


def test_lost_sentences_are_not_papered_over(stt, data, tmp_path, monkeypatch):
    monkeypatch.setattr(index.Builder, "texts", lambda *_: pytest.fail("stop"))
    bundle, items = xmodal_jax.load(stt), index.items_of(data, "test", ["region"])
    with pytest.raises(pytest.fail.Exception):
        index.build(tmp_path / "g", bundle, items)
    (tmp_path / "g.partial" / "said.jsonl").write_text('"a"\n')
    with pytest.raises(CheckpointError, match=r"said\.jsonl has 1 of 21 lines; remove .*g\.partial and start anew"):
        index.build(tmp_path / "g", bundle, items)


def test_two_do_not_work_at_one_gallery(vse, data, tmp_path):
    pytest.importorskip("fcntl", reason="this system has no file locks")
    (tmp_path / "g.partial").mkdir()
    with index._lock(tmp_path / "g.partial"), pytest.raises(CheckpointError, match="Another process is at work"):
        index.build(tmp_path / "g", xmodal_jax.load(vse), index.items_of(data, "test", ["region"]))


def test_what_cannot_be_indexed(vse, data, tmp_path, capsys):
    other = bundle_of("vse.py:vsepp", tmp_path / "b", feature="global")
    start = ["index", "--data", str(data), "--out", str(tmp_path / "g")]
    assert cli.run([*start, "--bundle", str(other), "--split", "tset"]) == 3
    assert 'Did you mean "test"?' in capsys.readouterr().err
    assert cli.run([*start, "--bundle", str(data)]) == 4
    assert cli.run([*start, "--bundle", str(vse), "--coarse", str(other)]) == 2
    assert "inner products already" in capsys.readouterr().err


def test_numbers_that_float16_does_not_hold_are_named(data, vse, tmp_path, monkeypatch):
    items, m = index.items_of(data, "test", ["region"]), xmodal_jax.load(vse)
    embed, large = m.embed_images, np.where(np.arange(21) == 5, 1e6, 1)[:, None]
    monkeypatch.setattr(m, "embed_images", lambda *args, **names: embed(*args, **names) * large)
    with pytest.raises(NumericError, match=r'of image "test-5" is not finite as float16.*--dtype float32'):
        index.build(tmp_path / "g", m, items)


def test_file_names_are_safe(scan, data, tmp_path, monkeypatch):
    assert galleries.file_of("images", "region/feature") == "images/region.feature.npy"
    assert galleries.file_of("images", "../../etc/pass wd") == "images/etc.pass.wd.npy"
    monkeypatch.setattr(index.galleries, "file_of", lambda side, name: f"{side}/{name[:1]}.npy")
    with pytest.raises(CheckpointError, match="share a file name"):
        index.build(tmp_path / "g", xmodal_jax.load(scan), index.items_of(data, "test", ["region"]))


def test_images_without_captions(vse, data, tmp_path):
    items = index.items_of(data, "test", ["region"])._replace(captions=[[]] * 21)
    index.build(tmp_path / "g", xmodal_jax.load(vse), items)
    g = Gallery(tmp_path / "g")
    assert (len(g.images), len(g.texts)) == (21, 0)
    assert g.texts.vectors.shape == (0, g.images.vectors.shape[1])


def test_no_path_of_this_machine_but_the_data_is_written(scan_gallery, scan):
    text = (scan_gallery / "manifest.json").read_text()
    assert str(scan) not in text
    assert str(Path(scan_gallery)) not in text
