"""`xmodal data attach DIR --images FOLDER`: pictures for a prepared data set that was imported without them."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from xmodal_jax.data import records, writer
from xmodal_jax.data.sources.common import PictureFolder, Report
from xmodal_jax.digest import sha256
from xmodal_jax.errors import DataError
from xmodal_jax.progress import track


def attach(directory: Path, images: Path, report: Report) -> int:
    """Copy the pictures of ``images`` into the set, found by the ids of its images; returns how many there are.

    Features and captions stay as they are; sizes become those of the pictures. Files are put in place at the end, one
    after the other, so that an interruption leaves the set as it was, or names the file that does not fit.

    Raises:
      DataError: the set has pictures already, or none of ``images`` is of it.
    """
    dataset = records.open_dataset(directory)
    if (directory / "images").exists():
        raise DataError(f"{directory} has pictures already; import the data again with --images to have others.")
    splits = {name: dataset.split(name) for name in dataset.splits}
    folder = PictureFolder(images, [[[id_]] for split in splits.values() for id_ in split.ids], report)
    partial = directory / ".images.partial"
    shutil.rmtree(partial, ignore_errors=True)
    pictures = writer.Pictures(partial)
    manifest = dataset.manifest
    for name, split in splits.items():
        count = 0
        path = records.captions_path(directory, name)
        with path.with_name(f".{path.name}.partial").open("w", encoding="utf-8") as lines:
            for id_, captions, old in zip(split.ids, split.captions, split.sizes.tolist(), strict=True):
                found, size = folder.find([[id_]], report, id_)
                picture = None if found is None else pictures.add(found)
                count += picture is not None
                size = list(size) if picture else old
                line = {"id": id_, "captions": captions, "size": size, "picture": picture}
                lines.write(json.dumps(line, ensure_ascii=False) + "\n")
        manifest["splits"][name]["pictures"] = count
    captions = [records.captions_path(directory, name) for name in splits]
    moves = {partial: directory / "images", **{path.with_name(f".{path.name}.partial"): path for path in captions}}
    names = {source: target.name for source, target in moves.items() if source != partial}
    names |= {path: f"images/{path.name}" for path in sorted(partial.iterdir())}
    for path in track(names, "hash", len(names), unit="files"):
        manifest["files"][names[path]] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    writer.save_manifest(directory, manifest, moves)
    return sum(counts["pictures"] for counts in manifest["splits"].values())


def main(args: argparse.Namespace) -> int:
    """Attach, then say how many images have a picture now."""
    report = Report()
    count = attach(Path(args.directory), Path(args.images), report)
    print(f"{args.directory}: {count:,} images have a picture now")
    for line in [*report.notes, *(f"{number:,} x {what}" for what, number in report.counts.items() if number)]:
        print(f"  {line}")
    return 0
