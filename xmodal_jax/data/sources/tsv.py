"""Rows of bottom-up-attention TSV files: an image each, its regions and their boxes in base64.

Six columns (Anderson et al., "Bottom-up and top-down attention", CVPR 2018): image_id, image_w, image_h, num_boxes,
boxes [R, 4] float32 in pixels, features [R, F] float32. Ten columns (Tan and Bansal, "LXMERT", EMNLP 2019): img_id,
img_h, img_w, objects_id, objects_conf, attrs_id, attrs_conf, num_boxes, boxes, features. The public files hold broken
rows and repeated images, and a lenient base64 decoder would turn the former into wrong numbers without a word.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from xmodal_jax.data.records import finite
from xmodal_jax.data.sources.common import Report
from xmodal_jax.data.sources.dtypes import TYPES, refuse_other_type
from xmodal_jax.data.sources.features import real_regions, scale_boxes
from xmodal_jax.errors import DataError
from xmodal_jax.progress import Progress

LONGEST = 1 << 26  # bytes a row; 100 regions of 2048 features are 1.1 MB
PROBE = 64  # rows looked at for the type of their numbers
HEADERS = ("image_id", "img_id")


class Layout(NamedTuple):
    """The columns that are read."""

    width: int
    height: int
    num_boxes: int
    boxes: int
    features: int


LAYOUTS = {6: Layout(1, 2, 3, 4, 5), 10: Layout(2, 1, 7, 8, 9)}  # by the number of columns


class Place(NamedTuple):
    """Where a row is."""

    path: Path
    line: int
    offset: int


class Broken(ValueError):
    """Why a row cannot be used."""


class RowReader:
    """Finds and decodes rows; keeps the count of broken ones under its ceiling."""

    def __init__(self, dtype: str, feature_dtype: str | None, ceiling: float, report: Report):
        self.dtype, self.ceiling, self.report = np.dtype(dtype), ceiling, report
        self.feature_dtype = np.dtype(TYPES[feature_dtype or "float32"])
        self.sure = feature_dtype is not None
        self.rows = self.broken = 0
        self.width: int | None = None

    def index(self, paths: list[Path]) -> dict[str, list[Place]]:
        """One pass over the files for the places of every image; rows themselves are read when their turn comes."""
        places: dict[str, list[Place]] = {}
        waiting: list[tuple[Place, str]] = []
        total = sum(path.stat().st_size for path in paths) >> 20
        with Progress("index TSV", total, unit="MiB") as progress:
            for path in paths:
                for place, start, length in _scan(path):
                    progress.advance((place.offset + length >> 20) - (place.offset >> 20))
                    name = start.split(b"\t", 1)[0].decode("utf-8", "replace").strip()
                    if place.line == 1 and name in HEADERS:
                        continue
                    self.rows += 1
                    if length > LONGEST or b"\t" not in start or not name:
                        waiting.append((place, "no image_id, or longer than any row can be"))
                    else:
                        places.setdefault(name, []).append(place)
        self.report.read["rows"] = self.rows
        for place, why in waiting:  # after counting, because the ceiling is a part of all rows
            self.refuse(place, why)
        if not places:
            raise DataError(f"{paths[0]}: no row in it.")
        if not self.sure:
            self._check_type([found[0] for found in places.values()])
        return places

    def _check_type(self, places: list[Place]) -> None:
        """DataError where the bytes of the features look like another type; broken rows are left for later."""
        values = []
        for place in places[:: max(1, len(places) // PROBE)]:
            try:
                fields, layout = _fields(place)
                data = _bytes(fields[layout.features], "features")
                values.append(np.frombuffer(data[: len(data) // 8 * 8], self.feature_dtype))
            except Broken:
                continue
        if values:
            refuse_other_type(np.concatenate(values), str(places[0].path))

    def refuse(self, place: Place, why: str) -> None:
        """Report a broken row; DataError when there are too many."""
        self.broken += 1
        self.report.add("broken row", file=place.path.name, line=place.line, why=why)
        if self.broken > self.ceiling * self.rows:
            raise DataError(
                f"{place.path}, line {place.line}: {why}. {self.broken:,} of {self.rows:,} rows are broken, more than "
                f"--max-broken {self.ceiling:g} allows; get the file again or raise it."
            )

    def read(self, place: Place) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
        """Features [R, F], boxes [R, 4] in 0..1, (height, width); raises Broken.

        Rows behind `num_boxes` and zeros at the end are padding and left away.
        """
        fields, layout = _fields(place)
        try:
            width, height, count = (int(fields[column]) for column in layout[:3])
        except ValueError:
            raise Broken("image_w, image_h or num_boxes is not a whole number") from None
        if min(width, height, count) <= 0:
            raise Broken("image_w, image_h or num_boxes is not positive")
        boxes = _boxes(_bytes(fields[layout.boxes], "boxes"), count, max(width, height))
        features = self._features(_bytes(fields[layout.features], "features"), len(boxes), count)
        with np.errstate(over="ignore"):  # an overflow becomes inf, which is refused
            features = features.astype(self.dtype)
        if not finite(features):
            raise Broken(f"features that are not finite in {self.dtype}")
        try:
            boxes = scale_boxes(boxes[:count], height, width)
        except ValueError as error:
            raise Broken(str(error)) from None
        self.width = features.shape[1]
        real = real_regions(features, count, self.report)
        return features[:real], boxes[:real], (height, width)

    def _features(self, data: bytes, rows: int, count: int) -> np.ndarray:
        """[R, F] of a row whose boxes are ``rows``; it may be padded where the boxes are not."""
        size, width = self.feature_dtype.itemsize, self.width
        if width and len(data) % (size * width) == 0 and len(data) > size * width * count:
            features = np.frombuffer(data, self.feature_dtype).reshape(-1, width)
            if not features[count:].any():
                return features
        if not data or len(data) % (size * rows):
            hint = "; --feature-dtype float16 would fit" if data and size > 2 and not len(data) % (2 * rows) else ""
            raise Broken(f"features: {len(data):,} bytes are not {rows} rows of {self.feature_dtype}{hint}")
        features = np.frombuffer(data, self.feature_dtype).reshape(rows, -1)
        if width not in (None, features.shape[1]):
            raise Broken(f"{features.shape[1]} features a region, {width} in the rows before")
        return features


def _scan(path: Path) -> Iterator[tuple[Place, bytes, int]]:
    """Place, first bytes and length of each line, without ever holding more than LONGEST of one."""
    with path.open("rb") as file:
        line = offset = 0
        while chunk := file.readline(LONGEST):
            start, length = chunk[:256], len(chunk)
            while not chunk.endswith(b"\n") and (chunk := file.readline(LONGEST)):
                length += len(chunk)
            line += 1
            if start.strip():
                yield Place(path, line, offset), start, length
            offset += length


def _fields(place: Place) -> tuple[list[bytes], Layout]:
    with place.path.open("rb") as file:
        file.seek(place.offset)
        fields = file.readline(LONGEST + 1).rstrip(b"\r\n").split(b"\t")
    if len(fields) not in LAYOUTS:
        raise Broken(f"{len(fields)} columns, not {' or '.join(map(str, LAYOUTS))}")
    return fields, LAYOUTS[len(fields)]


def _bytes(text: bytes, what: str) -> bytes:
    """What base64 says; nothing but its alphabet is accepted."""
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise Broken(f"{what}: not valid base64 ({error})") from None


def _boxes(data: bytes, count: int, longest: int) -> np.ndarray:
    """[R, 4] with R at least ``count``: float32, or float16 or float64 where the number of bytes and the values fit."""
    if data and len(data) in (8 * count, 32 * count):
        boxes = np.frombuffer(data, np.float16 if len(data) == 8 * count else np.float64).reshape(count, 4)
        if ((boxes >= -1) & (boxes <= 1.02 * longest)).all() and (boxes[:, 2:] >= boxes[:, :2]).all() and boxes.any():
            return boxes
    if not data or (len(data) % (4 * count) and len(data) % 16):
        raise Broken(f"boxes: {len(data):,} bytes are not {count} rows of float32")
    if len(data) % 16 or len(data) < 16 * count:
        raise Broken(f"{len(data) / 4 / count:g} numbers a box")
    return np.frombuffer(data, np.float32).reshape(-1, 4)
