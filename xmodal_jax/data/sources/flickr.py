"""Flickr's captions: `Flickr8k.token.txt`, `results_20130124.token` (`picture.jpg#0`, tab, caption), `results.csv`.

In all of them a caption is whatever stands to the end of the line: quotes and separators in it are text. Splits are
lists of picture names beside the captions, such as `Flickr_8k.trainImages.txt`.
Source of the formats: Hodosh et al., "Framing image description", JAIR 2013; Young et al., TACL 2014.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from xmodal_jax.data.sources import common, entries
from xmodal_jax.data.sources.common import Plan, Report
from xmodal_jax.data.sources.entries import Entry
from xmodal_jax.data.sources.matching import Index
from xmodal_jax.data.sources.splits import ORDER, split_name
from xmodal_jax.data.sources.text import read_lines
from xmodal_jax.errors import DataError

TOKEN = re.compile(r"(?P<image>[^\t]+)#\d+\t(?P<caption>.*)")
RESULTS = re.compile(r"(?P<image>[^|]+)\|\s*\d+\s*\|?(?P<caption>.*)")  # one line of results.csv lacks its second bar
HEADER = re.compile(r"image(_name)?\s*\|\s*comment_number\s*\|\s*comment\s*")
LIST = re.compile(r"(?:.*[._-])?([a-z]+)[._-]?images?", re.IGNORECASE)


def plan(args: argparse.Namespace) -> Plan:
    """Import the file ``args.source``; splits come from the lists beside it, from --split, or from --dev and --test."""
    path = common.existing(args.source, "captions")
    entries.check_shares(args)
    lists = {} if args.split or args.dev or args.test else find_lists(path)

    def read(report: Report) -> list[Entry]:
        return with_lists(read_entries(path, args), lists, args, report)

    name = path.name.partition(".")[0].lower()
    return entries.plan(args, read, [path, *lists.values()], name, ("split", "dev", "test"))


def read_entries(path: Path, args: argparse.Namespace) -> list[Entry]:
    """The images in the order of their first captions; DataError names the first line that is none."""
    found: dict[str, Entry] = {}
    pattern = None
    for number, line in enumerate(read_lines(path, args.encoding), 1):
        if not line.strip() or (number == 1 and HEADER.fullmatch(line)):
            continue
        pattern = pattern or (TOKEN if TOKEN.fullmatch(line) else RESULTS)
        parts = pattern.fullmatch(line)
        if parts is None:
            raise DataError(f'{path}, line {number}: no "picture.jpg#0", tab, caption, nor "picture.jpg| 0| caption".')
        image = parts["image"].strip()
        split = args.split or entries.draw_split(image, args.dev, args.test)
        entry = found.setdefault(image, Entry(image, split, [], {"filename": image}, []))
        assert entry.lines is not None
        entry.captions.append(parts["caption"].strip())
        entry.lines.append(number)
    if not found:
        raise DataError(f"{path}: no caption in it.")
    return list(found.values())


def find_lists(path: Path) -> dict[str, Path]:
    """The lists of picture names beside the captions, by the split that their names say; DataError where two do."""
    lists: dict[str, Path] = {}
    for other in sorted(path.parent.glob("*.txt")):
        word = LIST.fullmatch(other.stem) or re.fullmatch("(.*)", other.stem)
        split = split_name(word[1]) if word else ""
        if other == path or split not in ORDER:
            continue
        if split in lists:
            raise DataError(f"{other} and {lists[split].name} both look like the list of {split}; move one away.")
        lists[split] = other
    return {split: lists[split] for split in ORDER if split in lists}


def with_lists(found: list[Entry], lists: dict[str, Path], args: argparse.Namespace, report: Report) -> list[Entry]:
    """The entries under the splits whose lists have them; those in none are left out, which is reported."""
    if not lists:
        return found
    split_of: dict[int, str] = {}
    for split, path in lists.items():
        names = [line.strip() for line in read_lines(path, args.encoding) if line.strip()]
        places, _ = Index(names, str(path)).match([[entry.files] for entry in found])
        missing = len(set(names)) - sum(place is not None for place in places)
        if missing:
            report.counts[f"name in {path.name} without a caption"] = missing
        for number, place in enumerate(places):
            if place is not None and split_of.setdefault(number, split) != split:
                raise DataError(
                    f'{path}: image "{found[number].id}" is in {lists[split_of[number]].name} too; an image is in one '
                    "split."
                )
    report.say(f"splits by {', '.join(path.name for path in lists.values())}")
    for number, entry in enumerate(found):
        if number not in split_of:
            report.add("image in no list of a split", image=entry.id)
    if not split_of:
        raise DataError(f"{next(iter(lists.values()))}: none of its names has a caption in {args.source}.")
    return [entry._replace(split=split_of[number]) for number, entry in enumerate(found) if number in split_of]
