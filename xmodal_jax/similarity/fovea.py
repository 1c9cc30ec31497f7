"""ADAPT's fovea: the score of every item's fragments, filtered by every query, with that query."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.similarity.vector import NEVER, AnyArray, safe_sqrt


def fovea(
    fragment: Float[AnyArray, "n t d"],
    mask: Bool[AnyArray, "n t"],
    scale: Float[AnyArray, "m d"],
    shift: Float[AnyArray, "m d"],
    query: Float[AnyArray, "m d"],
    *,
    smooth: int | float | Float[Array, ""],
    pool: str = "mean",
) -> Float[Array, "n m"]:
    r"""Adaptive fragments through a fovea (ADAPT; Wehrmann, Kolling, Barros, AAAI 2020), pooled and compared.

    Query m turns fragment :math:`v_t` into :math:`x_t = a_m v_t + b_m`, with scale a and shift b. A softmax over the
    fragments, for each feature by itself, gives weights :math:`w_t = \mathrm{softmax}_t(\lambda x_t)`. The score is the
    cosine between the query and the pooled :math:`w_t x_t`. Nothing of size [N, M, T, D] is stored, not even for the
    backward pass.

    Args:
        scale, shift: a and b, of each query.
        query: unit vectors.
        smooth: :math:`\lambda`.
        pool: a key of :data:`FOVEAS`: "mean" over the fragments, where ADAPT's captions filter regions, or "max",
            where its images filter words.

    Returns:
        Scores [N, M] in float32; 0 for an item without fragments. Of fragments that tie for a maximum the first one
        carries the gradient.
    """
    mask = jnp.asarray(mask)
    fragment, scale, shift, query = (jnp.asarray(x, jnp.float32) for x in (fragment, scale, shift, query))
    filtered = FOVEAS[pool](smooth * scale, scale, shift, fragment, mask)
    length = safe_sqrt(jnp.sum(jnp.square(filtered), axis=-1))
    scores = jnp.sum(filtered * query, axis=-1) / (length + 1e-8)
    return jnp.where(jnp.any(mask, axis=1)[:, None], scores, 0.0)


def _top(slope: jax.Array, fragment: jax.Array, mask: jax.Array) -> jax.Array:
    """Largest ``slope * v_t`` over the real fragments [N, M, D]: v_t is the largest or the smallest of them."""
    real = mask[..., None]
    largest = jnp.max(jnp.where(real, fragment, NEVER), axis=1)[:, None]
    smallest = jnp.min(jnp.where(real, fragment, -NEVER), axis=1)[:, None]
    return jnp.maximum(slope * largest, slope * smallest)


def _weight(slope: jax.Array, vector: jax.Array, real: jax.Array, level: jax.Array) -> jax.Array:
    """Weight of one fragment, up to the softmax's denominator or not, as ``level`` has it; the shift cancels."""
    return jnp.where(real, jnp.exp(slope * vector - level), 0.0)


def _fold(step: Callable[..., Any], start: Any, like: jax.Array, fragment: jax.Array, mask: jax.Array) -> Any:
    """``carry = step(carry, v_t, real_t)`` over the fragments, v_t [N, 1, D] and real_t [N, 1, 1].

    A Python loop over t lets XLA run through [N, M, D] once; as a reduction over an axis of fragments the same sum
    takes twice as long on a CPU. A number of fragments that is symbolic, while a function is exported, makes a scan;
    ``like`` has the shape of its carry.
    """
    if isinstance(mask.shape[1], int):
        for t in range(mask.shape[1]):
            start = step(start, fragment[:, t, None], mask[:, t, None, None])
        return start
    start = jax.tree.map(lambda x: jnp.broadcast_to(x, like.shape), start)
    steps = jnp.swapaxes(fragment, 0, 1)[:, :, None], mask.T[:, :, None, None]
    return jax.lax.scan(lambda carry, step_args: (step(carry, *step_args), None), start, steps)[0]


def _over_queries(gradient: Callable[..., Any], fragment: jax.Array, *args: jax.Array) -> tuple[jax.Array, Any]:
    """Gradients [N, T, D] of the fragments, added up over the queries, and what else ``gradient`` gives, stacked.

    ``args`` [..., M, D] reach it query by query as [..., 1, D], those of two axes as [D]. One query a step: of several
    at once XLA on a CPU makes several loops, five times slower in all.
    """
    queries = tuple(x if x.ndim == 2 else jnp.moveaxis(x, -2, 0)[..., None, :] for x in args)

    def step(total, query):
        part, rest = gradient(*query)
        return total + part, rest

    return jax.lax.scan(step, jnp.zeros_like(fragment), queries)


# Backward passes compute the weights again, from the logarithm of the softmax's denominator.


