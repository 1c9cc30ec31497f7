"""Losses of systems that speak: cross entropy over the tokens of captions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

AnyArray = Array | np.ndarray


def cross_entropy(
    logits: Float[AnyArray, "n t v"],
    target: Int[AnyArray, "n t"],
    mask: Bool[AnyArray, "n t"],
    *,
    smoothing: float = 0.0,
) -> Float[Array, ""]:
    r"""Cross entropy of the target tokens, summed over those that ``mask`` keeps; the caller divides.

    .. math::
        -\sum_{n,t} \Big( (1 - s) \log p_{n,t,y_{n,t}} + \tfrac s V \sum_v \log p_{n,t,v} \Big)

    with p the softmax of the logits, y the target and s the label ``smoothing`` (Szegedy et al., CVPR 2016, section 7),
    0 in most captioning systems. Logits at other positions may be anything. The target is picked by its id: no array
    but the logits and their gradient is as large as the logits.
    """
    logits = jnp.where(jnp.asarray(mask)[..., None], jnp.asarray(logits, jnp.float32), 0.0)
    picked = jnp.take_along_axis(logits, jnp.asarray(target)[..., None], axis=-1)[..., 0]
    if smoothing:
        picked = (1.0 - smoothing) * picked + smoothing * jnp.mean(logits, axis=-1)
    return jnp.sum(jnp.where(mask, jax.nn.logsumexp(logits, axis=-1) - picked, 0.0))


def self_critical(
    log_probability: Float[AnyArray, " n"],
    reward: Float[AnyArray, " n"],
    baseline: Float[AnyArray, " n"],
    real: Bool[AnyArray, " n"],
) -> Float[Array, ""]:
    r"""A loss whose gradient is that of policy gradients with a baseline, the mean over the real sentences of

    .. math::
        -(r_n - b_n) \nabla \log p(w_n)

    (Rennie et al., "Self-Critical Sequence Training for Image Captioning", CVPR 2017). Its value means nothing.
    """
    advantage = jax.lax.stop_gradient(jnp.asarray(reward) - baseline)
    return -jnp.sum(jnp.where(real, advantage * log_probability, 0.0)) / jnp.maximum(jnp.sum(real), 1)
