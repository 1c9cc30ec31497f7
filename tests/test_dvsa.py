"""DVSA against NumPy loops written from the paper's equations; the sum-max score at its corners."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax import losses
from xmodal_jax.models.dvsa import Model, defrag
from xmodal_jax.similarity import MATCH_POOLS, sum_max
from xmodal_jax.types import Batch, Images, Texts


def close(got, expected, tolerance=1e-5):
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * max(1.0, np.abs(expected).max()))


def mask_of(length, width):
    return np.arange(width) < np.asarray(length)[:, None]


def ragged(sign=1.0, pad=0.0):
    """Four images and five captions, not of unit vectors; ``sign`` -1 makes all inner products negative."""
    random = np.random.default_rng(0)
    region_mask, word_mask = mask_of([3, 1, 4, 2], 4), mask_of([2, 5, 1, 3, 4], 5)
    region, word = np.abs(random.normal(size=(4, 4, 6))), sign * np.abs(random.normal(size=(5, 5, 6)))
    region, word = (np.where(m[..., None], x, pad) for x, m in ((region, region_mask), (word, word_mask)))
    return region.astype("f4"), region_mask, word.astype("f4"), word_mask


@pytest.mark.parametrize("pool", MATCH_POOLS)
@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_equals_its_definition_and_padding_never_wins(direction, pool):
    score = partial(sum_max, direction=direction, pool=pool, temperature=2.0)
    pools = {"sum": np.sum, "mean": np.mean, "max": np.max, "lse": lambda best: np.log(np.sum(np.exp(best / 2.0)))}[
        pool
    ]
    for sign in (1.0, -1.0):  # below zero, zero padding would win
        region, p, word, q = ragged(sign)
        product = [[v[i] @ s[j].T for s, j in zip(word, q, strict=True)] for v, i in zip(region, p, strict=True)]
        expected = np.array([[pools(pair.max({"t2i": 0, "i2t": 1}[direction])) for pair in row] for row in product])
        close(score(region, p, word, q), expected)
        close(score(*ragged(sign, pad=99.0)), expected)
        close(score(region[1:2], p[1:2], word[2:3], q[2:3]), expected[1:2, 2:3])


@pytest.mark.parametrize("pool", MATCH_POOLS)
@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_empty_sides_score_zero_with_finite_gradients(direction, pool):
    region, region_mask, word, word_mask = ragged(pad=3.0)
    full = sum_max(region, region_mask, word, word_mask, direction=direction, pool=pool)
    region_mask[1], word_mask[3] = False, False

    def total(region, word):
        scores = sum_max(region, region_mask, word, word_mask, direction=direction, pool=pool)
        return jnp.sum(scores), scores

    with jax.debug_nans(True):  # padding captions are common: a search for NaNs must not stop at them
        gradient, scores = jax.grad(total, (0, 1), has_aux=True)(region, word)
    close(scores, np.where((np.arange(4) == 1)[:, None] | (np.arange(5) == 3), 0.0, full), 1e-6)
    for grad, mask in zip(gradient, (region_mask, word_mask), strict=True):
        assert np.isfinite(grad).all()
        assert not np.asarray(grad)[~mask].any()


def test_numbers_are_safe():
    region, region_mask, word, word_mask = ragged()
    score = partial(sum_max, pool="lse", temperature=1e-3)
    value, gradient = jax.value_and_grad(lambda v: jnp.sum(score(v, region_mask, word, word_mask)))(region)
    np.testing.assert_allclose(value, 1e3 * np.sum(sum_max(*ragged(), pool="max")), rtol=1e-3)  # beyond exp's range
    assert np.isfinite(gradient).all()
    half = [jnp.asarray(x, jnp.bfloat16) for x in (region, word)]
    wide = [jnp.asarray(x, jnp.float32) for x in half]
    close(sum_max(half[0], region_mask, half[1], word_mask), sum_max(wide[0], region_mask, wide[1], word_mask))
    with pytest.raises(ValueError, match="direction"):
        sum_max(*ragged(), direction="both")


def test_defrag_sums_what_is_positive():
    random = np.random.default_rng(1)
    _, region_mask, _, word_mask = ragged()
    region, word = random.normal(size=(4, 4, 6)).astype("f4"), random.normal(size=(5, 5, 6)).astype("f4")
    expected = [
        [np.maximum(v[p] @ s[q].T, 0).sum() for s, q in zip(word, word_mask, strict=True)]
        for v, p in zip(region, region_mask, strict=True)
    ]
    close(defrag(region, region_mask, word, word_mask), np.array(expected))


def make(seed=0, regions=(4, 2, 1), words=(5, 1, 3), **options):
    """A model, parameters without zeros, and a batch of as many images and captions as lengths are given."""
    random = np.random.default_rng(seed)
    n = len(regions)
    feature = random.normal(size=(n, 4, 7)).astype("f4")
    rows, mask = np.arange(n), mask_of(words, 6)
    text = Texts(np.where(mask, random.integers(4, 20, (n, 6)), 0), mask, rows, rows, rows)
    batch = Batch(Images({"region": feature}, mask_of(regions, 4), rows), text)
    model = Model(20, **{"embed_dim": 9, "hidden_dim": 8, "word_dim": 5, **options})
    params = jax.jit(model.init)(jax.random.key(seed), batch)["params"]
    params = jax.tree.map(lambda x: jnp.asarray(x + 0.3 * random.normal(size=x.shape), jnp.float32), params)
    return model, params, batch


def brnn(params, tokens):
    """Words [W, D] of one caption: the paper's equations, word by word."""
    p = jax.tree.map(np.asarray, params["brnn"])
    entry = [np.maximum(x @ p["input"]["kernel"] + p["input"]["bias"], 0) for x in params["embed"]["embedding"][tokens]]
    hidden = np.zeros((2, len(entry), p["forward"]["bias"].size))
    for way, (name, order) in enumerate((("forward", 1), ("backward", -1))):
        before = np.zeros(p[name]["bias"].size)
        for t in range(len(entry))[::order]:
            before = np.maximum(entry[t] + before @ p[name]["kernel"] + p[name]["bias"], 0)
            hidden[way, t] = before
    return np.maximum(hidden.sum(0) @ p["output"]["kernel"] + p["output"]["bias"], 0)


