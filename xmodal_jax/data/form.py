"""What the manifest and the lines of a prepared data set have to be: a stranger seals whatever he likes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

DTYPES = ("float16", "float32", "bfloat16")
WIDEST, MOST = 1 << 24, 1 << 31  # numbers of a feature; anything that is counted, but for bytes


def count(value: Any, least: int = 0, most: int = MOST) -> bool:
    return type(value) is int and least <= value < most


def inside(name: str) -> bool:
    """Whether a name of a file stays within the folder."""
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and not re.search(r"[\\\x00]", name)


def whole_text(value: Any) -> bool:
    """Whether it is a string without half a character (a lone surrogate)."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _mapping(value: Any, name: Callable[[str], bool], entry: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(name(key) and isinstance(v, dict) and entry(v) for key, v in value.items())


def _feature(entry: Mapping[str, Any]) -> bool:
    shape = entry.get("shape")
    if entry.get("dtype") not in DTYPES or not isinstance(shape, list) or not 1 <= len(shape) <= 2:
        return False
    if len(shape) == 1:
        return count(shape[0], 0, WIDEST)
    ends = entry.get("regions")
    ordered = isinstance(ends, list) and len(ends) == 2 and all(map(count, ends)) and ends[0] <= ends[1]
    return ordered and count(shape[1], 0, WIDEST) and (shape[0] is None or count(shape[0]))


def _split(entry: Mapping[str, Any]) -> bool:
    return all(count(entry.get(key)) for key in ("images", "captions", "pictures"))


def _text_feature(entry: Mapping[str, Any]) -> bool:
    shape = entry.get("shape")
    return isinstance(shape, list) and len(shape) == 1 and count(shape[0], 0, WIDEST)


def _file(entry: Mapping[str, Any]) -> bool:
    return count(entry.get("bytes"), 0, 1 << 62) and isinstance(entry.get("sha256"), str)


def unfit(manifest: Mapping[str, Any]) -> str | None:
    """The first part of a manifest that is missing or of another form; None where all is well."""
    simple = re.compile(r"[^/\\\x00]+")
    checks: dict[str, Callable[[Any], bool]] = {
        "name": whole_text,
        "source": lambda value: isinstance(value, dict),
        "boxes": lambda value: isinstance(value, bool),
        "features": lambda value: _mapping(value, whole_text, _feature),
        "splits": lambda value: _mapping(value, lambda name: bool(re.fullmatch(r"[A-Za-z]\w*", name)), _split),
        "files": lambda value: _mapping(value, inside, _file),
        "text_features": lambda value: _mapping(value, lambda name: bool(simple.fullmatch(name)), _text_feature),
    }
    known = {"text_features": {}, **manifest}
    return next((part for part, fits in checks.items() if part not in known or not fits(known[part])), None)


def parse_line(text: bytes) -> dict[str, Any]:
    """One image's line: id, captions, size and picture. Raises a ValueError where it is anything else."""
    try:
        line = json.loads(text)
        sound = whole_text(line["id"]) and isinstance(line["captions"], list) and all(map(whole_text, line["captions"]))
        sound = sound and len(line["size"]) == 2 and all(map(count, line["size"]))
        picture = line["picture"]
        sound = sound and (picture is None or (whole_text(picture) and inside(picture)))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {str(error)[:100]}") from None
    if not sound:
        raise ValueError("id, captions, size or picture is of another kind")
    return line
