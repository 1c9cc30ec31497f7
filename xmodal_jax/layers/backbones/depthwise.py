"""Convolution with one filter a channel, as a sum of shifted products."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax.similarity import AnyArray


class Depthwise(nn.Module):
    """One square filter a channel, padded as TensorFlow's "SAME"; parameters are those of a grouped ``nn.Conv``.

    A grouped convolution is not used because XLA computes it ten times slower on a CPU than these products, which it
    fuses into one loop. Initial values are He et al.'s normal ones, by outputs.

    Attributes:
        size: of the filter.
        dtype: of the products; parameters stay float32.
    """

    size: int
    stride: int = 1
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[AnyArray, "b h w k"]) -> Float[Array, "b i j k"]:
        (height, width, channels), size, stride = x.shape[1:], self.size, self.stride
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        kernel = self.param("kernel", init, (size, size, 1, channels), jnp.float32).astype(self.dtype)
        out = [-(-length // stride) for length in (height, width)]
        pad = [max((n - 1) * stride + size - length, 0) for n, length in zip(out, (height, width), strict=True)]
        x = jnp.pad(jnp.asarray(x, self.dtype), ((0, 0), *((p // 2, p - p // 2) for p in pad), (0, 0)))
        reach = [(n - 1) * stride + 1 for n in out]
        return sum(
            (
                x[:, i : i + reach[0] : stride, j : j + reach[1] : stride] * kernel[i, j, 0]
                for i in range(size)
                for j in range(size)
            ),
            start=jnp.zeros((), self.dtype),
        )