@jax.custom_vjp
def _mean(slope: jax.Array, fragment: jax.Array, mask: jax.Array) -> jax.Array:
    """``sum_t w_t v_t`` [N, M, D] with ``w = softmax_t(slope * v)``."""
    top = _top(slope, fragment, mask)

    def step(sums, vector, real):
        weight = _weight(slope, vector, real, top)
        return sums[0] + weight, sums[1] + weight * vector

    total, first = _fold(step, (jnp.zeros(()), jnp.zeros(())), top, fragment, mask)
    return first / jnp.maximum(total, 1e-30)


def _mean_forward(slope, fragment, mask):
    # The sums of w, w v and w v^2 are one array, read by one loop only, and computed apart from the mean: in any other
    # form XLA on a CPU computes the weights of all fragments once for the three of them, and stores them.
    power = jnp.arange(3)[:, None, None, None]
    slopes = jnp.broadcast_to(jax.lax.optimization_barrier(slope), (3, *slope.shape))[:, None]
    top = _top(slopes, fragment, mask)

    def step(sums, vector, real):
        factor = jnp.where(power == 0, 1.0, jnp.where(power == 1, vector, jnp.square(vector)))
        return sums + _weight(slopes, vector, real, top) * factor

    sums = _fold(step, jnp.zeros(()), top, fragment, mask)
    return _mean(slope, fragment, mask), (slope, fragment, mask, sums)


def _mean_backward(saved, cotangent):
    slope, fragment, mask, sums = saved

    def gradient(slope, sums, cotangent):
        total, first, second = sums
        total = jnp.maximum(total, 1e-30)
        mean, level = first / total, _top(slope, fragment, mask) + jnp.log(total)
        weight = _weight(slope, fragment, mask[..., None], level)
        d_slope = jnp.sum(cotangent * (second / total - jnp.square(mean)), axis=(0, 1))
        return cotangent * weight * (1.0 + slope * (fragment - mean)), d_slope

    d_fragment, d_slope = _over_queries(gradient, fragment, slope, sums, cotangent)
    return d_slope, d_fragment, None


_mean.defvjp(_mean_forward, _mean_backward)


@jax.custom_vjp
def _peak(slope: jax.Array, scale: jax.Array, shift: jax.Array, fragment: jax.Array, mask: jax.Array) -> jax.Array:
    """``max_t w_t (scale * v_t + shift)`` [N, M, D] with ``w = softmax_t(slope * v)``; 0 without fragments."""
    top = _top(slope, fragment, mask)

    def step(carry, vector, real):
        weight = _weight(slope, vector, real, top)
        value = jnp.where(real, weight * (scale * vector + shift), NEVER)
        return carry[0] + weight, jnp.maximum(carry[1], value)

    total, best = _fold(step, (jnp.zeros(()), jnp.full_like(top, NEVER)), top, fragment, mask)
    return jnp.where(jnp.any(mask, axis=1)[:, None, None], best, 0.0) / jnp.maximum(total, 1e-30)


def _peak_forward(slope, scale, shift, fragment, mask):
    top = _top(slope, fragment, mask)

    def step(carry, item):
        total, first, best, place, peak = carry
        t, vector, real = item
        weight = _weight(slope, vector, real, top)
        value = jnp.where(real, weight * (scale * vector + shift), NEVER)
        better = value > best
        sums = total + weight, first + weight * vector, jnp.maximum(best, value)
        return (*sums, jnp.where(better, t, place), jnp.where(better, vector, peak)), None

    zero = jnp.zeros_like(top)
    steps = jnp.arange(mask.shape[1]), jnp.swapaxes(fragment, 0, 1)[:, :, None], mask.T[:, :, None, None]
    start = (zero, zero, zero + NEVER, jnp.full(top.shape, -1), zero)
    total, first, _, place, peak = jax.lax.scan(step, start, steps, unroll=4)[0]
    total = jnp.maximum(total, 1e-30)
    level = top + jnp.log(total)
    weight = _weight(slope, peak, place >= 0, level)  # of the fragment that is the maximum
    saved = (slope, scale, shift, fragment, mask, level, first / total, place, peak, weight)
    return weight * (scale * peak + shift), saved


def _peak_backward(saved, cotangent):
    slope, scale, shift, fragment, mask, level, mean, place, peak, weight = saved
    d_value = cotangent * weight
    d_weight = d_value * (scale * peak + shift)  # the gradient at the logarithm of the weight
    number = jnp.arange(mask.shape[1])[:, None]

    def gradient(slope, level, place, chosen, through):
        others = through * _weight(slope, fragment, mask[..., None], level)
        return jnp.where(number == place, chosen, 0.0) - others, ()

    through = slope * d_weight
    d_fragment, _ = _over_queries(gradient, fragment, slope, level, place, scale * d_value + through, through)
    pairs = d_weight * (peak - mean), d_value * peak, d_value
    return *(jnp.sum(x, axis=0) for x in pairs), d_fragment, None


_peak.defvjp(_peak_forward, _peak_backward)

# The cosine takes no notice of the mean's 1/n.
FOVEAS: dict[str, Callable[..., jax.Array]] = {
    "mean": lambda slope, scale, shift, fragment, mask: scale * _mean(slope, fragment, mask) + shift,
    "max": _peak,
}
