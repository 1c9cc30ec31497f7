"""Ranking losses: pure functions of the score matrix and its positives. A loss never sees a model."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from xmodal_jax.similarity.vector import NEVER

AnyArray = Array | np.ndarray
Scalar = int | float | Float[Array, ""]


def matched_scores(scores, positive, where) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """(pairs that count [B, C], negatives [B, C], each caption's image [C], 0 where it has none, and its score [C])."""
    positive = jnp.asarray(positive)
    counted = jnp.ones_like(positive) if where is None else jnp.asarray(where)
    pair = positive & counted
    row = jnp.argmax(pair, axis=0)
    return pair, counted & ~positive, row, jnp.take_along_axis(jnp.asarray(scores), row[None], axis=0)[0]


def hinge(x: Float[AnyArray, "..."], power: Scalar = 1.0) -> Float[Array, "..."]:
    """``max(0, x) ** power``, with gradient 0 where it is 0 (the double `where` keeps infinity times zero out)."""
    if isinstance(power, int | float) and power == 1:
        return jax.nn.relu(x)
    return jnp.where(x > 0, jnp.where(x > 0, x, 1.0) ** power, 0.0)


def triplet(
    scores: Float[AnyArray, "b c"],
    positive: Bool[AnyArray, "b c"],
    where: Bool[AnyArray, "b c"] | None = None,
    *,
    margin: Scalar,
    hardness: Scalar,
    hinge_power: Scalar = 1.0,
) -> Float[Array, ""]:
    r"""Bidirectional hinge loss over in-batch negatives, summed over pairs and both directions.

    For each caption c with its image p(c), :math:`S` the scores and :math:`m` the margin:

    .. math::
        L_0 = \sum_c \Big( \sum_{c'} [m - S_{p(c),c} + S_{p(c),c'}]_+ + \sum_{b'} [m - S_{p(c),c} + S_{b',c}]_+ \Big)

    with c' and b' the negatives of the row and of the column; :math:`L_1` takes the largest hinge in place of
    each inner sum, and the loss is :math:`h L_1 + (1 - h) L_0`.

    Args:
        scores: higher is better.
        positive: True at the caption's own image. A caption without any (padding) counts nowhere as a pair.
        where: pairs that may be negatives or positives; False for padding (and, under ``mask_same_image``, for
            further captions of the same image). Other captions of the same image in other rows are negatives, as
            in the original code. A pair marked positive is never a negative.
        margin: the margin, 0.2 for cosine in most systems.
        hardness: h. 0 is the sum of hinges (Kiros et al. 2014, VSE0), 1 the hardest negative (Faghri et al., BMVC
            2018, eq. 6), between them the annealed mix of ADAPT (Wehrmann et al., AAAI 2020). May be traced.
        hinge_power: exponent p of every hinge, :math:`[x]_+^p`, 1 in all published systems. [reconstruction] The
            released code of CHAIN-VSE (Wehrmann, Barros, CVPR 2018) reads such an exponent, which may be the "p" of
            the paper's tables.

    The hardest negative is chosen by argmax, so at exact ties one entry carries the gradient.

    >>> import numpy as np
    >>> scores, positive = np.array([[1.0, 0.9], [0.2, 0.5]], "f4"), np.eye(2, dtype=bool)
    >>> round(float(triplet(scores, positive, margin=0.2, hardness=1.0)), 4)
    0.7
    """
    scores = jnp.asarray(scores)
    pair, negative, row, matched = matched_scores(scores, positive, where)
    has_pair = jnp.any(pair, axis=0)

    along_row, row_negative = scores[row], negative[row]  # [C, C]: caption c's image against every caption
    along_column, column_negative = scores.T, negative.T  # [C, B]: caption c against every image

    def hinges(candidate: jax.Array, allowed: jax.Array) -> jax.Array:
        violation = hinge(margin - matched[:, None] + candidate, hinge_power)
        return jnp.sum(jnp.where(allowed & has_pair[:, None], violation, 0.0))

    def hardest(candidate: jax.Array, allowed: jax.Array) -> jax.Array:
        allowed = allowed & has_pair[:, None]
        index = jnp.argmax(jnp.where(allowed, candidate, -jnp.inf), axis=1)[:, None]
        violation = hinge(margin - matched + jnp.take_along_axis(candidate, index, axis=1)[:, 0], hinge_power)
        return jnp.sum(jnp.where(jnp.any(allowed, axis=1), violation, 0.0))

    sides = ((along_row, row_negative), (along_column, column_negative))
    # A plain number picks its branch here, so that the published losses pay for one of the two only.
    if isinstance(hardness, int | float) and hardness in (0, 1):
        term = hardest if hardness == 1 else hinges
        return sum((term(*side) for side in sides), start=jnp.zeros(()))
    mix = [hardness * hardest(*side) + (1.0 - hardness) * hinges(*side) for side in sides]
    return mix[0] + mix[1]


def infonce(
    scores: Float[AnyArray, "b c"], positive: Bool[AnyArray, "b c"], where: Bool[AnyArray, "b c"] | None = None
) -> Float[Array, ""]:
    r"""Symmetric cross entropy over in-batch negatives (ConVIRT; CLIP, Radford et al., ICML 2021, fig. 3), summed.

    .. math::
        L = -\tfrac 1 2 \sum_c \Big( \log \frac{e^{S_{p(c),c}}}{e^{S_{p(c),c}} + \sum_{c'} e^{S_{p(c),c'}}}
            + \log \frac{e^{S_{p(c),c}}}{e^{S_{p(c),c}} + \sum_{b'} e^{S_{b',c}}} \Big)

    with the negatives of :func:`triplet`. The papers take the mean over the batch; like all losses here this is the
    sum. Scores should be cosines times a factor, see :class:`xmodal_jax.layers.scale.Scale`.
    """
    pair, negative, row, matched = matched_scores(scores, positive, where)
    below = jnp.where(negative, jnp.asarray(scores), NEVER)
    sides = jax.nn.logsumexp(below, axis=1)[row], jax.nn.logsumexp(below, axis=0)
    terms = jax.nn.softplus(sides[0] - matched) + jax.nn.softplus(sides[1] - matched)
    return jnp.sum(jnp.where(jnp.any(pair, axis=0), terms, 0.0)) / 2


def sigmoid(
    scores: Float[AnyArray, "b c"], positive: Bool[AnyArray, "b c"], where: Bool[AnyArray, "b c"] | None = None
) -> Float[Array, ""]:
    r"""Every pair a yes-or-no question (SigLIP; Zhai et al., ICCV 2023, eq. 1): :math:`-\sum \log \sigma(z S)`.

    z is 1 for a positive and -1 for a negative. The paper divides by the batch size; like all losses here this is the
    sum. Scores should be cosines times a factor, plus a bias, see :class:`xmodal_jax.layers.scale.Scale`.
    """
    pair, negative, _, _ = matched_scores(scores, positive, where)
    terms = jnp.where(pair, jax.nn.softplus(-jnp.asarray(scores)), 0.0)
    return jnp.sum(terms + jnp.where(negative, jax.nn.softplus(jnp.asarray(scores)), 0.0))


def halves(
    scores: Float[AnyArray, "b b"],
    positive: Bool[AnyArray, "b b"],
    where: Bool[AnyArray, "b b"] | None = None,
    *,
    margin: Scalar,
) -> Float[Array, ""]:
    r"""Dual-Path's ranking loss: half of a batch are pairs, each of which meets one text and one image of the rest.

    .. math::
        L = \tfrac 1 B \sum_{i < B / 2} [m - S_{i,i} + S_{i,\,i + B/2}]_+ + [m - S_{i,i} + S_{i + B/2,\,i}]_+

    of as many captions as images (Zheng et al., arXiv 1711.05535; layumi/Image-Text-Embedding, whose layer sums and
    whose solver divides by the batch size B). Captions and images that have no partner in the batch come last, each
    kind in its order, so that negatives which replaced the captions of some images need not stand in its second half.

    Args:
        scores: higher is better.
        positive: True at the caption's own image, also where both are padding.
        where: pairs that count, all by default.
        margin: 1 in the paper.
    """
    scores, positive = jnp.asarray(scores), jnp.asarray(positive)
    half = len(scores) // 2
    counted = jnp.ones_like(positive) if where is None else jnp.asarray(where)
    image, caption = (jnp.argsort(~jnp.any(positive, axis=axis), stable=True) for axis in (1, 0))
    image, other_image = image[:half], image[half : 2 * half]
    caption, other_caption = caption[:half], caption[half : 2 * half]

    def term(row: jax.Array, column: jax.Array) -> jax.Array:
        allowed = counted[image, caption] & counted[row, column]
        return jnp.where(allowed, hinge(margin - scores[image, caption] + scores[row, column]), 0.0)

    return jnp.sum(term(image, other_caption) + term(other_image, caption)) / len(scores)


def violations(
    scores: Float[AnyArray, "b c"], positive: Bool[AnyArray, "b c"], where: Bool[AnyArray, "b c"] | None = None
) -> tuple[Float[Array, " c"], Float[Array, " b"]]:
    """What training logs: the scores of each caption with its own image, of each image with its hardest caption (minus
    infinity where it has none)."""
    _, negative, _, matched = matched_scores(scores, positive, where)
    return matched, jnp.max(jnp.where(negative, scores, -jnp.inf), axis=1)
