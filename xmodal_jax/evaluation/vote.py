"""One model, or several that vote: blocks of scores to ranks, and these to a table."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import scipy.sparse
from jaxtyping import Bool, Int

from xmodal_jax.evaluation import protocols, rank, table
from xmodal_jax.evaluation.table import Duplicates
from xmodal_jax.types import Repr

IMAGE_BLOCK, CAPTION_BLOCK = 512, 4096  # scores held at a time


class Member(NamedTuple):
    """One model of an ensemble (mostly the only one) with its stacks of a split."""

    score: Callable[[Any, Repr, Repr], Any]
    variables: Any
    images: Repr
    texts: Repr
    read_id: Int[np.ndarray, " c"] | None = None  # equal where captions are the same to the system

    def pick(self, image: Any, caption: Any) -> Member:
        """The items at two indices or slices."""
        images, texts = (
            jax.tree.map(lambda leaf, index=index: leaf[index], stack)
            for stack, index in ((self.images, image), (self.texts, caption))
        )
        read_id = None if self.read_id is None else self.read_id[caption]
        return self._replace(images=images, texts=texts, read_id=read_id)

    def scores(self) -> Any:
        return self.score(self.variables, self.images, self.texts)


class Ranking(NamedTuple):
    """The ranks of all queries of a split, from 0 and in its order."""

    i2t: Int[np.ndarray, " b"]
    t2i: Int[np.ndarray, " c"]
    image: Int[np.ndarray, " c"]  # of each caption
    fold: Int[np.ndarray, " b"]  # images of one number were ranked together
    protocol: str
    weights: str
    duplicates: Duplicates = Duplicates()
    positives: tuple[Int[np.ndarray, " b"], Int[np.ndarray, " c"]] | None = None  # of each query

    def folds(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Of each fold the i2t ranks, the t2i ranks and the row of each caption's image, as `make_table` takes them."""
        return [
            (self.i2t[rows], self.t2i[inside], np.searchsorted(rows, self.image[inside]))
            for rows, inside in self._parts()
        ]

    def _parts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(rows of the images, which captions are theirs [C]) of each fold."""
        for number in np.unique(self.fold):
            rows = np.flatnonzero(self.fold == number)
            yield rows, np.isin(self.image, rows)

    def table(self, draws: int = 1000) -> table.Table:
        """The recall table, each metric the mean over folds."""
        numbers = None
        if self.positives is not None:
            captions, images = self.positives
            numbers = [(captions[rows], images[inside]) for rows, inside in self._parts()]
        options = {"protocol": self.protocol, "weights": self.weights, "duplicates": self.duplicates}
        return table.make_table(self.folds(), numbers, draws=draws, **options)


def rank_split(
    members: Sequence[Member],
    owner: Int[np.ndarray, " c"],
    n_images: int,
    *,
    protocol: str,
    weights: str,
    text_id: Int[np.ndarray, " c"] | None = None,
    shared: bool = False,
) -> Ranking:
    """The ranks of stacks whose caption c belongs to image ``owner[c]``; members vote by their mean score.

    Args:
        text_id: equal where captions are the same to a reader; all differ by default.
        shared: whether equal captions are positives of all their images, not of their own image alone.
    """
    folds, why = protocols.choose(protocol, n_images)
    text_id = np.arange(len(owner)) if text_id is None else text_id
    i2t, t2i, number = (np.zeros(size, np.int64) for size in (n_images, len(owner), n_images))
    captions, images = np.zeros_like(i2t), np.zeros_like(t2i)
    equal, tied = 0, np.zeros(2, np.int64)
    for place, fold in enumerate(folds):
        inside = np.isin(owner, fold)
        local = np.searchsorted(fold, owner[inside])
        block = score_block([member.pick(fold, inside) for member in members])
        same = Positives(local, text_id[inside], len(fold))
        counts = rank.blocked_counts(
            block,
            local,
            len(fold),
            positive_block=same.block if shared else None,
            image_block=IMAGE_BLOCK,
            caption_block=CAPTION_BLOCK,
        )
        number[fold] = place
        i2t[fold], t2i[inside] = counts[:2]
        captions[fold], images[inside] = same.counts
        equal += same.equal
        tied += [counts.i2t_tied.sum(), counts.t2i_tied.sum()]
    duplicates = Duplicates(shared, equal, tuple(tied.tolist()))
    return Ranking(i2t, t2i, owner, number, why, weights, duplicates, (captions, images) if shared else None)


def rank_table(*args: Any, draws: int = 1000, **options: Any) -> table.Table:
    """The recall table of :func:`rank_split`, which takes the other arguments."""
    return rank_split(*args, **options).table(draws)


class Positives:
    """The pairs of an image and a caption that it has, or that equals one which it has.

    Args:
        row: [C] the image of each caption.
        text_id: [C] equal where captions are.
        n_images: B.
    """

    def __init__(self, row: Int[np.ndarray, " c"], text_id: Int[np.ndarray, " c"], n_images: int):
        _, self.text = np.unique(text_id, return_inverse=True)
        pairs = np.unique(np.stack([row, self.text], axis=1), axis=0)
        self.texts = int(self.text.max(initial=0)) + 1  # distinct ones
        self.has = scipy.sparse.csr_array((np.ones(len(pairs), bool), pairs.T), shape=(n_images, self.texts))

    def block(self, image: slice, caption: slice) -> Bool[np.ndarray, "b c"]:
        """The pairs of some images and captions."""
        return self.has[image].toarray()[:, self.text[caption]]

    @functools.cached_property
    def _images(self) -> Int[np.ndarray, " c"]:
        """How many images have the text of each caption."""
        return np.bincount(self.has.indices, minlength=self.texts)[self.text]

    @property
    def counts(self) -> tuple[Int[np.ndarray, " b"], Int[np.ndarray, " c"]]:
        """Positives of each image, and of each caption."""
        captions = np.bincount(self.text, minlength=self.texts)
        return self.has.astype(np.int64) @ captions, self._images

    @property
    def equal(self) -> int:
        """Captions whose text another image has too."""
        return int((self._images > 1).sum())


def score_block(members: Sequence[Member]) -> Callable[[slice, slice], Any]:
    """What gives the mean scores [b, c] of an image slice and a caption slice.

    Scores of one pair from two blocks need not have the same bits. So where captions repeat, each distinct one is
    scored once with an image, and all captions that are equal to every member take that score.
    """

    def score(image: slice, caption: Any) -> Any:
        total, *others = (member.pick(image, caption).scores() for member in members)
        return sum(others, start=total) / len(members)

    known = [member.read_id for member in members if member.read_id is not None]
    if len(known) < len(members):
        return score
    _, index, inverse = np.unique(np.stack(known), axis=1, return_index=True, return_inverse=True)
    first, place, kept = np.asarray(index), np.asarray(inverse).ravel(), {}
    if len(first) == len(place):
        return score

    def gather(image: slice, caption: slice) -> Any:
        if image.start not in kept:
            if sum(part.nbytes for part in kept.values()) > rank.KEPT:
                kept.clear()
            parts = [(span, np.asarray(score(image, first[span]))) for span, _ in rank.spans(len(first), CAPTION_BLOCK)]
            whole = np.zeros((image.stop - image.start, len(first)), parts[0][1].dtype)
            for span, part in parts:
                whole[:, span] = part
            kept[image.start] = whole
        return kept[image.start][:, place[caption]]

    return gather


def scaled(member: Member, by: Member) -> Member:
    """A member whose scores are divided by the standard deviation of those of ``by``, taken over one block of them."""
    deviation = float(np.std(np.asarray(by.pick(slice(IMAGE_BLOCK), slice(CAPTION_BLOCK)).scores())))
    return member._replace(score=lambda *args: member.score(*args) / max(deviation, 1e-12))
