"""CIDEr-D and BLEU-4 of sentences as token ids, on the device: what self-critical training is rewarded by.

The values are those of :mod:`xmodal_jax.evaluation.captions` on the same words, a sentence at a time; the document
frequencies of CIDEr-D are those of a table, :class:`xmodal_jax.text.ngrams.NGrams`.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from xmodal_jax.text.ngrams import HIGHEST, NGrams, frequencies, shifted

SIGMA = 6.0  # of CIDEr-D's penalty on a difference in length
TINY, SMALL = 1e-15, 1e-9  # what the released BLEU adds to numerators and denominators


def places(token: Int[Array, "*n t"], length: Int[Array, "*n"]) -> Bool[Array, "*n t"]:
    """Which places hold words."""
    return jnp.arange(token.shape[-1]) < length[..., None]


def equal_grams(
    one: Int[Array, "*n t"], one_real: Bool[Array, "*n t"], other: Int[Array, "*n w"], other_real: Bool[Array, "*n w"]
) -> list[Bool[Array, "*n t w"]]:
    """For n of 1 to 4: whether the n-grams that start at each two places are the same."""
    word = (one[..., :, None] == other[..., None, :]) & one_real[..., :, None] & other_real[..., None, :]
    equal = [word]
    for n in range(1, HIGHEST):
        equal.append(equal[-1] & shifted(word, n, axes=2))
    return equal


def cider_d(
    token: Int[Array, "n t"],
    length: Int[Array, " n"],
    reference: Int[Array, "n k w"],
    reference_length: Int[Array, "n k"],
    counts: Bool[Array, "n k"],
    table: NGrams,
) -> Float[Array, " n"]:
    """CIDEr-D of each sentence against those of its references that count, 0 to 10; 0 where none does.

    A distinct n-gram that occurs c times stands at c places, so a sum over n-grams is one over places of a c-th each.
    """
    real, reference_real = places(token, length), places(reference, reference_length)
    many, many_real = (jnp.broadcast_to(x[:, None], (*reference.shape[:2], x.shape[1])) for x in (token, real))
    images = jnp.asarray(table.images, jnp.float32)
    cosine = jnp.zeros(counts.shape)
    for own, other, common, mine, theirs in zip(
        equal_grams(token, real, token, real),
        equal_grams(reference, reference_real, reference, reference_real),
        equal_grams(many, many_real, reference, reference_real),
        frequencies(table, token, real),
        frequencies(table, reference, reference_real),
        strict=True,
    ):
        weight, reference_weight = (jnp.log(images / jnp.maximum(x, 1)) for x in (mine, theirs))
        times, reference_times, hits = jnp.sum(own, -1), jnp.sum(other, -1), jnp.sum(common, -1)
        each = times[:, None]
        product = jnp.square(weight)[:, None] * jnp.minimum(each, hits) * hits / jnp.maximum(each, 1)
        square = jnp.sum(jnp.square(weight) * times, -1)[:, None]
        square = square * jnp.sum(jnp.square(reference_weight) * reference_times, -1)
        cosine += jnp.sum(product, -1) / jnp.sqrt(jnp.where(square > 0, square, jnp.inf))
    cosine *= jnp.exp(-jnp.square(length[:, None] - reference_length) / (2 * SIGMA**2))
    return 10 / HIGHEST * jnp.sum(jnp.where(counts, cosine, 0.0), 1) / jnp.maximum(jnp.sum(counts, 1), 1)


def bleu_4(
    token: Int[Array, "n t"],
    length: Int[Array, " n"],
    reference: Int[Array, "n k w"],
    reference_length: Int[Array, "n k"],
    counts: Bool[Array, "n k"],
    table: NGrams,
) -> Float[Array, " n"]:
    """BLEU-4 of each sentence against those of its references that count, 0 to 1; ``table`` is not read."""
    real, reference_real = places(token, length), places(reference, reference_length) & counts[..., None]
    many, many_real = (jnp.broadcast_to(x[:, None], (*reference.shape[:2], x.shape[1])) for x in (token, real))
    total = jnp.zeros(length.shape)
    common = equal_grams(many, many_real, reference, reference_real)
    for n, (own, both) in enumerate(zip(equal_grams(token, real, token, real), common, strict=True)):
        times, most = jnp.sum(own, -1), jnp.max(jnp.sum(both, -1), axis=1)
        correct = jnp.sum(jnp.minimum(times, most) / jnp.maximum(times, 1), -1)
        total += jnp.log(correct + TINY) - jnp.log(jnp.maximum(length - n, 0) + SMALL)
    far = 2 * jnp.abs(reference_length - length[:, None]) + (reference_length > length[:, None])
    closest = jnp.argmin(jnp.where(counts, far, jnp.iinfo(jnp.int32).max), axis=1)[:, None]
    wanted = jnp.take_along_axis(reference_length, closest, axis=1)[:, 0]
    brevity = jnp.minimum(1 - (wanted + SMALL) / (length + TINY), 0)
    return jnp.where(jnp.any(counts, 1), jnp.exp(total / HIGHEST + brevity), 0.0)


REWARDS: dict[str, Callable[..., Float[Array, " n"]]] = {"cider": cider_d, "bleu": bleu_4}
