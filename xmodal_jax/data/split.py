"""`xmodal data split DIR --by KEY --dev 0.1 --test 0.1 --out DIR`: other splits of a prepared set, without leaks.

Images that belong together stay together: those with one value of KEY, and those that have the same features or the
same picture, which `xmodal data check` calls leaks.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

from xmodal_jax.data import records, writer
from xmodal_jax.data.records import Dataset, Item
from xmodal_jax.data.sources.entries import check_shares, draw_split
from xmodal_jax.data.sources.matching import Index
from xmodal_jax.data.sources.splits import ORDER
from xmodal_jax.data.sources.text import read_text
from xmodal_jax.digest import sha256
from xmodal_jax.errors import DataError, UsageError
from xmodal_jax.progress import Progress


class Groups:
    """Images that belong together, by union-find; a group is called by the least of its values."""

    def __init__(self) -> None:
        self.parent: dict[str, str] = {}

    def find(self, value: str) -> str:
        root = value
        while self.parent.setdefault(root, root) != root:
            root = self.parent[root]
        while self.parent[value] != root:
            self.parent[value], value = root, self.parent[value]
        return root

    def join(self, first: str, second: str) -> None:
        low, high = sorted((self.find(first), self.find(second)))
        self.parent[high] = low


def key_values(ids: list[str], key: str, table: Path | None, encoding: str | None) -> dict[str, str]:
    """The value of KEY of each image: the column of that name in ``table``, whose first column names the images."""
    if table is None:
        if key != "id":
            raise UsageError(f'--by {key} needs --table FILE with the columns image and "{key}"; without one, --by id.')
        return {id_: id_ for id_ in ids}
    text = read_text(table, encoding)
    header = text.partition("\n")[0]
    rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=max(",\t;|", key=header.count)))
    columns = [name.strip() for name in rows[0]] if rows else []
    if key not in columns:
        raise DataError(f'{table}: no column "{key}", only {", ".join(columns)}.')
    place = columns.index(key)
    image = columns.index("image") if "image" in columns else 0
    rows = [row for row in rows[1:] if len(row) > max(place, image)]
    found, _ = Index([row[image] for row in rows], str(table)).match([[[id_]] for id_ in ids])
    missing = [id_ for id_, row in zip(ids, found, strict=True) if row is None or not rows[row][place].strip()]
    if missing:
        raise DataError(f'{table}: {len(missing):,} images have no "{key}" in it, the first is "{missing[0]}".')
    return {id_: rows[row][place].strip() for id_, row in zip(ids, found, strict=True) if row is not None}


def draw(dataset: Dataset, values: dict[str, str], dev: float, test: float) -> dict[str, list[tuple[str, int]]]:
    """The places (split, row) of the images of each new split; a group is drawn by a hash of its name."""
    groups = Groups()
    seen: set[str] = set()
    places: list[tuple[str, str, int]] = []
    total = sum(len(dataset.split(name)) for name in dataset.splits)
    with Progress("compare", total, unit="images") as progress:
        for name in dataset.splits:
            split = dataset.split(name)
            for row, id_ in enumerate(split.ids):
                progress.advance()
                if id_ in seen:  # as in test and testall
                    continue
                seen.add(id_)
                places.append((id_, name, row))
                key = f"key {values[id_]}"
                groups.find(key)
                for same in _contents(stored(dataset, split.read([row])[0])):
                    groups.join(key, same)
    splits: dict[str, list[tuple[str, int]]] = {name: [] for name in ORDER}
    for id_, name, row in places:
        splits[draw_split(groups.find(f"key {values[id_]}"), dev, test)].append((name, row))
    return {name: found for name, found in splits.items() if found}


def stored(dataset: Dataset, item: Item) -> Item:
    """The image with the features of its record alone: what was added may be fitted to the former training split."""
    return item._replace(features={name: item.features[name] for name in dataset.manifest["features"]})


def _contents(item: Item) -> Iterator[str]:
    """What another image must not share with this one across splits."""
    digest = hashlib.sha256()
    for name in sorted(item.features):
        digest.update(item.features[name].tobytes())
    if any(value.any() for value in item.features.values()):
        yield f"~features {digest.hexdigest()}"
    if item.picture is not None:
        yield f"~picture {sha256(item.picture)}"


def main(args: argparse.Namespace) -> int:
    """Write the same images under other splits, then say how many each has."""
    check_shares(args)
    if not args.dev and not args.test:
        raise UsageError("give --dev, --test, or both: shares of the images, such as 0.1.")
    dataset = records.open_dataset(args.directory)
    ids = list(dict.fromkeys(id_ for name in dataset.splits for id_ in dataset.split(name).ids))
    values = key_values(ids, args.by, args.table, args.encoding)
    source = {
        "importer": "split",
        "of": dataset.identity,
        "by": args.by,
        "table": sha256(args.table) if args.table else None,
        "dev": args.dev,
        "test": args.test,
    }
    if writer.prepared(args.out, source) is not None:
        print(f"{args.out}: already prepared from this source, nothing to do.")
        return 0
    splits = draw(dataset, values, args.dev, args.test)

    def items(places: list[tuple[str, int]]) -> Iterator[Item]:
        return (stored(dataset, opened[name].read([row])[0]) for name, row in places)

    opened = {name: dataset.split(name) for name in dataset.splits}
    totals = {name: len(places) for name, places in splits.items()}
    contents = {name: items(places) for name, places in splits.items()}
    extractor = dataset.manifest.get("extractor")
    files = {records.BACKBONE: dataset.directory / records.BACKBONE} if extractor else {}
    kept = {"totals": totals, "extractor": extractor, "files": files}
    manifest = writer.write(args.out, contents, name=dataset.manifest["name"], source=source, **kept)
    print(f"{args.out}: {len(set(values.values())):,} values of {args.by} among {len(ids):,} images")
    for name, counts in manifest["splits"].items():
        print(f"  {name:<10}{counts['images']:>10,} images")
    left = [name for kind in ("image_features", "text_features") for name in dataset.manifest.get(kind, ())]
    if left:
        print(f"  features that were added later are not in it: {', '.join(left)}; add them again")
    return 0
