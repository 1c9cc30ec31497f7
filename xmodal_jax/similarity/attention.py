"""Scores of two sets of fragments: stacked cross attention (SCAN) and best matches (DVSA, CHAN)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.similarity.vector import NEVER, AnyArray, safe_sqrt


class Sides(NamedTuple):
    """The query's fragments look into the context's."""

    context: jax.Array  # [N, T, D]
    context_mask: jax.Array  # [N, T]
    query: jax.Array  # [M, Q, D]
    query_mask: jax.Array  # [M, Q]


def _sides(direction: str, region, region_mask, word, word_mask) -> Sides:
    image = jnp.asarray(region), jnp.asarray(region_mask)
    text = jnp.asarray(word), jnp.asarray(word_mask)
    if direction not in ("t2i", "i2t"):
        raise ValueError(f'direction must be "t2i" or "i2t", not "{direction}"')
    return Sides(*image, *text) if direction == "t2i" else Sides(*text, *image)


def _no_norm(similar: jax.Array, mask: jax.Array) -> jax.Array:
    return similar


def _clipped(similar: jax.Array, mask: jax.Array) -> jax.Array:
    return jnp.where(similar > 0, similar, 0.1 * similar)  # the released code; the paper prints a plain ReLU


def _l2norm(similar: jax.Array, mask: jax.Array) -> jax.Array:
    return similar / (safe_sqrt(jnp.sum(jnp.square(similar) * mask, axis=2, keepdims=True)) + 1e-8)


def _l1norm(similar: jax.Array, mask: jax.Array) -> jax.Array:
    return similar / (jnp.sum(jnp.abs(similar) * mask, axis=2, keepdims=True) + 1e-8)


def _softmax(similar: jax.Array, mask: jax.Array) -> jax.Array:
    similar = jnp.where(mask, similar, NEVER)
    top = jax.lax.stop_gradient(jnp.max(similar, axis=2, keepdims=True))
    exponential = jnp.where(mask, jnp.exp(similar - top), 0.0)
    total = jnp.sum(exponential, axis=2, keepdims=True)
    return exponential / jnp.where(total > 0, total, 1.0)


# Over the query's fragments (axis 2 of [N, T, Q, M]), for each fragment of the context; `mask` is [Q, M]
NORMS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "no_norm": _no_norm,
    "softmax": _softmax,
    "l2norm": _l2norm,
    "l1norm": _l1norm,
    "clipped": _clipped,
    "clipped_l2norm": lambda similar, mask: _l2norm(_clipped(similar, mask), mask),
    "clipped_l1norm": lambda similar, mask: _l1norm(_clipped(similar, mask), mask),
}


def _log_sum_exp(relevance: jax.Array, mask: jax.Array, lse: float) -> jax.Array:
    relevance = jnp.where(mask, relevance, NEVER)
    top = jax.lax.stop_gradient(jnp.max(relevance, axis=1, keepdims=True))
    total = jnp.sum(jnp.where(mask, jnp.exp(lse * (relevance - top)), 0.0), axis=1)
    return top[:, 0] + jnp.log(jnp.maximum(total, 1e-30)) / lse


# Over the query's fragments (axis 1 of [N, Q, M]); a query without any is set to 0 afterwards
POOLS: dict[str, Callable[[jax.Array, jax.Array, float], jax.Array]] = {
    "lse": _log_sum_exp,
    "mean": lambda relevance, mask, lse: jnp.sum(relevance * mask, axis=1) / jnp.maximum(jnp.sum(mask, axis=0), 1),
    "sum": lambda relevance, mask, lse: jnp.sum(relevance * mask, axis=1),
    "max": lambda relevance, mask, lse: jnp.max(jnp.where(mask, relevance, NEVER), axis=1),
}


def gram(x: Float[AnyArray, "n t d"]) -> Float[Array, "n t t"]:
    """Inner products of the fragments of each item with each other."""
    return jnp.einsum("ntd,nsd->nts", x, x, preferred_element_type=jnp.float32)


def cross_attention(
    region: Float[AnyArray, "b r d"],
    region_mask: Bool[AnyArray, "b r"],
    word: Float[AnyArray, "c w d"],
    word_mask: Bool[AnyArray, "c w"],
    *,
    direction: str,
    norm: str = "clipped_l2norm",
    smooth: int | float = 9.0,
    pool: str = "lse",
    lse: int | float = 6.0,
    context_gram: Float[AnyArray, "n t t"] | None = None,
) -> Float[Array, "b c"]:
    r"""Stacked cross attention (SCAN; Lee et al., ECCV 2018) of all pairs; attended vectors are never built.

    The *query* fragments q (words for "t2i", regions for "i2t") attend to the *context* fragments t of the other
    side. With :math:`s_{tq}` their inner products, normalised over q to :math:`\tilde s_{tq}`, and
    :math:`a_{tq} = \mathrm{softmax}_t(\lambda \tilde s_{tq})`, the relevance of q is the cosine between q and its
    attended vector :math:`u_q = \sum_t a_{tq} c_t`. Since :math:`q \cdot u_q = \sum_t a_{tq} s_{tq}` and
    :math:`|u_q|^2 = a_q^\top G a_q` with the context's Gram matrix G, neither :math:`u_q` nor the softmax's denominator
    (it cancels) is ever formed.

    Args:
        direction: "t2i", words attend to regions; "i2t", regions attend to words.
        norm: a key of :data:`NORMS`; "clipped" is a leaky ReLU of slope 0.1 as in the released code.
        smooth: :math:`\lambda`, the inverse temperature of the softmax over the context.
        pool: a key of :data:`POOLS`, over the query's fragments: "lse" is :math:`\frac 1 l \log \sum_q e^{l r_q}`.
        lse: l.
        context_gram: :func:`gram` of the context's fragments, where it is known already.

    Returns:
        Scores [B, C] in float32. A query without fragments scores 0; fragments of a context without any have
        relevance 0.
    """
    sides = _sides(direction, region, region_mask, word, word_mask)
    scores = _attend(sides, NORMS[norm], smooth, lambda r, mask: POOLS[pool](r, mask, lse), context_gram)
    return scores if direction == "t2i" else scores.T


def attention_weights(
    region: Float[AnyArray, "b r d"],
    region_mask: Bool[AnyArray, "b r"],
    word: Float[AnyArray, "c w d"],
    word_mask: Bool[AnyArray, "c w"],
    *,
    direction: str,
    norm: str = "clipped_l2norm",
    smooth: int | float = 9.0,
) -> Float[Array, "b c r w"]:
    """The weights [B, C, R, W] by which :func:`cross_attention` attends, for looking at a few pairs.

    For "t2i" the weights of a word add up to 1 over the regions, for "i2t" those of a region over the words. Padding
    has weight 0.
    """
    sides = _sides(direction, region, region_mask, word, word_mask)
    weight = _exponentials(sides, NORMS[norm], smooth)[1]
    return _by_pair(direction, weight, sides.query_mask)


def _products(sides: Sides) -> jax.Array:
    """Inner products [N, T, Q, M] of N contexts [N, T, D] with M queries [M, Q, D]."""
    context, query = sides.context, sides.query
    products = context.shape[0] * context.shape[1]
    if isinstance(products, int) and products < context.shape[2]:  # they are smaller than the queries to transpose
        return jnp.einsum("ntd,mqd->ntqm", context, query, preferred_element_type=jnp.float32)
    query = jnp.swapaxes(query, 0, 1)
    return jnp.einsum("ntd,qmd->ntqm", context, query, preferred_element_type=jnp.float32)


def _exponentials(sides: Sides, normalise, smooth: float) -> tuple[jax.Array, jax.Array]:
    """Inner products and attention [N, T, Q, M]: the softmax over T but for its denominator, which is 1 or more."""
    similar = _products(sides)
    logit = smooth * normalise(similar, sides.query_mask.T)
    real = sides.context_mask[:, :, None, None]
    logit = jnp.where(real, logit, NEVER)
    top = jax.lax.stop_gradient(jnp.max(logit, axis=1, keepdims=True))
    return similar, jnp.where(real, jnp.exp(logit - top), 0.0)


def _by_pair(direction: str, weight: jax.Array, query_mask: jax.Array) -> jax.Array:
    """Weights [N, T, Q, M], each at most 1 and the largest of a query 1, to [B, C, R, W] that add up to 1 over T."""
    share = weight / jnp.maximum(jnp.sum(weight, axis=1, keepdims=True), 1.0)  # the sum is 0 where all is padding
    share = jnp.where(query_mask.T, share, 0.0)
    return share.transpose((0, 3, 1, 2) if direction == "t2i" else (3, 0, 2, 1))


def _attend(sides: Sides, normalise, smooth: float, pool: Callable[..., jax.Array], context_gram) -> jax.Array:
    """Scores [N, M] of N contexts [N, T, D] and M queries [M, Q, D].

    Items of the query stand last in [N, T, Q, M]: every reduction below then runs over whole vectors of them.
    """
    context, _, query, query_mask = sides
    mask = query_mask.T
    similar, weight = _exponentials(sides, normalise, smooth)
    context_gram = gram(context) if context_gram is None else context_gram
    applied = jnp.einsum("nts,nsqm->ntqm", context_gram, weight, preferred_element_type=jnp.float32)
    product = jnp.sum(weight * similar, axis=1)  # [N, Q, M]
    length = safe_sqrt(jnp.sum(weight * applied, axis=1))
    norm = safe_sqrt(jnp.sum(jnp.square(query.astype(jnp.float32)), axis=-1)).T  # [Q, M]
    relevance = product / jnp.maximum(norm * length, 1e-8)
    return jnp.where(jnp.any(mask, axis=0), pool(relevance, mask), 0.0)


# As POOLS, but CHAN's log-sum-exp is not scaled back: it grows to about `lse` times the largest match
MATCH_POOLS = {**POOLS, "lse": lambda best, mask, lse: lse * _log_sum_exp(best, mask, lse)}


def sum_max(
    region: Float[AnyArray, "b r d"],
    region_mask: Bool[AnyArray, "b r"],
    word: Float[AnyArray, "c w d"],
    word_mask: Bool[AnyArray, "c w"],
    *,
    direction: str = "t2i",
    pool: str = "sum",
    temperature: int | float = 0.1,
) -> Float[Array, "b c"]:
    r"""Pooled best matches of every image with every caption, no fragment normalised.

    For "t2i" each word w has the relevance :math:`m_w = \max_r v_r \cdot e_w` over the real regions, pooled over the
    real words; for "i2t" regions and words change places. The sum is the score of DVSA (Karpathy and Fei-Fei, CVPR
    2015), and on unit vectors SCAN's Sum-Max; mean and log-sum-exp on unit vectors are CHAN's (Pan et al., CVPR 2023).

    Args:
        direction: "t2i", words look for regions; "i2t", regions look for words.
        pool: a key of :data:`MATCH_POOLS`. "lse" is :math:`\log \sum_w e^{m_w / t}` as in CHAN's released code: neither
            multiplied back by t nor divided by the length, so scores reach about :math:`1/t` on unit vectors.
        temperature: t, read by "lse" only.

    Returns:
        Scores [B, C] in float32. A pair whose image has no regions or whose caption has no words scores 0, without
        a gradient. Regions that tie for a maximum share its gradient.
    """
    sides = _sides(direction, region, region_mask, word, word_mask)
    scores = _match(sides, lambda best, mask: MATCH_POOLS[pool](best, mask, 1.0 / temperature))
    return scores if direction == "t2i" else scores.T


def _match(sides: Sides, pool: Callable[..., jax.Array]) -> jax.Array:
    """Scores [N, M] of N contexts [N, T, D] and M queries [M, Q, D], in the layout of :func:`_attend`."""
    context_mask, query_mask = sides.context_mask, sides.query_mask
    best = jnp.max(_candidates(sides), axis=1)
    matched = jnp.any(context_mask, axis=1)[:, None] & jnp.any(query_mask, axis=1)
    return jnp.where(matched, pool(best, query_mask.T), 0.0)


def _candidates(sides: Sides) -> jax.Array:
    """Inner products [N, T, Q, M] of what may be matched; padding of the context never is."""
    return jnp.where(sides.context_mask[:, :, None, None], _products(sides), NEVER)


def match_weights(
    region: Float[AnyArray, "b r d"],
    region_mask: Bool[AnyArray, "b r"],
    word: Float[AnyArray, "c w d"],
    word_mask: Bool[AnyArray, "c w"],
    *,
    direction: str = "t2i",
) -> Float[Array, "b c r w"]:
    """The matches that :func:`sum_max` pools, as weights [B, C, R, W] like those of :func:`attention_weights`.

    Each word ("i2t": each region) gives 1 to its best region (word); those that tie share it. Padding has weight 0.
    """
    sides = _sides(direction, region, region_mask, word, word_mask)
    product = _candidates(sides)
    best = (product == jnp.max(product, axis=1, keepdims=True)) & sides.context_mask[:, :, None, None]
    return _by_pair(direction, best.astype(jnp.float32), sides.query_mask)
