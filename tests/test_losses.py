"""The triplet loss against a brute-force loop, its options and its gradients."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.losses import triplet
from xmodal_jax.training.schedules import loss_options


def brute_force(scores, positive, where, margin):
    """Sum of hinges and hardest negatives, straight from the definition."""
    total = hardest = 0.0
    n_images, n_captions = scores.shape
    for b in range(n_images):
        for c in range(n_captions):
            if not (positive[b, c] and where[b, c]):
                continue
            row = [
                margin - scores[b, c] + scores[b, k] for k in range(n_captions) if where[b, k] and not positive[b, k]
            ]
            col = [margin - scores[b, c] + scores[k, c] for k in range(n_images) if where[k, c] and not positive[k, c]]
            for side in (row, col):
                total += sum(max(0.0, hinge) for hinge in side)
                hardest += max([0.0, *side])
    return total, hardest


def example(seed, n_images=5, n_captions=9, padded=2):
    random = np.random.default_rng(seed)
    scores = random.normal(size=(n_images, n_captions)).astype(np.float32)
    row = random.integers(0, n_images, n_captions)
    positive = np.arange(n_images)[:, None] == row
    where = np.ones_like(positive)
    where[:, n_captions - padded :] = False
    return scores, positive, where


@pytest.mark.parametrize("seed", range(20))
def test_equals_brute_force(seed):
    scores, positive, where = example(seed)
    total, hardest = brute_force(scores, positive, where, 0.3)
    for hardness, expected in ((0, total), (1, hardest), (0.25, 0.25 * hardest + 0.75 * total)):
        for value in (hardness, jnp.float32(hardness)):
            got = float(triplet(scores, positive, where, margin=0.3, hardness=value))
            assert got == pytest.approx(expected, rel=1e-5)


def test_equal_scores_cost_two_margins_a_pair():
    n, margin = 6, 0.2
    positive = np.eye(n, dtype=bool)
    flat = np.full((n, n), 0.7, np.float32)
    assert float(triplet(flat, positive, margin=margin, hardness=1)) == pytest.approx(2 * n * margin)
    assert float(triplet(flat, positive, margin=margin, hardness=0)) == pytest.approx(2 * n * (n - 1) * margin)


def test_joint_permutation_changes_nothing():
    scores, positive, where = example(3)
    b, c = np.random.default_rng(0).permutation(5), np.random.default_rng(1).permutation(9)
    for hardness in (0, 1):
        loss = triplet(scores, positive, where, margin=0.2, hardness=hardness)
        two = triplet(scores[b][:, c], positive[b][:, c], where[b][:, c], margin=0.2, hardness=hardness)
        assert float(loss) == pytest.approx(float(two), rel=1e-6)


@pytest.mark.parametrize("hardness", [0, 1, 0.5])
def test_padding_changes_neither_loss_nor_gradient(hardness):
    scores, positive, where = example(1, padded=0)
    wide = np.pad(scores, ((0, 3), (0, 4)), constant_values=9.0)
    grow = [np.pad(x, ((0, 3), (0, 4))) for x in (positive, where)]
    grad = jax.value_and_grad(lambda s, p, w: triplet(s, p, w, margin=0.2, hardness=hardness))
    value, gradient = grad(jnp.asarray(scores), positive, where)
    padded_value, padded_gradient = grad(jnp.asarray(wide), *grow)
    assert float(value) == pytest.approx(float(padded_value), rel=1e-6)
    np.testing.assert_allclose(padded_gradient[:5, :9], gradient, atol=1e-6)
    assert not np.asarray(padded_gradient)[5:].any()
    assert not np.asarray(padded_gradient)[:, 9:].any()


def test_hardest_negative_ties_do_not_split():
    scores = jnp.array([[0.5, 0.9, 0.9], [0.0, 0.95, 0.0], [0.0, 0.0, 0.95]])
    gradient = jax.grad(lambda s: triplet(s, jnp.eye(3, dtype=bool), margin=0.2, hardness=1))(scores)
    row = np.asarray(gradient)[0, 1:]
    assert sorted(row.tolist())[0] == pytest.approx(1.0)  # column side alone: each caption's own hinge
    assert sorted(row.tolist())[1] == pytest.approx(2.0)  # and the row's hinge on one of the two, whole


def test_finite_without_any_negative_or_pair():
    single = np.ones((1, 1), bool)
    for hardness in (0, 1, jnp.float32(0.5)):
        value, gradient = jax.value_and_grad(lambda s, h=hardness: triplet(s, single, margin=0.2, hardness=h))(
            jnp.ones((1, 1))
        )
        assert float(value) == 0.0
        assert np.isfinite(gradient).all()
    nothing = np.zeros((2, 2), bool)
    assert float(triplet(np.ones((2, 2), np.float32), nothing, nothing, margin=0.2, hardness=1)) == 0.0


def test_schedules_do_not_recompile():
    from ml_collections import ConfigDict

    loss = ConfigDict({"margin": 0.2, "hardness": 1.0, "warmup_epochs": 1.0, "anneal": 0.0})
    hardness: Any = loss_options(loss, per_epoch=10)["hardness"]
    scores, positive, where = example(0)
    traces = []

    @jax.jit
    def step(i):
        traces.append(1)
        return triplet(scores, positive, where, margin=0.2, hardness=hardness(i))

    total, hardest = brute_force(scores, positive, where, 0.2)
    assert float(step(jnp.int32(9))) == pytest.approx(total, rel=1e-5)
    assert float(step(jnp.int32(10))) == pytest.approx(hardest, rel=1e-5)
    assert len(traces) == 1


def test_adapt_annealing_value():
    from ml_collections import ConfigDict

    loss = ConfigDict({"margin": 0.2, "hardness": 1.0, "warmup_epochs": 0.0, "anneal": 0.991})
    hardness: Any = loss_options(loss, per_epoch=10)["hardness"]
    assert float(hardness(0)) == pytest.approx(1 - 0.991)
    assert float(hardness(99)) == pytest.approx(1 - 0.991**100, rel=1e-5)


@pytest.mark.parametrize("power", [0.5, 2.0])
@pytest.mark.parametrize("hardness", [0, 1])
def test_hinge_power_is_an_exponent_of_each_hinge(hardness, power):
    scores, positive, where = example(4)
    total = 0.0
    for b, c in zip(*np.nonzero(positive & where), strict=True):
        for side in (scores[b][where[b] & ~positive[b]], scores[:, c][where[:, c] & ~positive[:, c]]):
            hinges = np.maximum(0.3 - scores[b, c] + side, 0.0)
            total += np.max(hinges) ** power if hardness else np.sum(hinges**power)
    got = triplet(scores, positive, where, margin=0.3, hardness=hardness, hinge_power=power)
    assert float(got) == pytest.approx(total, rel=1e-5)
    traced = triplet(scores, positive, where, margin=0.3, hardness=hardness, hinge_power=jnp.float32(power))
    assert float(traced) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("power", [0.5, 2.0])
def test_hinge_power_has_finite_gradients_at_the_kink(power):
    """Where no hinge is positive: 2 x margin apart, and exactly on the kink."""
    positive = np.eye(3, dtype=bool)
    for gap in (0.5, 0.25):
        for hardness in (0, 1):
            loss = partial(triplet, margin=0.25, hardness=hardness, hinge_power=power)
            value, gradient = jax.value_and_grad(loss)(gap * jnp.eye(3), positive)
            assert value == 0.0
            assert not np.asarray(gradient).any()


def test_hinge_power_1_compiles_to_the_plain_loss():
    scores, positive, where = example(5)

    def text(**power):
        return str(jax.make_jaxpr(partial(triplet, margin=0.2, hardness=0.5, **power))(scores, positive, where))

    assert text() == text(hinge_power=1.0) == text(hinge_power=1) != text(hinge_power=2.0)
    assert "pow" not in text()
