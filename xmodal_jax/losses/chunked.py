"""The ranking losses of :mod:`xmodal_jax.losses` for batches whose score matrix would not fit: memory O(B * size).

Each takes :class:`Pairs`, which can score any block of the matrix, in place of the matrix. Blocks of images pass by
once; what a loss needs of a row or a column (its maximum, its log-sum-exp, its sum) is collected on the way, and the
backward pass scores the blocks again. With hardest negatives it need not: only B + 2C pairs carry a gradient. Meant for
systems with one vector an item; the representations themselves, and their gradients, stay in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from xmodal_jax.losses.pairing import Pairing
from xmodal_jax.losses.ranking import Scalar, hinge
from xmodal_jax.similarity.pairwise import items, take
from xmodal_jax.similarity.vector import NEVER
from xmodal_jax.types import Repr


class Value(NamedTuple):
    """A loss, and the scores of each caption with its own image [C], of each image with its hardest caption [B]."""

    loss: jax.Array
    matched: jax.Array
    hardest: jax.Array


class Pairs(NamedTuple):
    """All pairs of a batch, to be scored ``size`` images at a time.

    ``devices`` is the number that hold the rows; each then works on its own.
    """

    score: Callable[[Repr, Repr], jax.Array]
    image: Repr
    text: Repr
    pairing: Pairing
    size: int
    mask_same_image: bool = False
    devices: int = 1
    mask_same_text: bool = False

    def negatives(self, image: jax.Array, caption: jax.Array | None = None) -> jax.Array:
        """[b, c]: which pairs of the images [b] (-1 for none) and the captions [c] (all by default) are negatives."""
        masks = {"mask_same_image": self.mask_same_image, "mask_same_text": self.mask_same_text}
        return self.pairing.negative(image, caption, **masks)

    def over_images(self, look: Callable[..., Any], start: Any) -> tuple[Any, Any]:
        """Fold over the blocks: ``look(carry, scores [b, C], number [b]) -> (carry, results [b])``."""

        @jax.checkpoint
        def step(carry, block):
            image, number = block
            return look(carry, self.score(image, self.text), number)

        numbers = jnp.arange(items(self.image))
        carry, results = jax.lax.scan(step, start, self._stack((self.image, numbers)))
        return carry, self._unstack(results, items(self.image))

    def each(self, function: Callable[..., Any], xs: Any) -> Any:
        """``function(*item)`` of every item of the tuple ``xs``, ``size`` at a time; only its results are kept."""
        chunk = jax.checkpoint(jax.vmap(function))
        results = jax.lax.map(lambda block: chunk(*block), self._stack(xs))
        return self._unstack(results, items(xs))

    def matched(self) -> jax.Array:
        """[C]: each caption's score with its own image."""
        return self.each(lambda text, row: self.score_pair(take(self.image, row), text), (self.text, self.pairing.row))

    def score_pair(self, image: Repr, text: Repr) -> jax.Array:
        """The score of one image and one caption, without item axes."""
        return self.score(*jax.tree.map(lambda leaf: leaf[None], (image, text)))[0, 0]

    def _split(self, count: int) -> tuple[int, int]:
        """(blocks, items of each device in a block)."""
        each = -(-count // self.devices)
        size = min(max(self.size // self.devices, 1), each)
        return -(-each // size), size

    def _stack(self, xs: Any) -> Any:
        """Leaves [N, ...] to [blocks, size, ...] with rows of every device in each block; filled up with -1 or 0."""
        blocks, size = self._split(items(xs))

        def stack_leaf(leaf):
            leaf = jnp.asarray(leaf)
            leaf = leaf.reshape(self.devices, -1, *leaf.shape[1:])
            fill = -1 if jnp.issubdtype(leaf.dtype, jnp.integer) else 0
            room = [(0, 0), (0, blocks * size - leaf.shape[1]), *[(0, 0)] * (leaf.ndim - 2)]
            leaf = jnp.pad(leaf, room, constant_values=fill).reshape(self.devices, blocks, size, *leaf.shape[2:])
            return jnp.swapaxes(leaf, 0, 1).reshape(blocks, -1, *leaf.shape[3:])

        return jax.tree.map(stack_leaf, xs)

    def _unstack(self, results: Any, count: int) -> Any:
        blocks, size = self._split(count)

        def unstack_leaf(leaf):
            leaf = jnp.swapaxes(leaf.reshape(blocks, self.devices, size, *leaf.shape[2:]), 0, 1)
            leaf = leaf.reshape(self.devices, blocks * size, *leaf.shape[3:])[:, : count // self.devices]
            return leaf.reshape(count, *leaf.shape[2:])

        return jax.tree.map(unstack_leaf, results)


def _hardest(pairs: Pairs) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """(caption [B], is there one [B], image [C], is there one [C]): the negatives that score highest; no gradients."""

    def look(carry, scores, number):
        best, place = carry
        scores = jnp.where(pairs.negatives(number), jax.lax.stop_gradient(scores), NEVER)
        top = jnp.max(scores, axis=0)
        better = top > best
        carry = jnp.where(better, top, best), jnp.where(better, number[jnp.argmax(scores, axis=0)], place)
        return carry, (jnp.argmax(scores, axis=1), jnp.max(scores, axis=1) > NEVER)

    count = items(pairs.text)
    image, text = jax.lax.stop_gradient((pairs.image, pairs.text))
    start = jnp.full(count, NEVER), jnp.zeros(count, jnp.int32)
    (best, place), (caption, has) = pairs._replace(image=image, text=text).over_images(look, start)
    return caption, has, place, best > NEVER


def triplet(pairs: Pairs, *, margin: Scalar, hardness: Scalar, hinge_power: Scalar = 1.0) -> Value:
    """:func:`xmodal_jax.losses.triplet`. The sum of hinges scores every pair twice, once for each direction."""
    row, matched, real = pairs.pairing.row, pairs.matched(), pairs.pairing.real()
    caption, has_caption, image, has_image = _hardest(pairs)
    against_caption = pairs.each(lambda image, c: pairs.score_pair(image, take(pairs.text, c)), (pairs.image, caption))
    against_image = pairs.each(lambda text, b: pairs.score_pair(take(pairs.image, b), text), (pairs.text, image))

    def hardest() -> jax.Array:
        sides = (against_caption[row], has_caption[row]), (against_image, has_image)
        violations = [jnp.where(real & has, hinge(margin - matched + score, hinge_power), 0.0) for score, has in sides]
        return jnp.sum(violations[0] + violations[1])

    def hinges() -> jax.Array:
        images = jnp.arange(items(pairs.image))

        def of_caption(text, number, row, matched):
            image, text = jax.tree.map(lambda leaf: leaf[None], (take(pairs.image, row), text))
            along_row = pairs.negatives(row[None])[0], pairs.score(image, pairs.text)[0]
            along_column = pairs.negatives(images, number[None])[:, 0], pairs.score(pairs.image, text)[:, 0]
            sums = [
                jnp.sum(jnp.where(allowed, hinge(margin - matched + score, hinge_power), 0.0))
                for allowed, score in (along_row, along_column)
            ]
            return sums[0] + sums[1]

        return jnp.sum(jnp.where(real, pairs.each(of_caption, (pairs.text, jnp.arange(len(row)), row, matched)), 0.0))

    if isinstance(hardness, int | float) and hardness in (0, 1):
        loss = hardest() if hardness == 1 else hinges()
    else:
        loss = hardness * hardest() + (1.0 - hardness) * hinges()
    return Value(loss, matched, jnp.where(has_caption, against_caption, -jnp.inf))


def infonce(pairs: Pairs) -> Value:
    """:func:`xmodal_jax.losses.infonce`."""
    row, matched, real = pairs.pairing.row, pairs.matched(), pairs.pairing.real()

    def look(column, scores, number):
        scores = jnp.where(pairs.negatives(number), scores, NEVER)
        column = jnp.logaddexp(column, jax.nn.logsumexp(scores, axis=0))
        return column, (jax.nn.logsumexp(scores, axis=1), jnp.max(scores, axis=1))

    column, (line, hardest) = pairs.over_images(look, jnp.full(items(pairs.text), NEVER))
    losses = jax.nn.softplus(line[row] - matched) + jax.nn.softplus(column - matched)
    return Value(jnp.sum(jnp.where(real, losses, 0.0)) / 2, matched, jnp.where(hardest > NEVER, hardest, -jnp.inf))


def sigmoid(pairs: Pairs) -> Value:
    """:func:`xmodal_jax.losses.sigmoid`."""
    matched, real = pairs.matched(), pairs.pairing.real()

    def look(total, scores, number):
        negative = pairs.negatives(number)
        hardest = jnp.max(jnp.where(negative, scores, -jnp.inf), axis=1)
        return total + jnp.sum(jnp.where(negative, jax.nn.softplus(scores), 0.0)), hardest

    total, hardest = pairs.over_images(look, jnp.zeros(()))
    return Value(total + jnp.sum(jnp.where(real, jax.nn.softplus(-matched), 0.0)), matched, hardest)


LOSSES = {"triplet": triplet, "infonce": infonce, "sigmoid": sigmoid}  # those of xmodal_jax.losses that are here too
