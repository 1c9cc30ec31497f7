"""Systems that take no more than so many regions or words: their bundles know it, and say it in one sentence."""

import jax
import numpy as np
import pytest
from helpers import planted
from test_convert import build
from test_export import CARD, LONG, WORDS, draw, live, sides
from test_gallery import bundle_of

import xmodal_jax
from xmodal_jax import cli
from xmodal_jax import config as configs
from xmodal_jax.errors import UsageError
from xmodal_jax.export import run as export
from xmodal_jax.models.adapt import WORDS as MOST
from xmodal_jax.text.vocabulary import Vocabulary
from xmodal_jax.training.model import example_batch, make_model
from xmodal_jax.training.step import initialise
from xmodal_jax.types import Facts, Feature


@pytest.fixture(scope="module")
def sgr(tmp_path_factory):
    return bundle_of("sgraf.py:sgr", tmp_path_factory.mktemp("sgr") / "b")


def test_more_regions_than_a_bundle_takes_are_one_sentence(sgr):
    m = xmodal_jax.load(sgr)
    assert m.manifest["most_regions"] == 36
    assert m.embed_images(np.ones((2, 36, 8), np.float32)) is not None
    with pytest.raises(UsageError, match="takes at most 36 regions an image, not 50; give the 36 best of each"):
        m.embed_images(np.ones((2, 50, 8), np.float32))
    assert "at most 36 regions" in (sgr / "README.md").read_text()


def test_padding_is_no_region(sgr):
    m = xmodal_jax.load(sgr)
    feature = np.random.default_rng(0).normal(size=(2, 50, 8)).astype(np.float32)
    mask = np.arange(50) < np.array([[36], [7]])
    got = m.score(m.embed_images(feature, mask), ["red0 dog1"])
    np.testing.assert_allclose(got, m.score(m.embed_images(feature[:, :36], mask[:, :36]), ["red0 dog1"]), atol=1e-6)
    assert m.embed_images(feature, np.zeros((2, 50), bool)) is not None
    zeros = np.where(mask[..., None], feature, 0.0)  # rows of zeros behind the last region are what padding looks like
    zeros[1, 3] = 0.0  # one between regions is a region
    np.testing.assert_array_equal(
        m.score(m.embed_images(zeros), ["red0 dog1"]), m.score(m.embed_images(zeros, mask), ["red0 dog1"])
    )


def test_index_refuses_them_first_and_leaves_nothing(sgr, tmp_path, capsys):
    data = planted(tmp_path / "data", train=2, other=3, regions=(3, 50))
    start = ["index", "--bundle", str(sgr), "--data", str(data), "--out", str(tmp_path / "g")]
    assert cli.run(start) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("xmodal: ")]
    assert "takes at most 36 regions an image, not " in line
    assert not (tmp_path / "g").exists() and not (tmp_path / "g.partial").exists()


def test_an_index_that_cannot_start_leaves_nothing(sgr, tmp_path, capsys):
    """Whatever it is that refuses: the folder is not claimed by a mistake."""
    vse = bundle_of("vse.py:vsepp", tmp_path / "vse")
    data = planted(tmp_path / "data", train=2, other=3)
    start = ["index", "--bundle", str(vse), "--data", str(data), "--out", str(tmp_path / "g")]
    assert cli.run([*start, "--coarse", str(vse)]) == 2
    assert not (tmp_path / "g.partial").exists()
    assert cli.run(start) == 0


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_adapt_with_the_original_padding_is_exported(direction, tmp_path):
    config = configs.load(f"adapt.py:{direction},scenes,tiny", ["--config.model.compat_padding=True", LONG])
    assert max(config.data.lengths) > MOST
    vocabulary = Vocabulary.build(WORDS, 1)
    features = {"region": (None, 20)}
    facts = Facts({"region": Feature((None, 20))}, {}, len(vocabulary), 0, 6, max(config.data.lengths))
    model = make_model(config, facts)
    init = initialise(model, example_batch(model.inputs, facts), 0)
    rng = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda x: x + 0.1 * rng.random(x.shape).astype(x.dtype), {"params": init.params, **init.model_state}
    )
    parts = {"config": config, "model": model, "variables": variables, "facts": facts}
    export.write(tmp_path / "b", vocabulary=vocabulary, card=CARD, **parts)
    m = xmodal_jax.load(tmp_path / "b")
    assert max(m.lengths) == (MOST if direction == "i2t" else max(config.data.lengths))
    arrays, mask, _ = draw(features)
    mask = np.ones_like(mask)  # padding of images counts too
    long = [" ".join(rng.choice(WORDS, 30)) for _ in range(3)]
    image, text = sides(model, arrays, mask, vocabulary, long)
    for width in (32, 34):  # what the bundle pads these to, and the most
        cut = text._replace(token=text.token[:, :width], mask=text.mask[:, :width])
        want = live(model, variables, image, cut)
        if width == 32:
            got = m.score(m.embed_images(arrays, mask), m.embed_texts(long))
            assert np.abs(got - want).max() <= 1e-6 * np.abs(want).max()
    over = " ".join(rng.choice(WORDS, 60))
    assert np.isfinite(m.score(m.embed_images(arrays, mask), [over])).all()


def test_a_checkpoint_of_adapt_i2t_is_converted(tmp_path):
    path = build("adapt i2t", tmp_path)
    assert cli.run(["convert", "adapt", str(path), "--out", str(tmp_path / "b")]) == 0
    m = xmodal_jax.load(tmp_path / "b")
    assert max(m.lengths) == MOST
    (feature,) = m.features
    images = m.embed_images(np.ones((2, 36, m.features[feature][-1]), np.float32))
    assert np.isfinite(m.score(images, m.embed_tokens(np.full((3, 30), 5)))).all()
