"""Ranks by counting: no sort, bounded memory, and ties never help.

The rank of a query is the number of non-positive items that score at least as high as its best positive, from 0. So a
tie counts against the query, and constant scores rank last. The originals sort instead (`numpy.argsort`, reversed),
which puts tied items in an arbitrary order and NaN first. Without ties both agree, e.g. with `evaluation.py` of VSE++
(Faghri et al., BMVC 2018), where an image's rank is that of its best caption.

A query's own positives are masked out of its count, never compared: a positive's score from one matrix product need
not have the bits of the same score from another.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from xmodal_jax.errors import DataError, NumericError
from xmodal_jax.progress import Progress

CHUNK = 1 << 22  # scores that `ranks` compares at a time: masks of a few MiB
KEPT = 1 << 28  # bytes of blocks with positives that `blocked_ranks` keeps between its two looks at them


def ranks(scores: Any, positive: Any) -> tuple[Int[np.ndarray, " b"], Int[np.ndarray, " c"]]:
    """0-based ranks of the best positive in a whole score matrix, ties against the query.

    Args:
        scores: [B, C], higher is better; NumPy or JAX.
        positive: [B, C] bool, true for matching pairs: any number >= 1 in every row and column.

    Returns:
        i2t [B] int64, the images' ranks among the captions, and t2i [C] int64, the captions' among the images.

    Raises:
        DataError: an image or caption has no positive, or the shapes differ.
        NumericError: a score is NaN or infinite.
    """
    scores, positive = np.asarray(scores), np.asarray(positive)
    if scores.ndim != 2 or scores.shape != positive.shape or positive.dtype != bool:
        raise DataError(
            f"Ranking needs scores [B, C] and bool positives of that shape, not {scores.shape} and "
            f"{positive.dtype} {positive.shape}."
        )
    _need_positives("image", positive.any(axis=1))
    _need_positives("caption", positive.any(axis=0))
    n_images, n_captions = scores.shape
    kind = np.promote_types(scores.dtype, np.float32)  # half precision is widened chunk by chunk, without loss
    best_image, best_caption = np.full(n_images, -np.inf, kind), np.full(n_captions, -np.inf, kind)
    step = max(1, CHUNK // max(n_captions, 1))
    chunks = [slice(start, start + step) for start in range(0, n_images, step)]
    for chunk in chunks:
        block = scores[chunk].astype(kind, copy=False)
        if not np.isfinite(block).all():
            raise _not_finite(block, chunk.start, 0)
        matched = np.where(positive[chunk], block, -np.inf)
        best_image[chunk] = matched.max(axis=1)
        np.maximum(best_caption, matched.max(axis=0), out=best_caption)
    i2t, t2i = np.zeros(n_images, np.int64), np.zeros(n_captions, np.int64)
    for chunk in chunks:
        block = scores[chunk].astype(kind, copy=False)
        i2t[chunk], over = _count(block, ~positive[chunk], best_image[chunk], best_caption)
        t2i += over
    return i2t, t2i


class Counts(NamedTuple):
    """Ranks from 0, and which queries have an item that is no positive but scores as high as their best positive."""

    i2t: Int[np.ndarray, " b"]
    t2i: Int[np.ndarray, " c"]
    i2t_tied: Bool[np.ndarray, " b"]
    t2i_tied: Bool[np.ndarray, " c"]


def blocked_ranks(
    score_block: Callable[[slice, slice], Any], row: Int[np.ndarray, " c"], n_images: int, **options: Any
) -> tuple[Int[np.ndarray, " b"], Int[np.ndarray, " c"]]:
    """The i2t and t2i ranks of :func:`blocked_counts`, which takes the same arguments."""
    return blocked_counts(score_block, row, n_images, **options)[:2]


def blocked_counts(
    score_block: Callable[[slice, slice], Any],
    row: Int[np.ndarray, " c"],
    n_images: int,
    *,
    positive_block: Callable[[slice, slice], Bool[np.ndarray, "b c"]] | None = None,
    image_block: int = 512,
    caption_block: int = 4096,
    quiet: bool = True,
) -> Counts:
    """:func:`ranks` of scores that are computed block by block and never held whole.

    The blocks that hold positives come first and give every query's best positive; then all blocks are counted. Blocks
    with positives are kept in between, up to 256 MiB, and beyond that computed twice: with captions in image order
    they are few. All blocks have one shape (the last ones overlap their neighbours), so that `score_block` compiles
    once and equal pairs of different blocks tie.

    Args:
        score_block: gives scores [b, c] of an image slice and a caption slice; a pure function, NumPy or JAX.
        row: [C] index of the caption's image, in any order, any number >= 1 of captions an image.
        n_images: B.
        positive_block: gives the positives [b, c] of a block, where a caption has more than its own image.
        image_block, caption_block: largest block.
        quiet: show no progress.

    Returns:
        Ranks i2t [B] and t2i [C], int64, and ties.

    Raises:
        DataError: an image has no caption, or a caption an image out of range.
        NumericError: a score is NaN or infinite.
    """
    row = np.asarray(row)
    if row.size and (row.min() < 0 or row.max() >= n_images):
        bad = int(np.flatnonzero((row < 0) | (row >= n_images))[0])
        raise DataError(f"Caption {bad} belongs to image {row[bad]}, but there are images 0 to {n_images - 1} only.")
    _need_positives("image", np.bincount(row, minlength=n_images) > 0)
    images, captions = spans(n_images, image_block), spans(len(row), caption_block)
    if positive_block is None:
        best_image, best_caption, kept = _best_positives(score_block, row, n_images, images, captions)
    else:
        best_image, best_caption, kept = _best_of_several(score_block, positive_block, n_images, images, captions)
    i2t, t2i = np.zeros(n_images, np.int64), np.zeros(len(row), np.int64)
    i2t_tied, t2i_tied = np.zeros(n_images, bool), np.zeros(len(row), bool)
    with Progress("score", len(images) * len(captions), unit="blocks", quiet=quiet) as progress:
        for image, new_image in images:
            for caption, new_caption in captions:
                block = kept.pop((image.start, caption.start), None)
                block = score_block(image, caption) if block is None else block
                count = _count_compiled if isinstance(block, jax.Array) else _count_numpy
                best = (side.astype(block.dtype) for side in (best_image[image], best_caption[caption]))
                matching = None if positive_block is None else positive_block(image, caption)
                over_image, over_caption, tied_image, tied_caption, finite = count(
                    block, row[caption] - image.start, matching, new_image, new_caption, *best
                )
                if not finite:
                    raise _not_finite(np.asarray(block), image.start, caption.start)
                i2t[image] += np.asarray(over_image)
                t2i[caption] += np.asarray(over_caption)
                i2t_tied[image] |= np.asarray(tied_image)
                t2i_tied[caption] |= np.asarray(tied_caption)
                progress.advance()
    return Counts(i2t, t2i, i2t_tied, t2i_tied)


def spans(total: int, block: int) -> list[tuple[slice, np.ndarray]]:
    """Slices of one length that cover ``total`` items, each with a mask of the items that no slice before it has."""
    number = -(-total // block)
    size = -(-total // max(number, 1))
    spans = []
    for index in range(number):
        start = min(index * size, total - size)
        spans.append((slice(start, start + size), np.arange(start, start + size) >= index * size))
    return spans


def _best_positives(score_block, row, n_images, images, captions) -> tuple[np.ndarray, np.ndarray, dict]:
    """Each query's best positive score, and the blocks worth keeping, by the starts of their slices."""
    best_caption, kept, room = np.zeros(len(row)), {}, KEPT  # float64 holds the scores of any block exactly
    for image, _ in images:
        for caption, _ in captions:
            local = row[caption] - image.start
            inside = (local >= 0) & (local < image.stop - image.start)
            if not inside.any():
                continue
            block = score_block(image, caption)
            pick = _pick_compiled if isinstance(block, jax.Array) else _pick
            best_caption[caption][inside] = np.asarray(pick(block, np.where(inside, local, 0)))[inside]
            if block.nbytes <= room:
                kept[image.start, caption.start] = block
                room -= block.nbytes
    best_image = np.full(n_images, -np.inf)
    np.fmax.at(best_image, row, best_caption)  # passes over NaN without a warning; counting reports it
    return best_image, best_caption, kept


