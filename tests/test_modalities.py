"""`xmodal show --modalities`: the same picture and numbers every time, of systems of vectors alone."""

import json
import sys

import numpy as np
import pytest
from helpers import planted
from test_configs import train

from xmodal_jax import cli
from xmodal_jax.report import modalities

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modalities")
    data = planted(folder / "set", train=20, other=12)
    for spec in ("vse.py:vsepp", "scan.py:t2i_lse"):
        assert train(spec, data, folder / spec[:3], "--config.steps=2") == 0
    return folder / "vse", folder / "sca"


def show(*arguments):
    return cli.run(["show", *map(str, arguments)])


def test_the_picture_and_its_numbers_are_the_same_every_time(runs, tmp_path, capsys):
    for name in ("a", "b"):
        assert show(runs[0], "--modalities", tmp_path / f"{name}.png") == 0
    assert "linear probe" in capsys.readouterr().out
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    content, again = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("a", "b"))
    assert content == again
    assert content["images"] == [f"dev-{i}" for i in range(12)] and len(set(content["captions"])) == 12
    assert np.shape(content["image_places"]) == np.shape(content["caption_places"]) == (12, 2)
    assert show(runs[0], "--modalities", tmp_path / "c.png", "--seed=1", "--split=test") == 0
    other = json.loads((tmp_path / "c.json").read_text())
    assert (other["split"], other["seed"]) == ("test", 1) and other["captions"] != content["captions"]


def test_each_image_has_one_of_its_own_captions():
    owner = np.array([0, 0, 2, 2, 2, 3, 5])
    for seed in range(5):
        images, captions = modalities.chosen_pairs(owner, seed)
        np.testing.assert_array_equal(images, [0, 2, 3, 5])
        np.testing.assert_array_equal(owner[captions], images)
        few, captions = modalities.chosen_pairs(owner, seed, most=2)
        np.testing.assert_array_equal(owner[captions], few)
        assert len(few) == 2


def test_the_probe_tells_shifted_clouds_and_not_equal_ones():
    random = np.random.default_rng(0)
    image, text = random.normal(size=(2, 200, 4)).astype("f4")
    apart, mixed = modalities.distance(image, text + 4, 0), modalities.distance(image, text, 0)
    assert apart.probe > 0.97 and 0.4 < mixed.probe < 0.6
    np.testing.assert_allclose(apart.gap, np.linalg.norm(image.mean(0) - text.mean(0) - 4), rtol=1e-5)
    assert apart.mmd > 0.5 > 0.02 > mixed.mmd > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("scan", "--modalities", "x.png"), "gives an item more than one vector; --modalities draws"),
        (("vse", "scan", "--modalities", "x.png"), "--modalities draws one run"),
        (("vse", "--modalities", "x.txt"), "give a name that ends in .png"),
        (("vse", "--modalities", "x.png", "--split", "none"), 'no split "none"'),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(arguments, words, runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = {"vse": runs[0], "scan": runs[1]}
    assert show(*(named.get(word, word) for word in arguments)) in (2, 3)
    assert words in capsys.readouterr().err


def test_a_missing_package_is_one_sentence_at_the_start(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert show(runs[0], "--modalities", tmp_path / "x.png") == 2
    error = capsys.readouterr().err
    assert 'pip install "xmodal_jax[fisher]"' in error and "encode" not in error
