"""COCO's own `captions_*.json`: lists of images and of annotations, a file a split.

Source of the format: Chen et al., "Microsoft COCO Captions", 2015.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from xmodal_jax.data.sources import common, entries
from xmodal_jax.data.sources.common import Plan, Report
from xmodal_jax.data.sources.entries import Entry
from xmodal_jax.data.sources.splits import ORDER, split_name
from xmodal_jax.errors import DataError, UsageError


def plan(args: argparse.Namespace) -> Plan:
    """Import ``args.source``, a `captions_*.json` or a folder of them; splits come from the file names, or --split."""
    source = Path(args.source)
    paths = sorted(source.glob("captions_*.json")) if source.is_dir() else [common.existing(source, "captions")]
    if not paths:
        raise DataError(f"{source}: no captions_*.json in this folder.")

    def read(report: Report) -> list[Entry]:
        return [entry for path in paths for entry in read_entries(path, args, report)]

    return entries.plan(args, read, paths, source.stem.removeprefix("captions_"), ("split",))


def read_entries(path: Path, args: argparse.Namespace, report: Report) -> list[Entry]:
    """The images of one file that have captions, in its order; DataError names what is not as it should be."""
    content = entries.load_json(path, args.encoding)
    lists = [content.get(key) for key in ("images", "annotations")] if isinstance(content, dict) else [None]
    if not all(isinstance(value, list) for value in lists):
        raise DataError(f'{path}: no lists "images" and "annotations"; is this one of COCO\'s captions_*.json?')
    split = args.split or _split_of(path)
    found: dict[Any, Entry] = {}
    for index, image in enumerate(content["images"]):
        where = f"{path}: images[{index}]"
        if not isinstance(image, dict) or not isinstance(image.get("id"), int | str):
            raise DataError(f'{where} has no "id".')
        name = image.get("file_name")
        keys = {"cocoid": str(image["id"])} | ({"filename": name} if isinstance(name, str) and name else {})
        keys.setdefault("filename", keys["cocoid"])
        size = image.get("height"), image.get("width")
        if image["id"] in found:
            raise DataError(f"{where}: the id {image['id']} is there twice.")
        known = (size[0], size[1]) if isinstance(size[0], int) and isinstance(size[1], int) else (0, 0)
        found[image["id"]] = Entry(keys["cocoid"], split, [], keys, None, known)
    for index, annotation in enumerate(content["annotations"]):
        if not isinstance(annotation, dict) or not isinstance(annotation.get("caption"), str):
            raise DataError(f'{path}: annotations[{index}] has no text "caption"; is this a file of captions?')
        image = annotation.get("image_id")
        if not isinstance(image, int | str) or image not in found:
            raise DataError(f'{path}: annotations[{index}] is of image {image}, which "images" does not list.')
        found[image].captions.append(annotation["caption"])
    kept = [entry for entry in found.values() if entry.captions]
    if not kept:
        raise DataError(f"{path}: none of its images has a caption, as in COCO's test files.")
    report.counts["image without any caption"] += len(found) - len(kept)
    return kept


def _split_of(path: Path) -> str:
    """The word for a split in the file's name."""
    words = re.split(r"[_\-.]", path.stem)
    split = next((word for word in words if split_name(word) in ORDER), None)
    if split is None:
        raise UsageError(f"{path.name} does not say which split it is: give --split train, dev or test.")
    return split
