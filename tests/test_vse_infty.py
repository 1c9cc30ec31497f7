"""VSE-infinity against arrays of the original PyTorch code; what pooling, statistics and augmentation promise."""

import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import GOLDEN
from flax.traverse_util import unflatten_dict

from xmodal_jax import losses
from xmodal_jax.convert import systems
from xmodal_jax.layers.gpo import GPO, position_code, sorted_sum
from xmodal_jax.layers.image import survivors
from xmodal_jax.models.vse_infty import Model, touch_words
from xmodal_jax.training import step
from xmodal_jax.types import Batch, Images, Texts

NAMES, STATS = systems.VSE_INFTY, systems.VSE_INFTY_STATS
POOL = {
    ours.removeprefix("pool/"): theirs.removeprefix("gpool.") for ours, theirs in systems.pool("pool", "gpool").items()
}


def tree(arrays, prefix, names) -> Any:
    flat = {ours: jnp.asarray(arrays[prefix + theirs]) for ours, theirs in names.items()}
    return unflatten_dict({path: systems.layout(path, x) for path, x in flat.items()}, sep="/")


def check_tree(ours, arrays, prefix, names):
    def check(value, reference):
        np.testing.assert_allclose(value, reference, atol=5e-5 * max(1.0, np.abs(reference).max()))

    jax.tree.map(check, ours, tree(arrays, prefix, names))


def prefix_mask(length, width):
    return jnp.arange(width) < jnp.asarray(length)[:, None]


close = np.testing.assert_allclose


# Pooling alone


@partial(jax.jit, static_argnums=0)
def pooled(pool, variables, feature, mask) -> Any:
    return pool.apply(variables, feature, mask)


@pytest.mark.parametrize(("side", "kind"), [("image", "region"), ("text", "word")])
def test_pooling_is_the_originals(side, kind):
    arrays = np.load(GOLDEN / "gpo.npz")
    variables = {"params": tree(arrays, f"w/{side}/", POOL)}
    feature, length = arrays[f"in/{kind}"], arrays[f"in/{kind}_length"]
    width = feature.shape[1]
    table = jax.jit(lambda variables: GPO().apply(variables, 12, method="table"))(variables)
    close(position_code(12, 32), arrays[f"out/{side}_position_code"], atol=1e-5)
    close(table, arrays[f"out/{side}_weight_by_length"], atol=1e-5)
    close(table[length - 1, :width], arrays[f"out/{side}_weight"], atol=1e-5)
    close(pooled(GPO(), variables, feature, prefix_mask(length, width)), arrays[f"out/{side}_pooled"], atol=1e-5)


def test_pooling_sees_neither_padding_nor_order():
    random = np.random.default_rng(0)
    feature = random.normal(size=(5, 6, 4)).astype(np.float32)
    feature[0, 1] = feature[0, 0]  # ties in every feature
    weight = random.normal(size=(5, 6)).astype(np.float32)
    length = np.array([6, 4, 2, 1, 0])
    mask = prefix_mask(length, 6)
    expected = [weight[n, :k] @ -np.sort(-feature[n, :k], axis=0) for n, k in enumerate(length)]
    close(sorted_sum(jnp.asarray(feature), mask, jnp.asarray(weight)), expected, atol=1e-6)

    variables = jax.jit(GPO().init)(jax.random.key(0), feature, mask)
    expected = pooled(GPO(), variables, feature, mask)
    real = jnp.pad(mask, ((0, 0), (0, 3)))
    wide = jnp.where(real[..., None], jnp.pad(feature, ((0, 0), (0, 3), (0, 0))), 50.0)
    order = random.permutation(9)
    close(pooled(GPO(), variables, wide[:, order], real[:, order]), expected, atol=1e-6)
    close(pooled(GPO(), variables, feature[1:2], mask[1:2])[0], expected[1], atol=1e-6)
    close(expected[3], feature[3, 0], atol=1e-6)
    assert not np.any(expected[4])
    close(pooled(GPO(temperature=1e9), variables, feature, mask)[1], np.mean(feature[1, :4], axis=0), atol=1e-6)


# The whole model


