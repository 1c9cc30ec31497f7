"""Bidirectional ranking losses over the k hardest negatives, with terms between items of one modality.

Every caption is an anchor together with its image. Weights have the same names in both losses: ``i2t_weight`` of the
negative captions of its image, ``t2i_weight`` of its own negative images, ``text_weight`` and ``image_weight`` of the
terms that compare captions with captions, images with images. Negatives are those of :func:`triplet`: without
``loss.mask_same_image`` they include the captions of an image that stands in the batch a second time, and that image.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from xmodal_jax.losses.ranking import AnyArray, Scalar, matched_scores
from xmodal_jax.similarity.vector import NEVER


def _hardest(
    scores: Float[Array, "n m"], negative: Bool[Array, "n m"], k: int
) -> tuple[Float[Array, "n k"], Int[Array, "n k"]]:
    """(scores, columns) of the ``k`` negatives of each row that score highest; NEVER where a row has fewer."""
    scores, column = jax.lax.top_k(jnp.where(negative, scores, NEVER), min(k, scores.shape[1]))
    return scores, column


def _hinges(matched: Float[Array, " c"], others: Float[Array, "c k"], margin: Scalar) -> Float[Array, "c k"]:
    """``[m - own + other]_+``; 0, without a gradient, where there is no other."""
    return jax.nn.relu(margin - matched[:, None] + others)


def top_k(
    scores: Float[AnyArray, "b c"],
    positive: Bool[AnyArray, "b c"],
    where: Bool[AnyArray, "b c"] | None = None,
    *,
    text_scores: Float[AnyArray, "c c"],
    margin: Scalar,
    k: int = 10,
    i2t_weight: Scalar = 1.0,
    t2i_weight: Scalar = 1.5,
    text_weight: Scalar = 0.05,
) -> Float[Array, ""]:
    r"""Ranking loss of two-branch networks (Wang, Li, Lazebnik, CVPR 2016; TPAMI, arXiv 1704.03470, released code).

    For each caption c with its image p(c), :math:`S` the scores, :math:`T` those of captions with captions:

    .. math::
        L = w_{i2t} \langle [m - S_{p(c),c} + S_{p(c),c'}]_+ \rangle
            + w_{t2i} \langle [m - S_{p(c),c} + S_{b',c}]_+ \rangle
            + w_{text} \langle [m - \min_{c'' : p(c'') = p(c)} T_{c,c''} + T_{c,c'}]_+ \rangle

    with :math:`\langle\cdot\rangle` the mean over captions and, for each, its ``k`` hardest negatives, those that cost
    nothing included. Unlike the other losses this is no sum, as in the released code. The last term keeps captions of
    one image together: even the farthest of them is to be nearer than others are. The paper's term for
    neighbouring images is left out: the authors give it no weight, an image having no neighbour but itself.

    Args:
        scores: higher is better; minus the distance in the released code.
        positive, where: as in :func:`triplet`.
        text_scores: the same score between captions.
        margin: 0.05 in the released code, 0.1 in the CVPR paper.
        k: negatives of an anchor in each term; all of them where there are fewer.
        i2t_weight, t2i_weight, text_weight: of the terms. 0 for ``t2i_weight`` ranks in one direction alone, for
            ``text_weight`` leaves the structure of the captions out. In the CVPR paper 1, 2, 0.2.
    """
    scores, text_scores = jnp.asarray(scores), jnp.asarray(text_scores)
    pair, negative, row, matched = matched_scores(scores, positive, where)
    real = jnp.any(pair, axis=0)[:, None]
    farthest = jnp.min(jnp.where(pair[row], text_scores, -NEVER), axis=1)

    def mean(matched: jax.Array, others: jax.Array) -> jax.Array:
        kept = real & (others > NEVER)
        return jnp.sum(jnp.where(kept, _hinges(matched, others, margin), 0.0)) / jnp.maximum(jnp.sum(kept), 1)

    i2t = mean(matched, _hardest(scores, negative, k)[0][row])
    t2i = mean(matched, _hardest(scores.T, negative.T, k)[0])
    text = mean(farthest, _hardest(text_scores, negative[row], k)[0])
    return i2t_weight * i2t + t2i_weight * t2i + text_weight * text


def bi_rank(
    scores: Float[AnyArray, "b c"],
    positive: Bool[AnyArray, "b c"],
    where: Bool[AnyArray, "b c"] | None = None,
    *,
    image_scores: Float[AnyArray, "b b"],
    text_scores: Float[AnyArray, "c c"],
    margin: Scalar,
    k: int = 50,
    i2t_weight: Scalar = 1.0,
    t2i_weight: Scalar = 2.0,
    text_weight: Scalar = 0.5,
    image_weight: Scalar = 1.0,
) -> Float[Array, ""]:
    r"""Ranking loss of RRF-Net (Liu, Guo, Bakker, Lew, ICCV 2017; released code, yuLiu24/RRF-Net).

    For each caption c with its image p(c), :math:`S` the scores, :math:`T` and :math:`I` those of captions with
    captions and of images with images:

    .. math::
        L = \frac 1 {k C} \sum_c \Big(
            \sum_{c'} w_{i2t} [m - S_{p(c),c} + S_{p(c),c'}]_+ + w_{text} [m - S_{p(c),c} + T_{c,c'}]_+
            + \sum_{b'} w_{t2i} [m - S_{p(c),c} + S_{b',c}]_+ + w_{image} [m - S_{p(c),c} + I_{p(c),b'}]_+ \Big)

    where c' and b' are the up to ``k`` hardest negatives among those whose hinge between image and caption is
    active. The divisor is the same however few these are. The released code tells same images by their label: that
    is ``where`` under ``loss.mask_same_image``.

    Args:
        scores: higher is better; inner products of unit vectors in the released code.
        positive, where: as in :func:`triplet`.
        image_scores, text_scores: the same score between images, between captions.
        margin: 0.1 in the released code.
        k: most negatives of an anchor in each direction.
        i2t_weight, t2i_weight, text_weight, image_weight: of the terms; alpha 1, 3, 2 and 4 of the released code.
    """
    scores, image_scores, text_scores = map(jnp.asarray, (scores, image_scores, text_scores))
    pair, negative, row, matched = matched_scores(scores, positive, where)
    real = jnp.any(pair, axis=0)
    captions, caption = _hardest(scores, negative, k)
    images, image = _hardest(scores.T, negative.T, k)

    def total(others: jax.Array, alike: jax.Array, weight: Scalar, alike_weight: Scalar) -> jax.Array:
        hinges = _hinges(matched, others, margin)
        both = weight * hinges + alike_weight * _hinges(matched, alike, margin)
        return jnp.sum(jnp.where(real[:, None] & (hinges > 0), both, 0.0))

    i2t = total(captions[row], jnp.take_along_axis(text_scores, caption[row], axis=1), i2t_weight, text_weight)
    t2i = total(images, image_scores[row[:, None], image], t2i_weight, image_weight)
    return (i2t + t2i) / (k * jnp.maximum(jnp.sum(real), 1))