def _best_of_several(score_block, positive_block, n_images, images, captions) -> tuple[np.ndarray, np.ndarray, dict]:
    """:func:`_best_positives` where captions have any number of images."""
    best_caption, best_image = np.full(captions[-1][0].stop, -np.inf), np.full(n_images, -np.inf)
    kept, room = {}, KEPT
    for image, _ in images:
        for caption, _ in captions:
            matching = positive_block(image, caption)
            if not matching.any():
                continue
            block = score_block(image, caption)
            matched = np.where(matching, np.asarray(block).astype(np.float64), -np.inf)
            best_image[image] = np.fmax(best_image[image], matched.max(axis=1))
            best_caption[caption] = np.fmax(best_caption[caption], matched.max(axis=0))
            if block.nbytes <= room:
                kept[image.start, caption.start] = block
                room -= block.nbytes
    return best_image, best_caption, kept


def _pick(block, local):
    return block[local, np.arange(len(local))]


def _count(scores, counted, best_image, best_caption):
    """Of the pairs ``counted`` [b, c], those that score at least as high as the row's, and the column's, positive."""
    over_image = ((scores >= best_image[:, None]) & counted).sum(axis=1)
    over_caption = ((scores >= best_caption) & counted).sum(axis=0)
    return over_image, over_caption


