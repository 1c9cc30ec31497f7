"""JSON lines, an object a line, and JSON lists of such objects, as the `reid_raw.json` of person search by text.

An object has the image's file (`file_path`, `image`, `filename` ...), its captions (`captions`, `caption` ...), a text
or a list, and may have a split. Objects of one image are put together.
Source of `reid_raw.json`: Li et al., "Person search with natural language description", CVPR 2017.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xmodal_jax.data.sources import common, entries
from xmodal_jax.data.sources.common import Plan
from xmodal_jax.data.sources.entries import Entry
from xmodal_jax.data.sources.splits import split_name
from xmodal_jax.data.sources.text import read_lines, read_text
from xmodal_jax.errors import DataError

IMAGE = ("file_path", "img_path", "image_path", "filename", "file_name", "image", "img", "path", "file")
IMAGE += ("image_id", "id")
CAPTION = ("captions", "caption", "sentences", "sentence", "text", "description", "raw")
SPLIT = ("split", "set", "subset")


def plan(args: argparse.Namespace) -> Plan:
    """Import the file ``args.source``."""
    path = common.existing(args.source, "JSON")
    entries.check_shares(args)
    options = ("image_col", "caption_col", "split_col", "split", "dev", "test")
    return entries.plan(args, lambda _: read_entries(path, args), [path], path.stem, options)


def read_entries(path: Path, args: argparse.Namespace) -> list[Entry]:
    """The images in the order of their first objects; DataError names the first that is not as it should be."""
    found: dict[str, Entry] = {}
    for where, line, item in _objects(path, args.encoding):
        if not isinstance(item, dict):
            raise DataError(f"{where} is not an object.")
        image = item.get(_key(item, args.image_col, IMAGE, "image", where))
        captions = item.get(_key(item, args.caption_col, CAPTION, "caption", where))
        captions = [captions] if isinstance(captions, str) else captions
        if not isinstance(image, int | str) or not str(image).strip():
            raise DataError(f"{where}: the name of its image is no text.")
        if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions) or not captions:
            raise DataError(f"{where}: its captions are no text and no list of texts.")
        name = str(image).strip()
        key = args.split_col or next((key for key in SPLIT if key in item), None)
        split = args.split or (item.get(key) if key else entries.draw_split(name, args.dev, args.test))
        if not isinstance(split, str) or not split.strip():
            raise DataError(f'{where}: its split "{key}" is no text.')
        entry = found.setdefault(name, Entry(name, split.strip(), [], {"filename": name}, []))
        if split_name(entry.split) != split_name(split):
            raise DataError(f'{where}: image "{name}" is in split "{split}" here and in "{entry.split}" before.')
        assert entry.lines is not None
        entry.captions.extend(captions)
        entry.lines.extend([line] * len(captions))
    if not found:
        raise DataError(f"{path}: no object in it.")
    return list(found.values())


def _objects(path: Path, encoding: str | None) -> Iterator[tuple[str, int, Any]]:
    """Where each object is, its number, and itself: of a list, or of lines."""
    if read_text(path, encoding).lstrip()[:1] == "[":
        content = entries.load_json(path, encoding)
        yield from ((f"{path}: [{number}]", number + 1, item) for number, item in enumerate(content))
        return
    for number, line in enumerate(read_lines(path, encoding), 1):
        if line.strip():
            try:
                yield f"{path}, line {number}", number, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {number}: not valid JSON ({error}).") from None


def _key(item: dict[str, Any], given: str | None, usual: tuple[str, ...], what: str, where: str) -> str:
    key = given or next((key for key in usual if key in item), None)
    if key is None or key not in item:
        raise DataError(f"{where}: no {what} among {', '.join(item)}; give --{what}-col.")
    return key
