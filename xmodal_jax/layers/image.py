"""Image encoders on precomputed features."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.similarity import AnyArray


def mean_pool(region: Float[AnyArray, "b r f"], mask: Bool[AnyArray, "b r"]) -> Float[Array, "b f"]:
    """Mean over the real regions; zeros for an image without any."""
    total = jnp.sum(jnp.where(mask[..., None], region, 0.0), axis=1)
    return total / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)


def as_regions(feature: Float[AnyArray, "b *r f"]) -> Float[Array, "b r f"]:
    """Float32 regions; a global feature becomes one region."""
    regions = jnp.asarray(feature, jnp.float32)
    return regions if regions.ndim == 3 else regions[:, None]


def survivors(draw: Float[AnyArray, "n t"], mask: Bool[AnyArray, "n t"], rate: float) -> Bool[Array, "n t"]:
    """The real fragments whose draw reaches ``rate``, or the one with the largest draw: no item loses its last."""
    best = jnp.max(jnp.where(mask, draw, -1.0), axis=1, keepdims=True)
    return jnp.asarray(mask) & ((draw >= rate) | (draw == best))
