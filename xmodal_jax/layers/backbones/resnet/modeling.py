"""Residual networks, He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, Table 1.

As torchvision has them, whose weights are in common use: the stride of a bottleneck is on its 3 x 3 convolution, not
on the first one as in the paper. VSE++ and its followers take the mean of the last map, 2048 numbers for ResNet-152.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax.layers.backbones.parts import conv, norm
from xmodal_jax.similarity import AnyArray


class Block(nn.Module):
    """Two 3 x 3 convolutions, or 1 x 1, 3 x 3 and 1 x 1 to four times the width, and what goes past them."""

    width: int
    stride: int
    bottleneck: bool
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[AnyArray, "b h w k"], *, train: bool) -> Float[Array, "b i j l"]:
        sizes = (1, 3, 1) if self.bottleneck else (3, 3)
        strided = 1 if self.bottleneck else 0
        out = self.width * (4 if self.bottleneck else 1)
        y = x
        for place, size in enumerate(sizes):
            last = place == len(sizes) - 1
            stride = self.stride if place == strided else 1
            name = f"conv{place + 1}"
            y = conv(out if last else self.width, size, stride, use_bias=False, dtype=self.dtype, name=name)(y)
            y = norm(y, f"bn{place + 1}", train=train)
            y = y if last else nn.relu(y)
        if x.shape != y.shape:
            x = conv(out, 1, self.stride, use_bias=False, dtype=self.dtype, name="downsample")(x)
            x = norm(x, "downsample_bn", train=train)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Normalised pixels to the last feature map.

    Attributes:
        blocks: number of blocks of the four stages, layer1 to layer4.
        bottleneck: blocks of three convolutions (50 layers and more) and not of two.
        dtype: of the convolutions; parameters stay float32.
    """

    blocks: tuple[int, ...]
    bottleneck: bool
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[AnyArray, "b h w 3"], *, train: bool) -> Float[Array, "b i j f"]:
        x = conv(64, 7, 2, use_bias=False, dtype=self.dtype, name="conv1")(x)
        x = nn.relu(norm(x, "bn1", train=train))
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))  # type: ignore[arg-type]
        for stage, count in enumerate(self.blocks):
            for place in range(count):
                stride = 2 if stage and not place else 1
                name = f"layer{stage + 1}.{place}"
                x = Block(64 * 2**stage, stride, self.bottleneck, self.dtype, name=name)(x, train=train)
        return jnp.asarray(x)
