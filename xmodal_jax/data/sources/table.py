"""A CSV or TSV file with a header: one caption a row, columns image and caption, and split where there is one."""

from __future__ import annotations

import argparse
import csv
import difflib
import hashlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from xmodal_jax.data.records import Item
from xmodal_jax.data.sources import common, copies
from xmodal_jax.data.sources.common import PictureFolder, Plan, Report, Splits
from xmodal_jax.data.sources.features import Features, Values, values_at
from xmodal_jax.data.sources.matching import Index
from xmodal_jax.data.sources.splits import order_splits, say_splits, split_name
from xmodal_jax.data.sources.stores import open_features
from xmodal_jax.data.sources.text import read_text
from xmodal_jax.errors import DataError, UsageError

OPTIONS = (
    "features",
    "feature_dtype",
    "ids",
    "images",
    "image_col",
    "caption_col",
    "split_col",
    "delimiter",
    "quoting",
    "encoding",
    "dev",
    "test",
    "restval_to_train",
    "on_nonfinite",
)
DELIMITERS = {"comma": ",", "tab": "\t", "semicolon": ";", "pipe": "|"}
LIKELY = {  # what people call these columns, for the "did you mean"
    "image": ("image", "filename", "file", "path", "photo", "picture", "img", "image_name", "image_id", "id"),
    "caption": ("caption", "captions", "text", "sentence", "description", "title", "comment", "raw", "name"),
    "split": ("split", "set", "subset", "partition", "fold"),
}
LONGEST = 1 << 24  # characters a field; the csv module stops at 2**17 by itself


class Row(NamedTuple):
    """One image of the table with the captions of all its rows."""

    split: str
    captions: list[str]
    lines: list[int]


def plan(args: argparse.Namespace) -> Plan:
    """Import the table ``args.source``; ``args.features`` and ``args.images`` say what each image is."""
    path = common.existing(args.source, "the table")
    features = common.single(args.features, "--features FILE")
    if not features and not args.images:
        raise UsageError("Captions alone make no data set: give --features FILE.npy, --images DIR, or both.")
    if min(args.dev, args.test) < 0 or args.dev + args.test >= 1:
        raise UsageError(f"--dev {args.dev} and --test {args.test} must be parts of one, with something left to train.")
    files = [path, *common.given(features, args.ids)]
    source = common.describe_source(args, files, OPTIONS)

    def read(report: Report) -> Splits:
        images = read_table(path, args, report)
        stored = open_features(Path(features), args.feature_dtype, report) if features else None
        rows = _match_rows(stored, args, images, report)
        pictures = PictureFolder(args.images, [[[image]] for image in images], report) if args.images else None
        names = {row.split: split_name(row.split, args.restval_to_train) for row in images.values()}
        say_splits(names, report)
        splits = {name: [] for name in order_splits(names.values())}
        for image, row in images.items():
            splits[names[row.split]].append((image, row))
        items = {
            name: _items(pairs, rows, stored, path, args.on_nonfinite, pictures, report)
            for name, pairs in splits.items()
        }
        return dict(items), {name: len(pairs) for name, pairs in splits.items()}

    return Plan(args.name or path.stem, source, read)


def read_table(path: Path, args: argparse.Namespace, report: Report) -> dict[str, Row]:
    """The images of the table by their value in the image column, in order of first appearance."""
    text = read_text(path, args.encoding)
    separator = re.match(r"sep=(.)\r?\n", text)  # how Excel is told
    text = text[separator.end() :] if separator else text
    skipped = 1 if separator else 0
    header_line = re.split("[\r\n]", text, maxsplit=1)[0]
    wanted = {"image": args.image_col or "image", "caption": args.caption_col or "caption"}
    if args.split_col:
        wanted["split"] = args.split_col
    delimiter = _delimiter(header_line, args.delimiter or (separator and separator[1]))
    csv.field_size_limit(LONGEST)
    quoted = args.quoting != "none"
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        strict=quoted,
        skipinitialspace=True,
        quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
    )
    images: dict[str, Row] = {}
    line = 1
    try:
        header = [name.strip() for name in next(reader, [])]
        columns = {key: _column(path, header, name, key, delimiter) for key, name in wanted.items()}
        if "split" not in columns and "split" in header:
            columns["split"] = header.index("split")
        if "split" in columns and (args.dev or args.test):
            raise UsageError(f"{path} has a split column; --dev and --test are for tables without one.")
        line = reader.line_num + 1 + skipped
        for fields in reader:
            if fields:  # the csv module gives an empty list for a blank line
                _add_row(images, fields, header, columns, args, f"{path}, line {line}", line)
                report.read["rows"] += 1
            line = reader.line_num + 1 + skipped
    except csv.Error as error:
        raise DataError(
            f"{path}, line {line}: {error}; a quoted field ends with a quote, and one inside is doubled; if quotes are "
            "plain characters in this file, give --quoting none."
        ) from None
    if not images:
        raise DataError(f"{path}: a header but no rows.")
    images = _without_numbers(images, report)
    report.read["images"] = len(images)
    return images


