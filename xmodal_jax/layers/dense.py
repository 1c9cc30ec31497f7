"""The linear map that nearly all systems of this field begin with, and the masked softmax."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.similarity import AnyArray
from xmodal_jax.similarity.vector import NEVER


def rows_dot(x: Float[AnyArray, "*n f"], matrix: Float[AnyArray, "f d"]) -> Float[Array, "*n d"]:
    """``x @ matrix``, summed in float32.

    All leading axes become one: of several, XLA copies the gradient with its axes turned before it multiplies.
    """
    out = jnp.dot(x.reshape(-1, x.shape[-1]), matrix, preferred_element_type=jnp.float32)
    return out.reshape(*x.shape[:-1], matrix.shape[-1])


def xavier(size: int, dtype: Any = "float32", **options: Any) -> nn.Dense:
    """A linear map to ``size`` numbers: Xavier uniform matrix (Glorot and Bengio, AISTATS 2010), zero bias.

    Args:
        dtype: of the product; parameters stay float32.
        options: further ones of :class:`flax.linen.Dense`.
    """
    return nn.Dense(size, kernel_init=nn.initializers.xavier_uniform(), dtype=jnp.dtype(dtype), **options)


def linear(size: int, dtype: Any, name: str | None = None, **options: Any) -> nn.Dense:
    """:func:`xavier` whose sums and result are float32, whatever the type of its product."""
    return xavier(size, dtype, dot_general=lambda x, matrix, *_, **__: rows_dot(x, matrix), name=name, **options)


def masked_softmax(logit: Float[AnyArray, "..."], mask: Bool[AnyArray, "..."], axis: int = -1) -> Float[Array, "..."]:
    """Softmax over the real entries; zeros, with a finite gradient, where there are none."""
    return jnp.where(mask, jax.nn.softmax(jnp.where(mask, logit, NEVER), axis=axis), 0.0)
