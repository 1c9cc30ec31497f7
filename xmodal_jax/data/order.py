"""What batch k of epoch e holds: a pure function of (seed, e, k), in NumPy, the same on every host."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
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
    target: np.ndarray | None = None  # [steps, C * k] other captions of the same image, k for each caption
    candidate: np.ndarray | None = None  # [steps, n] captions of images that are not in the step


TARGET, CANDIDATE = 1, 2  # what their random numbers are drawn for, beside the order of the epoch itself


def generator(seed: int, epoch: int, *role: int) -> np.random.Generator:
    """The random numbers of one epoch; those of a ``role`` leave the others as they are."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch, *role])))


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
        captions_per_image: K, for the ``images`` and ``captions`` samplers; C = B * K.
        roles: further captions of a step, see :attr:`xmodal_jax.types.Inputs.captions`.

    Raises:
        UsageError: an unknown sampler or role, or one that has nothing to draw from.
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
        roles: Mapping[str, int] = MappingProxyType({}),
    ):
        methods: dict[str, Callable[[np.random.Generator], Epoch]] = {
            "captions": self._captions,
            "images": self._images,
            "pairs": self._pairs,
            "length_buckets": self._length_buckets,
        }
        if sampler not in methods:
            raise UsageError(f'No sampler "{sampler}" (data.sampler); there are {", ".join(methods)}.')
        if sampler not in ("images", "captions") and captions_per_image != 1:
            raise UsageError(f'data.captions_per_image {captions_per_image} needs data.sampler "images" or "captions".')
        if unknown := sorted(set(roles) - {"target", "candidate"}):
            raise UsageError(f'No captions of role "{unknown[0]}"; a model may ask for "target" and "candidate".')
        if sampler == "pairs" and roles.get("target") != 1:
            raise UsageError('data.sampler "pairs" is for systems that read one further caption of each image.')
        method = methods[sampler]
        self.counts, self.lengths = np.asarray(counts, np.int64), np.asarray(lengths, np.int64)
        self.first = np.concatenate([[0], np.cumsum(self.counts)])  # [N + 1] caption offsets
        self.owner = np.repeat(np.arange(len(self.counts)), self.counts)  # [captions] image of each caption
        self.batch_size, self.seed, self.roles = batch_size, seed, dict(roles)
        self.captions_per_image, self.drop_last = captions_per_image, drop_last
        # Two epochs are kept: near a border the reading thread is one epoch ahead of the consumer.
        self.epoch = functools.lru_cache(maxsize=2)(lambda epoch: self._with_roles(method, epoch))
        self.steps_per_epoch = len(self.epoch(0).image)
        if not self.steps_per_epoch:
            raise UsageError(
                f"data.batch_size {batch_size} is larger than the split ({len(self.counts):,} images, "
                f"{len(self.owner):,} captions) and the short batch is dropped; use a smaller batch or "
                "data.drop_last=False."
            )

    def _with_roles(self, method: Callable[[np.random.Generator], Epoch], number: int) -> Epoch:
        """An epoch with its further captions."""
        epoch = method(generator(self.seed, number))
        if self.roles.get("target") and epoch.target is None:
            random = generator(self.seed, number, TARGET)
            epoch = epoch._replace(target=self._others(epoch.caption, self.roles["target"], random))
        if self.roles.get("candidate"):
            random = generator(self.seed, number, CANDIDATE)
            drawn = [self._outside(image, self.roles["candidate"], random) for image in epoch.image]
            epoch = epoch._replace(candidate=np.stack(drawn) if drawn else None)
        return epoch

    def _others(self, caption: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
        """[steps, C * count]: other captions of the same image, without repeats where it has enough, itself where it
        has none; -1 for padding."""
        flat = caption.ravel()
        image = self.owner[flat]
        n = self.counts[image][:, None]
        key = random.random((len(flat), max(int(self.counts.max()) - 1, count)))
        place = np.arange(key.shape[1])
        key = np.where(place < n - 1, key, 1.0 + place)
        step = 1 + np.argsort(key, axis=1)[:, :count] % np.maximum(n - 1, 1)  # from 1 to n - 1 captions further
        other = self.first[image][:, None] + ((flat - self.first[image])[:, None] + step) % n
        return np.where(flat[:, None] >= 0, other, -1).reshape(len(caption), caption.shape[1] * count)

    def _outside(self, image: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
        """[count] captions of images that are not among ``image``, with repeats where there are too few."""
        allowed = np.ones(len(self.counts), bool)
        allowed[image[image >= 0]] = False
        if not allowed[self.owner].any():
            raise UsageError(
                f"All {len(self.counts):,} images stand in one batch of {self.batch_size}, so no candidate captions of "
                "others are left; use a smaller data.batch_size."
            )
        drawn = np.zeros(0, np.int64)
        while len(drawn) < count:  # about one round: a batch is a small part of the split
            more = random.integers(0, len(self.owner), 2 * count)
            drawn = np.concatenate([drawn, more[allowed[self.owner[more]]]])
        return drawn[:count]

    def _aligned(self, batches: np.ndarray) -> Epoch:
        image = np.where(batches >= 0, self.owner[batches], -1)
        return Epoch(image, batches, np.arange(batches.shape[1]))

    def _captions(self, random: np.random.Generator) -> Epoch:
        """Every caption once, each with its image (VSE++, SCAN): an image may stand in a batch more than once. With
        K - 1 others of its image beside each where K > 1 (DSPE, released code)."""
        order = random.permutation(len(self.owner))
        epoch = self._aligned(into_batches(order, self.batch_size, drop_last=self.drop_last))
        more = self.captions_per_image - 1
        if not more:
            return epoch
        others = self._others(epoch.caption, more, random).reshape(*epoch.caption.shape, more)
        caption = np.concatenate([epoch.caption[..., None], others], axis=2)
        steps, batch, each = caption.shape
        return Epoch(epoch.image, caption.reshape(steps, batch * each), np.repeat(epoch.row, each))

    def _pairs(self, random: np.random.Generator) -> Epoch:
        """Every ordered pair of captions of an image once, the second one as target (STT: 20 of five captions)."""
        counts = self.counts[self.owner]
        times = np.maximum(counts - 1, 1)
        caption = np.repeat(np.arange(len(self.owner)), times)
        step = np.arange(len(caption)) - np.repeat(np.cumsum(times) - times, times) + 1
        first, n = self.first[self.owner[caption]], counts[caption]
        target = first + (caption - first + step) % n
        order = into_batches(random.permutation(len(caption)), self.batch_size, drop_last=self.drop_last)
        real = order >= 0
        epoch = self._aligned(np.where(real, caption[order], -1))
        return epoch._replace(target=np.where(real, target[order], -1))

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
        caption = caption.reshape(len(image), self.batch_size * wanted)  # also where no batch is full
        return Epoch(image, caption, np.repeat(np.arange(self.batch_size), wanted))

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