def _without_numbers(images: dict[str, Row], report: Report) -> dict[str, Row]:
    """Flickr's ``picture.jpg#0``, ``picture.jpg#1`` ... are captions of one picture, if all images are called so."""
    if not all(re.search(r".#\d+$", image) for image in images):
        return images
    report.say('image names end in "#" and a number: taken as the captions of one picture, which is called without it')
    merged: dict[str, Row] = {}
    for image, row in images.items():
        name = image.rpartition("#")[0]
        first = merged.setdefault(name, Row(row.split, [], []))
        first.captions.extend(row.captions)
        first.lines.extend(row.lines)
    return merged


def _add_row(
    images: dict[str, Row],
    fields: list[str],
    header: list[str],
    columns: dict[str, int],
    args: argparse.Namespace,
    where: str,
    line: int,
) -> None:
    if len(fields) != len(header):
        raise DataError(
            f"{where}: {len(fields)} fields, but the header has {len(header)}; a field that holds the separator "
            "needs quotes around it."
        )
    image = fields[columns["image"]].strip()
    if not image:
        raise DataError(f"{where}: the image column is empty.")
    if "split" in columns:
        split = fields[columns["split"]].strip()
        if not split:
            raise DataError(f"{where}: the split column is empty.")
    else:
        split = draw_split(re.sub(r"(?<=.)#\d+$", "", image), args.dev, args.test)
    row = images.setdefault(image, Row(split, [], []))
    if split_name(row.split) != split_name(split):
        raise DataError(f'{where}: image "{image}" is in split "{split}" here and in "{row.split}" before.')
    row.captions.append(fields[columns["caption"]].strip())
    row.lines.append(line)


def _delimiter(header: str, given: str | None) -> str:
    if given:
        delimiter = DELIMITERS.get(given, "\t" if given == "\\t" else given)
        if len(delimiter) != 1:
            raise UsageError(f'--delimiter "{given}" is neither one character nor one of {", ".join(DELIMITERS)}.')
        return delimiter
    return max(DELIMITERS.values(), key=header.count)


def _column(path: Path, header: list[str], name: str, key: str, delimiter: str) -> int:
    if name in header:
        return header.index(name)
    lower = [column.lower() for column in header]
    near = difflib.get_close_matches(name.lower(), lower, n=1)
    guess = near[0] if near else next((word for word in LIKELY[key] if word in lower), None)
    hint = f" Did you mean --{key}-col {header[lower.index(guess)]}?" if guess else ""
    word = next((word for word, sign in DELIMITERS.items() if sign == delimiter), repr(delimiter))
    raise DataError(
        f'{path.name}: no column "{name}". It looks {word}-separated with columns: {", ".join(header)}.{hint}'
    )


def draw_split(image: str, dev: float, test: float) -> str:
    """A split that depends on the image's name alone, so that new rows never move an old image."""
    draw = int.from_bytes(hashlib.sha256(image.encode()).digest()[:8], "big") / 2**64
    return "test" if draw < test else "dev" if draw < test + dev else "train"


def _match_rows(
    features: Features | None, args: argparse.Namespace, images: dict[str, Row], report: Report
) -> dict[str, int]:
    """The feature row of each image: by the ids file, or in the order of the table."""
    if features is None:
        return {}
    path, array = features.path, features.array
    if features.names is None and not args.ids:
        report.say(f"{path.name}: its rows are taken in the order of the table (--ids FILE names them)")
        number = {line: row for row, line in enumerate(sorted(line for row in images.values() for line in row.lines))}
        captions = [(image, [number[line] for line in row.lines]) for image, row in images.items()]
        return dict(zip(images, copies.rows_in_order(array, captions, str(path), "the table"), strict=True))
    if features.names is None:
        where = str(args.ids)
        row_by_name = copies.read_ids(Path(where), args.encoding, array, str(path))
    else:
        where = str(path)
        row_by_name = {name: row for row, name in enumerate(features.names)}
        report.say(f"{path.name}: its images are named in it{', so --ids is not used' if args.ids else ''}")
    names, order = list(row_by_name), list(row_by_name.values())
    found, how = Index(names, where).match([[[image]] for image in images])
    rows = {image: order[place] for image, place in zip(images, found, strict=True) if place is not None}
    if not rows:
        raise DataError(f'{where}: its names ("{names[0]}" ...) fit no image; the first is "{next(iter(images))}".')
    report.say(how)
    if len(rows) < len(names):
        report.counts[f"name in {Path(where).name} that belongs to no image"] = len(names) - len(rows)
    return rows


def _items(
    pairs: list[tuple[str, Row]],
    rows: dict[str, int],
    stored: Features | None,
    path: Path,
    policy: str,
    pictures: PictureFolder | None,
    report: Report,
) -> Iterator[Item]:
    for image, row in pairs:
        values = Values({}, None, (0, 0))
        if stored:
            if image not in rows:
                report.add("image without features", image=image, line=row.lines[0])
                continue
            values = values_at([stored], rows[image], policy, report, image)
            if values is None:
                continue
        picture, size = None, (0, 0)
        if pictures:
            picture, size = pictures.find([[image]], report, image, line=row.lines[0])
        if not stored and picture is None:
            continue
        captions = common.keep_captions(row.captions, report, image, path.name, row.lines)
        yield Item(image, captions, values.features, values.boxes, size if picture else values.size, picture)
