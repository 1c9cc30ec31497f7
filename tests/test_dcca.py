"""Deep CCA: correlations and their gradient by NumPy, the directions that training keeps, a batch's padding."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.losses import correlation
from xmodal_jax.models import dcca
from xmodal_jax.types import Batch, Images, Inputs, Texts

RANDOM = np.random.default_rng(0)
SHARED = RANDOM.normal(size=(40, 4))
X = (SHARED @ RANDOM.normal(size=(4, 4)) + RANDOM.normal(size=(40, 4))).astype("f4")
Y = (SHARED[:, :3] @ RANDOM.normal(size=(3, 3)) + RANDOM.normal(size=(40, 3))).astype("f4")
REAL = np.ones(40, bool)
RIDGE = 0.01


def root(s):
    """Inverse symmetric root, as the paper has it."""
    value, vector = np.linalg.eigh(s)
    return vector @ np.diag(value**-0.5) @ vector.T


def oracle(x, y, count):
    """Sum of the first singular values of T = S11^-1/2 S12 S22^-1/2, in float64."""
    x, y = (side.astype("f8") - side.astype("f8").mean(0) for side in (x, y))
    s11, s22 = (side.T @ side / (len(side) - 1) + RIDGE * np.eye(side.shape[1]) for side in (x, y))
    return np.linalg.svd(root(s11) @ (x.T @ y / (len(x) - 1)) @ root(s22), compute_uv=False)[:count].sum()


def loss(x, y, count, real=REAL):
    return correlation.total_correlation(correlation.moments(x, y, real), RIDGE, count)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_correlation_and_its_gradient(count):
    value, gradients = jax.jit(jax.value_and_grad(partial(loss, count=count), argnums=(0, 1)))(X, Y)
    np.testing.assert_allclose(value, oracle(X, Y, count), rtol=1e-5)
    for side, gradient in enumerate(gradients):
        way = RANDOM.normal(size=gradient.shape)
        moved = [[s + sign * 1e-5 * way if k == side else s for k, s in enumerate((X, Y))] for sign in (1, -1)]
        more, less = (oracle(x, y, count) for x, y in moved)
        slope = (more - less) / 2e-5
        np.testing.assert_allclose(np.sum(gradient * way), slope, rtol=2e-3)


def test_the_gradient_is_that_of_the_paper():
    """Equations 11 to 13 of Andrew et al. in their own words: all directions, rows for columns."""
    x, y = X - X.mean(0), Y - Y.mean(0)
    s11, s22 = (side.T @ side / 39 + RIDGE * np.eye(side.shape[1]) for side in (x, y))
    u, d, v = np.linalg.svd(root(s11) @ (x.T @ y / 39) @ root(s22), full_matrices=False)
    cross = root(s11) @ u @ v @ root(s22)
    within = -0.5 * root(s11) @ u @ np.diag(d) @ u.T @ root(s11)
    expected = (2 * x @ within + y @ cross.T) / 39
    np.testing.assert_allclose(jax.jit(jax.grad(partial(loss, count=3)))(X, Y), expected, atol=1e-5)


def test_equal_correlations_and_no_variance_have_finite_gradients():
    same = jax.jit(jax.grad(partial(loss, count=4)))
    for x in (X, np.repeat(X[:, :1], 4, axis=1), 0 * X):
        assert np.isfinite(same(x, x)).all()


def test_padding_is_no_pair():
    x, y = (np.concatenate([side, 9.0 + side[:5]]) for side in (X, Y))
    real = np.arange(45) < 40
    gradient = jax.jit(jax.grad(partial(loss, count=3, real=real)))(x, y)
    np.testing.assert_allclose(loss(x, y, 3, real), oracle(X, Y, 3), rtol=1e-5)
    assert not np.any(gradient[40:])


MODEL: Any = dcca.Model(embed_dim=3, directions=2, hidden=(8,), ridge=RIDGE, momentum=1.0, dropout=0.0)
ROW = np.arange(20).repeat(2)
BATCH = Batch(
    Images({"global": X[:20]}, np.ones((20, 1), bool), np.arange(20)),
    Texts(None, np.ones((40, 1), bool), ROW, ROW, np.arange(40), {"fisher": Y}),
)


@partial(jax.jit, static_argnames=("model", "train"))
def run(model, variables, *, train) -> Any:
    """((image, its tower's output), (text, its), losses), variables after them."""

    def all_of(module, batch):
        image = module.encode_image(batch.image, train=train)
        text = module.encode_text(batch.text, train=train)
        return image, text, module.aux(batch, image, text, train=train)

    out, state = model.apply(
        variables, BATCH, method=all_of, mutable=["canonical", "batch_stats"], rngs={"dropout": jax.random.key(0)}
    )
    return out, {**variables, **state}


def test_items_are_compared_by_their_canonical_variates():
    variables = jax.jit(MODEL.init)(jax.random.key(1), BATCH)
    for _ in range(2):  # a batch's averages count in the directions of the next
        _, variables = run(MODEL, variables, train=True)
    (_, x), (_, y), terms = run(MODEL, variables, train=True)[0]
    x, y = np.asarray(x)[ROW] - np.asarray(x)[ROW].mean(0), np.asarray(y) - np.asarray(y).mean(0)
    found = variables["canonical"]["directions"]
    a, b = x @ found["image"], y @ found["text"]
    ridged = [side.T @ side / 39 + RIDGE * d.T @ d for side, d in ((a, found["image"]), (b, found["text"]))]
    for matrix in ridged:
        np.testing.assert_allclose(matrix, np.eye(2), atol=1e-3)
    np.testing.assert_allclose(a.T @ b / 39, np.diag(found["correlation"]), atol=1e-3)
    np.testing.assert_allclose(terms["correlation"], -np.sum(found["correlation"]), rtol=1e-4)


def test_scores_are_cosines_of_weighted_variates():
    model = MODEL.clone(power=2.0)
    variables = jax.jit(model.init)(jax.random.key(1), BATCH)
    for _ in range(2):
        _, variables = run(model, variables, train=True)
    (image, x), (text, y), _ = run(model, variables, train=False)[0]
    found, mean = variables["canonical"]["directions"], variables["canonical"]["moments"]
    sides = [
        (np.asarray(out) - mean[f"{side}_mean"]) @ found[side] * found["correlation"] ** 2
        for side, out in (("image", x), ("text", y))
    ]
    expected = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in sides]
    np.testing.assert_allclose(image, expected[0], atol=1e-5)
    np.testing.assert_allclose(
        model.apply(variables, image, text, method="score"), expected[0] @ expected[1].T, atol=1e-5
    )
    assert model.inputs == Inputs(("global",), ("fisher",)) and model.rank_terms == ("rank", "correlation")


def test_averages_are_those_of_the_steps_in_their_order():
    model = MODEL.clone(momentum=0.25)
    variables = jax.jit(model.init)(jax.random.key(1), BATCH)
    out, after = run(model, variables, train=True)
    given = correlation.moments(jnp.asarray(out[0][1])[ROW], out[1][1], REAL)
    assert after["canonical"]["seen"] == 0.25
    np.testing.assert_allclose(after["canonical"]["moments"]["cross"], 0.25 * given.cross, rtol=1e-4, atol=1e-6)
    again = run(model, after, train=True)[1]["canonical"]
    assert again["seen"] == 0.4375
    expected = correlation.directions(given, RIDGE, 2)  # those of the first step's averages, freed of the zeros
    np.testing.assert_allclose(np.abs(again["directions"]["image"]), np.abs(expected.image), rtol=1e-3)