@pytest.fixture(scope="module")
def golden():
    arrays = np.load(GOLDEN / "vse_infty_model.npz")
    options = json.loads(str(arrays["meta"]))["options"]
    model = Model(options["vocab"] - 1, 24, 20, drop_region=0.0, touch_word=0.0, compat_padding=True)
    rows = np.arange(options["B"])
    image = Images({"region": arrays["in/feature"]}, prefix_mask(arrays["in/feature_length"], 7), rows)
    text = Texts(arrays["in/token"], prefix_mask(arrays["in/length"], 11), rows, rows, rows)
    variables = {"params": tree(arrays, "w/", NAMES), "batch_stats": tree(arrays, "w/", STATS)}
    return arrays, options["margin"], model, variables, image, text


@partial(jax.jit, static_argnums=0, static_argnames="train")
def encode(model, variables, image, text, key=None, *, train=False) -> Any:
    """Embeddings of both sides and the running statistics afterwards; ``text`` may be None."""
    rngs = {} if key is None else {"dropout": key}
    run = partial(model.apply, variables, train=train, rngs=rngs, mutable=["batch_stats"])
    (v, _), after = run(image, method="encode_image")
    s = None if text is None else run(text, method="encode_text")[0][0]
    return v, s, after["batch_stats"]


def test_outputs_in_use(golden):
    arrays, _, model, variables, image, text = golden
    v, s, _ = encode(model, variables, image, text)
    close(v, arrays["out/image"], atol=1e-5)
    close(s, arrays["out/caption"], atol=1e-5)
    close(model.apply(variables, v, s, method="score"), arrays["out/score"], atol=1e-5)
    alone = Images(image.feature, prefix_mask(np.ones(8), 7), image.id)
    flat = Images({"region": image.feature["region"][:, 0]}, np.ones((8, 1), bool), image.id)
    close(encode(model, variables, flat, None)[0], encode(model, variables, alone, text)[0], atol=1e-6)


