"""Cross attention and SCAN against arrays of the original code (scores, losses, gradients, one step); corners."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import GOLDEN
from test_vse_golden import layout, lookup

from xmodal_jax import losses, similarity
from xmodal_jax.convert import systems
from xmodal_jax.models.scan import Model
from xmodal_jax.similarity.pairwise import Block, pairwise
from xmodal_jax.types import Fragments, Images, Texts

POOLS = {"LogSumExp": "lse", "Mean": "mean", "Sum": "sum", "Max": "max"}
NAMES = {tuple(ours.split("/")): theirs for ours, theirs in systems.SCAN.items()}


def options(variant):
    """`t2i/clipped_l2norm/LogSumExp/9/6` as arguments of cross_attention."""
    direction, norm, pool, smooth, *lse = variant.split("/")
    return {
        "direction": direction,
        "norm": norm,
        "pool": POOLS[pool],
        "smooth": float(smooth),
        "lse": float(lse[0]) if lse else 6.0,
    }


@pytest.fixture(params=["small", "large"])
def case(request):
    arrays = np.load(GOLDEN / f"scan_scores_{request.param}.npz")
    region, word = arrays["in/region"], arrays["in/word"]
    masks = np.ones(region.shape[:2], bool), np.arange(word.shape[1]) < arrays["in/length"][:, None]
    return arrays, region, masks[0], word, masks[1]


def test_scores_of_every_option(case):
    arrays, region, region_mask, word, word_mask = case
    variants = [name.removeprefix("score/") for name in arrays.files if name.startswith("score/")]
    assert len(variants) >= 8
    for variant in variants:
        scores = similarity.cross_attention(region, region_mask, word, word_mask, **options(variant))
        expected = arrays[f"score/{variant}"]
        np.testing.assert_allclose(scores, expected, atol=1e-5 * max(1, np.abs(expected).max()), err_msg=variant)


def check_losses_and_gradients(case, variants, compute):
    """``compute(score, image, text)`` gives the score matrix of two Fragments by a score function."""
    arrays, region, region_mask, word, word_mask = case
    b = len(region)
    margin = json.loads(str(arrays["meta"]))["options"]["margin"]
    for variant in variants:

        def score(_, image, text, variant=variant):
            return similarity.cross_attention(*image, *text, **options(variant))

        for name, hardness in (("sum", 0), ("max", 1)):

            def loss(region, word, score=score, hardness=hardness):
                scores = compute(score, Fragments(region, region_mask), Fragments(word, word_mask[:b]))
                return losses.triplet(scores, np.eye(b, dtype=bool), margin=margin, hardness=hardness)

            value, grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(region, word[:b])
            expected = float(arrays[f"loss_{name}/{variant}"])
            assert abs(float(value) - expected) <= 2e-5 * max(1.0, expected)
            for side, grad in zip(("region", "word"), grads, strict=True):
                reference = arrays[f"grad_{name}/{variant}/{side}"]
                np.testing.assert_allclose(grad, reference, atol=5e-5 * max(1.0, np.abs(reference).max()))


def test_losses_and_gradients_of_the_published_forms(case):
    variants = [name.removeprefix("loss_max/") for name in case[0].files if name.startswith("loss_max/")]
    assert len(variants) == 4
    check_losses_and_gradients(case, variants, lambda score, image, text: score({}, image, text))


@pytest.mark.parametrize("variant", ["t2i/clipped_l2norm/LogSumExp/9/6", "i2t/clipped_l2norm/Mean/4"])
def test_losses_and_gradients_block_by_block(case, variant):
    def compute(score, image, text):
        return pairwise(score, {}, image, text, block=Block(3, 2, 5))

    check_losses_and_gradients(case, [variant], compute)


@pytest.fixture(params=["t2i", "i2t"])
def model_case(request):
    arrays = np.load(GOLDEN / f"scan_model_{request.param}.npz")
    meta = json.loads(str(arrays["meta"]))["options"]
    fields = {"t2i": {"pool": "lse", "smooth": 9.0, "lse": 6.0}, "i2t": {"pool": "mean", "smooth": 4.0}}[request.param]
    model = Model(vocabulary=60, embed_dim=24, word_dim=20, direction=request.param, **fields)
    params = {}
    for path, name in NAMES.items():
        node = params
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = jnp.asarray(layout(path, arrays[f"w/{name}"]))
    feature, token = arrays["in/feature"], arrays["in/token"]
    n = len(token)
    rows = np.arange(n)
    mask = np.arange(token.shape[1]) < arrays["in/length"][:, None]
    image = Images({"region": feature}, np.ones(feature.shape[:2], bool), rows)
    return arrays, meta, model, params, image, Texts(token, mask, rows, rows, rows)


def encode(model, params, image, text):
    return (
        model.apply({"params": params}, image, train=True, method="encode_image")[0],
        model.apply({"params": params}, text, train=True, method="encode_text")[0],
    )


def model_loss(params, model, image, text, margin, hardness):
    scores = model.apply({"params": params}, *encode(model, params, image, text), method="score")
    return losses.triplet(scores, np.eye(len(scores), dtype=bool), margin=margin, hardness=hardness)


def test_the_model_gives_the_originals_representations_and_scores(model_case):
    arrays, _, model, params, image, text = model_case
    image, text = encode(model, params, image, text)
    np.testing.assert_allclose(image["region"].feature, arrays["out/region"], atol=1e-5)
    np.testing.assert_allclose(text["word"].feature, arrays["out/word"], atol=1e-5)
    scores = model.apply({"params": params}, image, text, method="score")
    np.testing.assert_allclose(scores, arrays["out/score"], atol=1e-5)


def test_the_model_gives_the_originals_losses_gradients_and_step(model_case):
    arrays, meta, model, params, image, text = model_case
    for name, hardness in (("sum", 0), ("max", 1)):
        loss = partial(model_loss, model=model, image=image, text=text, margin=meta["margin"], hardness=hardness)
        value, grads = jax.jit(jax.value_and_grad(loss))(params)
        expected = float(arrays[f"out/loss_{name}"])
        assert abs(float(value) - expected) <= 2e-5 * max(1.0, expected)
        for path, original in NAMES.items():
            reference = layout(path, arrays[f"grad_{name}/{original}"])
            np.testing.assert_allclose(lookup(grads, path), reference, atol=5e-5 * max(1.0, np.abs(reference).max()))
        norm = float(arrays[f"out/grad_norm_{name}"])
        assert abs(float(optax.global_norm(grads)) - norm) <= 5e-5 * max(1.0, norm)
    assert meta["max_violation"]  # the last gradients are those of the step
    clip = optax.clip_by_global_norm(meta["grad_clip"])
    clipped, _ = clip.update(grads, clip.init(params))
    optimiser = optax.chain(clip, optax.adam(meta["learning_rate"]))
    updates, _ = optimiser.update(grads, optimiser.init(params), params)
    stepped = optax.apply_updates(params, updates)
    for path, original in NAMES.items():
        sure = np.abs(lookup(clipped, path)) > 1e-5  # elsewhere the first Adam step is the sign of rounding noise
        assert sure.any()
        reference = layout(path, arrays[f"step/{original}"])
        np.testing.assert_allclose(lookup(stepped, path)[sure], reference[sure], atol=2e-6)


def ragged(seed=0, b=4, r=5, c=6, w=7, d=8):
    random = np.random.default_rng(seed)
    region_mask = np.arange(r) < np.array([5, 1, 0, 3])[:b, None]
    word_mask = np.arange(w) < np.array([7, 1, 0, 4, 2, 5])[:c, None]
    region, word = random.normal(size=(b, r, d)).astype("f4"), random.normal(size=(c, w, d)).astype("f4")
    return region * region_mask[..., None], region_mask, word * word_mask[..., None], word_mask


KINDS = [
    *((norm, "lse") for norm in ("clipped_l2norm", "clipped_l1norm", "softmax", "no_norm")),
    *(("clipped_l2norm", pool) for pool in ("mean", "sum", "max")),
]


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
@pytest.mark.parametrize(("norm", "pool"), KINDS)
def test_corners_are_finite_and_padding_changes_nothing(direction, norm, pool):
    region, region_mask, word, word_mask = ragged()
    keep = {"direction": direction, "norm": norm, "pool": pool}

    @jax.jit
    def score(region, word):
        return similarity.cross_attention(region, region_mask, word, word_mask, **keep)

    scores = score(region, word)
    assert np.isfinite(scores).all()
    empty = scores[:, 2] if direction == "t2i" else scores[2]
    np.testing.assert_array_equal(empty, 0)  # a query without fragments
    for grad in jax.jit(jax.grad(lambda *x: score(*x).sum(), argnums=(0, 1)))(region, word):
        assert np.isfinite(grad).all()
    # Noise in the padding, and more of it
    noise = np.random.default_rng(1).normal(size=region.shape).astype("f4") * 9
    dirty = np.where(region_mask[..., None], region, noise)
    np.testing.assert_allclose(score(dirty, word), scores, atol=1e-6)
    wide = np.pad(word, ((0, 0), (0, 3), (0, 0)), constant_values=7.0), np.pad(word_mask, ((0, 0), (0, 3)))
    np.testing.assert_allclose(similarity.cross_attention(region, region_mask, *wide, **keep), scores, atol=1e-6)
    # A pair alone scores as it does among others
    alone = similarity.cross_attention(region[:1], region_mask[:1], word[3:4], word_mask[3:4], **keep)
    np.testing.assert_allclose(alone[0, 0], scores[0, 3], atol=1e-6)


def test_no_smoothing_compares_with_the_mean_region():
    region, region_mask, word, word_mask = ragged()
    scores = similarity.cross_attention(
        region[:1], region_mask[:1], word[:1], word_mask[:1], direction="t2i", smooth=0.0, pool="mean"
    )
    mean = region[0].mean(0)
    cosines = [float(w @ mean / np.linalg.norm(w) / np.linalg.norm(mean)) for w in word[0]]
    assert float(scores[0, 0]) == pytest.approx(np.mean(cosines), abs=1e-6)


def test_bfloat16_inputs_stay_within_two_hundredths():
    region, region_mask, word, word_mask = ragged(d=64)
    region, word = (np.asarray(similarity.l2_normalise(jnp.asarray(x))) for x in (region, word))
    half = [jnp.asarray(x, jnp.bfloat16) for x in (region, word)]
    for direction in ("t2i", "i2t"):
        full = similarity.cross_attention(region, region_mask, word, word_mask, direction=direction)
        rough = similarity.cross_attention(half[0], region_mask, half[1], word_mask, direction=direction)
        assert rough.dtype == jnp.float32
        np.testing.assert_allclose(rough, full, atol=0.02)


def test_an_unknown_direction_is_refused():
    with pytest.raises(ValueError, match='"t2i" or "i2t", not "both"'):
        similarity.cross_attention(*ragged(), direction="both")
