"""Image encoders on precomputed features, and what makes features of raw pixels."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.layers.backbones import Backbone
from xmodal_jax.similarity import AnyArray
from xmodal_jax.types import Images

PIXELS = "pixels"  # the feature that is raw pixels


def mean_pool(region: Float[AnyArray, "b r f"], mask: Bool[AnyArray, "b r"]) -> Float[Array, "b f"]:
    """Mean over the real regions; zeros for an image without any."""
    total = jnp.sum(jnp.where(mask[..., None], region, 0.0), axis=1)
    return total / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)


def image_vector(image: Images, name: str) -> Float[Array, "b f"]:
    """A vector of every image: its feature ``name``, of regions the mean."""
    feature = jnp.asarray(image.feature[name], jnp.float32)
    return mean_pool(feature, image.mask) if feature.ndim == 3 else feature


def as_regions(feature: Float[AnyArray, "b *r f"]) -> Float[Array, "b r f"]:
    """Float32 regions; a global feature becomes one region."""
    regions = jnp.asarray(feature, jnp.float32)
    return regions if regions.ndim == 3 else regions[:, None]


def survivors(draw: Float[AnyArray, "n t"], mask: Bool[AnyArray, "n t"], rate: float) -> Bool[Array, "n t"]:
    """The real fragments whose draw reaches ``rate``, or the one with the largest draw: no item loses its last."""
    best = jnp.max(jnp.where(mask, draw, -1.0), axis=1, keepdims=True)
    return jnp.asarray(mask) & ((draw >= rate) | (draw == best))


class ImageVector(nn.Module):
    """A vector [B, F] of every image: its global feature, the mean of its regions, or what an image network sees in it.

    Attributes:
        feature: name of the image feature; of "pixels" the vector is the mean of the network's last map.
        network: name in :data:`xmodal_jax.layers.backbones.BACKBONES`, for pixels. Its parameters lie under "backbone".
        mode: of the network, see :class:`xmodal_jax.layers.backbones.Backbone`.
        dtype: of the network's products.
    """

    feature: str
    network: str = ""
    mode: str = "eval"
    dtype: str = "float32"

    def setup(self) -> None:
        if self.feature == PIXELS:
            self.backbone = Backbone(self.network, self.mode, self.dtype)

    def __call__(self, image: Images, *, train: bool) -> Float[Array, "b f"]:
        if self.feature == PIXELS:
            return jnp.mean(self.backbone(image.feature[PIXELS], train=train), axis=(1, 2))
        return image_vector(image, self.feature)