def oracle(params, batch):
    """Scores and the loss: margin 1, all negatives, sums."""
    p = params["project"]
    scores = np.zeros((len(batch.image.id), len(batch.text.id)))
    for k, (feature, real) in enumerate(zip(batch.image.feature["region"], batch.image.mask, strict=True)):
        fragments = np.vstack([feature[real].mean(0), feature[real]]) @ p["kernel"] + p["bias"]
        for j, (token, mask) in enumerate(zip(batch.text.token, batch.text.mask, strict=True)):
            scores[k, j] = (fragments @ brnn(params, token[mask]).T).max(0).sum()
    matched = np.diag(scores)
    hinge = np.maximum(scores - matched[:, None] + 1, 0) + np.maximum(scores - matched + 1, 0)
    return scores, hinge[~np.eye(len(scores), dtype=bool)].sum()


@pytest.mark.parametrize("seed", [0, 1])
def test_model_equals_the_equations(seed):
    model, params, batch = make(seed)
    scores, _ = model.apply({"params": params}, batch)
    expected, loss = oracle(params, batch)
    assert len(np.unique(expected.round(3))) == expected.size  # not a network of dead units
    close(scores, expected)
    close(losses.triplet(scores, np.eye(3, dtype=bool), margin=1.0, hardness=0), loss, 2e-5)


@pytest.mark.parametrize("options", [{}, {"whole_image": False}, {"relation": "defrag"}])
def test_model_ignores_padding_and_survives_empty_items(options):
    model, params, batch = make(regions=(4, 0, 1, 2), words=(5, 3, 0, 1), **options)

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def run(params, batch):
        scores, _ = model.apply({"params": params}, batch)
        return jnp.sum(scores), scores

    image, text = batch.image, batch.text
    feature = np.where(image.mask[..., None], image.feature["region"], 50.0)
    wide = Images(
        {"region": np.pad(feature, ((0, 0), (0, 3), (0, 0)), constant_values=-50.0)},
        np.pad(image.mask, ((0, 0), (0, 3))),
        image.id,
    )
    token = np.pad(np.where(text.mask, text.token, 11), ((0, 0), (0, 2)), constant_values=12)
    long = text._replace(token=token, mask=np.pad(text.mask, ((0, 0), (0, 2))))
    grads, scores = run(params, Batch(wide, long))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    close(scores, run(params, batch)[1])
    assert not np.asarray(scores)[1].any()
    assert not np.asarray(scores)[:, 2].any()
    alone = Batch(jax.tree.map(lambda x: x[3:], image), jax.tree.map(lambda x: x[:1], text))
    close(run(params, alone)[1], np.asarray(scores)[3:, :1])
    for method, items in (("encode_image", image), ("encode_text", text)):
        fragments, _ = model.apply({"params": params}, items, train=False, method=method)
        assert not np.asarray(fragments.feature)[~fragments.mask].any()


def test_dropout_acts_before_every_matrix_but_the_recurrent_ones():
    """Through an identity an output is kept twice as large or dropped, if nothing before it has seen dropout."""
    model, params, batch = make(embed_dim=8, dropout=0.5)
    params["brnn"]["output"] = {"kernel": jnp.eye(8), "bias": jnp.zeros(8)}
    mute = {**params, "brnn": {**params["brnn"], "input": {**params["brnn"]["input"], "kernel": jnp.zeros((5, 8))}}}
    params["project"] = {"kernel": jnp.eye(7, 8), "bias": jnp.zeros(8)}
    cases = (params, "image", True), (mute, "text", True), (params, "text", False)  # mute: W_e reads no dropout
    for weights, side, doubled in cases:
        run = partial(model.apply, {"params": weights}, getattr(batch, side), method=f"encode_{side}")
        plain = np.asarray(run(train=False)[0].feature)
        seen = np.asarray(run(train=True, rngs={"dropout": jax.random.key(0)})[0].feature)
        live = plain != 0
        kept = live & (seen != 0)
        assert 0.2 < kept.sum() / live.sum() < 0.8
        assert np.allclose(seen[kept], 2 * plain[kept], rtol=1e-5) == doubled


def test_bfloat16_products_float32_scores():
    model, params, batch = make()
    scores, _ = model.apply({"params": params}, batch)
    half, _ = model.clone(dtype="bfloat16").apply({"params": params}, batch)
    assert half.dtype == jnp.float32
    assert 1e-4 < np.abs(half - scores).max() < 0.05 * np.abs(scores).max()
