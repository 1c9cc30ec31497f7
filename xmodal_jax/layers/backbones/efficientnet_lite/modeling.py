"""EfficientNet-Lite: Tan and Le, "EfficientNet", ICML 2019, as Google's tpu repository changed it for small devices.

No squeeze-and-excitation, ReLU6 in place of swish, and the stem, the head and the first and last block keep the width
or number that they have in Lite0. Padding is TensorFlow's. The drop-connect of the original's training is left out.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import flax.linen as nn
from jaxtyping import Array, Float

from xmodal_jax.layers.backbones.efficientnet_lite.depthwise import Depthwise
from xmodal_jax.layers.backbones.parts import conv, norm
from xmodal_jax.similarity import AnyArray

NORM = {"momentum": 0.01, "epsilon": 1e-3}


class Stage(NamedTuple):
    """A row of Table 1 of the paper."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    width: int


STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)


def scaled(width: float) -> int:
    """The multiple of 8 next to ``width``, and at least nine tenths of it."""
    near = max(8, int(width + 4) // 8 * 8)
    return near + 8 if near < 0.9 * width else near


class Block(nn.Module):
    """Inverted residual: to ``expansion`` times the channels, one filter a channel, and to ``width`` channels."""

    kernel: int
    stride: int
    expansion: int
    width: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[AnyArray, "b h w k"], *, train: bool) -> Float[Array, "b i j l"]:
        options = {"same": True, "use_bias": False, "dtype": self.dtype}
        y, wide = x, x.shape[-1] * self.expansion
        if self.expansion > 1:
            y = conv(wide, 1, name="expand", **options)(y)
            y = nn.relu6(norm(y, "expand_bn", train=train, **NORM))
        y = Depthwise(self.kernel, self.stride, self.dtype, name="depthwise")(y)
        y = nn.relu6(norm(y, "depthwise_bn", train=train, **NORM))
        y = conv(self.width, 1, name="project", **options)(y)
        y = norm(y, "project_bn", train=train, **NORM)
        return x + y if x.shape == y.shape else y


class EfficientNetLite(nn.Module):
    """Normalised pixels to the last feature map, 1280 channels.

    Attributes:
        width: multiplier of the channels of the stages.
        depth: multiplier of their blocks.
        dtype: of the convolutions; parameters stay float32.
    """

    width: float = 1.0
    depth: float = 1.0
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[AnyArray, "b h w 3"], *, train: bool) -> Float[Array, "b i j f"]:
        options = {"same": True, "use_bias": False, "dtype": self.dtype}
        x = conv(32, 3, 2, name="stem", **options)(x)
        x = nn.relu6(norm(x, "stem_bn", train=train, **NORM))
        number = 0
        for stage in STAGES:
            ends = stage in (STAGES[0], STAGES[-1])
            for place in range(stage.blocks if ends else math.ceil(stage.blocks * self.depth)):
                stride, out = 1 if place else stage.stride, scaled(stage.width * self.width)
                name = f"blocks.{number}"
                x = Block(stage.kernel, stride, stage.expansion, out, self.dtype, name=name)(x, train=train)
                number += 1
        x = conv(1280, 1, name="head", **options)(x)
        return nn.relu6(norm(x, "head_bn", train=train, **NORM))
