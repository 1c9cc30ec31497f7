"""Features of which each image has an array of its own, with as many regions as it has."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xmodal_jax.data.records import DTYPES
from xmodal_jax.data.sources.common import Report
from xmodal_jax.data.sources.dtypes import refuse_other_type, view_as
from xmodal_jax.data.sources.features import Features
from xmodal_jax.errors import DataError

FEATURES = ("features", "feats", "feat", "x")
BOXES = ("boxes", "bboxes", "bbox")
COUNTS = ("num_boxes", "num_bbox", "num_bboxes", "num_regions")
SIZES = (("image_h", "image_w"), ("img_h", "img_w"), ("height", "width"))
PROBE = 64  # images looked at to see which axis the regions are on
HELD = 4  # images kept in memory: features and boxes of one are asked for one after the other


class Ragged:
    """N arrays [R, F], or [F], read one at a time; DataError where one is of another type or rank than the first."""

    def __init__(self, path: Path, length: int, read: Callable[[int], Any], dtype: str | None, check: bool = True):
        self.path, self.length, self.read, self.as_dtype = path, length, read, dtype
        if not length:
            raise DataError(f"{path}: no image in it.")
        self.held: OrderedDict[int, np.ndarray] = OrderedDict()
        first = self._load(0)
        self.dtype, self.rank, self.width = first.dtype, first.ndim, first.shape[-1]
        if check:
            if first.dtype.name not in (*DTYPES, "float64"):
                raise DataError(f"{path}: wanted {', '.join(DTYPES)} or float64, found {first.dtype}.")
            if not dtype:
                sample = [self._load(row).reshape(-1) for row in range(0, length, max(1, length // PROBE))]
                refuse_other_type(np.concatenate([part for part in sample if part.dtype == first.dtype]), str(path))

    @property
    def ndim(self) -> int:
        return self.rank + 1

    @property
    def shape(self) -> tuple[int, ...]:
        """N and F; between them -1 for the regions, of which there is no one number."""
        return (self.length, -1, self.width) if self.rank == 2 else (self.length, self.width)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, row: int) -> np.ndarray:
        value = self._load(row)
        if (value.dtype, value.ndim, value.shape[-1]) != (self.dtype, self.rank, self.width):
            raise DataError(
                f"{self.path}: image {row} is {list(value.shape)} {value.dtype}, the first "
                f"{'[R, ' if self.rank == 2 else '['}{self.width}] {self.dtype}; all must agree."
            )
        return value

    def _load(self, row: int) -> np.ndarray:
        if row not in self.held:
            try:
                value = np.asarray(self.read(row))
            except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
                raise DataError(f"{self.path}: image {row} cannot be read ({error}).") from None
            if value.ndim not in (1, 2) or 0 in value.shape or value.dtype.kind not in "fiuV":
                raise DataError(f"{self.path}: image {row} is {list(value.shape)} {value.dtype}; wanted [R, F] or [F].")
            self.held[row] = view_as(value, self.as_dtype, f"{self.path}: image {row}") if self.as_dtype else value
            if len(self.held) > HELD:
                self.held.popitem(last=False)
        return self.held[row]


def pictures(path: Path, stored: Mapping[str, Mapping[str, Any]], dtype: str | None, report: Report) -> Features:
    """Features of which each image has arrays called by its name: features and, where there are, boxes and sizes.

    The features may be [F, R], as the bottom-up-attention code writes them: F is what all images have alike.
    """
    names = list(stored)
    first = stored[names[0]]
    key = _known(first, FEATURES)
    if key is None:
        if len(first) != 1:
            raise DataError(f'{path}: "{names[0]}" has {", ".join(first)}, none of which is {", ".join(FEATURES)}.')
        key = next(iter(first))
    boxes_key, count_key = _known(first, BOXES), _known(first, COUNTS)
    sizes_keys = next((pair for pair in SIZES if set(pair) <= set(first)), None)
    turned = _turned(names, stored, key, boxes_key, count_key)
    if turned:
        report.say(f"{path.name}: its arrays are [F, R], and turned round")

    def features(row: int) -> np.ndarray:
        value = np.asarray(stored[names[row]][key])
        return np.ascontiguousarray(value.T) if turned else value

    array = Ragged(path, len(names), features, dtype)
    if array.rank == 1:
        return Features(path, array, names=names)
    counts = _scalars(path, stored, [count_key])[:, 0].astype(np.int64) if count_key else None
    sizes = _scalars(path, stored, sizes_keys) if sizes_keys else None
    boxes = None
    if boxes_key:
        boxes = Ragged(path, len(names), lambda row: stored[names[row]][boxes_key], None, check=False)
        if sizes is None and max(boxes[row].max() for row in range(min(PROBE, len(names)))) > 1.02:
            report.say(f"{path.name}: its boxes are in pixels of images of unknown size, and left out")
            boxes = None
    return Features(path, array, boxes, counts, sizes, names=names)


def _scalars(path: Path, stored: Mapping[str, Mapping[str, Any]], keys: Sequence[str]) -> np.ndarray:
    """[N, len(keys)] of the single numbers that each image has under ``keys``."""
    try:
        rows = [[float(np.asarray(picture[key]).reshape(())) for key in keys] for picture in stored.values()]
    except (KeyError, ValueError, TypeError, OSError, RuntimeError) as error:
        raise DataError(f"{path}: not every image has one number {' and '.join(keys)} ({error}).") from None
    return np.array(rows)


def _known(picture: Iterable[str], keys: tuple[str, ...]) -> str | None:
    there = set(picture)
    return next((key for key in keys if key in there), None)


def _turned(
    names: list[str], stored: Mapping[str, Mapping[str, Any]], key: str, boxes: str | None, count: str | None
) -> bool:
    """Whether the arrays are [F, R]: told by the number of regions where that is known, else by what all have alike."""
    first: set[int] = set()
    last: set[int] = set()
    for name in names[:: max(1, len(names) // PROBE)]:
        shape = np.asarray(stored[name][key]).shape
        if len(shape) != 2:
            return False
        known = len(np.asarray(stored[name][boxes])) if boxes else int(np.asarray(stored[name][count])) if count else 0
        if known and shape[0] != shape[1] and known in shape:
            return shape[1] == known
        first.add(shape[0])
        last.add(shape[1])
    return len(first) == 1 and len(last) > 1
