"""Scores of two vectors a pair: inner product, cosine, order; and what all scores share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

AnyArray = Array | np.ndarray
NEVER = -1e30  # a score that wins no maximum; minus infinity would turn into NaN in a gradient


def safe_sqrt(x: Float[AnyArray, "..."]) -> Float[Array, "..."]:
    """Square root whose gradient at zero is zero instead of infinite (the double `where` keeps NaN out)."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def l2_normalise(x: Float[Array, "*n d"], *, eps: float = 1e-8) -> Float[Array, "*n d"]:
    """``x / (||x||_2 + eps)`` over the last axis; a zero vector stays zero with a finite gradient.

    The epsilon stands outside the root as in SCAN (Lee et al., ECCV 2018, released code).
    """
    return x / (safe_sqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True)) + eps)


def dot(image: Float[AnyArray, "b d"], text: Float[AnyArray, "c d"]) -> Float[Array, "b c"]:
    """Inner products in float32: the cosine when both sides are unit vectors."""
    return jnp.einsum("bd,cd->bc", image, text, preferred_element_type=jnp.float32)


def cosine(image: Float[AnyArray, "b d"], text: Float[AnyArray, "c d"]) -> Float[Array, "b c"]:
    """Cosine similarity; both sides are normalised here."""
    return dot(l2_normalise(jnp.asarray(image)), l2_normalise(jnp.asarray(text)))


def euclidean(image: Float[AnyArray, "b d"], text: Float[AnyArray, "c d"]) -> Float[Array, "b c"]:
    """Minus the distance, ``-sqrt(||x||^2 - 2 x.y + ||y||^2 + 1e-4)`` (lwwang/Two_branch_network, released code).

    The 1e-4 keeps the gradient finite where both are the same. Products are in full float32 on every device: of
    near vectors the difference is small.
    """
    image, text = jnp.asarray(image, jnp.float32), jnp.asarray(text, jnp.float32)
    inner = jnp.einsum("bd,cd->bc", image, text, precision=jax.lax.Precision.HIGHEST)
    squares = jnp.sum(jnp.square(image), axis=1)[:, None] + jnp.sum(jnp.square(text), axis=1)
    return -jnp.sqrt(jax.nn.relu(squares - 2.0 * inner) + 1e-4)


def order(image: Float[AnyArray, "b d"], text: Float[AnyArray, "c d"], *, root: bool = False) -> Float[Array, "b c"]:
    """Order similarity ``-||max(0, c - v)||^2`` (Vendrov et al., ICLR 2016, eq. 2), or minus its root.

    The image is the more specific item and dominates its captions in every coordinate. The released code of
    VSE++ takes the root; margins tuned for one form do not carry over to the other.
    """
    violation = _violation(jnp.asarray(image), jnp.asarray(text))
    return -(safe_sqrt(violation) if root else violation)


def entries() -> int:
    """Entries [B, C, d] that the backward pass of :func:`order` holds: beyond 8 MiB a CPU takes ten times as long."""
    return 2**20 if jax.default_backend() == "cpu" else 2**26


@jax.custom_vjp
def _violation(image: Float[Array, "b d"], text: Float[Array, "c d"]) -> Float[Array, "b c"]:
    """``||max(0, c - v)||^2``. The sum is compiled without an array [B, C, D]; the backward pass would need it."""
    return jnp.sum(jnp.square(jax.nn.relu(text[None, :, :] - image[:, None, :])), axis=-1)


def _violation_backward(
    saved: tuple[Float[Array, "b d"], Float[Array, "c d"]], cotangent: Float[Array, "b c"]
) -> tuple[Float[Array, "b d"], Float[Array, "c d"]]:
    """Gradients some dimensions at a time, which bounds the memory and splits neither images nor captions."""
    size = saved[0].shape[-1]
    part = min(max(entries() // max(cotangent.size, 1), 16), size)
    parts = -(-size // part)

    def gradients(sides: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        image, text = sides
        excess = 2 * cotangent[:, :, None] * jax.nn.relu(text[None, :, :] - image[:, None, :])
        return -jnp.sum(excess, axis=1), jnp.sum(excess, axis=0)

    def split(x: jax.Array) -> jax.Array:
        padded = jnp.pad(x, ((0, 0), (0, parts * part - size)))
        return jnp.moveaxis(padded.reshape(len(x), parts, part), 1, 0)

    def join(x: jax.Array, like: jax.Array) -> jax.Array:
        return jnp.moveaxis(x, 0, 1).reshape(len(like), -1)[:, :size].astype(like.dtype)

    image, text = jax.lax.map(gradients, (split(saved[0]), split(saved[1])))
    return join(image, saved[0]), join(text, saved[1])


_violation.defvjp(lambda image, text: (_violation(image, text), (image, text)), _violation_backward)


def order_root(image: Float[AnyArray, "b d"], text: Float[AnyArray, "c d"]) -> Float[Array, "b c"]:
    """:func:`order` with the root, as VSE++'s "order" measure has it."""
    return order(image, text, root=True)


def correspondence(row: AnyArray, n_images: int) -> Bool[Array, "b c"]:
    """``positive[b, c]``: image b is the own image of caption c, from the captions' image rows [C]."""
    return jnp.arange(n_images)[:, None] == row[None, :]
