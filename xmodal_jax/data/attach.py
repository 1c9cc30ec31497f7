"""`xmodal data attach DIR --images FOLDER | --feature NAME=FILE`: pictures or a further feature for a prepared set."""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from xmodal_jax.data import additions, records, writer
from xmodal_jax.data.records import Dataset
from xmodal_jax.data.sources import copies
from xmodal_jax.data.sources.common import PictureFolder, Report
from xmodal_jax.data.sources.features import Array, row_of
from xmodal_jax.data.sources.matching import Index
from xmodal_jax.data.sources.stores import open_features
from xmodal_jax.digest import sha256
from xmodal_jax.errors import DataError, UsageError
from xmodal_jax.progress import track

SPLIT = "{split}"  # in a path: a file a split


def attach(directory: Path, images: Path, report: Report) -> int:
    """Copy the pictures of ``images`` into the set, found by the ids of its images; returns how many there are.

    Features and captions stay as they are; sizes become those of the pictures. Files are put in place at the end, one
    after the other, so that an interruption leaves the set as it was, or names the file that does not fit.

    Raises:
      DataError: the set has pictures already, or none of ``images`` is of it.
    """
    dataset = records.open_dataset(directory)
    if (directory / "images").exists():
        raise DataError(f"{directory} has pictures already; import the data again with --images to have others.")
    splits = {name: dataset.split(name) for name in dataset.splits}
    folder = PictureFolder(images, [[[id_]] for split in splits.values() for id_ in split.ids], report)
    partial = directory / ".images.partial"
    shutil.rmtree(partial, ignore_errors=True)
    pictures = writer.Pictures(partial)
    manifest = dataset.manifest
    for name, split in splits.items():
        count = 0
        path = records.captions_path(directory, name)
        with path.with_name(f".{path.name}.partial").open("w", encoding="utf-8") as lines:
            for id_, captions, old in zip(split.ids, split.captions, split.sizes.tolist(), strict=True):
                found, size = folder.find([[id_]], report, id_)
                picture = None if found is None else pictures.add(found)
                count += picture is not None
                size = list(size) if picture else old
                line = {"id": id_, "captions": captions, "size": size, "picture": picture}
                lines.write(json.dumps(line, ensure_ascii=False) + "\n")
        manifest["splits"][name]["pictures"] = count
    captions = [records.captions_path(directory, name) for name in splits]
    moves = {partial: directory / "images", **{path.with_name(f".{path.name}.partial"): path for path in captions}}
    names = {source: target.name for source, target in moves.items() if source != partial}
    names |= {path: f"images/{path.name}" for path in sorted(partial.iterdir())}
    for path in track(names, "hash", len(names), unit="files"):
        manifest["files"][names[path]] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    writer.save_manifest(directory, manifest, moves)
    return sum(counts["pictures"] for counts in manifest["splits"].values())


def check_feature_name(dataset: Dataset, name: str) -> None:
    """Raise a UsageError for what cannot name an added feature, a DataError where the set has such a feature."""
    if not re.fullmatch(r"[A-Za-z]\w{0,63}", name, re.ASCII) or name == "pixels":
        raise UsageError(
            f'"{name}" cannot name a feature; use letters, digits and _, a letter first, and not "pixels".'
        )
    if name in dataset.features:
        raise DataError(f'{dataset.directory} has a feature "{name}" already; choose another name.')


def check_concepts(values: np.ndarray, where: str) -> None:
    """Raise a DataError where scores of concepts [N, K] are no probabilities."""
    if values.size and (values.min() < 0 or values.max() > 1):
        raise DataError(
            f"{where}: scores of concepts are probabilities, these go from {values.min():.4g} to {values.max():.4g}; "
            'apply a sigmoid to logits, or attach them under a name that does not begin with "concept".'
        )


