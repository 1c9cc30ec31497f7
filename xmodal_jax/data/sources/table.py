"""A CSV or TSV file with a header: one caption a row, columns image and caption, and split where there is one."""

from __future__ import annotations

import argparse
import csv
import difflib
import io
import re
from pathlib import Path
from typing import NamedTuple

from xmodal_jax.data.sources import common, entries
from xmodal_jax.data.sources.common import Plan, Report
from xmodal_jax.data.sources.entries import Entry
from xmodal_jax.data.sources.splits import split_name
from xmodal_jax.data.sources.text import read_text
from xmodal_jax.errors import DataError, UsageError

OPTIONS = ("image_col", "caption_col", "split_col", "delimiter", "quoting", "dev", "test")
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
    """Import the table ``args.source``."""
    path = common.existing(args.source, "the table")
    entries.check_shares(args)

    def read(report: Report) -> list[Entry]:
        images = read_table(path, args, report)
        return [Entry(name, row.split, row.captions, {"filename": name}, row.lines) for name, row in images.items()]

    return entries.plan(args, read, [path], path.stem, OPTIONS)


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
        split = entries.draw_split(re.sub(r"(?<=.)#\d+$", "", image), args.dev, args.test)
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
