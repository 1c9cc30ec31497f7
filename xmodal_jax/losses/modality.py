"""How far image and caption embeddings of one space lie apart as two clouds: discriminator loss, gap, MMD.

All are means over the rows that are real, so that neither side counts more for having more items.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.similarity import AnyArray, safe_sqrt


def mean(x: Float[AnyArray, "n *k"], real: Bool[AnyArray, " n"]) -> Float[Array, "*k"]:
    """Mean over the real items; 0 where there are none."""
    keep = jnp.reshape(real, (-1, *[1] * (jnp.ndim(x) - 1)))
    return jnp.sum(jnp.where(keep, x, 0.0), axis=0) / jnp.maximum(jnp.sum(real), 1)


def discrimination(
    image: Float[AnyArray, " b"],
    text: Float[AnyArray, " c"],
    image_real: Bool[AnyArray, " b"],
    text_real: Bool[AnyArray, " c"],
) -> Float[Array, ""]:
    """``-mean[log D(v)] - mean[log(1 - D(s))]`` of logits: images are class 1, captions class 0.

    2 log 2 where the discriminator cannot tell them apart.
    """
    return mean(jax.nn.softplus(-jnp.asarray(image)), image_real) + mean(jax.nn.softplus(jnp.asarray(text)), text_real)


def accuracy(
    image: Float[AnyArray, " b"],
    text: Float[AnyArray, " c"],
    image_real: Bool[AnyArray, " b"],
    text_real: Bool[AnyArray, " c"],
) -> Float[Array, ""]:
    """Share of the items on whose side the logits are, each side counting a half; 0.5 at equilibrium."""
    right = mean(jnp.where(jnp.asarray(image) > 0, 1.0, 0.0), image_real)
    return (right + mean(jnp.where(jnp.asarray(text) < 0, 1.0, 0.0), text_real)) / 2


def gap(
    image: Float[AnyArray, "b d"],
    text: Float[AnyArray, "c d"],
    image_real: Bool[AnyArray, " b"],
    text_real: Bool[AnyArray, " c"],
) -> Float[Array, ""]:
    """Modality gap ``||mean v - mean s||``."""
    return safe_sqrt(jnp.sum(jnp.square(mean(image, image_real) - mean(text, text_real))))


def mmd(
    image: Float[AnyArray, "b d"],
    text: Float[AnyArray, "c d"],
    image_real: Bool[AnyArray, " b"],
    text_real: Bool[AnyArray, " c"],
) -> Float[Array, ""]:
    """Squared maximum mean discrepancy of the two clouds, the biased estimate, which is 0 or more.

    ``mean k(v, v') + mean k(s, s') - 2 mean k(v, s)`` with ``k(x, y) = exp(-||x - y||^2 / h)``, h the mean squared
    distance of an image and a caption, through which no gradient goes (Gretton et al., JMLR 13, 2012, eq. 5).
    """

    def distances(a: AnyArray, b: AnyArray) -> Array:
        squares = jnp.sum(jnp.square(a), axis=1)[:, None] + jnp.sum(jnp.square(b), axis=1)
        inner = jnp.einsum("nd,md->nm", a, b, precision=jax.lax.Precision.HIGHEST)
        return jax.nn.relu(squares - 2.0 * inner)

    def average(pairs: Array, rows: AnyArray, columns: AnyArray) -> Array:
        return mean(mean(pairs, rows), columns)

    between = distances(image, text)
    width = jnp.maximum(jax.lax.stop_gradient(average(between, image_real, text_real)), 1e-12)
    within = ((distances(x, x), real) for x, real in ((image, image_real), (text, text_real)))
    return sum(average(jnp.exp(-d / width), real, real) for d, real in within) - 2.0 * average(
        jnp.exp(-between / width), image_real, text_real
    )
