"""Convolutions over positions, each with its batch normalisation, and the bottlenecks made of them."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.layers.norm import BatchNorm
from xmodal_jax.similarity import AnyArray

HE = nn.initializers.variance_scaling(2.0, "fan_in", "normal")  # N(0, 2 / fan_in)


class Unit(nn.Module):
    """A convolution without bias and batch normalisation: [N, P, F] to [N, P / stride, D], or [N, F] to [N, D].

    A filter of width 2 meets a position and the one before it, zeros before the first. Matrices start in
    N(0, 2 / fan_in).

    Attributes:
        size: D.
        width: 1 or 2.
        stride: every so-manyth position, the first among them, is kept.
    """

    size: int
    width: int = 1
    stride: int = 1
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "n *p f"], real: Bool[AnyArray, " n"], *, train: bool
    ) -> Float[Array, "n *q d"]:
        """``real`` items make the batch statistics."""
        kernel = self.param("kernel", HE, (self.width, x.shape[-1], self.size)).astype(self.dtype)
        x, out = jnp.asarray(x), jnp.promote_types(self.dtype, jnp.float32)
        if self.width == 2:
            x = jnp.concatenate([jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1], x], axis=-1)
        if self.stride > 1:
            x = x[:, :: self.stride]
        x = jnp.dot(x.astype(self.dtype), kernel.reshape(-1, self.size), preferred_element_type=out)
        norm = BatchNorm(self.size, momentum=0.1, unbiased=False, epsilon=1e-3, name="norm")
        return norm(x, real.reshape(-1, *[1] * (x.ndim - 1)), train=train)


class Bottleneck(nn.Module):
    """Three units, the middle one of width 2, whose result is added to what came in (or to a unit of it)."""

    size: int
    inner: int
    stride: int = 1
    shortcut: bool = False
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: Float[Array, "n p f"], real: Bool[Array, " n"], *, train: bool) -> Float[Array, "n q d"]:
        unit, inner = partial(Unit, dtype=self.dtype), x
        inner = jax.nn.relu(unit(self.inner, name="first")(x, real, train=train))
        inner = jax.nn.relu(unit(self.inner, 2, self.stride, name="second")(inner, real, train=train))
        inner = unit(self.size, name="third")(inner, real, train=train)
        if self.shortcut:
            x = unit(self.size, 1, self.stride, name="shortcut")(x, real, train=train)
        return jax.nn.relu(inner + x)
