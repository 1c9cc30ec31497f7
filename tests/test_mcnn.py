"""m-CNN against a NumPy network that runs pair by pair, the image appended to every window."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from test_export import CARD, build, draw

import xmodal_jax
from xmodal_jax import losses
from xmodal_jax.errors import UsageError
from xmodal_jax.export import run as export
from xmodal_jax.inference.bundle import PAIRS
from xmodal_jax.inference.functions import take
from xmodal_jax.models.mcnn import LEVELS, Model
from xmodal_jax.similarity.pairwise import Block, cut, pairwise
from xmodal_jax.types import Batch, Fragments, Images, Texts

START, END = 1, 2


def close(got, expected, tolerance=1e-5):
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def captions(random, words, width, count=30):
    """Token ids of captions of so many words, between <start> and <end>, padded to ``width``."""
    token = np.zeros((len(words), width), np.int32)
    for row, n in zip(token, words, strict=True):
        row[: n + 2] = [START, *random.integers(4, count, n), END]
    return token


def make(level="word", words=(5, 30, 1, 12), seed=0, width=40, **options):
    """A model, parameters without zeros, and a batch of as many images and captions as lengths are given."""
    random = np.random.default_rng(seed)
    n = len(words)
    token = captions(random, words, width)
    rows = np.arange(n)
    image = Images({"global": random.normal(size=(n, 7)).astype("f4")}, np.ones((n, 1), bool), rows)
    batch = Batch(image, Texts(token, token != 0, rows, rows, rows))
    sizes = {"word_dim": 5, "image_dim": 6, "widths": (7, 8, 9), "hidden_dim": 10, "dropout": 0.0}
    model = Model(30, level, **{**sizes, **options})
    shapes = jax.eval_shape(model.init, {"params": jax.random.key(0), "dropout": jax.random.key(0)}, batch)["params"]
    return model, jax.tree.map(lambda x: (0.4 * random.normal(size=x.shape)).astype("f4"), shapes), batch


def oracle(params, feature, words, *, level, padding):
    """The score of an image [F] and the word ids of a caption, by the paper's equations."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    image = np.maximum(feature @ p["image_encoder"]["kernel"] + p["image_encoder"]["bias"], 0)
    x = np.zeros((30, p["embed"]["embedding"].shape[1]))
    x[: len(words)] = p["embed"]["embedding"][words]
    layers = [p[f"layers_{i}"] for i in range(4)]
    join = LEVELS.index(level)
    layers[join]["kernel"] = np.vstack([layers[join]["kernel"], p["image_part"]["kernel"]])
    for number, layer in enumerate(layers[:3]):
        if padding == "same":
            x = np.vstack([0 * x[:1], x, 0 * x[:1]])
        out = []
        for i in range(len(x) - 2):
            window = x[i : i + 3].ravel()
            gate = float(window.any())
            whole = np.concatenate([window, image]) if number == join else window
            out.append(gate * np.maximum(whole @ layer["kernel"] + layer["bias"], 0))
        x = np.array([np.maximum(out[i], out[i + 1]) for i in range(0, len(out) - 1, 2)])
    whole = np.concatenate([x.ravel(), image]) if join == 3 else x.ravel()
    hidden = np.maximum(whole @ layers[3]["kernel"] + layers[3]["bias"], 0)
    return (hidden @ p["final"]["kernel"] + p["final"]["bias"])[0]


def expected(model, params, batch):
    score = partial(oracle, params, level=model.level, padding=model.padding)
    words = [row[(row > END)][:30] for row in batch.text.token]
    return np.array([[score(feature, ids) for ids in words] for feature in batch.image.feature["global"]])


def run(model, params, batch):
    return jax.jit(model.apply)({"params": params}, batch)[0]


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("level", LEVELS)
def test_equals_the_network_of_pairs(level, padding):
    model, params, batch = make(level, words=(5, 30, 1, 12, 33, 0), padding=padding)
    want = expected(model, params, batch)
    assert len(np.unique(want[:, :5].round(5))) > 0.8 * want[:, :5].size  # not a network of dead units
    close(run(model, params, batch), want)
    # Without words every window is closed, and no image tells anything, unless it joins behind them
    assert (np.ptp(want[:, 5]) > 1e-3) == (level == "sentence")


@pytest.mark.parametrize(
    ("level", "padding"),
    [
        ("word", "valid"),
        ("word", "same"),
        ("short", "valid"),
        ("short", "same"),
        ("long", "valid"),
        ("sentence", "same"),
    ],
)
def test_blocks_of_cut_captions_and_their_gradients_equal_the_whole(level, padding):
    model, params, batch = make(level, words=(5, 1, 14, 8, 11, 3, 13), padding=padding)
    random = np.random.default_rng(3)
    dense = random.normal(size=(7, 7)).astype("f4")

    def score(variables, image, text) -> Any:
        return model.apply({"params": variables}, image, text, method="score")

    @partial(jax.jit, static_argnums=2)
    @partial(jax.grad, has_aux=True)
    def total(params, weight, blocks):
        encode = partial(model.apply, {"params": params}, train=False)
        image, text = (
            encode(x, method=f"encode_{name}")[0] for name, x in (("image", batch.image), ("text", batch.text))
        )
        if blocks:  # 14 words reach 14 windows, or 15
            scores = pairwise(score, params, image, cut(text, 15 if padding == "same" else 14), block=Block(4, 2, 3))
        else:
            scores = score(params, image, text)
        return jnp.sum(weight * scores), scores

    for weight in (dense, np.where(random.random((7, 7)) < 0.2, dense, 0)):  # through the blocks, and pair by pair
        (got, scores), (want, plain) = total(params, weight, True), total(params, weight, False)
        close(scores, plain)
        jax.tree.map(close, got, want)
        assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(want))


