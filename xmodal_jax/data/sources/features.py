"""Features of images as importers read them: an array, images first, with what is known of its regions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import ml_dtypes
import numpy as np

from xmodal_jax.data.records import DTYPES, finite
from xmodal_jax.data.sources.common import Report, existing
from xmodal_jax.data.sources.dtypes import refuse_other_type, view_as
from xmodal_jax.errors import DataError

PADDING = "row of zeros behind the last region of an image, taken for padding"


class Array(Protocol):
    """What is read of an array; one of ragged rows has no more than this."""

    dtype: Any

    @property
    def ndim(self) -> int: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, row: int, /) -> Any: ...


class Features(NamedTuple):
    """One kind of features of N images."""

    path: Path
    array: Array  # [N, F] or [N, R, F]; R may differ from image to image
    boxes: Array | None = None  # [N, R, 4]
    counts: np.ndarray | None = None  # [N] real regions of each image
    sizes: np.ndarray | None = None  # [N, 2] height and width that the boxes are measured in; in 0..1 without
    boxes_path: Path | None = None  # their file, if it is another one
    names: Sequence[str] | None = None  # whose the rows are, where the file says so

    @property
    def kind(self) -> str:
        return "region" if self.array.ndim == 3 else "global"


class Values(NamedTuple):
    """The features of one image by their kind, with the boxes of its regions and its size."""

    features: dict[str, np.ndarray]
    boxes: np.ndarray | None
    size: tuple[int, int]


def load_array(path: Path, dtype: str | None = None) -> np.ndarray:
    """A memory-mapped .npy of 2 or 3 axes, images first; DataError where it is missing, cut short or not numbers.

    ``dtype`` is what its bytes are, whatever its header says.
    """
    existing(path, "features")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception:  # NumPy parses the header as Python, and raises what that raises
        raise DataError(
            f"{path}: not a whole .npy array of numbers, but cut short, damaged or full of Python objects; "
            "save it again with numpy.save."
        ) from None
    if not isinstance(array, np.ndarray) or array.ndim not in (2, 3) or 0 in array.shape:
        shape = list(array.shape) if isinstance(array, np.ndarray) else "an archive"
        raise DataError(f"{path}: wanted [images, F] or [images, R, F], found {shape}.")
    surplus = path.stat().st_size - getattr(array, "offset", 0) - array.nbytes
    if surplus:
        raise DataError(f"{path}: {surplus:,} bytes more than its header tells of; the file is damaged.")
    return numbers(array, path, dtype)


def numbers(array: np.ndarray, path: Path, dtype: str | None) -> np.ndarray:
    """``array``, its bytes read as ``dtype`` where that is given; DataError where they are no features."""
    if dtype:
        array = view_as(array, dtype, str(path))
    elif array.dtype == np.dtype("V2"):  # NumPy forgets the name of bfloat16 when saving
        array = array.view(ml_dtypes.bfloat16)
    if array.dtype.name not in (*DTYPES, "float64"):
        raise DataError(
            f"{path}: wanted {', '.join(DTYPES)} or float64 (stored as float32), found {array.dtype}; if its bytes are "
            "of another type than its header says, give --feature-dtype."
        )
    if not dtype:
        step = max(1, len(array) // 64)
        refuse_other_type(np.concatenate([np.ravel(row) for row in array[::step]]), str(path))
    return array


def load_counts(path: Path, images: int, regions: int) -> np.ndarray:
    """[N] the number of real regions of each image, from a .npy of whole numbers; -1 ``regions`` are any."""
    try:
        counts = np.load(existing(path, "numbers of regions"), allow_pickle=False)
    except (ValueError, OverflowError, OSError, EOFError):
        raise DataError(f"{path}: not a whole .npy array of numbers.") from None
    if counts.size != images or counts.dtype.kind not in "iuf":
        raise DataError(f"{path}: wanted {images:,} whole numbers, one an image, found {list(counts.shape)}.")
    whole = counts.reshape(-1).astype(np.int64)
    wrong = np.flatnonzero((whole != counts.reshape(-1)) | (whole < 0) | (regions >= 0) & (whole > regions))
    if wrong.size:
        found = counts.reshape(-1)[wrong[0]]
        raise DataError(f"{path}: image {wrong[0]} has {found}, which is no number of regions from 0 to {regions}.")
    return whole


def row_of(array: Array, row: int) -> np.ndarray:
    """One image's features in memory: native byte order, float64 as float32."""
    name = array.dtype.name if array.dtype.name in DTYPES else "float32"
    with np.errstate(over="ignore"):  # an overflow becomes inf, which the caller refuses
        return np.array(array[row], dtype=DTYPES[name], order="C")


