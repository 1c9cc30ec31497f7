"""The "precomp" layout of VSE++ and SCAN: `{split}_ims.npy`, `_caps.txt`, `_ids.txt`, and `_boxes.npy` where kept.

Source of the layout: Faghri et al., "VSE++", BMVC 2018, and Lee et al., "Stacked Cross Attention", ECCV 2018.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from xmodal_jax.data.records import Item
from xmodal_jax.data.sources import common, copies
from xmodal_jax.data.sources.common import PictureFolder, Plan, Report, Splits
from xmodal_jax.errors import DataError

OPTIONS = ("features", "images", "captions_per_image", "on_nonfinite")


class SplitFiles(NamedTuple):
    """One split: the arrays by their files, and which row and which captions are each image's."""

    name: str
    arrays: dict[Path, np.ndarray]
    boxes: np.ndarray | None
    captions: list[str]
    ids: list[str]
    by_ids: bool  # whether its ids say which captions belong together
    rows: list[range]  # rows of the arrays that hold this image, equal copies if more than one
    spans: list[range]  # the image's captions


def plan(args: argparse.Namespace) -> Plan:
    """Import the folder ``args.source``; the split names come from its ``*_caps.txt``."""
    folder = Path(args.source)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder.")
    names = common.order_splits(path.name.removesuffix("_caps.txt") for path in folder.glob("*_caps.txt"))
    if not names:
        inner = next(folder.glob("*/*_caps.txt"), None)
        hint = f" {inner.parent} has some: give that folder." if inner else ""
        raise DataError(f"{folder}: no *_caps.txt, so this is no precomp folder.{hint}")
    arrays = [part for value in args.features or ["ims"] for part in value.split(",") if part]
    for kind in arrays:
        for path in sorted(folder.glob(f"*_{kind}.npy")):
            split = path.name.removesuffix(f"_{kind}.npy")
            if split not in names:
                raise DataError(f"{path} has no {split}_caps.txt beside it; add its captions or move it away.")
    endings = ["caps.txt", "ids.txt", "boxes.npy", *(f"{kind}.npy" for kind in arrays)]
    files = [folder / f"{name}_{ending}" for name in names for ending in endings]
    source = common.describe_source(args, (path for path in files if path.is_file()), OPTIONS)

    def read(report: Report) -> Splits:
        splits = [_open_split(folder, name, arrays, args.captions_per_image, report) for name in names]
        with_boxes = {split.name for split in splits if split.boxes is not None}
        if with_boxes and len(with_boxes) < len(splits):
            lacking = next(name for name in names if name not in with_boxes)
            raise DataError(f"{folder}: {lacking}_boxes.npy is missing, but other splits have theirs.")
        ids = [[[id_]] for split in splits for id_ in split.ids]
        pictures = PictureFolder(args.images, ids, report) if args.images else None
        for split in splits:
            report.read["images"] += len(split.ids)
            report.read["captions"] += len(split.captions)
        options = args.captions_per_image, args.on_nonfinite, pictures, report
        items = {split.name: _items(split, *options) for split in splits}
        return dict(items), {split.name: len(split.ids) for split in splits}

    return Plan(args.name or folder.resolve().name, source, read)


def _open_split(folder: Path, name: str, kinds: list[str], per_image: int | None, report: Report) -> SplitFiles:
    arrays: dict[Path, np.ndarray] = {}
    for kind in kinds:
        path = folder / f"{name}_{kind}.npy"
        if not path.is_file():
            there = sorted(other.stem.removeprefix(f"{name}_") for other in folder.glob(f"{name}_*.npy"))
            raise DataError(f"{path}: no such file; --features can be one or more of: {', '.join(there) or 'none'}.")
        arrays[path] = common.load_array(path)
    if len({array.ndim for array in arrays.values()}) < len(arrays):
        raise DataError(f"{folder}: {', '.join(kinds)} hold the same kind of features; give one [N, R, F], one [N, F].")
    counts = {path.name: len(array) for path, array in arrays.items()}
    if len(set(counts.values())) > 1:
        raise DataError(f"{folder}: {', '.join(f'{key} has {count:,} rows' for key, count in counts.items())}.")
    captions = common.read_lines(folder / f"{name}_caps.txt")
    if not captions:
        raise DataError(f"{folder / name}_caps.txt: no caption in it.")
    ids_path = folder / f"{name}_ids.txt"
    ids = [line.strip() for line in common.read_lines(ids_path)] if ids_path.is_file() else None
    rows, spans = _match(f"{folder / name}", next(iter(arrays.values())), len(captions), ids, per_image, report)
    return SplitFiles(
        name,
        arrays,
        _open_boxes(folder / f"{name}_boxes.npy", arrays),
        captions,
        _image_ids(ids_path, ids, name, rows, spans, len(captions)),
        ids is not None and len(ids) == len(captions) and len(set(ids)) < len(ids),
        rows,
        spans,
    )