def _count_block(xp, block, local, matching, new_image, new_caption, best_image, best_caption):
    """:func:`_count` of one block, each pair in one block only, which queries have a tie, and whether all scores are
    finite. ``own`` are the positives where ``local``, the captions' images, are not all."""
    matching = local == xp.arange(len(new_image))[:, None] if matching is None else matching
    counted = ~matching & new_image[:, None] & new_caption
    tied_image = ((block == best_image[:, None]) & counted).any(axis=1)
    tied_caption = ((block == best_caption) & counted).any(axis=0)
    return *_count(block, counted, best_image, best_caption), tied_image, tied_caption, xp.isfinite(block).all()


_pick_compiled = jax.jit(_pick)
_count_numpy = functools.partial(_count_block, np)
_count_compiled = jax.jit(functools.partial(_count_block, jnp))


def _need_positives(what: str, has: np.ndarray) -> None:
    if not has.all():
        bad = np.flatnonzero(~has)
        named = ", ".join(str(index) for index in bad[:5]) + (", ..." if len(bad) > 5 else "")
        raise DataError(
            f"{len(bad):,} of {len(has):,} {what}s have no matching {'caption' if what == 'image' else 'image'} and "
            f"cannot be ranked: {what} {named}. Leave them out of the split."
        )


def _not_finite(block: np.ndarray, first_image: int, first_caption: int) -> NumericError:
    """The error that names the first pair at fault, or the item where all its scores in the block are."""
    bad = ~np.isfinite(block)
    i, c = np.argwhere(bad)[0]
    image, caption = f"image {first_image + i}", f"caption {first_caption + c}"
    if bad[i].all() and not bad.all():
        which = f"Every score of {image}"
    elif bad[:, c].all() and not bad.all():
        which = f"Every score of {caption}"
    else:
        which = f"The score of {image} and {caption}"
    return NumericError(
        f"{which} is not finite ({block[i, c]}), so nothing can be ranked; check the features and the checkpoint."
    )
