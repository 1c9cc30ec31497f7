"""Images with their captions, as the importers of captions list them, and what belongs to them: features, pictures."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
    """One image of a file of captions."""

    id: str
    split: str
    captions: list[str]
    keys: dict[str, str]  # its names: path, filename, cocoid, imgid
    lines: list[int] | None = None  # of its captions, where the file is one of lines
    size: tuple[int, int] = (0, 0)  # height, width

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


def load_json(path: Path, encoding: str | None) -> Any:
    """What a JSON file holds; DataError where it is none."""
    try:
        return json.loads(read_text(path, encoding))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error}).") from None


def with_splits(entries: list[Entry], args: argparse.Namespace, report: Report) -> list[Entry]:
    """The entries under the names that splits have here."""
    names = {entry.split: split_name(entry.split, args.restval_to_train) for entry in entries}
    say_splits(names, report)
    return [entry._replace(split=names[entry.split]) for entry in entries]


def check_shares(args: argparse.Namespace) -> None:
    """UsageError where --dev and --test leave nothing to train, or are no shares."""
    if min(args.dev, args.test) < 0 or args.dev + args.test >= 1:
        raise UsageError(f"--dev {args.dev} and --test {args.test} must be parts of one, with something left to train.")


def draw_split(image: str, dev: float, test: float) -> str:
    """A split that depends on the image's name alone, so that new rows never move an old image."""
    draw = int.from_bytes(hashlib.sha256(image.encode()).digest()[:8], "big") / 2**64
    return "test" if draw < test else "dev" if draw < test + dev else "train"


def plan(
    args: argparse.Namespace,
    read_entries: Callable[[Report], list[Entry]],
    sources: Sequence[Path],
    name: str,
    options: Sequence[str] = (),
) -> Plan:
    """The import of what ``read_entries`` reads out of ``sources``, with what --features and --images say of each."""
    given = common.single(args.features, "--features FILE")
    if not given and not args.images:
        raise UsageError("Captions alone make no data set: give --features FILE.npy, --images DIR, or both.")
    files = [*sources, *common.given(given, args.ids)]
    described = common.describe_source(args, files, (*OPTIONS, *options))

    def read(report: Report) -> Splits:
        entries = with_splits(read_entries(report), args, report)
        stored = open_features(Path(given), args.feature_dtype, report) if given else None
        rows = _match_rows(stored, args, entries, sources[0].name, report)
        pictures = PictureFolder(args.images, [[entry.files] for entry in entries], report) if args.images else None
        report.read["images"] = len(entries)
        report.read["captions"] = sum(len(entry.captions) for entry in entries)
        splits = {split: [] for split in order_splits(entry.split for entry in entries)}
        for entry, row in zip(entries, rows, strict=True):
            splits[entry.split].append((entry, row))
        items = {
            split: _items(pairs, stored, sources[0].name, args.on_nonfinite, pictures, report)
            for split, pairs in splits.items()
        }
        return dict(items), {split: len(pairs) for split, pairs in splits.items()}

    return Plan(args.name or name, described, read)


def _match_rows(
    features: Features | None, args: argparse.Namespace, entries: list[Entry], order: str, report: Report
) -> list[int | None]:
    """The feature row of each image: by the names in the file, by the ids file, or in the order of the captions."""
    if features is None:
        return [None] * len(entries)
    path, array = features.path, features.array
    if features.names is not None:
        report.say(f"{path.name}: its images are named in it{', so --ids is not used' if args.ids else ''}")
        return match_names(list(features.names), entries, args.match, str(path), report)
    if not args.ids:
        report.say(f"{path.name}: its rows are taken in the order of {order} (--ids FILE names them)")
        return list(copies.rows_in_order(array, _caption_places(entries), str(path), order))
    rows = copies.read_ids(Path(args.ids), args.encoding, array, str(path))
    places = match_names(list(rows), entries, args.match, str(args.ids), report)
    numbers = list(rows.values())
    return [None if place is None else numbers[place] for place in places]


def _caption_places(entries: list[Entry]) -> list[tuple[str, list[int]]]:
    """Each image with the places of its captions among all: by their lines, which may be mixed, else in order."""
    lines = [line for entry in entries for line in entry.lines or ()]
    captions = sum(len(entry.captions) for entry in entries)
    if len(set(lines)) == captions:
        place = {line: number for number, line in enumerate(sorted(lines))}
        return [(entry.id, [place[line] for line in entry.lines or ()]) for entry in entries]
    numbers = iter(range(captions))
    return [(entry.id, [next(numbers) for _ in entry.captions]) for entry in entries]


def match_names(
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
    file: str,
    policy: str,
    pictures: PictureFolder | None,
    report: Report,
) -> Iterator[Item]:
    for entry, row in pairs:
        where = {"line": entry.lines[0]} if entry.lines else {}
        values = Values({}, None, (0, 0))
        if stored:
            if row is None:
                report.add("image without features", image=entry.id, **where)
                continue
            values = values_at([stored], row, policy, report, entry.id)
            if values is None:
                continue
        picture, size = pictures.find([entry.files], report, entry.id, **where) if pictures else (None, (0, 0))
        if not stored and picture is None:
            continue
        captions = common.keep_captions(entry.captions, report, entry.id, file, entry.lines)
        size = next((known for known in (size, values.size, entry.size) if any(known)), (0, 0))
        yield Item(entry.id, captions, values.features, values.boxes, size, picture)
