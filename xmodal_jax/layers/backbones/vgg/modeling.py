"""VGG-19, Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015,
configuration E of Table 1, without batch norm. Layers have their usual names: conv1_1 to conv5_4, fc6, fc7.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from xmodal_jax.layers.backbones.parts import conv
from xmodal_jax.similarity import AnyArray

STAGES = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))  # width and number of convolutions before each pooling
SIDE = 7  # of the map that fc6 takes


def windows(size: int, out: int) -> Float[np.ndarray, "out size"]:
    """Weights of PyTorch's adaptive average pooling along one axis: window i goes from i size / out, rounded down, to
    (i + 1) size / out, rounded up."""
    start, end = np.arange(out) * size // out, -(-np.arange(1, out + 1) * size // out)
    place = np.arange(size)
    inside = (place >= start[:, None]) & (place < end[:, None])
    return (inside / inside.sum(1, keepdims=True)).astype(np.float32)


class VGG(nn.Module):
    """Normalised pixels to the map after the last pooling, or to the vector fc7 as a map of one place.

    Attributes:
        fc7: the second fully connected layer after ReLU, 4096 numbers. Training with ``train`` drops half of what fc6
            and fc7 give, as published.
        dtype: of the products; parameters stay float32.
    """

    fc7: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[AnyArray, "b h w 3"], *, train: bool) -> Float[Array, "b i j f"]:
        for stage, (width, count) in enumerate(STAGES, 1):
            for place in range(1, count + 1):
                x = nn.relu(conv(width, 3, dtype=self.dtype, name=f"conv{stage}_{place}")(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        if not self.fc7:
            return jnp.asarray(x)
        height, width = (windows(size, SIDE) for size in x.shape[1:3])
        x = jnp.einsum("bhwf,ih,jw->bijf", x, height, width).reshape(x.shape[0], 1, 1, -1)
        for name in ("fc6", "fc7"):
            dense = nn.Dense(4096, dtype=jnp.dtype(self.dtype), kernel_init=nn.initializers.normal(0.01), name=name)
            x = nn.Dropout(0.5, deterministic=not train)(nn.relu(dense(x)))
        return jnp.asarray(x)