@pytest.mark.parametrize(("name", "hardness"), [("sum", 0), ("max", 1)])
def test_training_losses_gradients_and_statistics(golden, name, hardness):
    arrays, margin, model, variables, image, text = golden

    def loss(params):
        v, s, after = encode(model, {**variables, "params": params}, image, text, train=True)
        scores = model.apply(variables, v, s, method="score")
        value = losses.triplet(scores, np.eye(8, dtype=bool), margin=margin, hardness=hardness)
        return value, (v, scores, after)

    (value, (v, scores, after)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    close(v, arrays["train/image"], atol=1e-5)
    close(scores, arrays["train/score"], atol=1e-5)
    expected = float(arrays[f"train/loss_{name}"])
    assert abs(float(value) - expected) <= 2e-5 * max(1.0, expected)
    check_tree(grads, arrays, f"train/grad_{name}/", NAMES)
    check_tree(after, arrays, "train/after/", STATS)


@pytest.mark.parametrize("compat", [False, True])
def test_statistics_count_padding_only_on_demand(golden, compat):
    _, _, model, variables, image, _ = golden
    model = model.clone(compat_padding=compat)
    v, _, expected = encode(model, variables, image, None, train=True)
    mask = jnp.pad(image.mask, ((0, 0), (0, 4)))
    wide = jnp.where(mask[..., None], jnp.pad(image.feature["region"], ((0, 0), (0, 4), (0, 0))), 7.0)
    wide, mask = jnp.concatenate([wide, wide[:2]]), jnp.concatenate([mask, mask[:1], jnp.zeros((1, 11), bool)])
    order = np.random.default_rng(3).permutation(11)
    # One more row repeats an image, as the padding of a batch does; one has no regions.
    padded = Images({"region": wide[:, order]}, mask[:, order], np.append(image.id, [-1, 8]))
    w, _, found = encode(model, variables, padded, None, train=True)
    jax.tree.map(partial(close, atol=1e-5), (w[:8], found), (v, expected))
    linear = variables["params"]["image_mlp"]["hidden"]
    hidden = image.feature["region"][np.asarray(image.mask)] @ linear["kernel"] + linear["bias"]
    masked = 0.9 * variables["batch_stats"]["image_mlp"]["norm"]["mean"] + 0.1 * np.mean(hidden, axis=0)
    assert np.allclose(found["image_mlp"]["norm"]["mean"], masked, atol=1e-5) is not compat


def test_padding_and_company_change_no_embedding(golden):
    _, _, model, variables, image, text = golden
    v, s, _ = encode(model, variables, image, text)
    noise = jnp.where(image.mask[..., None], image.feature["region"], jnp.nan)
    token, mask = np.pad(text.token[2:3], ((0, 0), (0, 5)), constant_values=9), np.pad(text.mask[2:3], ((0, 0), (0, 5)))
    alone = Images({"region": noise[2:3]}, image.mask[2:3], image.id[2:3]), text._replace(token=token, mask=mask)
    w, t, _ = encode(model, variables, *alone)
    close(w[0], v[2], atol=1e-6)
    close(t[0], s[2], atol=1e-6)


def test_steps_carry_the_statistics_and_survive_empty_items(golden):
    _, _, model, _, image, text = golden
    model = model.clone(drop_region=0.2, touch_word=0.2, dtype="bfloat16")
    some = Batch(image._replace(mask=image.mask.at[0].set(False)), text._replace(mask=text.mask.at[1].set(False)))
    none = Batch(image._replace(mask=image.mask & False), text._replace(mask=text.mask & False))
    initial = step.initialise(model, some, 0)
    assert initial.params["embed"]["embedding"].shape == (model.vocabulary + 1, 20)
    assert {leaf.dtype for leaf in jax.tree.leaves(initial)} == {jnp.dtype("float32")}
    objective = step.Objective(losses.triplet, {"margin": 0.2, "hardness": 1.0}, {"rank": 1.0})
    optimiser = optax.adamw(1e-3, weight_decay=0.01)
    train = jax.jit(partial(step.train_step, model=model, objective=objective, optimiser=optimiser, stage_start=0))
    first, metrics = train(step.make_state(initial, optimiser, 0, 0.0), some)
    assert metrics["finite"]
    assert np.all(first.model_state["batch_stats"]["image_mlp"]["norm"]["mean"] != 0)
    second, metrics = train(first, none)
    assert metrics["finite"]
    assert float(metrics["rank"]) == pytest.approx(2 * 8 * 0.2)
    jax.tree.map(np.testing.assert_array_equal, second.model_state, first.model_state)


# Size augmentation


def test_augmentation_is_for_training_alone(golden):
    _, _, model, variables, image, text = golden
    other = model.clone(drop_region=0.2, touch_word=0.2)
    used = encode(other, variables, image, text)
    jax.tree.map(partial(close, atol=1e-6), used, encode(model, variables, image, text))
    first, second = (encode(other, variables, image, text, jax.random.key(k), train=True) for k in (0, 1))
    assert not np.allclose(first[0], second[0], atol=1e-3)
    assert not np.allclose(first[1], second[1], atol=1e-3)


def test_regions_are_dropped_but_never_all():
    mask = prefix_mask(np.arange(2000) % 9, 8)
    draw = jax.random.uniform(jax.random.key(0), mask.shape)
    kept = survivors(draw, mask, 0.2)
    assert not np.any(kept & ~mask)
    assert np.mean(kept[8::9]) == pytest.approx(0.8, abs=0.03)
    assert np.array_equal(np.sum(survivors(draw, mask, 1.0), axis=1), np.minimum(np.arange(2000) % 9, 1))


@pytest.mark.parametrize("ends", [True, False])
def test_words_are_masked_replaced_and_deleted(ends):
    token = jnp.tile(jnp.array([1, *range(3, 20), 2, 0]), (4000, 1))
    mask = prefix_mask(np.full(4000, 19), 20)
    touch = jax.jit(partial(touch_words, rate=0.2, ends=ends, vocabulary=10**6))
    found, real = (np.asarray(x) for x in touch(jax.random.key(0), token, mask))
    assert np.all(real[:, :-1] >= real[:, 1:])
    words, old = 4000 * (19 if ends else 17), real & (found < 20)
    assert (4000 * 19 - np.sum(real)) / words == pytest.approx(0.2 * 0.4, abs=0.006)
    assert np.sum(real & (found == 10**6)) / words == pytest.approx(0.2 * 0.5, abs=0.006)
    assert np.sum(real & (found < 10**6) & ~old) / words == pytest.approx(0.2 * 0.1, abs=0.003)
    assert bool(np.all(found[:, 0] == 1)) is not ends
    assert all(
        np.all(np.diff(row[kept]) > 0) for row, kept in zip(found[:200], old[:200] & (found[:200] > 2), strict=True)
    )
    short = touch_words(jax.random.key(1), token[:, 1:2], mask[:, :1], rate=1.0, ends=ends, vocabulary=9)
    assert np.all(short[1])
