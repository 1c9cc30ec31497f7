"""Karpathy's `dataset_*.json`: captions and splits.

Source of the format: Karpathy and Fei-Fei, "Deep visual-semantic alignments", CVPR 2015.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from xmodal_jax.data.sources import common, entries
from xmodal_jax.data.sources.common import Plan
from xmodal_jax.data.sources.entries import Entry
from xmodal_jax.errors import DataError


def plan(args: argparse.Namespace) -> Plan:
    """Import the file ``args.source``."""
    path = common.existing(args.source, "Karpathy's JSON")
    return entries.plan(args, lambda _: read_entries(path, args), [path], path.stem.removeprefix("dataset_"))


def read_entries(path: Path, args: argparse.Namespace) -> list[Entry]:
    """The images of a `dataset_*.json` in its order; DataError names the first that is not as it should be."""
    content = entries.load_json(path, args.encoding)
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list) or not images:
        raise DataError(f'{path}: no list "images"; is this one of the dataset_*.json files?')
    return [_read_entry(image, f"{path}: images[{index}]") for index, image in enumerate(images)]


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
