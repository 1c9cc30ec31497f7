"""Convolutions with one filter a channel, in the form that is fast on the device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax.similarity import AnyArray


def pads(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's "SAME" padding of one axis: as many outputs as ``size`` over ``stride``, rounded up."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def convolved(stride: int, x: Float[AnyArray, "b h w k"], kernel: Float[AnyArray, "s s 1 k"]) -> Any:
    return jax.lax.conv_general_dilated(
        jnp.asarray(x),
        jnp.asarray(kernel),
        (stride, stride),
        "SAME",
        feature_group_count=x.shape[-1],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def padded(stride: int, x: Float[AnyArray, "b h w k"], size: int) -> Any:
    sides = [pads(side, size, stride) for side in x.shape[1:3]]
    return jnp.pad(x, ((0, 0), *sides, (0, 0)))


def sum_of_shifts(
    x: Float[AnyArray, "b h w k"], kernel: Float[AnyArray, "s s 1 k"], sides: Sequence[int], stride: int = 1
) -> Any:
    """[B, *sides, K] of padded maps."""
    size, ends = kernel.shape[0], [(side - 1) * stride + 1 for side in sides]  # of the places of the first entry
    return sum(
        x[:, i : i + ends[0] : stride, j : j + ends[1] : stride] * kernel[i, j, 0]
        for i in range(size)
        for j in range(size)
    )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def shifted(stride: int, x: Float[AnyArray, "b h w k"], kernel: Float[AnyArray, "s s 1 k"]) -> Any:
    """The same as a sum of shifted maps, which XLA makes one loop of.

    The backward pass is written out: that of the sum would keep every shifted map, and adds all entries of the
    kernel's gradient in one slow loop (docs/performance.md).
    """
    sides = [-(-side // stride) for side in x.shape[1:3]]
    return sum_of_shifts(padded(stride, x, kernel.shape[0]), kernel, sides, stride)


def shifted_forward(stride: int, x: Any, kernel: Any) -> tuple[Any, tuple[Any, Any]]:
    return shifted(stride, x, kernel), (x, kernel)


def shifted_backward(stride: int, saved: tuple[Any, Any], g: Float[AnyArray, "b i j k"]) -> tuple[Any, Any]:
    x, kernel = saved
    size, sides = kernel.shape[0], x.shape[1:3]
    # Of the maps: the turned kernel over the gradient, whose entries lie ``stride`` apart
    spread = [(0, 0, 0)]
    for side, outputs in zip(sides, g.shape[1:3], strict=True):
        before = size - 1 - pads(side, size, stride)[0]
        spread.append((before, side + size - 2 - before - (outputs - 1) * stride, stride - 1))
    apart = jax.lax.pad(g, jnp.zeros((), g.dtype), [*spread, (0, 0, 0)])
    of_x = sum_of_shifts(apart, kernel[::-1, ::-1], sides)

    x = padded(stride, x, size)
    window = (len(x), *((outputs - 1) * stride + 1 for outputs in g.shape[1:3]), x.shape[-1])

    def of_entry(place: Any) -> Any:
        part = jax.lax.dynamic_slice(x, (0, place // size, place % size, 0), window)[:, ::stride, ::stride]
        return jnp.sum(part * g, (0, 1, 2))

    of_kernel = jax.lax.map(of_entry, jnp.arange(size * size))  # one at a time, or XLA fuses them into a slow loop
    return of_x, of_kernel.reshape(kernel.shape)


shifted.defvjp(shifted_forward, shifted_backward)


class Depthwise(nn.Module):
    """A convolution with "SAME" padding and one filter a channel.

    XLA's own for CPUs takes about 15 times as long as the sum of shifted maps (batch 8, kernels of 3 and 5, one core).

    Attributes:
        size: of the kernel's sides.
        dtype: of the product; parameters stay float32.
    """

    size: int
    stride: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[AnyArray, "b h w k"]) -> Float[Array, "b i j k"]:
        initial = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        kernel = self.param("kernel", initial, (self.size, self.size, 1, x.shape[-1]))
        x, kernel = (jnp.asarray(value, self.dtype) for value in (x, kernel))
        forms = {"cpu": partial(shifted, self.stride), "default": partial(convolved, self.stride)}
        return jax.lax.platform_dependent(x, kernel, **forms)
