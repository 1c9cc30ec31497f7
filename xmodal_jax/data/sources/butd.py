"""Bottom-up-attention TSV files: regions with boxes; captions come from Karpathy's JSON.

Source of the format: Anderson et al., "Bottom-up and top-down attention", CVPR 2018.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from xmodal_jax.data.records import Item
from xmodal_jax.data.sources import coco, common, karpathy
from xmodal_jax.data.sources.common import PictureFolder, Plan, Report, Splits
from xmodal_jax.data.sources.entries import Entry, match_names, with_splits
from xmodal_jax.data.sources.recognise import recognise
from xmodal_jax.data.sources.splits import order_splits
from xmodal_jax.data.sources.tsv import Broken, Place, RowReader
from xmodal_jax.errors import DataError, UsageError

OPTIONS = ("captions", "dtype", "feature_dtype", "images", "match", "encoding", "max_broken", "restval_to_train")


def plan(args: argparse.Namespace) -> Plan:
    """Import ``args.source``, a TSV file or a folder of them, with the captions of ``args.captions``."""
    if not args.captions:
        raise UsageError("The TSV holds no captions: give --captions, Karpathy's dataset_*.json or captions_*.json.")
    if args.dtype not in ("float16", "float32"):
        raise UsageError(f'--dtype is float16 or float32, not "{args.dtype}".')
    source = Path(args.source)
    paths = sorted(path for path in source.glob("*.tsv*") if path.is_file()) if source.is_dir() else [source]
    if not paths:
        raise DataError(f"{source}: no *.tsv in this folder.")
    paths = [common.existing(path, "the TSV of regions") for path in paths]
    json_path = common.existing(args.captions, "Karpathy's JSON")
    described = common.describe_source(args, [*paths, json_path], OPTIONS)

    def read(report: Report) -> Splits:
        entries = with_splits(_read_entries(json_path, args, report), args, report)
        pictures = PictureFolder(args.images, [[entry.files] for entry in entries], report) if args.images else None
        reader = RowReader(args.dtype, args.feature_dtype, args.max_broken, report)
        places = reader.index(paths)
        names = list(places)
        places_of = match_names(names, entries, args.match, str(source), report)
        splits: dict[str, list[tuple[Entry, list[Place]]]] = {}
        for name in order_splits(entry.split for entry in entries):
            splits[name] = []
        for entry, number in zip(entries, places_of, strict=True):
            if number is None:
                report.add("image without a row in the TSV", image=entry.id, split=entry.split)
            else:
                splits[entry.split].append((entry, places[names[number]]))
        splits = {name: pairs for name, pairs in splits.items() if pairs}
        items = {name: _items(pairs, reader, json_path, pictures, report) for name, pairs in splits.items()}
        return dict(items), {name: len(pairs) for name, pairs in splits.items()}

    return Plan(args.name or json_path.stem.removeprefix("dataset_"), described, read)


def _read_entries(path: Path, args: argparse.Namespace, report: Report) -> list[Entry]:
    """The images of Karpathy's JSON, or of COCO's own."""
    return coco.read_entries(path, args, report) if recognise(path) == "coco" else karpathy.read_entries(path, args)


def _items(
    pairs: list[tuple[Entry, list[Place]]],
    reader: RowReader,
    json_path: Path,
    pictures: PictureFolder | None,
    report: Report,
) -> Iterator[Item]:
    for entry, places in pairs:
        found = None
        for place in places:  # a repeated image may have one good row
            try:
                found = reader.read(place)
                break
            except Broken as error:
                reader.refuse(place, f"image {entry.id}: {error}")
        if found is None:
            continue
        features, boxes, size = found
        picture, shown = pictures.find([entry.files], report, entry.id) if pictures else (None, (0, 0))
        if picture is not None and shown == size[::-1] != size:
            report.add("picture that is shown turned, as its boxes' picture was not", image=entry.id, file=picture.name)
        captions = common.keep_captions(entry.captions, report, entry.id, json_path.name)
        yield Item(entry.id, captions, {"region": features}, boxes, size, picture)
