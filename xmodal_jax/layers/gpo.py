"""Generalised pooling operator: a learned weight for each place of a sorted set (Chen et al., CVPR 2021)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from xmodal_jax.layers.recurrent import BiGRU, uniform
from xmodal_jax.similarity import AnyArray

LONGEST = 512  # fragments of a set whose size is only known when an exported function is called


def position_code(length: Any, size: int) -> Float[AnyArray, "t d"]:
    """Sines (even columns) and cosines (odd columns) of the places 0..T-1, [T, D] float32, base 10,000."""
    if not isinstance(length, int):  # symbolic, while a function is exported
        return jnp.take(jnp.asarray(position_code(LONGEST, size)), jnp.arange(length), axis=0, mode="clip")
    angle = np.arange(length)[:, None] * 10000.0 ** (-np.arange(0, size, 2) / size)
    return np.stack([np.sin(angle), np.cos(angle)], axis=-1).reshape(length, size).astype(np.float32)


def ranks(feature: Float[AnyArray, "n t d"], mask: Bool[AnyArray, "n t"]) -> Int[Array, "n t d"]:
    """Place, from 0, of each number when every feature is sorted by itself, largest first; only real rows are counted.

    Counting the larger ones costs T^2, but in one vector loop: on a CPU it beats XLA's sort up to about T = 36, at
    T = 12 more than tenfold.
    """
    place = jnp.arange(feature.shape[1])
    earlier = (place[None, :] < place[:, None])[None, :, :, None]
    this, that = feature[:, :, None, :], feature[:, None, :, :]
    before = (that > this) | (earlier & (that == this))  # of equal numbers the earlier row comes first
    return jnp.sum(before & mask[:, None, :, None], axis=2)


def sorted_sum(
    feature: Float[AnyArray, "n t d"], mask: Bool[AnyArray, "n t"], weight: Float[AnyArray, "n t"]
) -> Float[Array, "n d"]:
    """``sum_k weight[n, k] * (k-th largest of feature[n, :, d])`` over the real rows; zeros for an empty set."""
    weights = jnp.take_along_axis(weight[:, :, None], ranks(feature, mask), axis=1, mode="promise_in_bounds")
    return jnp.sum(jnp.where(mask[..., None], weights * feature, 0.0), axis=1)


class GPO(nn.Module):
    """Sets [N, T, D] to vectors [N, D]: each feature is sorted, largest first, and summed with learned weights.

    The weights depend on the number of real rows K alone: uniform ones are the mean, a one at the first place is the
    maximum. Real rows may stand anywhere.

    Attributes:
        code_dim: size of the position code.
        hidden_dim: size of the bi-GRU that reads it.
        temperature: of the softmax over places.
    """

    code_dim: int = 32
    hidden_dim: int = 32
    temperature: float = 0.1

    def setup(self) -> None:
        self.gru = BiGRU(self.hidden_dim)
        self.linear = nn.Dense(1, use_bias=False, kernel_init=uniform(self.hidden_dim**-0.5))

    def table(self, length: Any) -> Float[Array, "t t"]:
        """Weights of all set sizes up to T: row K - 1 holds the K weights of size K, then zeros."""
        real = jnp.tri(length, dtype=bool)
        code = jnp.broadcast_to(position_code(length, self.code_dim), (length, length, self.code_dim))
        score = self.linear(self.gru(code, real))[..., 0]
        return jax.nn.softmax(score / self.temperature, axis=-1, where=real)

    def __call__(self, feature: Float[AnyArray, "n t d"], mask: Bool[AnyArray, "n t"]) -> Float[Array, "n d"]:
        # T sizes are fewer than N sets, so the GRU reads sizes instead of sets. The empty set may take any row.
        weight = self.table(feature.shape[1])[jnp.sum(mask, axis=1) - 1]
        return sorted_sum(feature, jnp.asarray(mask), weight)
