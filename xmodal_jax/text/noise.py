"""Captions with wrong characters: how well a system reads text that is not clean.

After Figure 5 of Wehrmann, Barros, "Bidirectional Retrieval Made Simple" (CVPR 2018), where characters of the input
are replaced at random. [reconstruction] Neither the share's rounding nor the characters that come in are published:
here they are other Latin letters. The raw caption changes, so any system can be asked, whatever its tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from xmodal_jax.errors import UsageError

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def char_noise(text: str, share: float, random: np.random.Generator) -> str:
    """``text`` with a share of its characters, spaces included, each replaced by another random letter.

    The number of characters is ``share * len(text)``, rounded up or down by chance so that its mean is exact. Given the
    same random numbers, a larger share changes the characters of the smaller one and more.

    Raises: UsageError where the share is not in 0..1.
    """
    if not 0 <= share <= 1:
        raise UsageError(f"The share of characters to replace is {share:g}; give a number from 0 to 1.")
    order, draws = random.permutation(len(text)), random.random(len(text))
    symbols = list(text)
    for place in order[: int(share * len(text) + random.random())]:
        others = _LETTERS.replace(text[place].lower(), "")
        symbols[place] = others[int(draws[place] * len(others))]
    return "".join(symbols)


def noisy(captions: Iterable[Sequence[str]], share: float, seed: int) -> list[list[str]]:
    """:func:`char_noise` of the captions of each image, with random numbers of their own for each caption.

    A caption's noise depends on ``seed`` and its index in the split alone, so every system reads the same captions.
    """
    whole = [list(texts) for texts in captions]
    index = iter(range(sum(map(len, whole))))
    return [[char_noise(text, share, np.random.default_rng((seed, next(index)))) for text in texts] for texts in whole]
