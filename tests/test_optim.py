"""Optimiser rules, clipping and schedules."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from xmodal_jax.defaults import base
from xmodal_jax.errors import UsageError
from xmodal_jax.training import schedules
from xmodal_jax.training.optim import make_optimiser, match_rules

PARAMS: Any = {
    "image": {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "bias": jnp.array([0.1, -0.1])},
    "text": {"embed": jnp.array([[2.0, -1.0]])},
}
GRADS: Any = jax.tree.map(lambda p: 10.0 * p, PARAMS)


def optim(**options):
    config = base("scenes").optim
    config.unlock()
    config.update({"clip_norm": 0.0, "lr": 0.1, **options})
    return config


def updated(config, params=PARAMS, grads=GRADS) -> Any:
    optimiser = make_optimiser(config, params, optax.constant_schedule(config.lr))
    updates, _ = optimiser.update(grads, optimiser.init(params), params)
    return optax.apply_updates(params, updates)


def test_frozen_parameters_stay_bit_identical_even_for_nan():
    rules = ({"match": "image/.*", "lr": 0.0}, {"match": ".*", "lr": 1.0})
    bad = {**GRADS, "image": jax.tree.map(lambda g: g * jnp.nan, GRADS["image"])}
    for name in ("sgd", "adam", "adamw", "adamax"):
        new = updated(optim(name=name, weight_decay=0.1, momentum=0.9, clip_norm=1.0, rules=rules), grads=bad)
        jax.tree.map(np.testing.assert_array_equal, new["image"], PARAMS["image"])
        assert np.isfinite(new["text"]["embed"]).all()
        assert not np.array_equal(new["text"]["embed"], PARAMS["text"]["embed"])


def test_learning_rate_multiplier():
    half = ({"match": "image/.*", "lr": 0.5}, {"match": ".*"})
    new, plain = updated(optim(name="sgd", rules=half)), updated(optim(name="sgd"))
    np.testing.assert_allclose(
        new["image"]["bias"] - PARAMS["image"]["bias"], 0.5 * (plain["image"]["bias"] - PARAMS["image"]["bias"])
    )
    np.testing.assert_allclose(new["text"]["embed"], plain["text"]["embed"])


def test_decay_inside_and_beside_the_gradient():
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    rules = ({"match": ".*bias", "decay": 0.0}, {"match": ".*"})
    for name, expected in (("sgd", 0.9), ("adamw", 0.9)):
        new = updated(optim(name=name, weight_decay=1.0, rules=rules), grads=zero)
        np.testing.assert_allclose(new["image"]["kernel"], expected * PARAMS["image"]["kernel"], rtol=1e-6)
        np.testing.assert_array_equal(new["image"]["bias"], PARAMS["image"]["bias"])
    new = updated(optim(name="adam", weight_decay=1.0), grads=zero)  # L2 in the gradient: the first step is lr * sign
    np.testing.assert_allclose(
        new["image"]["kernel"], PARAMS["image"]["kernel"] - 0.1 * jnp.sign(PARAMS["image"]["kernel"]), rtol=1e-5
    )


def test_parameters_that_are_not_clipped_do_not_count_in_the_norm():
    rules = ({"match": "text/.*", "clip": False}, {"match": ".*"})
    new = updated(optim(name="sgd", lr=1.0, clip_norm=0.5, rules=rules))
    moved: Any = jax.tree.map(lambda a, b: a - b, PARAMS, new)
    assert float(optax.tree.norm(moved["image"])) == pytest.approx(0.5, rel=1e-5)
    whole = updated(optim(name="sgd", lr=1.0))
    np.testing.assert_array_equal(new["text"]["embed"], whole["text"]["embed"])


def test_three_ways_to_clip():
    def step(**options) -> Any:
        new = updated(optim(name="sgd", lr=1.0, **options))
        return jax.tree.map(lambda a, b: a - b, PARAMS, new)

    assert float(optax.tree.norm(step(clip_norm=2.0))) == pytest.approx(2.0, rel=1e-5)
    for tensor in jax.tree.leaves(step(clip_tensor_norm=0.5)):
        assert float(jnp.linalg.norm(tensor)) == pytest.approx(0.5, rel=1e-5)
    value = step(clip_value=5.0)
    np.testing.assert_allclose(value["image"]["kernel"], [[5, -5], [5, 5]], rtol=1e-6)
    np.testing.assert_allclose(value["image"]["bias"], [1, -1], rtol=1e-6)


def test_nesterov_differs_from_momentum_and_equals_its_formula():
    new = updated(optim(name="sgd", momentum=0.9, nesterov=True))
    np.testing.assert_allclose(new["text"]["embed"], PARAMS["text"]["embed"] - 0.1 * 1.9 * GRADS["text"]["embed"])


def test_every_parameter_needs_one_rule_and_every_rule_a_parameter():
    with pytest.raises(UsageError, match="text/embed"):
        match_rules(PARAMS, [{"match": "image/.*"}])
    with pytest.raises(UsageError, match="imgae"):
        match_rules(PARAMS, [{"match": "imgae/.*"}, {"match": ".*"}])
    with pytest.raises(UsageError, match="lion"):
        make_optimiser(optim(name="lion"), PARAMS, optax.constant_schedule(1.0))


def test_schedules():
    config = optim(lr=2.0, schedule=ConfigDict({"kind": "staircase", "at": (2.0, 3.0), "factor": 0.1}))
    rate: Any = schedules.learning_rate(config, steps=50, per_epoch=10)
    assert [float(rate(s)) for s in (0, 19, 20, 29, 30)] == pytest.approx([2, 2, 0.2, 0.2, 0.02])
    config = optim(lr=1.0, warmup_steps=4, schedule=ConfigDict({"kind": "constant"}))
    rate: Any = schedules.learning_rate(config, steps=50, per_epoch=10)
    assert [float(rate(s)) for s in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1])
    config = optim(lr=1.0, schedule=ConfigDict({"kind": "exponential", "every": 1.0, "factor": 0.5}))
    rate: Any = schedules.learning_rate(config, steps=50, per_epoch=10)
    assert [float(rate(s)) for s in (9, 10, 20)] == pytest.approx([1, 0.5, 0.25])
    with pytest.raises(UsageError, match="polynomial"):
        schedules.learning_rate(optim(schedule=ConfigDict({"kind": "polynomial"})), steps=1, per_epoch=1)
