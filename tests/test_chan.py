"""CHAN and its score, sum-max, against arrays of the original code; tests/test_dvsa.py has the score's corners."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN

from xmodal_jax import losses
from xmodal_jax.layers.image import survivors
from xmodal_jax.models.chan import Model, SelfAttention
from xmodal_jax.similarity import MATCH_POOLS, sum_max
from xmodal_jax.types import Images, Texts

GRU = {"input": "weight_ih", "recurrent": "weight_hh", "input_bias": "bias_ih", "recurrent_bias": "bias_hh"}
NAMES = {  # our parameter -> the original's name; matrices are transposed
    "project/kernel": "img/fc.weight",
    "project/bias": "img/fc.bias",
    "attention/norm/scale": "img/feedforward.ln.weight",
    "attention/norm/bias": "img/feedforward.ln.bias",
    "attention/query_key_value/kernel": "img/feedforward.attn.in_proj_weight",
    "attention/query_key_value/bias": "img/feedforward.attn.in_proj_bias",
    "attention/out/kernel": "img/feedforward.attn.out_proj.weight",
    "attention/out/bias": "img/feedforward.attn.out_proj.bias",
    "embed/embedding": "txt/embed.weight",
    **{f"gru/forward/{ours}": f"txt/rnn.{name}_l0" for ours, name in GRU.items()},
    **{f"gru/backward/{ours}": f"txt/rnn.{name}_l0_reverse" for ours, name in GRU.items()},
}
POOL = {"sum": "SumPooling", "mean": "MeanPooling", "max": "MaxPooling", "lse": "LSEPooling"}
CODING = {"t2i": "VHACoding", "i2t": "THACoding"}


def close(got, expected, tolerance=1e-5):
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * max(1.0, np.abs(expected).max()))


def mask_of(length, width):
    return np.arange(width) < np.asarray(length)[:, None]


@pytest.fixture(scope="module")
def golden():
    arrays = np.load(GOLDEN / "chan.npz")
    masks = mask_of(arrays["in/region_length"], 7), mask_of(arrays["in/length"], 11)
    return arrays, (arrays["in/region"], masks[0], arrays["in/word"], masks[1])


def test_hard_assignments(golden):
    """The best match of one fragment: the score of a caption of that word alone, of an image of that region alone."""
    arrays, (region, region_mask, word, word_mask) = golden
    by_word = sum_max(region, region_mask, word.reshape(-1, 1, 24), word_mask.reshape(-1, 1))
    close(np.where(word_mask, by_word.reshape(6, 9, 11), -1.0), arrays["coding/VHACoding"])
    by_region = sum_max(region.reshape(-1, 1, 24), region_mask.reshape(-1, 1), word, word_mask, direction="i2t")
    by_region = np.asarray(by_region).reshape(6, 7, 9).swapaxes(1, 2)
    close(np.where(region_mask[:, None], by_region, -1.0), arrays["coding/THACoding"])


@pytest.mark.parametrize("pool", MATCH_POOLS)
@pytest.mark.parametrize("direction", CODING)
def test_scores(golden, direction, pool):
    arrays, inputs = golden
    close(sum_max(*inputs, direction=direction, pool=pool), arrays[f"score/{CODING[direction]}/{POOL[pool]}"])


@pytest.mark.parametrize("hardness", [0, 1])
@pytest.mark.parametrize("pool", ["mean", "lse"])
def test_losses_and_gradients(golden, pool, hardness):
    arrays, (region, region_mask, word, word_mask) = golden

    def loss(region, word):
        scores = sum_max(region, region_mask, word, word_mask[:6], pool=pool)
        return losses.triplet(scores, np.eye(6, dtype=bool), margin=0.05, hardness=hardness)

    value, gradient = jax.value_and_grad(loss, (0, 1))(region, word[:6])
    kind, variant = ("sum", "max")[hardness], f"VHACoding/{POOL[pool]}"
    close(value, arrays[f"loss_{kind}/{variant}"], 2e-5)
    for side, grad in zip(("region", "word"), gradient, strict=True):
        close(grad, arrays[f"grad_{kind}/{variant}/{side}"], 5e-5)


def chan_infonce(scores, temperature, margin=0.0):
    """CHAN's InfoNCE, mean over items, sum of both directions: with margin 0 it is twice CLIP's."""
    matched, off = jnp.diag(scores), margin * (1 - jnp.eye(len(scores)))
    rows = jax.nn.logsumexp((scores - matched[:, None] + off) / temperature, axis=1)
    return jnp.mean(rows + jax.nn.logsumexp((scores - matched + off) / temperature, axis=0))


def test_infonce_of_the_scores(golden):
    arrays, inputs = golden
    scores = sum_max(*inputs, pool="mean")[:, :6]
    close(chan_infonce(scores, 0.05), arrays["loss_infonce/VHACoding/MeanPooling"], 2e-5)


def soft_assignment(region, words, smooth, clip):
    """SCAN's text-to-image attention of one caption [W, D], averaged: CHAN's T2ICrossAttentionPool."""
    similar = np.einsum("brd,wd->brw", region, words)
    if clip:
        similar = np.where(similar > 0, similar, 0.1 * similar)
        similar = similar / np.linalg.norm(similar, axis=2, keepdims=True)
    weight = np.exp(smooth * (similar - similar.max(1, keepdims=True)))
    attended = np.einsum("brw,brd->bwd", weight, region)
    return ((attended * words).sum(-1) / np.linalg.norm(attended, axis=-1)).mean(1)


def test_is_the_limit_of_soft_assignment(golden):
    arrays, (_, _, word, word_mask) = golden
    region = arrays["in/region_full"]
    captions = [words[mask] for words, mask in zip(word, word_mask, strict=True)]
    soft = np.stack([soft_assignment(region, words, 9.0, True) for words in captions], axis=1)
    close(soft, arrays["score/T2ICrossAttentionPool"])  # so the oracle is the original's
    soft = np.stack([soft_assignment(region, words, 1e6, False) for words in captions], axis=1)
    close(sum_max(region, np.ones((6, 7), bool), word, word_mask, pool="mean"), soft)


@pytest.fixture(scope="module")
def original():
    arrays = np.load(GOLDEN / "chan_model.npz")
    params = {}
    for path, name in NAMES.items():
        *parents, last = path.split("/")
        node = params
        for key in parents:
            node = node.setdefault(key, {})
        array = arrays[f"w/{name}"]
        node[last] = jnp.asarray(array if last == "embedding" else array.T)
    rows = np.arange(7)
    image = Images({"region": arrays["in/feature"]}, np.ones((7, 7), bool), rows)
    text = Texts(arrays["in/token"], mask_of(arrays["in/length"], 11), rows, rows, rows)
    return arrays, Model(60, 24, 20), params, image, text


def regions(model, params, image, **options):
    return model.apply({"params": params}, image, method="encode_image", **{"train": False, **options})[0]


@partial(jax.jit, static_argnums=0)
def run(model, params, image, text):
    """The loss, (region, word, scores), the gradients."""

    def loss(params):
        region = regions(model, params, image)
        word, _ = model.apply({"params": params}, text, train=False, method="encode_text")
        scores = model.apply({"params": params}, region, word, method="score")
        return losses.triplet(scores, np.eye(7, dtype=bool), margin=0.05, hardness=1), (region, word, scores)

    (value, out), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return value, out, grads


def test_model(original):
    arrays, *inputs = original
    value, (region, word, scores), grads = run(*inputs)
    close(region.feature, arrays["out/region"])
    close(word.feature, arrays["out/word"])
    close(scores, arrays["out/score"])
    close(value, arrays["out/loss_max"], 2e-5)
    grads = {jax.tree_util.keystr(k, simple=True, separator="/"): x for k, x in jax.tree.leaves_with_path(grads)}
    assert grads.keys() == NAMES.keys()
    for path, name in NAMES.items():
        close(grads[path] if path == "embed/embedding" else grads[path].T, arrays[f"grad/{name}"], 5e-5)


def test_model_ignores_padding_and_other_items(original):
    _, model, params, image, text = original
    mask, feature = mask_of([7, 3, 5, 1, 0, 2, 7], 7), image.feature["region"]
    _, (region, *_, expected), _ = run(model, params, image._replace(mask=mask), text)
    assert not np.asarray(expected)[4].any()
    wide = np.pad(np.where(mask[..., None], feature, 7.0), ((0, 0), (0, 2), (0, 0)), constant_values=-5.0)
    padded = Images({"region": wide}, np.pad(mask, ((0, 0), (0, 2))), image.id)
    token = np.pad(np.where(text.mask, text.token, 9), ((0, 0), (0, 3)), constant_values=8)
    words = text._replace(token=token, mask=np.pad(text.mask, ((0, 0), (0, 3))))
    _, (*_, scores), grads = run(model, params, padded, words)
    close(scores, expected)
    assert not np.asarray(region.feature)[~mask].any()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    alone = Images({"region": feature[1:2, :3]}, mask[1:2, :3], image.id[1:2])
    close(regions(model, params, alone).feature, region.feature[1:2, :3])


def test_dropped_regions_are_as_if_absent(original):
    _, model, params, image, _ = original
    got = regions(model, params, image, train=True, rngs={"dropout": jax.random.key(3)})
    assert 0 < (~got.mask).sum() < got.mask.size
    close(got.feature, regions(model, params, image._replace(mask=got.mask)).feature)
    mask = np.tile(mask_of([0, 1, 2, 36], 36), (500, 1))
    kept = np.asarray(survivors(jax.random.uniform(jax.random.key(0), mask.shape), jnp.asarray(mask), 0.2))
    assert not (kept & ~mask).any()
    np.testing.assert_array_equal(kept.any(1), mask.any(1))
    assert kept[mask.all(1)].mean() == pytest.approx(0.8, abs=0.02)


def test_options(original):
    arrays, _, params, image, _ = original
    bare = {name: value for name, value in params.items() if name != "attention"}
    linear = image.feature["region"] @ bare["project"]["kernel"] + bare["project"]["bias"]
    plain = regions(Model(60, 24, 20, heads=0), bare, image).feature
    close(plain, linear / np.linalg.norm(linear, axis=-1, keepdims=True))
    half = regions(Model(60, 24, 20, dtype="bfloat16"), params, image).feature
    assert half.dtype == jnp.float32
    assert 1e-4 < np.abs(half - arrays["out/region"]).max() < 0.03
    with pytest.raises(ValueError, match="7 heads"):
        SelfAttention(7).init(jax.random.key(0), jnp.zeros((1, 2, 24)), jnp.ones((1, 2), bool))
