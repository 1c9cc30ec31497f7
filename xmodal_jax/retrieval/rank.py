"""Ranks by counting: no sort, bounded memory, ties and non-finite scores never help the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from xmodal_jax.errors import DataError, NumericError

HELD_BYTES = 600 * 2**20  # a score matrix up to this size is kept, a larger one is computed twice


def _refuse_queries(has_positive: np.ndarray, kind: str) -> None:
    if not has_positive.all():
        lacking = np.flatnonzero(~has_positive)
        raise DataError(
            f"{len(lacking):,} of {len(has_positive):,} {kind}s have no match to be found (the first is {kind} "
            f"{lacking[0]}); leave them out of the evaluation."
        )


def _refuse_non_finite(scores: np.ndarray, first_image: int = 0, first_caption: int = 0) -> None:
    finite = np.isfinite(scores)
    if not finite.all():
        image, caption = np.argwhere(~finite)[0]
        raise NumericError(
            f"The score of image {image + first_image} with caption {caption + first_caption} is "
            f"{scores[image, caption]} ({(~finite).sum():,} of {scores.size:,} here are not finite); no rank can be given."
        )


def ranks(scores: Float[Any, "b c"], positive: Bool[Any, "b c"]) -> tuple[Int[np.ndarray, "b"], Int[np.ndarray, "c"]]:
    """0-based rank of the best positive of every query, (i2t [B], t2i [C]).

    The rank of a query is the number of its negatives that score at least as high as its best positive: a tie counts
    against the model, so a constant model has recall 0 instead of chance or 100. Other positives never count.

    Args:
        scores: higher is better.
        positive: matching pairs; any number a row and a column.

    Raises:
        NumericError: a score that is not finite.
        DataError: an image or a caption without any positive.
    """
    scores, positive = np.asarray(scores), np.asarray(positive, bool)
    _refuse_non_finite(scores)
    _refuse_queries(positive.any(axis=1), "image")
    _refuse_queries(positive.any(axis=0), "caption")
    best, rest = np.where(positive, scores, -np.inf), np.where(positive, -np.inf, scores)
    return (
        np.sum(rest >= best.max(axis=1, keepdims=True), axis=1),
        np.sum(rest >= best.max(axis=0, keepdims=True), axis=0),
    )


def blocks(total: int, size: int) -> list[slice]:
    """Consecutive slices of at most ``size``."""
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def blocked_ranks(
    score_block: Callable[[slice, slice], Any],
    row: Int[np.ndarray, "c"],
    n_images: int,
    *,
    image_block: int,
    caption_block: int,
    held_bytes: int = HELD_BYTES,
) -> tuple[Int[np.ndarray, "b"], Int[np.ndarray, "c"]]:
    """:func:`ranks` of a score matrix that is computed block by block.

    Positives and their rivals come from the same blocks, so that an exact tie stays one, and positives are masked out
    of the count instead of being compared with themselves.

    Args:
        score_block: scores [b, c] of a slice of images with a slice of captions; called twice for each block where
            the whole matrix takes more than ``held_bytes``.
        row: the image of each caption, ragged and in any order.

    Raises:
        NumericError, DataError: as :func:`ranks`.
    """
    row = np.asarray(row)
    n_captions = len(row)
    _refuse_queries(np.bincount(row, minlength=n_images) > 0, "image")
    columns = blocks(n_captions, caption_block)
    own = np.full(n_captions, np.nan, np.float32)
    i2t, t2i = np.zeros(n_images, np.int64), np.zeros(n_captions, np.int64)
    held: list[np.ndarray] | None = [] if 4 * n_images * n_captions <= held_bytes else None

    def strip(images: slice) -> np.ndarray:
        """All scores of some images, positives replaced by -inf and written to ``own``."""
        out = np.empty((images.stop - images.start, n_captions), np.float32)
        for captions in columns:
            out[:, captions] = np.asarray(score_block(images, captions))
            _refuse_non_finite(out[:, captions], images.start, captions.start)
        mine = np.flatnonzero((row >= images.start) & (row < images.stop))
        local = row[mine] - images.start
        own[mine] = out[local, mine]
        best = np.full(len(out), -np.inf, np.float32)
        np.maximum.at(best, local, own[mine])
        out[local, mine] = -np.inf
        i2t[images] = np.count_nonzero(out >= best[:, None], axis=1)
        return out

    for images in blocks(n_images, image_block):
        out = strip(images)
        if held is not None:
            held.append(out)
    for index, images in enumerate(blocks(n_images, image_block)):
        out = strip(images) if held is None else held[index]
        t2i += np.count_nonzero(out >= own, axis=0)
    return i2t, t2i
