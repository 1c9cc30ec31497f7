"""The two sides of a conditional generative adversarial network, on logits of "this picture is real and fits".

Reed et al., "Generative Adversarial Text to Image Synthesis", ICML 2016 (GAN-CLS), as GXN weighs it: pictures that were
generated and captions of other images are one half of what the discriminator must refuse.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.losses.modality import mean
from xmodal_jax.similarity import AnyArray


def discrimination(
    true: Float[AnyArray, " n"],
    fake: Float[AnyArray, " n"],
    wrong: Float[AnyArray, " n"],
    real: Bool[AnyArray, " n"],
    differs: Bool[AnyArray, " n"],
) -> Float[Array, ""]:
    """``-E log D(x, t) - 1/2 E log(1 - D(G, t)) - 1/2 E log(1 - D(x, t^))``, from logits.

    Args:
        true: of pictures with their captions.
        fake: of generated pictures with the captions they were made from.
        wrong: of pictures with captions of other images, as far as ``differs``.
    """
    refused = mean(jax.nn.log_sigmoid(-fake), real) + mean(jax.nn.log_sigmoid(-wrong), differs)
    return -mean(jax.nn.log_sigmoid(true), real) - 0.5 * refused


def generation(fake: Float[AnyArray, " n"], real: Bool[AnyArray, " n"]) -> Float[Array, ""]:
    """``-E log D(G(z, t), t)``, the form whose gradient does not vanish where the discriminator is sure."""
    return -mean(jax.nn.log_sigmoid(fake), real)


def divergence(
    centre: Float[AnyArray, "n d"], log_sigma: Float[AnyArray, "n d"], real: Bool[AnyArray, " n"]
) -> Float[Array, ""]:
    """KL divergence of N(centre, sigma ** 2) from N(0, 1), summed over the dimensions, the mean over the real items."""
    each = 0.5 * (jnp.square(centre) + jnp.exp(2 * log_sigma) - 1) - log_sigma
    return mean(jnp.sum(each, axis=1), real)
