"""Feature files with a row a caption: which neighbouring rows are copies of one picture's features.

VSE++ and its successors keep such arrays for COCO's `dev` and `testall`. Copies may differ in their last bits, where
they were computed or converted one by one; different pictures differ by half of their size or more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from xmodal_jax.data.sources.common import Report
from xmodal_jax.data.sources.features import Array
from xmodal_jax.data.sources.text import read_lines
from xmodal_jax.errors import DataError

Rows = Iterable[tuple[str, Sequence[int]]]  # each image with its rows
ALIKE = 1e-3  # of their size: copies differ by less
APART = 2e-2  # different pictures differ by more; between the two nobody can tell
PROBE = 4096  # numbers of a row that are compared to find runs; copies are compared whole when they are stored


def difference(array: Array, row: int, other: int, numbers: int | None = None) -> float:
    """Root mean square of the difference of two rows, as a share of that of the rows; of their first ``numbers``."""
    first, second = (np.asarray(array[index]).reshape(-1)[:numbers] for index in (row, other))
    if first.shape != second.shape:
        return np.inf
    if first.tobytes() == second.tobytes():
        return 0.0
    first, second = first.astype(np.float64), second.astype(np.float64)
    size = np.sqrt((np.square(first) + np.square(second)).sum() / 2)
    apart = np.sqrt(np.square(first - second).sum())
    return float(apart / size) if np.isfinite(apart) and size else 0.0 if apart == 0 else np.inf


def captions_an_image(array: Array, where: str, report: Report) -> list[int]:
    """How many rows each image has in an array with a row a caption, by runs of copies; DataError where it is unclear.

    Runs of one length throughout, or of a few lengths ("5 to 7 captions a picture"), are pictures; a few runs of twice
    or three times the usual length are pictures that look the same as the one before.
    """
    lengths = _runs(array, where)
    usual, count = Counter(lengths).most_common(1)[0]
    low, high = min(lengths), max(lengths)
    advice = (
        f"; give {where}_ids.txt with the image of each caption, a line a caption, or, if each row is an image of its "
        "own, --captions-per-image 1."
    )
    if high == 1:
        report.say(f"{where}: a row a caption and no two neighbours alike, so each caption has an image of its own")
        return lengths
    if len(lengths) == 1 and high > 1:
        raise DataError(f"{where}: all {high:,} rows are equal, which may be one image or void features{advice}")
    if low == 1:
        alone = lengths.count(1)
        raise DataError(
            f"{where}: a row a caption; {len(lengths) - alone:,} runs of 2 to {high} equal neighbouring rows look like "
            f"copies of one image, but {alone:,} rows stand alone{advice}"
        )
    if all(length % low == 0 for length in lengths) and low < high:
        if low != usual or 2 * count <= len(lengths):
            raise DataError(
                f"{where}: a row a caption; runs of {low} to {high} equal neighbouring rows may be images of {low} "
                f"captions that look the same, or images of {low} to {high} captions{advice}"
            )
        report.say(
            f"{where}: a row a caption; {low} equal neighbouring rows are one image, and in "
            f"{len(lengths) - count:,} places the next image looks the same"
        )
        return [low] * (len(array) // low)
    span = f"{low}" if low == high else f"{low} to {high}"
    report.say(f"{where}: a row a caption; runs of {span} equal neighbouring rows are one image each, {len(lengths):,}")
    return lengths


def _runs(array: Array, where: str) -> list[int]:
    """Lengths of the runs of neighbouring rows that are alike."""
    numbers = []
    run = 0
    for row in range(len(array)):
        apart = difference(array, row - 1, row, PROBE) if row else 0.0
        if ALIKE < apart < APART:
            raise DataError(
                f"{where}: a row a caption; rows {row - 1} and {row} differ by {apart:.1%}, too much for copies of one "
                f"image and too little for two; give {where}_ids.txt with the image of each caption, a line a caption."
            )
        run += apart > ALIKE
        numbers.append(run)
    return [len(list(rows)) for _, rows in groupby(numbers)]


def check_copies(array: Array, rows: Sequence[int], what: str, advice: str) -> float:
    """The largest difference between the first of ``rows`` and the others; DataError where one is no copy of it."""
    apart = 0.0
    for row in rows[1:]:
        apart = max(apart, difference(array, rows[0], row))
        if apart > ALIKE:
            raise DataError(f"{what}: rows {rows[0]} and {row} should be copies but differ by {apart:.1%}; {advice}")
    return apart


def first_rows(array: Array, groups: Rows, what: str, advice: str) -> Iterator[int]:
    """The first row of each image, given with all its rows, which must be copies of each other."""
    for image, rows in groups:
        check_copies(array, rows, f'{what}, image "{image}"', advice)
        yield rows[0]


def read_ids(path: Path, encoding: str | None, array: Array, features: str) -> dict[str, int]:
    """The row of each name in an ids file with one line a row; a name that is there again must have the same row."""
    names = [line.strip() for line in read_lines(path, encoding)]
    if len(names) != len(array):
        raise DataError(f"{path}: {len(names):,} ids for the {len(array):,} rows of {features}.")
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows.setdefault(name, []).append(row)
    advice = f"{path.name} gives them one name."
    return dict(zip(rows, first_rows(array, rows.items(), features, advice), strict=True))


def rows_in_order(array: Array, images: Rows, features: str, order: str) -> list[int]:
    """The row of each image without names: a row an image, or a row a caption; ``images`` with their captions.

    Raises:
      DataError: neither fits, or the rows of one image's captions differ.
    """
    images = list(images)
    captions = sum(len(rows) for _, rows in images)
    if len(array) == len(images):
        return list(range(len(images)))
    if len(array) == captions:
        advice = "give --ids FILE with the image of each row."
        return list(first_rows(array, images, features, advice))
    raise DataError(
        f"{features}: {len(array):,} rows for {len(images):,} images with {captions:,} captions; without --ids FILE, "
        f"which gives the image of each row, they must be in the order of {order}."
    )