def _open_boxes(path: Path, arrays: dict[Path, np.ndarray]) -> np.ndarray | None:
    regions = next((array for array in arrays.values() if array.ndim == 3), None)
    if regions is None or not path.is_file():
        return None
    boxes = common.load_array(path)
    if boxes.shape != (*regions.shape[:2], 4):
        raise DataError(f"{path}: wanted {[*regions.shape[:2], 4]} like the regions, found {list(boxes.shape)}.")
    return boxes


def _match(
    where: str, array: np.ndarray, captions: int, ids: list[str] | None, per_image: int | None, report: Report
) -> tuple[list[range], list[range]]:
    """Rows and captions of each image, by the first rule that fits.

    1. ``per_image`` captions an image, one row an image or one row a caption;
    2. ids, one line a caption, that repeat: a run of equal ids is an image, of one row or of a row a caption;
    3. fewer rows than captions: equally many captions an image;
    4. a row a caption: equal neighbouring rows are one image.
    """
    images = len(array)
    if per_image:
        if images * per_image != captions and (images != captions or captions % per_image):
            raise DataError(
                f"{where}: {images:,} images and {captions:,} captions, but --captions-per-image {per_image} "
                f"wants {images * per_image:,}. First image without all its captions: row {captions // per_image}."
            )
        spans = _spans([per_image] * (captions // per_image))
        return (spans if images == captions else _singles(images)), spans
    if ids is not None and len(ids) == captions and len(set(ids)) < captions:
        runs = [len(list(run)) for _, run in groupby(ids)]
        if images not in (len(runs), captions):
            raise DataError(
                f"{where}: {images:,} images, but _ids.txt has {captions:,} lines, one a caption, with {len(runs):,} "
                "runs of equal ids; it names the image of each caption, and the array has a row an image or a caption."
            )
        return (_singles(images) if images == len(runs) else _spans(runs)), _spans(runs)
    if captions % images:
        raise DataError(
            f"{where}: {images:,} images and {captions:,} captions, which is not a whole number of captions an "
            f"image. One of the files is cut short or not of this set; or put one id a caption in _ids.txt."
        )
    if images < captions:
        return _singles(images), _spans([captions // images] * images)
    spans = _spans(copies.captions_an_image(array, where, report))
    return spans, spans


def _singles(count: int) -> list[range]:
    return [range(row, row + 1) for row in range(count)]


def _spans(lengths: list[int]) -> list[range]:
    ends = np.cumsum(lengths).tolist()
    return [range(end - length, end) for length, end in zip(lengths, ends, strict=True)]


def _image_ids(
    path: Path, ids: list[str] | None, name: str, rows: list[range], spans: list[range], captions: int
) -> list[str]:
    if ids is None:
        return [f"{name}_{index}" for index in range(len(spans))]
    if len(ids) == len(spans):
        return ids
    if len(ids) == captions:
        return [ids[span.start] for span in spans]
    raise DataError(f"{path}: {len(ids):,} ids for {len(spans):,} images with {captions:,} captions.")


def _items(
    split: SplitFiles, per_image: int | None, policy: str, pictures: PictureFolder | None, report: Report
) -> Iterator[Item]:
    advice = (
        f"--captions-per-image {per_image} does not fit this array: leave it out, so that runs of equal rows count."
        if per_image
        else f"correct {split.name}_ids.txt, which has them under one id."
        if split.by_ids
        else f"put the image of each caption into {split.name}_ids.txt, a line a caption."
    )
    apart = 0.0
    for id_, rows, span in zip(split.ids, split.rows, split.spans, strict=True):
        for path, array in split.arrays.items():
            apart = max(apart, copies.check_copies(array, rows, f'{path}, image "{id_}"', advice))
        features = common.features_at(split.arrays, rows[0], policy, report, id_)
        if features is None:
            continue
        lines = range(span.start + 1, span.stop + 1)
        captions = common.keep_captions(
            split.captions[span.start : span.stop], report, id_, f"{split.name}_caps.txt", lines
        )
        boxes, picture, size = None, None, (0, 0)
        if split.boxes is not None:
            try:
                boxes = common.scale_boxes(split.boxes[rows[0]])
            except ValueError as error:
                raise DataError(
                    f"{split.name}_boxes.npy, image {rows[0]}: {error}; wanted x1, y1, x2, y2 in 0..1."
                ) from None
        if pictures is not None:
            picture, size = pictures.find([[id_]], report, id_)
        yield Item(id_, captions, features, boxes, size, picture)
    if apart:
        report.say(f"{split.name}: copies of one image differ by {apart:.0e} of their size at most; the first is kept")
