"""Normalisation by batch statistics, as PyTorch, TensorFlow or Caffe keeps them."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.similarity import AnyArray


class BatchNorm(nn.Module):
    """PyTorch's BatchNorm1d of [..., K] over the entries that are real; K may be less than ``size``.

    A channel with fewer than two real entries leaves its running statistics alone.

    Attributes:
        size: number of channels that have statistics.
        affine: learn a scale and a bias of each channel.
        momentum: share of the batch in the new running statistics, as PyTorch counts it; TensorFlow's is 1 minus this.
        unbiased: the running variance is divided by one entry less (PyTorch), or is that of the batch (TensorFlow).
        epsilon: added to the variance.
        corrected: the running statistics hold nothing of their initial values: each batch counts 1 and loses a share
            ``momentum`` with every further one (Caffe, whose sums go with their ``count``).
    """

    size: int
    affine: bool = True
    momentum: float = 0.1
    unbiased: bool = True
    epsilon: float = 1e-5
    corrected: bool = False

    @nn.compact
    def __call__(self, x: Float[AnyArray, "*n k"], real: Bool[AnyArray, "..."], *, train: bool) -> Float[Array, "*n k"]:
        """``real`` broadcasts against ``x``; it matters in training only."""
        used = x.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (self.size,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (self.size,))
        batches = self.variable("batch_stats", "count", jnp.zeros, (self.size,)) if self.corrected else None
        mean, var = running_mean.value[:used], running_var.value[:used]
        if train:
            real, axes = jnp.broadcast_to(real, x.shape), tuple(range(x.ndim - 1))
            count = jnp.sum(real, axes)
            mean = jnp.sum(jnp.where(real, x, 0.0), axes) / jnp.maximum(count, 1)
            squares = jnp.sum(jnp.where(real, jnp.square(x - mean), 0.0), axes)
            var = squares / jnp.maximum(count, 1)
            kept_var = squares / jnp.maximum(count - 1, 1) if self.unbiased else var
            share: float | jax.Array = self.momentum
            if batches is not None:
                after = (1 - self.momentum) * batches.value[:used] + 1
                batches.value = batches.value.at[:used].set(jnp.where(count > 1, after, batches.value[:used]))
                share = 1 / after
            for running, new in ((running_mean, mean), (running_var, kept_var)):
                change = jnp.where(count > 1, share * (new - running.value[:used]), 0.0)
                running.value = running.value.at[:used].add(change)
        normal = jnp.asarray(x - mean) * jax.lax.rsqrt(var + self.epsilon)
        if not self.affine:
            return normal
        scale = self.param("scale", nn.initializers.ones, (self.size,))
        return normal * scale[:used] + self.param("bias", nn.initializers.zeros, (self.size,))[:used]