def attach_feature(directory: Path, name: str, file: str, ids: Path | None, report: Report) -> int:
    """Add the vectors of ``file`` to the set as the image feature ``name``; returns how many numbers an image has.

    ``file`` names its rows itself, or by ``ids``, and names are compared with the ids of the images as at import; or it
    has ``{split}`` in it, and the file of each split has a row an image in their order. The feature lies beside the
    records, which stay as they are, and so does the identity of the set. A name that begins with "concept" says that
    the values are probabilities.

    Raises:
      DataError: a file that cannot be read, has other rows or no vector of an image, or has values that are not finite;
        the set has such a feature.
      UsageError: the name cannot name a feature, or rows are named by nothing.
    """
    dataset = records.open_dataset(directory)
    check_feature_name(dataset, name)
    read = _by_split if SPLIT in file else _by_name
    if ids and SPLIT in file:
        raise UsageError(
            f"--ids names the rows of one file; {file} is one a split, with a row an image in their order."
        )
    arrays = read(dataset, file, ids, report)
    for split, array in arrays.items():
        where = f'{file.replace(SPLIT, split)}, split "{split}"'
        bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
        if bad.size:
            image = dataset.split(split).ids[bad[0]]
            raise DataError(
                f'{where}: {len(bad):,} images have values that are not finite, "{image}" first; repair it.'
            )
        if name.lower().startswith("concept"):
            check_concepts(array, where)
    widths = {array.shape[1] for array in arrays.values()}
    if len(widths) > 1 or len({array.dtype for array in arrays.values()}) > 1:
        raise DataError(f"{file}: the files of the splits differ in width or type: {_shapes(arrays)}.")
    additions.add_image_features(directory, name, {"kind": "attached", "file": Path(file).name}, arrays)
    return widths.pop()


def _shapes(arrays: dict[str, np.ndarray]) -> str:
    return ", ".join(f"{split} {list(array.shape)} {array.dtype}" for split, array in arrays.items())


def _vectors(path: Path, report: Report) -> tuple[Array, Any]:
    """The array [N, F] of a file and the names of its rows, where it has any."""
    stored = open_features(path, None, report)
    if stored.array.ndim != 2:
        raise DataError(f"{path}: a further feature is one vector an image; wanted [images, F], found regions.")
    return stored.array, stored.names


def _rows(array: Array, rows: Any) -> np.ndarray:
    values = np.stack([row_of(array, int(row)) for row in rows])
    return values if values.dtype in (np.float16, np.float32) else values.astype(np.float32)  # NumPy saves no bfloat16


def _by_split(dataset: Dataset, file: str, ids: Path | None, report: Report) -> dict[str, np.ndarray]:
    arrays = {}
    for name in dataset.splits:
        path, images = Path(file.replace(SPLIT, name)), len(dataset.split(name))
        array, _ = _vectors(path, report)
        if len(array) != images:
            raise DataError(
                f'{path} has {len(array):,} rows, split "{name}" of {dataset.directory} has {images:,} images; give a '
                "row an image."
            )
        arrays[name] = _rows(array, range(images))
    return arrays


def _by_name(dataset: Dataset, file: str, ids: Path | None, report: Report) -> dict[str, np.ndarray]:
    array, names = _vectors(Path(file), report)
    rows = {name: row for row, name in enumerate(names)} if names is not None else {}
    if names is None:
        if not ids:
            raise UsageError(
                f"{file} does not say whose its rows are: give --ids FILE, a name a row, or a file a split with "
                f"{SPLIT} in its path."
            )
        rows = copies.read_ids(ids, None, array, file)
    elif ids:
        report.say(f"{file}: its images are named in it, so --ids is not used")
    images = list(dict.fromkeys(id_ for name in dataset.splits for id_ in dataset.split(name).ids))
    found, how = Index(list(rows), str(ids or file)).match([[[id_]] for id_ in images])
    report.say(how)
    missing = [id_ for id_, place in zip(images, found, strict=True) if place is None]
    if missing:
        raise DataError(
            f'{ids or file}: {len(missing):,} images of {dataset.directory} are not in it, "{missing[0]}" first; every '
            "image needs its vector."
        )
    numbers = list(rows.values())
    row = {id_: numbers[place] for id_, place in zip(images, found, strict=True) if place is not None}
    return {name: _rows(array, [row[id_] for id_ in dataset.split(name).ids]) for name in dataset.splits}


def main(args: argparse.Namespace) -> int:
    """Attach, then say how many images have a picture now, or what the new feature is."""
    report, directory = Report(), Path(args.directory)
    if bool(args.images) == bool(args.feature):
        raise UsageError("give --images FOLDER or --feature NAME=FILE, one of the two.")
    if args.ids and not args.feature:
        raise UsageError("--ids names the rows of --feature; give both.")
    if args.images:
        count = attach(directory, Path(args.images), report)
        print(f"{directory}: {count:,} images have a picture now")
    else:
        name, equals, file = args.feature.partition("=")
        if not equals or not file:
            raise UsageError(f'--feature "{args.feature}" must be NAME=FILE.')
        width = attach_feature(directory, name, file, args.ids, report)
        print(f'{directory}: every image has a feature "{name}" of {width:,} numbers now')
    for line in [*report.notes, *(f"{number:,} x {what}" for what, number in report.counts.items() if number)]:
        print(f"  {line}")
    return 0
