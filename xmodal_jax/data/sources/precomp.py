"""The "precomp" layout of VSE++ and SCAN: `{split}_ims.npy`, `_caps.txt`, `_ids.txt`, and `_boxes.npy` where kept.

Source of the layout: Faghri et al., "VSE++", BMVC 2018, and Lee et al., "Stacked Cross Attention", ECCV 2018.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import chain, groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from xmodal_jax.data.records import Item
from xmodal_jax.data.sources import common, copies
from xmodal_jax.data.sources.common import PictureFolder, Plan, Report, Splits
from xmodal_jax.data.sources.features import Array, Features, load_counts, values_at
from xmodal_jax.data.sources.splits import order_splits, say_splits, split_name
from xmodal_jax.data.sources.stores import open_features
from xmodal_jax.data.sources.text import read_lines
from xmodal_jax.errors import DataError

OPTIONS = ("features", "images", "captions_per_image", "feature_dtype", "encoding", "restval_to_train", "on_nonfinite")


class SplitFiles(NamedTuple):
    """One split: its features, and which row and which captions are each image's."""

    name: str
    features: list[Features]
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
    names = order_splits(path.name.removesuffix("_caps.txt") for path in folder.glob("*_caps.txt"))
    if not names:
        inner = next(folder.glob("*/*_caps.txt"), None)
        hint = f" {inner.parent} has some: give that folder." if inner else ""
        raise DataError(f"{folder}: no *_caps.txt, so this is no precomp folder.{hint}")
    split_of = _split_names(folder, names, args.restval_to_train)
    arrays = [part for value in args.features or ["ims"] for part in value.split(",") if part]
    for kind in arrays:
        for path in sorted(folder.glob(f"*_{kind}.npy")):
            split = path.name.removesuffix(f"_{kind}.npy")
            if split not in names:
                raise DataError(f"{path} has no {split}_caps.txt beside it; add its captions or move it away.")
    endings = ["caps.txt", "ids.txt", "boxes.npy", "num_boxes.npy", *(f"{kind}.npy" for kind in arrays)]
    files = [folder / f"{name}_{ending}" for name in names for ending in endings]
    source = common.describe_source(args, (path for path in files if path.is_file()), OPTIONS)

    def read(report: Report) -> Splits:
        say_splits(split_of, report)
        splits = [_open_split(folder, name, arrays, args, report) for name in names]
        for ending in ("boxes", "num_boxes"):
            there = {name for name in names if (folder / f"{name}_{ending}.npy").is_file()}
            if there and len(there) < len(names):
                lacking = next(name for name in names if name not in there)
                raise DataError(f"{folder}: {lacking}_{ending}.npy is missing, but other splits have theirs.")
        ids = [[[id_]] for split in splits for id_ in split.ids]
        pictures = PictureFolder(args.images, ids, report) if args.images else None
        for split in splits:
            report.read["images"] += len(split.ids)
            report.read["captions"] += len(split.captions)
        options = args.captions_per_image, args.on_nonfinite, pictures, report
        merged: dict[str, list[SplitFiles]] = {name: [] for name in order_splits(split_of.values())}
        for split in splits:
            merged[split_of[split.name]].append(split)
        items = {
            name: chain.from_iterable(_items(split, *options) for split in group) for name, group in merged.items()
        }
        return dict(items), {name: sum(len(split.ids) for split in group) for name, group in merged.items()}

    return Plan(args.name or folder.resolve().name, source, read)


def _split_names(folder: Path, names: list[str], restval_to_train: bool) -> dict[str, str]:
    """The split of each name that files begin with; DataError where two mean one split, but for restval."""
    split_of = {name: split_name(name, restval_to_train) for name in names}
    first: dict[str, str] = {}
    for name, split in split_of.items():
        if split_name(name) != "restval" and first.setdefault(split, name) != name:
            raise DataError(
                f'{folder}: "{first[split]}" and "{name}" both mean the split "{split}"; move the files of one away.'
            )
    return split_of


def _open_split(folder: Path, name: str, kinds: list[str], args: argparse.Namespace, report: Report) -> SplitFiles:
    features: list[Features] = []
    for kind in kinds:
        path = folder / f"{name}_{kind}.npy"
        if not path.is_file():
            there = sorted(other.stem.removeprefix(f"{name}_") for other in folder.glob(f"{name}_*.npy"))
            raise DataError(f"{path}: no such file; --features can be one or more of: {', '.join(there) or 'none'}.")
        features.append(_with_regions(folder, name, open_features(path, args.feature_dtype, report), report))
    if len({source.kind for source in features}) < len(features):
        raise DataError(f"{folder}: {', '.join(kinds)} hold the same kind of features; give one [N, R, F], one [N, F].")
    counts = {source.path.name: len(source.array) for source in features}
    if len(set(counts.values())) > 1:
        raise DataError(f"{folder}: {', '.join(f'{key} has {count:,} rows' for key, count in counts.items())}.")
    captions = read_lines(folder / f"{name}_caps.txt", args.encoding)
    if not captions:
        raise DataError(f"{folder / name}_caps.txt: no caption in it.")
    ids_path = folder / f"{name}_ids.txt"
    ids = [line.strip() for line in read_lines(ids_path, args.encoding)] if ids_path.is_file() else None
    rows, spans = _match(f"{folder / name}", features[0].array, len(captions), ids, args.captions_per_image, report)
    return SplitFiles(
        name,
        features,
        captions,
        _image_ids(ids_path, ids, name, rows, spans, len(captions)),
        ids is not None and len(ids) == len(captions) and len(set(ids)) < len(ids),
        rows,
        spans,
    )


def _with_regions(folder: Path, name: str, features: Features, report: Report) -> Features:
    """The features with what stands beside them of their regions."""
    if features.kind != "region":
        return features
    images, regions = features.array.shape[:2]
    path = folder / f"{name}_boxes.npy"
    if path.is_file():
        boxes = open_features(path, None, report).array
        if boxes.shape != (images, regions, 4):
            raise DataError(f"{path}: wanted {[images, regions, 4]} like the regions, found {list(boxes.shape)}.")
        features = features._replace(boxes=boxes, boxes_path=path)
    path = folder / f"{name}_num_boxes.npy"
    return features._replace(counts=load_counts(path, images, regions)) if path.is_file() else features


def _match(
    where: str, array: Array, captions: int, ids: list[str] | None, per_image: int | None, report: Report
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
        for source in split.features:
            apart = max(apart, copies.check_copies(source.array, rows, f'{source.path}, image "{id_}"', advice))
        values = values_at(split.features, rows[0], policy, report, id_)
        if values is None:
            continue
        lines = range(span.start + 1, span.stop + 1)
        captions = common.keep_captions(
            split.captions[span.start : span.stop], report, id_, f"{split.name}_caps.txt", lines
        )
        picture, size = pictures.find([[id_]], report, id_) if pictures else (None, (0, 0))
        yield Item(id_, captions, values.features, values.boxes, size, picture)
    if apart:
        report.say(f"{split.name}: copies of one image differ by {apart:.0e} of their size at most; the first is kept")
