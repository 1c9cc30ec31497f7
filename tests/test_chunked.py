"""Losses in chunks against the plain ones: value, gradients, what is logged; on one device and on eight; memory."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_losses import example
from test_step import make, make_batch

from xmodal_jax import losses, similarity
from xmodal_jax.losses import Pairing, chunked
from xmodal_jax.models.vse import Model
from xmodal_jax.training import parallel
from xmodal_jax.training.step import loss_fn

LOSSES = [
    ("triplet", {"margin": 0.3, "hardness": 1}),
    ("triplet", {"margin": 0.3, "hardness": 0}),
    ("triplet", {"margin": 0.3, "hardness": jnp.float32(0.25)}),
    ("infonce", {}),
    ("sigmoid", {}),
]


def score(variables, image, text):
    return similarity.dot(image @ variables, text)


def batch(seed, b=7, c=11, d=5):
    """Several captions an image, images twice in the batch, padding on both sides."""
    random = np.random.default_rng(seed)
    image_id = np.array([3, 5, 3, 8, 9, 2, -1][:b])
    row = random.integers(0, b, c)
    text_id = np.where(np.arange(c) < c - 2, np.arange(c), -1)
    vectors = (random.normal(size=(d, d)), random.normal(size=(b, d)), random.normal(size=(c, d)))
    return [x.astype("f4") for x in vectors], Pairing(image_id, row, image_id[row], text_id)


POWERS = [("triplet", {"margin": 0.3, "hardness": hardness, "hinge_power": 2.0}) for hardness in (0, 1)]


@pytest.mark.parametrize(("size", "mask_same_image"), [(1, False), (3, True), (100, False)])
@pytest.mark.parametrize(("name", "options"), [*LOSSES, *POWERS])
def test_chunks_change_nothing(name, options, mask_same_image, size):
    vectors, pairing = batch(size)
    positive = pairing.positive()
    where = pairing.counted(mask_same_image=mask_same_image)

    def plain(variables, image, text):
        scores = score(variables, image, text)
        return getattr(losses, name)(scores, positive, where, **options), losses.violations(scores, positive, where)

    def pieces(variables, image, text):
        pairs = chunked.Pairs(partial(score, variables), image, text, pairing, size, mask_same_image)
        value = getattr(chunked, name)(pairs, **options)
        return value.loss, value[1:]

    (expected, seen), gradients = jax.value_and_grad(plain, argnums=(0, 1, 2), has_aux=True)(*vectors)
    (got, observed), others = jax.jit(jax.value_and_grad(pieces, argnums=(0, 1, 2), has_aux=True))(*vectors)
    assert float(got) == pytest.approx(float(expected), rel=1e-5)
    largest = max(np.abs(leaf).max() for leaf in gradients)
    for a, b in zip(others, gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=3e-6 * largest)
    real = np.asarray(pairing.real())
    np.testing.assert_allclose(np.asarray(observed[0])[real], np.asarray(seen[0])[real], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(observed[1], seen[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["infonce", "sigmoid"])
@pytest.mark.parametrize("seed", range(5))
def test_cross_entropies_equal_their_definition(name, seed):
    scores, positive, where = example(seed)
    total = 0.0
    for b, c in zip(*np.nonzero(positive & where), strict=True):
        matched = scores[b, c]
        row = scores[b][where[b] & ~positive[b]]
        column = scores[:, c][where[:, c] & ~positive[:, c]]
        for negatives in (row, column):
            total -= 0.5 * np.log(np.exp(matched) / (np.exp(matched) + np.exp(negatives).sum()))
    if name == "sigmoid":
        sign = np.where(positive, 1.0, -1.0)
        total = -np.sum(np.log(1 / (1 + np.exp(-sign * scores)))[where])
    assert float(getattr(losses, name)(scores, positive, where)) == pytest.approx(total, rel=1e-5)


def test_infonce_of_aligned_pairs_is_clips():
    scores = np.random.default_rng(0).normal(size=(6, 6)).astype("f4")
    label = np.arange(6)
    rows = optax.softmax_cross_entropy_with_integer_labels(scores, label)
    columns = optax.softmax_cross_entropy_with_integer_labels(scores.T, label)
    clip = float(jnp.mean(rows + columns)) / 2
    assert float(losses.infonce(scores, np.eye(6, dtype=bool))) == pytest.approx(6 * clip, rel=1e-6)


@pytest.mark.parametrize(("name", "options"), [LOSSES[0], LOSSES[1], *LOSSES[3:]])
def test_one_device_equals_eight(name, options):
    model = Model(vocabulary=30, embed_dim=8, word_dim=5, scale=5.0, bias=-1.0)
    items = make_batch(k=2)
    results = []
    for runner in (parallel.jit_runner(jax.devices()[:1]), parallel.jit_runner()):
        state, step = make(model, items, optimiser=optax.identity(), mesh=runner.mesh, chunk=8)
        objective = step.keywords["objective"]._replace(rank_loss=getattr(chunked, name), options=options)
        step = partial(step.func, **{**step.keywords, "objective": objective})
        before = jax.device_get(state.params)
        new, metrics = runner.compile(step)(runner.put_state(state), runner.put_batch(items))
        after = jax.device_get(runner.get_state(new).params)
        results.append((runner.read(metrics), jax.tree.map(np.subtract, after, before)))
    (metrics, gradient), (other_metrics, other) = results
    assert metrics["pairs"] == other_metrics["pairs"] == 28
    assert other_metrics["loss"] == pytest.approx(metrics["loss"], rel=1e-6)
    assert gradient["scaled"]["log_factor"] != 0
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6 * largest), gradient, other)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("name", ["triplet", "infonce", "sigmoid"])
def test_no_device_holds_the_matrix(name, devices):
    """XLA's plan of memory for B = 4096, D = 8: 64 MiB would be one score matrix."""
    b, runner = 4096, parallel.jit_runner(jax.devices()[:devices])
    assert runner.mesh
    sharding = jax.sharding.NamedSharding(runner.mesh, jax.sharding.PartitionSpec(parallel.AXIS))
    ids = np.arange(b, dtype=np.int32)
    options = dict(LOSSES[0][1]) if name == "triplet" else {}

    def loss(image, text):
        pairs = chunked.Pairs(similarity.dot, image, text, Pairing(ids, ids, ids, ids), 64, devices=devices)
        return getattr(chunked, name)(pairs, **options).loss

    side = jax.ShapeDtypeStruct((b, 8), jnp.float32, sharding=sharding)
    plan = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(side, side).compile().memory_analysis()
    assert plan
    assert plan.temp_size_in_bytes < 12 * 2**20 / (devices / 2 if devices > 1 else 1)


def test_the_step_logs_the_same_with_and_without_chunks():
    items = make_batch(k=2)
    model = Model(vocabulary=30, embed_dim=8, word_dim=5)
    state, step = make(model, items)
    objective = step.keywords["objective"]
    plain = loss_fn(state.params, model, objective, {}, items, jnp.int32(0), jax.random.key(0))
    objective = objective._replace(rank_loss=chunked.triplet, chunk=5)
    pieces = loss_fn(state.params, model, objective, {}, items, jnp.int32(0), jax.random.key(0))
    assert plain[1][0].keys() == pieces[1][0].keys()
    for key, value in plain[1][0].items():
        assert float(pieces[1][0][key]) == pytest.approx(float(value), rel=1e-5), key
