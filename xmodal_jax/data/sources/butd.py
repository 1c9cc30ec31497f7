"""Bottom-up-attention TSV files: regions with boxes, base64 in text; captions come from Karpathy's JSON.

Columns: image_id, image_w, image_h, num_boxes, boxes [R, 4] float32 in pixels, features [R, F] float32.
Source of the format: Anderson et al., "Bottom-up and top-down attention", CVPR 2018. The public files hold broken
rows and repeated images, and a lenient base64 decoder would turn the former into wrong numbers without a word.
"""

from __future__ import annotations

import argparse
import base64
import binascii
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from xmodal_jax.data.records import Item, finite
from xmodal_jax.data.sources import common, karpathy
from xmodal_jax.data.sources.common import PictureFolder, Plan, Report, Splits
from xmodal_jax.data.sources.karpathy import Entry
from xmodal_jax.errors import DataError, UsageError
from xmodal_jax.progress import Progress

OPTIONS = ("captions", "dtype", "images", "match", "max_broken", "restval_to_train")
LONGEST = 1 << 26  # bytes a row; 100 regions of 2048 features are 1.1 MB
FIELDS = 6


class Place(NamedTuple):
    """Where a row is."""

    path: Path
    line: int
    offset: int


class Broken(ValueError):
    """Why a row cannot be used."""


def plan(args: argparse.Namespace) -> Plan:
    """Import ``args.source``, a TSV file or a folder of them, with the captions of ``args.captions``."""
    if not args.captions:
        raise UsageError("The TSV holds no captions: give --captions dataset_coco.json (Karpathy's file).")
    if args.dtype not in ("float16", "float32"):
        raise UsageError(f'--dtype is float16 or float32, not "{args.dtype}".')
    source = Path(args.source)
    paths = sorted(path for path in source.glob("*.tsv*") if path.is_file()) if source.is_dir() else [source]
    if not paths:
        raise DataError(f"{source}: no *.tsv in this folder.")
    paths = [common.existing(path, "the TSV of regions") for path in paths]
    json_path = common.existing(args.captions, "Karpathy's JSON")
    described = common.describe_source(args, [*paths, json_path], OPTIONS)

    def read(report: Report) -> Splits:
        entries = karpathy.read_entries(json_path, args.restval_to_train)
        pictures = PictureFolder(args.images, [[entry.files] for entry in entries], report) if args.images else None
        reader = RowReader(args.dtype, args.max_broken, report)
        places = reader.index(paths)
        names = list(places)
        matches = karpathy.match_entries(names, entries, args.match, str(source), report)
        splits: dict[str, list[tuple[Entry, list[Place]]]] = {}
        for name in common.order_splits(entry.split for entry in entries):
            splits[name] = []
        for entry, match in zip(entries, matches, strict=True):
            if match is None:
                report.add("image without a row in the TSV", image=entry.id, split=entry.split)
            else:
                splits[entry.split].append((entry, places[names[match]]))
        splits = {name: pairs for name, pairs in splits.items() if pairs}
        items = {name: _items(pairs, reader, json_path, pictures, report) for name, pairs in splits.items()}
        return dict(items), {name: len(pairs) for name, pairs in splits.items()}

    return Plan(args.name or json_path.stem.removeprefix("dataset_"), described, read)


class RowReader:
    """Finds and decodes rows; keeps the count of broken ones under its ceiling."""

    def __init__(self, dtype: str, ceiling: float, report: Report):
        self.dtype, self.ceiling, self.report = np.dtype(dtype), ceiling, report
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
                    if place.line == 1 and name == "image_id":
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
        return places

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
        """Features [R, F], boxes [R, 4] in 0..1, (height, width); raises Broken."""
        with place.path.open("rb") as file:
            file.seek(place.offset)
            fields = file.readline(LONGEST + 1).rstrip(b"\r\n").split(b"\t")
        if len(fields) != FIELDS:
            raise Broken(f"{len(fields)} columns, not {FIELDS}")
        try:
            width, height, count = (int(field) for field in fields[1:4])
        except ValueError:
            raise Broken("image_w, image_h or num_boxes is not a whole number") from None
        if min(width, height, count) <= 0:
            raise Broken("image_w, image_h or num_boxes is not positive")
        boxes, features = _decode(fields[4], count, "boxes"), _decode(fields[5], count, "features")
        if boxes.shape[1] != 4:
            raise Broken(f"{boxes.shape[1]} numbers a box")
        if self.width not in (None, features.shape[1]):
            raise Broken(f"{features.shape[1]} features a region, {self.width} in the rows before")
        with np.errstate(over="ignore"):  # an overflow becomes inf, which is refused
            features = features.astype(self.dtype)
        if not finite(features):
            raise Broken(f"features that are not finite in {self.dtype}")
        try:
            boxes = common.scale_boxes(boxes, height, width)
        except ValueError as error:
            raise Broken(str(error)) from None
        self.width = features.shape[1]
        return features, boxes, (height, width)


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


def _decode(text: bytes, count: int, what: str) -> np.ndarray:
    """[count, n] float32 from base64; nothing but its alphabet is accepted."""
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise Broken(f"{what}: not valid base64 ({error})") from None
    if not data or len(data) % (4 * count):
        raise Broken(f"{what}: {len(data):,} bytes are not {count} rows of float32")
    return np.frombuffer(data, "<f4").reshape(count, -1)


def _items(
    pairs: list[tuple[Entry, list[Place]]],
    reader: RowReader,
    json_path: Path,
    pictures: PictureFolder | None,
    report: Report,
) -> Iterator[Item]:
    for entry, places in pairs:
        found = None
        for place in places:  # a repeated image may have one good row
            try:
                found = reader.read(place)
                break
            except Broken as error:
                reader.refuse(place, f"image {entry.id}: {error}")
        if found is None:
            continue
        features, boxes, size = found
        picture = pictures.find([entry.files], report, entry.id)[0] if pictures else None
        captions = common.keep_captions(entry.captions, report, entry.id, json_path.name)
        yield Item(entry.id, captions, {"region": features}, boxes, size, picture)
