"""Canonical correlations of two views of the same items, and their sum as a loss (Deep CCA)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Bool, Float

from xmodal_jax.losses.modality import mean
from xmodal_jax.similarity import AnyArray

HIGHEST = jax.lax.Precision.HIGHEST


class Moments(NamedTuple):
    """Means [D] and covariances [D, D] of pairs."""

    image_mean: Array
    text_mean: Array
    image: Array
    text: Array
    cross: Array


class Directions(NamedTuple):
    """The first K canonical directions, columns of [D, K], and their correlations [K], from the highest down."""

    image: Array
    text: Array
    correlation: Array


def moments(image: Float[AnyArray, "n d"], text: Float[AnyArray, "n e"], real: Bool[AnyArray, " n"]) -> Moments:
    """Means and covariances over the real pairs, divided by one less than their number."""
    image_mean, text_mean = mean(image, real), mean(text, real)
    x = jnp.where(jnp.asarray(real)[:, None], image - image_mean, 0.0)
    y = jnp.where(jnp.asarray(real)[:, None], text - text_mean, 0.0)
    count = jnp.maximum(jnp.sum(real) - 1, 1)
    image_cov, text_cov, cross = (jnp.matmul(a.T, b, precision=HIGHEST) / count for a, b in ((x, x), (y, y), (x, y)))
    return Moments(image_mean, text_mean, image_cov, text_cov, cross)


def directions(given: Moments, ridge: float, count: int) -> Directions:
    """The ``count`` pairs of directions that correlate most, of variance 1 under the covariances with their ridges.

    With ``S11 + r I = L1 L1'`` and ``S22 + r I = L2 L2'`` they are the singular vectors of ``W = L1^-1 S12 L2^-T``,
    mapped back, here by the eigenvectors of ``W W'``, which cost a fraction of the time. The inverse symmetric roots of
    the paper differ by a rotation of each side, which changes neither the directions nor the correlations.
    """
    factors = [jnp.linalg.cholesky(s + ridge * jnp.eye(len(s))) for s in (given.image, given.text)]
    half = solve_triangular(factors[0], given.cross, lower=True)
    whitened = solve_triangular(factors[1], half.T, lower=True).T
    left = jnp.linalg.eigh(jnp.matmul(whitened, whitened.T, precision=HIGHEST))[1][:, ::-1][:, :count]
    right = jnp.matmul(whitened.T, left, precision=HIGHEST)
    correlation = jnp.linalg.norm(right, axis=0)
    image, text = (
        solve_triangular(factor, vectors, lower=True, trans=1)
        for factor, vectors in zip(factors, (left, right / jnp.maximum(correlation, 1e-12)), strict=True)
    )
    return Directions(image, text, correlation)


def total_correlation(given: Moments, ridge: float, count: int) -> Float[Array, ""]:
    r"""Sum of the first ``count`` canonical correlations (Andrew, Arora, Bilmes, Livescu, ICML 2013, section 3).

    That of all of them is the trace norm of ``T = S11^-1/2 S12 S22^-1/2``. With directions a_k, b_k of correlations
    rho_k its derivative is

    .. math::
        \sum_k a_k^T dS_{12} b_k - \tfrac{\rho_k}{2} (a_k^T dS_{11} a_k + b_k^T dS_{22} b_k),

    the paper's equations 11 to 13; it is given here as such, since that of a decomposition is infinite where two
    singular values are equal.
    """
    a, b, rho = jax.lax.stop_gradient(directions(given, ridge, count))

    def along(x: Array, matrix: Array, y: Array) -> Array:
        return jnp.einsum("dk,de,ek->k", x, matrix, y, precision=HIGHEST)

    both = along(a, given.image, a) + along(b, given.text, b)
    slope = jnp.sum(along(a, given.cross, b) - rho / 2 * both)
    return jnp.sum(rho) + slope - jax.lax.stop_gradient(slope)
