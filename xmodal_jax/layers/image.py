"""Image encoders on precomputed features."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def mean_pool(region: Float[Array, "b r f"], mask: Bool[Array, "b r"]) -> Float[Array, "b f"]:
    """Mean over the real regions; zeros for an image without any."""
    total = jnp.sum(jnp.where(mask[..., None], region, 0.0), axis=1)
    return total / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
