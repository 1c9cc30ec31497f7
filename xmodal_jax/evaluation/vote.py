"""One model, or several that vote: blocks of scores to ranks, and these to a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from xmodal_jax.evaluation import protocols, rank, table
from xmodal_jax.types import Repr

IMAGE_BLOCK, CAPTION_BLOCK = 512, 4096  # scores held at a time


class Member(NamedTuple):
    """One model of an ensemble (mostly the only one) with its stacks of a split."""

    score: Callable[[Any, Repr, Repr], Any]
    variables: Any
    images: Repr
    texts: Repr

    def pick(self, image: Any, caption: Any) -> Member:
        """The items at two indices or slices."""
        images, texts = (
            jax.tree.map(lambda leaf, index=index: leaf[index], stack)
            for stack, index in ((self.images, image), (self.texts, caption))
        )
        return self._replace(images=images, texts=texts)

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

    def folds(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Of each fold the i2t ranks, the t2i ranks and the row of each caption's image, as `make_table` takes them."""
        results = []
        for number in np.unique(self.fold):
            rows = np.flatnonzero(self.fold == number)
            inside = np.isin(self.image, rows)
            results.append((self.i2t[rows], self.t2i[inside], np.searchsorted(rows, self.image[inside])))
        return results

    def table(self, draws: int = 1000) -> table.Table:
        """The recall table, each metric the mean over folds."""
        return table.make_table(self.folds(), protocol=self.protocol, weights=self.weights, draws=draws)


def rank_split(
    members: Sequence[Member], owner: Int[np.ndarray, " c"], n_images: int, *, protocol: str, weights: str
) -> Ranking:
    """The ranks of stacks whose caption c belongs to image ``owner[c]``; members vote by their mean score."""
    folds, why = protocols.choose(protocol, n_images)
    i2t, t2i, number = (np.zeros(size, np.int64) for size in (n_images, len(owner), n_images))
    for place, fold in enumerate(folds):
        inside = np.isin(owner, fold)
        local = np.searchsorted(fold, owner[inside])
        picked = [member.pick(fold, inside) for member in members]

        def block(image: slice, caption: slice, picked: Sequence[Member] = picked) -> Any:
            total, *others = (member.pick(image, caption).scores() for member in picked)
            return sum(others, start=total) / len(picked)

        number[fold] = place
        i2t[fold], t2i[inside] = rank.blocked_ranks(
            block, local, len(fold), image_block=IMAGE_BLOCK, caption_block=CAPTION_BLOCK
        )
    return Ranking(i2t, t2i, owner, number, why, weights)


def scaled(member: Member, by: Member) -> Member:
    """A member whose scores are divided by the standard deviation of those of ``by``, taken over one block of them."""
    deviation = float(np.std(np.asarray(by.pick(slice(IMAGE_BLOCK), slice(CAPTION_BLOCK)).scores())))
    return member._replace(score=lambda *args: member.score(*args) / max(deviation, 1e-12))