def refuse_nonfinite(path: Path, array: Array, row: int) -> None:
    """Raise the DataError for image ``row``; counts how many more there are, which only a failed import pays for."""
    image = row_of(array, row)
    bad = sum(not finite(region) for region in image) if image.ndim == 2 else 0
    detail = f"{bad} non-finite region{'s' * (bad != 1)}" if bad else "non-finite features"
    more = sum(not finite(row_of(array, other)) for other in range(row + 1, len(array)))
    raise DataError(
        f"{path}: image {row} has {detail} (and {more:,} more images). "
        "Repair the file or give --on-nonfinite drop-image."
    )


def values_at(sources: Sequence[Features], row: int, policy: str, report: Report, image: str) -> Values | None:
    """Image ``row`` of all ``sources``, None if it is dropped, which is reported; DataError where it is broken."""
    features, boxes, size = {}, None, (0, 0)
    for source in sources:
        value = row_of(source.array, row)
        if not finite(value):
            if policy != "drop-image":
                refuse_nonfinite(source.path, source.array, row)
            report.add("image with non-finite features", image=image, file=source.path.name, row=row)
            return None
        if value.ndim == 2:
            real = real_regions(value, None if source.counts is None else int(source.counts[row]), report)
            if not real:
                report.add("image without a region", image=image, file=source.path.name, row=row)
                return None
            value = value[:real]
            if source.sizes is not None:
                size = (int(source.sizes[row][0]), int(source.sizes[row][1]))
            boxes = _boxes(source, row, real)
        features[source.kind] = value
    return Values(features, boxes, size)


def real_regions(regions: np.ndarray, count: int | None, report: Report) -> int:
    """How many of [R, F] are regions: ``count`` at most, and up to the last that is not all zero.

    A detector never answers with nothing but zeros; an image of which that is all there is keeps one row.
    """
    if count is not None:
        report.counts["row behind the number of regions of an image"] += len(regions) - count
        regions = regions[:count]
    if not len(regions):
        return 0
    filled = np.flatnonzero((regions != 0).any(axis=1))
    real = int(filled[-1]) + 1 if filled.size else 1
    report.counts[PADDING] += len(regions) - real
    return real


def _boxes(source: Features, row: int, real: int) -> np.ndarray | None:
    if source.boxes is None:
        return None
    height, width = (1, 1) if source.sizes is None else source.sizes[row]
    try:
        return scale_boxes(np.asarray(source.boxes[row])[:real], height, width)
    except ValueError as error:
        wanted = "in 0..1" if source.sizes is None else f"in pixels of {width} x {height}"
        where = source.boxes_path or source.path
        raise DataError(f"{where}, image {row}: {error}; wanted x1, y1, x2, y2 {wanted}.") from None


def scale_boxes(boxes: np.ndarray, height: float = 1, width: float = 1) -> np.ndarray:
    """[R, 4] x1 y1 x2 y2 in pixels, or in 0..1 -> float32 in 0..1; ValueError where that is not what they are."""
    scaled = boxes.astype(np.float32) / np.array([width, height, width, height], np.float32)
    if not np.isfinite(scaled).all() or scaled.min(initial=0) < -0.02 or scaled.max(initial=0) > 1.02:
        raise ValueError("boxes outside the image")
    if (scaled[:, 2:] < scaled[:, :2]).any():
        raise ValueError("boxes that are not x1, y1, x2, y2")
    return scaled.clip(0, 1)  # detectors and float16 overshoot by a little
