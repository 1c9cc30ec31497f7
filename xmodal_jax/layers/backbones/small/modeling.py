"""Three narrow convolutions with batch norm, for tests and quick trials."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax.layers.backbones.parts import conv, norm
from xmodal_jax.similarity import AnyArray

WIDTHS = (8, 16, 32)


class Small(nn.Module):
    """Normalised pixels to a map an eighth as high and wide."""

    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[AnyArray, "b h w 3"], *, train: bool) -> Float[Array, "b i j f"]:
        for place, width in enumerate(WIDTHS, 1):
            x = conv(width, 3, 2, use_bias=False, dtype=self.dtype, name=f"conv{place}")(x)
            x = nn.relu(norm(x, f"bn{place}", train=train))
        return jnp.asarray(x)
