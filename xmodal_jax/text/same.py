"""Which captions are equal: to a reader, and to what reads their tokens."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

import numpy as np
from jaxtyping import Int


def plain(caption: str) -> str:
    """What makes two captions the same one: lower case, single spaces.

    >>> plain("Two  Dogs ")
    'two dogs'
    """
    return " ".join(caption.lower().split())


def numbered(keys: Iterable[Hashable]) -> Int[np.ndarray, " n"]:
    """Numbers [N] of the keys by their first occurrence: equal ones have equal numbers.

    >>> numbered("abac")
    array([0, 1, 0, 2])
    """
    known: dict[Hashable, int] = {}
    return np.fromiter((known.setdefault(key, len(known)) for key in keys), np.int64)
