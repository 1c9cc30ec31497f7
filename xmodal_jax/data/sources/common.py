"""What importers share: strict text and array reading, pictures by name, the policies for bad input, the report."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from xmodal_jax.data.pictures import SUFFIXES, examine
from xmodal_jax.data.records import Item
from xmodal_jax.data.sources.matching import Index, Names
from xmodal_jax.data.sources.text import looks_wrongly_decoded
from xmodal_jax.errors import DataError, UsageError, require

Splits = tuple[dict[str, Iterable[Item]], dict[str, int]]  # images of each split, and how many about


class Report:
    """What an importer read, and each thing it dropped or left out, with its place in the source."""

    def __init__(self) -> None:
        self.read: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.entries: list[dict[str, Any]] = []
        self.notes: list[str] = []  # decisions the importer took, for people to object to

    def say(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)

    def add(self, what: str, **where: Any) -> None:
        self.counts[what] += 1
        self.entries.append({"what": what, **where})


class Plan(NamedTuple):
    """An import before its work begins; ``read`` opens the source."""

    name: str
    source: dict[str, Any]  # what makes two imports the same one
    read: Callable[[Report], Splits]


def describe_source(args: argparse.Namespace, files: Iterable[Path], options: Sequence[str]) -> dict[str, Any]:
    """Kind, path, options and files (bytes, time of change) of an import: equal means there is nothing to do."""
    found = {path: _measure(path) for path in files}
    return {
        "importer": args.kind,
        "path": str(Path(args.source).resolve()),
        "options": {key: _text(getattr(args, key, None)) for key in options},
        "files": {path.name: list(measure) for path, measure in found.items()},
    }


def _measure(path: Path) -> tuple[int, int]:
    """Bytes and time of the last change of a file, or of all files of a folder together."""
    stats = [file.stat() for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path.stat()]
    return sum(stat.st_size for stat in stats), max((stat.st_mtime_ns for stat in stats), default=0)


def given(features: str | None, ids: str | Path | None) -> list[Path]:
    """The paths of options that are given; DataError where one is missing."""
    paths = [existing(ids, "ids")] if ids else []
    if features and not Path(features).exists():
        raise DataError(f"{features}: no such file or folder (--features).")
    return [Path(features), *paths] if features else paths


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def existing(path: str | Path, what: str) -> Path:
    """``path``, if there is such a file; DataError otherwise."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file ({what}).")
    return path


def single(values: Sequence[str] | None, option: str) -> str | None:
    """The one value of an option that may be repeated elsewhere."""
    if values and len(values) > 1:
        raise UsageError(f"This importer takes one {option}, not {len(values)}.")
    return values[0] if values else None


def keep_captions(
    captions: Sequence[str], report: Report, image: str, file: str, lines: Sequence[int] | None = None
) -> list[str]:
    """The captions that are not empty, the others reported with their line; DataError if none is left."""
    kept = []
    for index, caption in enumerate(captions):
        place = {"caption": index} if lines is None else {"line": lines[index]}
        if not caption.strip():
            report.add("empty caption", image=image, file=file, **place)
            continue
        kept.append(caption)
        if looks_wrongly_decoded(caption):
            report.add("caption that looks like text read in a wrong encoding", image=image, file=file, **place)
        elif caption.strip() in ("NaN", "nan"):
            report.add('caption that reads "NaN", as pandas writes what is missing', image=image, file=file, **place)
    if not kept:
        place = f", line {lines[0]}" if lines else ""
        raise DataError(f'{file}{place}: image "{image}" has no caption that is not empty.')
    return kept


# Pictures


class PictureFolder:
    """The pictures of ``images``, each given by its names, in a folder and the folders in it."""

    def __init__(self, folder: str | Path, images: Sequence[Names], report: Report):
        require("PIL", "train")
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise DataError(f"{folder}: no such folder (--images).")
        paths = [path for path in sorted(self.folder.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file()]
        if not paths:
            raise DataError(f"{folder}: no picture in this folder (--images).")
        index = Index([path.relative_to(self.folder).as_posix() for path in paths], str(folder))
        unique = {_key(names): names for names in images}  # an image may be in two splits, as in test and testall
        found, how = index.match(list(unique.values()))
        self.paths = {key: paths[place] for key, place in zip(unique, found, strict=True) if place is not None}
        if not self.paths:
            raise DataError(
                f"{self.folder}: none of its pictures belongs to an image; an image is called "
                f'"{images[0][0][-1]}", a picture "{paths[0].name}".'
            )
        report.say(how)

    def find(self, names: Names, report: Report, image: str, **where: Any) -> tuple[Path | None, tuple[int, int]]:
        """Picture and its (height, width) as shown, or (None, (0, 0)), which is reported."""
        path = self.paths.get(_key(names))
        if path is None:
            report.add("image without its picture", image=image, **where)
            return None, (0, 0)
        try:
            size, animated = examine(path)
        except DataError as error:
            report.add("picture that cannot be read", image=image, file=path.name, reason=str(error), **where)
            return None, (0, 0)
        if animated:
            report.add("animated picture, of which the first is read", image=image, file=path.name, **where)
        return path, size


def _key(names: Names) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(group) for group in names)
