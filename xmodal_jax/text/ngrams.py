"""In the captions of how many images an n-gram occurs: counted once on the host, looked up on the device.

CIDEr weighs an n-gram by log(N / images). One that occurs in a single image weighs as much as one that occurs in none,
so the table leaves both out, which is most of them, and stays exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

HIGHEST = 4  # longest n-gram, in words


class NGrams(NamedTuple):
    """The G n-grams of 1 to 4 words that occur in two images or more, sorted by (prefix, word): a trie.

    Attributes:
        prefix: [G] index of the n-gram without its last word, -1 for single words.
        word: [G] its last word.
        frequency: [G] images in whose captions it occurs.
        images: [] N, how many images there are.
    """

    prefix: Any
    word: Any
    frequency: Any
    images: Any

    @classmethod
    def empty(cls) -> NGrams:
        """The table of one image, which knows nothing and makes every weight 0."""
        return cls(np.array([-2], np.int32), np.zeros(1, np.int32), np.zeros(1, np.int32), np.ones((), np.int32))


def count(captions: Sequence[np.ndarray], image: Int[np.ndarray, " c"]) -> NGrams:
    """The table of captions, each its words' ids, and the image of each, from 0 without a gap."""
    lengths = np.array([len(caption) for caption in captions], np.int64)
    word = np.concatenate([*captions, np.zeros(0, np.int64)]).astype(np.int64)
    caption_of = np.repeat(np.arange(len(captions)), lengths)
    image_of, images = np.asarray(image, np.int64)[caption_of], int(np.max(image, initial=-1)) + 1
    vocabulary = int(word.max(initial=0)) + 1
    node = np.full(len(word), -1, np.int64)  # of the n-gram that starts here
    columns: list[tuple[np.ndarray, ...]] = []
    known = 0
    for n in range(HIGHEST):
        place = np.arange(max(len(word) - n, 0))
        place = place[(caption_of[place] == caption_of[place + n]) & ((node[place] >= 0) | (n == 0))]
        key, index = np.unique((node[place] + 1) * vocabulary + word[place + n], return_inverse=True)
        pairs = np.unique(index * images + image_of[place])
        frequency = np.bincount(pairs // max(images, 1), minlength=len(key))
        kept = frequency > 1
        columns.append((key[kept] // vocabulary - 1, key[kept] % vocabulary, frequency[kept]))
        node[:] = -1
        node[place] = np.where(kept, known + np.cumsum(kept) - 1, -1)[index]
        known += int(kept.sum())
    if not known:
        return NGrams.empty()._replace(images=np.int32(max(images, 1)))
    prefix, last, frequency = (np.concatenate(x).astype(np.int32) for x in zip(*columns, strict=True))
    return NGrams(prefix, last, frequency, np.int32(images))


def frequencies(table: NGrams, token: Int[Array, "*n t"], real: Bool[Array, "*n t"]) -> list[Int[Array, "*n t"]]:
    """For n of 1 to 4: the frequency of the n-gram that starts at each place, 0 where it is not in the table."""
    node, known, found = jnp.full(token.shape, -1, jnp.int32), real, []
    for n in range(HIGHEST):
        node, there = find(table, node, shifted(token, n))
        known = known & shifted(real, n) & there
        found.append(jnp.where(known, jnp.asarray(table.frequency)[node], 0))
    return found


def find(table: NGrams, node: Int[Array, "*n"], word: Int[Array, "*n"]) -> tuple[Int[Array, "*n"], Bool[Array, "*n"]]:
    """Where ``word`` after the n-gram ``node`` stands in the table, by halving, and whether it does."""
    prefix, last, size = jnp.asarray(table.prefix), jnp.asarray(table.word), len(table.prefix)

    def halve(_: Any, limits: Any) -> Any:
        low, high = limits
        middle = (low + high) // 2
        at = jnp.minimum(middle, size - 1)
        before = (low < high) & ((prefix[at] < node) | ((prefix[at] == node) & (last[at] < word)))
        return jnp.where(before, middle + 1, low), jnp.where(before, high, middle)

    low = jnp.zeros(node.shape, jnp.int32)
    low, _ = jax.lax.fori_loop(0, size.bit_length(), halve, (low, low + size))
    at = jnp.minimum(low, size - 1)
    return at, (prefix[at] == node) & (last[at] == word)


def shifted(x: Array, by: int, axes: int = 1) -> Array:
    """``x`` with what stands ``by`` places further along each of the last ``axes`` axes; zeros from beyond the end."""
    for axis in range(x.ndim - axes, x.ndim):
        kept = jax.lax.slice_in_dim(x, min(by, x.shape[axis]), x.shape[axis], axis=axis)
        gap = [(0, x.shape[axis] - kept.shape[axis]) if a == axis else (0, 0) for a in range(x.ndim)]
        x = jnp.pad(kept, gap)
    return x