@pytest.mark.parametrize("level", LEVELS)
def test_neither_the_width_of_a_batch_nor_its_padding_counts(level):
    model, params, batch = make(level, words=(5, 30, 12))
    want = run(model, params, batch)
    text = batch.text
    token = np.pad(np.where(text.mask, text.token, 9), ((0, 0), (0, 30)), constant_values=11)
    wide = text._replace(token=token, mask=np.pad(text.mask, ((0, 0), (0, 30))))
    close(run(model, params, batch._replace(text=wide)), want, 1e-6)
    alone = jax.tree.map(lambda x: x[:1], text)._replace(token=text.token[:1, :7], mask=text.mask[:1, :7])
    close(run(model, params, Batch(batch.image, alone)), want[:, :1], 1e-6)
    assert model.inputs.most_words == 32


@pytest.mark.parametrize("level", LEVELS)
def test_dropout_acts_on_what_each_side_reads(level):
    """Through an identity an output is kept twice as large or dropped, if nothing before it has seen dropout."""
    number = LEVELS.index(level)
    model, params, batch = make(level, words=(30, 30), dropout=0.5, hidden_dim=18, widths=(5, 5, 9))
    params = {**params, "image_part": {"kernel": jnp.eye(*params["image_part"]["kernel"].shape)}}
    rows, size = params[f"layers_{number}"]["kernel"].shape
    params[f"layers_{number}"] = {"kernel": jnp.eye(rows, size), "bias": jnp.zeros(size)}
    if number:  # what comes before gives the same, whatever it reads
        params[f"layers_{number - 1}"] = jax.tree.map(
            lambda x: jnp.full(x.shape, float(x.ndim == 1)), params[f"layers_{number - 1}"]
        )
    for side in ("image", "text"):
        encode = partial(model.apply, {"params": params}, getattr(batch, side), method=f"encode_{side}")
        plain = np.asarray(jax.tree.leaves(encode(train=False)[0])[0])
        seen = np.asarray(jax.tree.leaves(encode(train=True, rngs={"dropout": jax.random.key(0)})[0])[0])
        live = plain != 0
        kept = live & (seen != 0)
        assert 0.2 < kept.sum() / live.sum() < 0.8
        np.testing.assert_allclose(seen[kept], 2 * plain[kept], rtol=1e-5)


def test_no_array_grows_with_all_pairs():
    """The largest one of scores and gradients has the pairs of a block, not those of the batch."""
    model, params, batch = make(words=(30,) * 64, widths=(8, 8, 8))
    encode = partial(model.apply, {"params": params}, train=False)
    image, _ = jax.eval_shape(partial(encode, method="encode_image"), batch.image)
    text, _ = jax.eval_shape(partial(encode, method="encode_text"), batch.text)

    def score(variables, image, text) -> Any:
        return model.apply({"params": variables}, image, text, method="score")

    def loss(params, image, text):
        scores = pairwise(score, params, image, text, block=Block(8, 4, 8))
        return losses.triplet(scores, np.eye(64, dtype=bool), margin=0.5, hardness=0.0)

    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (atom.aval.size for atom in equation.outvars)
            for inner in jaxprs_in_params(equation.params):
                yield from sizes(inner)

    def total(params, image, feature):
        return loss(params, image, Fragments(feature, np.ones(feature.shape[:2], bool)))

    largest = max(sizes(jax.make_jaxpr(jax.grad(total, (0, 1, 2)))(params, image, text.feature).jaxpr))
    assert largest <= max(32 * 12 * 3 * 8, text.feature.size) < 64 * 64 * 8


def test_bfloat16_products_float32_scores():
    model, params, batch = make("word")
    half = run(model.clone(dtype="bfloat16"), params, batch)
    assert half.dtype == jnp.float32
    difference = np.abs(half - run(model, params, batch)).max()
    assert 1e-5 < difference < 0.05


@pytest.mark.parametrize("options", [{"level": "phrase"}, {"padding": "full"}, {"positions": 21}, {"widths": (7, 8)}])
def test_what_cannot_be_built_is_refused(options):
    with pytest.raises(UsageError, match=next(iter(options))):
        make(**options)


def test_a_bundle_scores_few_pairs_at_a_time(tmp_path, monkeypatch):
    """Fragments that are not cut, too: 1,024 x 1,024 pairs of them would take all memory."""
    config, vocabulary, model, features, facts, variables = build("mcnn.py:word")
    parts = {"config": config, "model": model, "variables": variables, "facts": facts}
    export.write(tmp_path / "b", vocabulary=vocabulary, card=CARD, **parts)
    bundle = xmodal_jax.load(tmp_path / "b")
    arrays, mask, sentences = draw(features)
    embedded = bundle.embed_images(arrays, mask), bundle.embed_texts(sentences)
    images, texts = (take(side, np.arange(300) % 5) for side in embedded)
    sizes = []

    def call(name):
        def score(image, text):
            sizes.append((len(image[0]), len(text[0])))
            return np.zeros(sizes[-1])

        return score

    monkeypatch.setattr(bundle.functions, "call", call)
    assert bundle.score(images, texts).shape == (300, 300)
    assert max(b * c for b, c in sizes) <= PAIRS
