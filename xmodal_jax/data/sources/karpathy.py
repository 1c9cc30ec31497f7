"""Karpathy's `dataset_*.json` (captions and splits), with a feature file and, or, a folder of pictures.

Source of the format: Karpathy and Fei-Fei, "Deep visual-semantic alignments", CVPR 2015.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xmodal_jax.data.records import Item
from xmodal_jax.data.sources import common, copies
from xmodal_jax.data.sources.common import PictureFolder, Plan, Report, Splits
from xmodal_jax.data.sources.features import Features, Values, values_at
from xmodal_jax.data.sources.matching import Index, Names
from xmodal_jax.data.sources.splits import order_splits, say_splits, split_name
from xmodal_jax.data.sources.stores import open_features
from xmodal_jax.data.sources.text import read_text
from xmodal_jax.errors import DataError, UsageError

OPTIONS = ("features", "feature_dtype", "ids", "images", "match", "encoding", "restval_to_train", "on_nonfinite")


class Entry(NamedTuple):
    """One image of the JSON file."""

    id: str  # the COCO id where there is one, else the file name
    split: str
    captions: list[str]
    keys: dict[str, str]  # its names: path, filename, cocoid, imgid

    @property
    def files(self) -> list[str]:
        """Its file names, the longest first."""
        return [self.keys[key] for key in ("path", "filename") if key in self.keys]

    def names(self, kind: str | None) -> Names:
        """Its names of one kind, as --match says: file names and COCO id where nothing is said.

        `imgid` must be asked for: it is a row number, and would fit any names that are numbers.
        """
        if kind == "filename":
            return [self.files]
        if kind:
            return [[self.keys[kind]]] if kind in self.keys else []
        return [self.files, [self.keys["cocoid"]]] if "cocoid" in self.keys else [self.files]


def read_entries(path: Path, args: argparse.Namespace, report: Report) -> list[Entry]:
    """The images of a `dataset_*.json` in its order; DataError names the first that is not as it should be."""
    try:
        content = json.loads(read_text(common.existing(path, "Karpathy's JSON"), args.encoding))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error}).") from None
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list) or not images:
        raise DataError(f'{path}: no list "images"; is this one of the dataset_*.json files?')
    entries = [_read_entry(image, f"{path}: images[{index}]") for index, image in enumerate(images)]
    names = {entry.split: split_name(entry.split, args.restval_to_train) for entry in entries}
    say_splits(names, report)
    return [entry._replace(split=names[entry.split]) for entry in entries]


def _read_entry(image: Any, where: str) -> Entry:
    if not isinstance(image, dict):
        raise DataError(f"{where} is not an object.")
    for key, kind in (("filename", str), ("split", str), ("sentences", list)):
        if not isinstance(image.get(key), kind) or not image[key]:
            raise DataError(f'{where} has no "{key}" (a {"list" if kind is list else "text"}).')
    captions: list[str] = []
    for sentence in image["sentences"]:
        if not isinstance(sentence, dict) or not isinstance(sentence.get("raw"), str):
            raise DataError(f'{where}: a sentence has no text "raw".')
        captions.append(sentence["raw"])
    filename: str = image["filename"]
    keys: dict[str, str] = {
        key: str(image[key]) for key in ("cocoid", "imgid") if isinstance(image.get(key), int | str)
    }
    keys["filename"] = filename
    if isinstance(image.get("filepath"), str):
        keys["path"] = f"{image['filepath']}/{filename}"
    return Entry(keys.get("cocoid", filename), image["split"], captions, keys)


def plan(args: argparse.Namespace) -> Plan:
    """Import the file ``args.source``; ``args.features`` and ``args.images`` say what each image is."""
    path = common.existing(args.source, "Karpathy's JSON")
    features = common.single(args.features, "--features FILE")
    if not features and not args.images:
        raise UsageError("Captions alone make no data set: give --features FILE.npy, --images DIR, or both.")
    files = [path, *common.given(features, args.ids)]
    source = common.describe_source(args, files, OPTIONS)

    def read(report: Report) -> Splits:
        entries = read_entries(path, args, report)
        stored = open_features(Path(features), args.feature_dtype, report) if features else None
        rows = _match_rows(stored, args, entries, report)
        pictures = PictureFolder(args.images, [[entry.files] for entry in entries], report) if args.images else None
        report.read["images"] = len(entries)
        report.read["captions"] = sum(len(entry.captions) for entry in entries)
        splits = {name: [] for name in order_splits(entry.split for entry in entries)}
        for entry, row in zip(entries, rows, strict=True):
            splits[entry.split].append((entry, row))
        items = {
            name: _items(pairs, stored, path, args.on_nonfinite, pictures, report) for name, pairs in splits.items()
        }
        return dict(items), {name: len(pairs) for name, pairs in splits.items()}

    return Plan(args.name or path.stem.removeprefix("dataset_"), source, read)


def _match_rows(
    features: Features | None, args: argparse.Namespace, entries: list[Entry], report: Report
) -> list[int | None]:
    """The feature row of each image: by the ids file, or in the order of the JSON file."""
    if features is None:
        return [None] * len(entries)
    path, array = features.path, features.array
    if features.names is not None:
        report.say(f"{path.name}: its images are named in it{', so --ids is not used' if args.ids else ''}")
        return match_entries(list(features.names), entries, args.match, str(path), report)
    if not args.ids:
        report.say(f"{path.name}: its rows are taken in the order of the JSON file (--ids FILE names them)")
        ends = np.cumsum([len(entry.captions) for entry in entries]).tolist()
        images = [(entry.id, range(end - len(entry.captions), end)) for entry, end in zip(entries, ends, strict=True)]
        return list(copies.rows_in_order(array, images, str(path), "the JSON file"))
    rows = copies.read_ids(Path(args.ids), args.encoding, array, str(path))
    places = match_entries(list(rows), entries, args.match, str(args.ids), report)
    order = list(rows.values())
    return [None if place is None else order[place] for place in places]


def match_entries(
    names: list[str], entries: list[Entry], kind: str | None, where: str, report: Report
) -> list[int | None]:
    """For each image the place of its name in ``names``; DataError if there is none of any."""
    index = Index(names, where)
    found, how = index.match([entry.names(kind) for entry in entries])
    if all(place is None for place in found):
        example = ", ".join(f"{key} {value}" for key, value in entries[0].keys.items())
        fits = [key for key in ("filename", "cocoid", "imgid") if key != kind and _fitting(index, entries, key)]
        hint = f" Its names fit {fits[0]}; if they mean that, give --match {fits[0]}." if fits else ""
        raise DataError(
            f'{where}: its names ("{names[0] if names else ""}" ...) fit no image; the first has {example}.{hint}'
        )
    report.say(how)
    unused = len(names) - sum(place is not None for place in found)
    if unused:
        report.counts[f"name in {Path(where).name} that belongs to no image"] = unused
    return found


def _fitting(index: Index, entries: list[Entry], kind: str) -> bool:
    return any(index.find(entry.names(kind)) for entry in entries)


def _items(
    pairs: list[tuple[Entry, int | None]],
    stored: Features | None,
    path: Path,
    policy: str,
    pictures: PictureFolder | None,
    report: Report,
) -> Iterator[Item]:
    for entry, row in pairs:
        values = Values({}, None, (0, 0))
        if stored:
            if row is None:
                report.add("image without features", image=entry.id)
                continue
            values = values_at([stored], row, policy, report, entry.id)
            if values is None:
                continue
        picture, size = pictures.find([entry.files], report, entry.id) if pictures else (None, (0, 0))
        if not stored and picture is None:
            continue
        captions = common.keep_captions(entry.captions, report, entry.id, path.name)
        yield Item(entry.id, captions, values.features, values.boxes, size if picture else values.size, picture)
