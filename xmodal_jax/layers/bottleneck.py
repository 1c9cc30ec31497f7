"""Convolutions over positions, each with its batch normalisation, and the bottlenecks made of them."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from xmodal_jax.layers.norm import BatchNorm
from xmodal_jax.similarity import AnyArray

HE = nn.initializers.variance_scaling(2.0, "fan_in", "normal")  # N(0, 2 / fan_in)
FIRST, SHRINK = 2, 4  # a stage's width is divided by these inside its blocks, by the first in that of stage 1 alone


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


class TextNet(nn.Module):
    """Dual-Path's text path: placed words [N, P] (0: nothing there) to vectors [N, D], before their last ReLU.

    Attributes as in :class:`xmodal_jax.models.dual_path.Model`.
    """

    vocabulary: int
    word_dim: int
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    embed_dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, word: Int[Array, "n p"], real: Bool[Array, " n"], *, train: bool) -> Float[Array, "n d"]:
        table = self.param("embedding", HE, (self.vocabulary, self.word_dim))
        bias = self.param("embedding_bias", nn.initializers.zeros, (self.word_dim,))
        x = jnp.where((word > 0)[..., None], jnp.take(table, word, axis=0, mode="clip"), 0.0) + bias
        x = BatchNorm(self.word_dim, momentum=0.1, unbiased=False, epsilon=1e-3, name="norm")(
            x, real[:, None, None], train=train
        )
        last = len(self.widths) - 1
        for stage, (width, count) in enumerate(zip(self.widths, self.blocks, strict=True)):
            for block in range(count):
                inner = (width // FIRST if stage == 0 else width) if block == 0 else width // SHRINK
                stride = 2 if block == 0 and 0 < stage < last else 1
                layer = Bottleneck(width, inner, stride, block == 0, self.dtype, name=f"block_{stage + 1}_{block + 1}")
                x = layer(x, real, train=train)
        # By its place: the gradient of a maximum divides by how many are equal to it, none where XLA rounds anew.
        top = jnp.take_along_axis(x, jnp.argmax(jax.lax.stop_gradient(x), axis=1)[:, None], axis=1)[:, 0]
        return Unit(self.embed_dim, dtype=self.dtype, name="out")(top, real, train=train)
