"""Similarities: oracles, gradients at the corners, blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax import similarity
from xmodal_jax.similarity import vector


def pair(seed=0, b=4, c=6, d=5):
    random = np.random.default_rng(seed)
    return random.normal(size=(b, d)).astype("f4"), random.normal(size=(c, d)).astype("f4")


def test_cosine_is_the_cosine():
    v, s = pair()
    expected = [[float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for b in s] for a in v]
    np.testing.assert_allclose(similarity.cosine(v, s), expected, atol=1e-6)
    np.testing.assert_allclose(similarity.cosine(3 * v, s), expected, atol=1e-6)


def test_order_both_forms():
    v, s = np.abs(pair()[0]), np.abs(pair()[1])
    expected = np.array([[-sum(max(0.0, y - x) ** 2 for x, y in zip(a, b, strict=True)) for b in s] for a in v])
    np.testing.assert_allclose(similarity.order(v, s), expected, atol=1e-6)
    np.testing.assert_allclose(similarity.order_root(v, s), -np.sqrt(-expected), atol=1e-6)


@pytest.mark.parametrize("most", [1, 4 * 6 * 32, 2**20])
def test_order_in_parts_has_the_gradients_of_the_whole(most, monkeypatch):
    """At least 16 dimensions at a time, which does not divide 70."""
    monkeypatch.setattr(vector, "entries", lambda: most)
    v, s = pair(d=70)
    weight = np.random.default_rng(1).normal(size=(4, 6)).astype("f4")

    def whole(v, s):
        return -jnp.sum(jnp.square(jax.nn.relu(s[None] - v[:, None])), axis=-1)

    def gradients(score):
        return jax.grad(lambda v, s: jnp.sum(weight * score(v, s)), argnums=(0, 1))(v, s)

    np.testing.assert_array_equal(jax.jit(similarity.order)(v, s), jax.jit(whole)(v, s))
    for parts, full in zip(gradients(similarity.order), gradients(whole), strict=True):
        np.testing.assert_allclose(parts, full, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("score", [similarity.order, similarity.order_root])
def test_order_never_holds_all_dimensions_of_all_pairs(score):
    side = jax.ShapeDtypeStruct((64, 8192), jnp.float32)
    grad = jax.jit(jax.value_and_grad(lambda v, s: jnp.sum(jnp.sin(score(v, s))), argnums=(0, 1)))
    plan = grad.lower(side, side).compile().memory_analysis()
    assert plan is not None
    assert plan.temp_size_in_bytes < 64 * 64 * 8192 * 4 / 8


def test_order_is_zero_only_for_dominated_captions():
    v = jnp.array([[1.0, 2.0]])
    s = jnp.array([[0.5, 2.0], [0.5, 2.5]])
    assert similarity.order(v, s)[0, 0] == 0.0
    assert similarity.order(v, s)[0, 1] == -0.25


@pytest.mark.parametrize("score", [similarity.cosine, similarity.order, similarity.order_root])
def test_gradients_are_finite_at_zero_and_at_equality(score):
    v = jnp.array([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    s = jnp.array([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    for gradient in jax.grad(lambda v, s: score(v, s).sum(), argnums=(0, 1))(v, s):
        assert np.isfinite(gradient).all()


def test_correspondence_takes_any_number_of_captions():
    positive = similarity.correspondence(jnp.array([0, 0, 2, 1, 2, 2]), 3)
    assert positive.sum(axis=0).tolist() == [1] * 6
    assert positive.sum(axis=1).tolist() == [2, 1, 3]
