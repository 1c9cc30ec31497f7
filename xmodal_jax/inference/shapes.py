"""Few shapes: items and words are padded to a short list of sizes, for each of which one program is compiled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from xmodal_jax.errors import DataError, UsageError

SIZES = (1, 4, 16, 32, 64, 128, 256)  # numbers of items that are encoded: few shapes, each is a compilation
BATCH = SIZES[-1]
WORDS = 8  # captions are scored at widths that are multiples of it, and encoded at it times 1, 2, 4 ...: few shapes


def rounded(size: int, most: int) -> int:
    """The next multiple of :data:`WORDS`, from 1 to ``most``."""
    return max(min(-(-size // WORDS) * WORDS, most), 1)


def doubled(least: int) -> int:
    """The first of 8, 16, 32 ... that is not below ``least``."""
    return WORDS << max(-(-least // WORDS) - 1, 0).bit_length()


def batches(order: np.ndarray, size: int = BATCH) -> Iterator[np.ndarray]:
    """Parts of ``order``, padded with -1 to ``size``, or to one of :data:`SIZES` where one part is enough."""
    size = min(size, next((step for step in SIZES if len(order) <= step), size))
    for start in range(0, len(order), size):
        step = order[start : start + size]
        yield np.concatenate([step, np.full(size - len(step), -1, step.dtype)])


def fill(rows: np.ndarray, count: int) -> np.ndarray:
    """The first ``count`` rows, zeros where there are fewer."""
    out = np.zeros((count, *rows.shape[1:]), rows.dtype)
    out[: len(rows)] = rows[:count]
    return out


def pad(array: np.ndarray, width: int) -> np.ndarray:
    """The second axis of region features and masks padded with zeros; other features have no such axis."""
    if array.ndim != 3 and array.dtype != bool:
        return array
    out = np.zeros((len(array), width, *array.shape[2:]), array.dtype)
    out[:, : array.shape[1]] = array
    return out


def check_features(
    features: Mapping[str, np.ndarray], shapes: Mapping[str, Sequence[Any]], names: Sequence[str] | None
) -> dict[str, np.ndarray]:
    """Features by name in the order of ``shapes``; ``names`` are what errors call the images.

    Raises:
        UsageError: other features, or of other shapes, or of unequal numbers of images.
        DataError: a feature that is not finite.
    """
    if set(features) != set(shapes):
        raise UsageError(f"This model reads {', '.join(shapes)}, not {', '.join(features)}.")
    for name, value in features.items():
        shape = shapes[name]
        sizes = zip(value.shape[1:], shape, strict=False)
        fits = value.ndim == len(shape) + 1 and all(n == size for n, size in sizes if isinstance(size, int))
        if not fits or 0 in value.shape[1:]:
            want = ", ".join(map(str, ("images", *shape)))
            raise UsageError(f'The feature "{name}" is [{want}], not {list(value.shape)}.')
        if len(shape) == 3:  # pixels, which a network would take for other ones where they are scaled already
            if value.dtype != np.uint8:
                raise UsageError(f'"{name}" is uint8, 0 to 255, not {value.dtype}.')
            continue
        bad = ~np.isfinite(value.astype(np.float32)).all(axis=tuple(range(1, value.ndim)))
        if bad.any():
            first = int(np.argmax(bad))
            which = f'"{names[first]}"' if names else str(first)
            raise DataError(f'Feature "{name}" of image {which} is not finite ({bad.sum()} such images).')
    if len({len(value) for value in features.values()}) > 1:
        raise UsageError("All features need the same number of images.")
    return {name: features[name] for name in shapes}


def real_regions(features: Iterable[np.ndarray], count: int, regions: int) -> np.ndarray:
    """[B, R] bool: all but the rows of zeros behind an image's last other row; all of an image that has no other."""
    other = np.zeros((count, regions), bool)
    for value in features:
        if value.ndim == 3:
            other[:, : value.shape[1]] |= (value != 0).any(axis=-1)
    last = np.max(np.arange(1, regions + 1) * other, axis=1, initial=0)
    return np.arange(regions) < np.where(last == 0, regions, last)[:, None]
