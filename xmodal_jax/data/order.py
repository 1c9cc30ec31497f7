"""What batch k of epoch e holds: a pure function of (seed, e, k), in NumPy, the same on every host."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from xmodal_jax.errors import UsageError


class Epoch(NamedTuple):
    """The items of every step of one epoch; -1 is padding in the last, short batch of a group.

    Caption j of a step belongs to image ``row[j]`` of that step.
    """

    image: np.ndarray  # [steps, B] rows of the split
    caption: np.ndarray  # [steps, C] captions of the split, counted through all images
    row: np.ndarray  # [C]


def generator(seed: int, epoch: int) -> np.random.Generator:
    """The random numbers of one epoch."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch])))


def into_batches(items: np.ndarray, size: int, *, drop_last: bool) -> np.ndarray:
    """[n] items as [steps, size]; the last step is padded with -1, or dropped."""
    steps = len(items) // size if drop_last else -(-len(items) // size)
    batches = np.full(steps * size, -1, np.int64)
    kept = items[: steps * size]
    batches[: len(kept)] = kept
    return batches.reshape(steps, size)


class Sampler:
    """Chooses the batches of an epoch.

    Args:
        counts: [N] captions of each image, ragged.
        lengths: [sum(counts)] words of each caption.
        batch_size: B, images of the global batch.
        captions_per_image: K, for the ``images`` sampler; C = B * K.
    """

    def __init__(
        self,
        counts: Sequence[int] | np.ndarray,
        lengths: Sequence[int] | np.ndarray,
        *,
        sampler: str,
        batch_size: int,
        seed: int,
        captions_per_image: int = 1,
        drop_last: bool = False,
    ):
        methods: dict[str, Callable[[np.random.Generator], Epoch]] = {
            "captions": self._captions,
            "images": self._images,
            "length_buckets": self._length_buckets,
        }
        if sampler not in methods:
            raise UsageError(f'No sampler "{sampler}" (data.sampler); there are {", ".join(methods)}.')
        if sampler != "images" and captions_per_image != 1:
            raise UsageError(f'data.captions_per_image {captions_per_image} needs data.sampler "images".')
        method = methods[sampler]
        self.counts, self.lengths = np.asarray(counts, np.int64), np.asarray(lengths, np.int64)
        self.first = np.concatenate([[0], np.cumsum(self.counts)])  # [N + 1] caption offsets
        self.owner = np.repeat(np.arange(len(self.counts)), self.counts)  # [captions] image of each caption
        self.batch_size = batch_size
        self.captions_per_image, self.drop_last = captions_per_image, drop_last
        # Two epochs are kept: near a border the reading thread is one epoch ahead of the consumer.
        self.epoch = functools.lru_cache(maxsize=2)(lambda epoch: method(generator(seed, epoch)))
        self.steps_per_epoch = len(self.epoch(0).image)
        if not self.steps_per_epoch:
            raise UsageError(
                f"data.batch_size {batch_size} is larger than the split ({len(self.counts):,} images) and the short "
                "batch is dropped; use a smaller batch or data.drop_last=False."
            )

    def _aligned(self, batches: np.ndarray) -> Epoch:
        image = np.where(batches >= 0, self.owner[batches], -1)
        return Epoch(image, batches, np.arange(batches.shape[1]))

    def _captions(self, random: np.random.Generator) -> Epoch:
        """Every caption once, each with its image (VSE++, SCAN): an image may stand in a batch more than once."""
        order = random.permutation(len(self.owner))
        return self._aligned(into_batches(order, self.batch_size, drop_last=self.drop_last))

    def _images(self, random: np.random.Generator) -> Epoch:
        """Every image once, with K of its captions drawn at random (order-embeddings, DSPE); with repeats only
        where an image has fewer than K."""
        order = random.permutation(np.flatnonzero(self.counts))
        image = into_batches(order, self.batch_size, drop_last=self.drop_last)
        wanted = self.captions_per_image
        # The K smallest of one random key a caption are a draw without replacement, for all images at once.
        key = random.random((len(self.counts), max(int(self.counts.max()), wanted)))
        place = np.arange(key.shape[1])
        key = np.where(place < self.counts[:, None], key, 1.0 + place)
        chosen = np.argsort(key, axis=1)[:, :wanted] % np.maximum(self.counts, 1)[:, None]
        caption = np.where(image[..., None] >= 0, self.first[image][..., None] + chosen[image], -1)
        return Epoch(image, caption.reshape(len(image), -1), np.repeat(np.arange(self.batch_size), wanted))

    def _length_buckets(self, random: np.random.Generator) -> Epoch:
        """Batches of captions of one length, lengths visited in turn until all are used up (UVS)."""
        waiting = []
        for length in np.unique(self.lengths):
            order = random.permutation(np.flatnonzero(self.lengths == length))
            waiting.append(list(into_batches(order, self.batch_size, drop_last=self.drop_last)))
        rounds = max(len(batches) for batches in waiting)
        order = [batches[i] for i in range(rounds) for batches in waiting if i < len(batches)]
        empty = np.zeros((0, self.batch_size), np.int64)
        return self._aligned(np.stack(order) if order else empty)
