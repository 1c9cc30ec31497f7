"""Cross entropy over tokens: its value, gradient and memory; label smoothing; padding that holds anything."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.losses.tokens import cross_entropy


@pytest.fixture
def case():
    random = np.random.default_rng(0)
    logits = random.normal(size=(3, 5, 7)).astype(np.float32) * 3
    target = random.integers(0, 7, (3, 5)).astype(np.int32)
    return logits, target, np.arange(5) < np.array([5, 2, 0])[:, None]


def plain(logits, target, mask, smoothing):
    """By loops in float64, against the whole smoothed distribution."""
    total = 0.0
    for n, t in zip(*np.nonzero(mask), strict=True):
        log_p = logits[n, t].astype(float) - np.log(np.exp(logits[n, t].astype(float)).sum())
        wanted = np.full(7, smoothing / 7)
        wanted[target[n, t]] += 1 - smoothing
        total -= (wanted * log_p).sum()
    return total


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_is_the_sum_over_real_tokens(case, smoothing):
    logits, target, mask = case
    value = cross_entropy(logits, target, mask, smoothing=smoothing)
    assert float(value) == pytest.approx(plain(logits, target, mask, smoothing), rel=1e-6)
    assert float(cross_entropy(logits, target, np.zeros_like(mask))) == 0


def test_gradient_is_the_softmax_minus_the_target_and_zero_at_padding(case):
    logits, target, mask = case
    gradient = jax.grad(cross_entropy)(logits, target, mask)
    expected = np.asarray(jax.nn.softmax(logits)) - np.eye(7)[target]
    np.testing.assert_allclose(gradient, np.where(mask[..., None], expected, 0), atol=1e-6)


def test_padding_may_hold_anything(case):
    logits, target, mask = case
    expected, gradient = jax.value_and_grad(cross_entropy)(logits, target, mask)
    value, other = jax.value_and_grad(cross_entropy)(np.where(mask[..., None], logits, np.nan), target, mask)
    assert float(value) == float(expected)
    np.testing.assert_array_equal(other, gradient)


def test_large_and_half_precision_logits_stay_finite(case):
    logits, target, mask = case
    assert np.isfinite(cross_entropy(logits * 1e4, target, mask))
    half = cross_entropy(jnp.asarray(logits, jnp.bfloat16), target, mask)
    assert half.dtype == jnp.float32
    assert float(half) == pytest.approx(float(cross_entropy(logits, target, mask)), rel=0.02)


def test_memory_holds_the_logits_and_their_gradient_alone():
    n, t, v = 8, 16, 4096
    shapes = [jax.ShapeDtypeStruct((n, t, *x), y) for x, y in (((v,), "float32"), ((), "int32"), ((), "bool"))]
    compiled = jax.jit(jax.value_and_grad(cross_entropy)).lower(*shapes).compile()
    memory: Any = compiled.memory_analysis()
    assert memory.output_size_in_bytes < 1.1 * 4 * n * t * v
    assert memory.temp_size_in_bytes < 0.1 * 4 * n * t * v
