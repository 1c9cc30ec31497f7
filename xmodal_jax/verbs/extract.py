"""`xmodal extract`: the features that an image network makes of pictures, as a prepared data set."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from xmodal_jax.baselines.text_features import locked
from xmodal_jax.data import pictures, records, writer
from xmodal_jax.data.pixels import Transform
from xmodal_jax.data.records import Item
from xmodal_jax.errors import DataError, UsageError, require
from xmodal_jax.inference import extractor
from xmodal_jax.inference.extractor import Extractor, Recipe
from xmodal_jax.layers.backbones import backbone, weights
from xmodal_jax.progress import Progress

MODES = {"global": "global", "10crop": "global", "grid": "region"}
SPLIT = "all"  # of a folder of photographs
NAMED = 5  # pictures left out that are printed


class Entry(NamedTuple):
    """A picture to come, with what the data set says of it."""

    id: str
    captions: Sequence[str]
    path: Path | None
    size: tuple[int, int] | None = None  # height, width, where they are known


Splits = dict[str, list[Entry]]


# What is asked for


def recipe_of(args: argparse.Namespace) -> tuple[Recipe, Any]:
    """How features will be made, and the network's parameters; the recipe's hash is not known yet.

    Raises:
        UsageError: options that do not go together, or a network without weights.
        CheckpointError: a file of other weights.
    """
    network = backbone.find(args.backbone)
    modes = list(dict.fromkeys(args.mode.split(",")))
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown:
        raise UsageError(f'No --mode "{unknown[0]}"; there are {", ".join(MODES)}, and several with commas.')
    if "10crop" in modes and len(modes) > 1:
        raise UsageError("--mode 10crop is the mean over ten crops and goes with no other mode; extract them apart.")
    if "10crop" in modes and (args.mirror or args.fit == "squash"):
        raise UsageError("--mode 10crop has its own crops and mirror images; leave out --mirror and --fit.")
    side = args.side or network.side
    resize = args.resize or round(side * 256 / 224)
    if not 0 < side <= resize:
        raise UsageError(
            f"--side {side} must be positive and at most --resize {resize}, the short side before the crop."
        )
    views = "ten" if "10crop" in modes else "mirror" if args.mirror else "one"
    fit = args.fit or "centre"
    transform = Transform(fit, side, resize)
    source = args.weights or (weights.PACKAGE if network.package else None)
    if source is None:
        raise UsageError(
            f"{args.backbone} has no weights in a Python package; give --weights FILE with torchvision's, or --weights "
            "random for features that tell little."
        )
    if source == "random":
        variables, origin = extractor.random_variables(args.backbone), "random, seed 0"
    else:
        path = weights.package_file(args.backbone) if source == weights.PACKAGE else Path(source)
        variables, origin = weights.load(args.backbone, source), path.name
    features = tuple(MODES[mode] for mode in modes)
    return Recipe(args.backbone, "", origin, features, views, transform, args.dtype), variables


def open_source(source: Path) -> tuple[str, Splits, dict[str, Any]]:
    """Name, pictures by split, and what identifies the source: a prepared data set, or a folder of photographs.

    Raises:
        DataError: neither, or without pictures.
    """
    if (source / records.MANIFEST).is_file():
        dataset = records.open_dataset(source)
        splits = {name: dataset.split(name) for name in dataset.splits}
        found = {
            name: [
                Entry(id_, captions, path, (height, width))
                for id_, captions, path, (height, width) in zip(
                    split.ids, split.captions, split.pictures, split.sizes.tolist(), strict=True
                )
            ]
            for name, split in splits.items()
        }
        if not any(entry.path for entries in found.values() for entry in entries):
            raise DataError(f"{source} has no pictures; add them with: xmodal data attach {source} --images FOLDER")
        return dataset.manifest["name"], found, {"kind": "data set", "identity": dataset.identity}
    if not source.is_dir():
        raise DataError(f"{source} is neither a prepared data set nor a folder of photographs.")
    paths = sorted(p for p in source.rglob("*") if p.suffix.lower() in pictures.SUFFIXES and p.is_file())
    if not paths:
        raise DataError(f"{source} has no pictures ({', '.join(pictures.SUFFIXES)}).")
    entries = [Entry(path.relative_to(source).as_posix(), [], path) for path in paths]
    listed = [[entry.id, path.stat().st_size] for entry, path in zip(entries, paths, strict=True)]
    identity = hashlib.sha256(json.dumps(listed).encode()).hexdigest()
    return source.resolve().name, {SPLIT: entries}, {"kind": "folder", "identity": identity}


# The work, which goes on where it was stopped


def extract_split(extract: Extractor, name: str, entries: list[Entry], folder: Path, size: int, policy: str) -> None:
    """Append the features of a split to ``folder``, ``size`` pictures at a time, from where an earlier call stopped.

    Batches are always the same ones, padded to ``size``, so that what is written does not depend on interruptions. A
    byte a picture says whether it could be read: zeros stand for those that could not, which "skip" allows.
    """
    recipe = extract.recipe
    paths = {feature: folder / f"{name}.{feature}" for feature in recipe.features}
    width = {
        f: int(np.prod(recipe.shape(f))) * np.dtype(records.DTYPES[recipe.dtype]).itemsize for f in recipe.features
    }
    good = folder / f"{name}.good"
    done = min([_rows(good, 1), *(_rows(path, width[f]) for f, path in paths.items())])
    done -= done % size if done < len(entries) else 0
    with ExitStack() as stack:
        files = {
            feature: stack.enter_context(_appending(path, done * width[feature])) for feature, path in paths.items()
        }
        marks = stack.enter_context(_appending(good, done))
        pool = stack.enter_context(ThreadPoolExecutor(max(os.cpu_count() or 1, 2)))
        progress = stack.enter_context(Progress(f"extract {name}", len(entries), unit="pictures", start=done))
        starts = range(done, len(entries), size)
        ahead = {start: _read(pool, recipe, entries[start : start + size], policy) for start in starts[:1]}
        for start in starts:
            following = start + size
            if following < len(entries):
                ahead[following] = _read(pool, recipe, entries[following : following + size], policy)
            views = [future.result() for future in ahead.pop(start)]
            batch = np.zeros((size, extractor.VIEWS[recipe.views], *[recipe.transform.side] * 2, 3), np.uint8)
            for row, view in enumerate(views):
                if view is not None:
                    batch[row] = view
            read = np.array([view is not None for view in views])
            for feature, array in extract(batch).items():
                kept = array[: len(views)]
                kept[~read] = 0
                files[feature].write(np.ascontiguousarray(kept).tobytes())
            marks.write(read.astype(np.uint8).tobytes())
            for file in (*files.values(), marks):
                file.flush()
            progress.advance(len(views))


def _read(pool: ThreadPoolExecutor, recipe: Recipe, entries: list[Entry], policy: str) -> list[Any]:
    def read(entry: Entry) -> np.ndarray | None:
        try:
            if entry.path is None:
                raise DataError(f'image "{entry.id}" has no picture.')
            return recipe.read(entry.path, pictures.LARGE)
        except DataError as error:
            if policy == "skip":
                return None
            raise DataError(f"{error} Leave such pictures out with --policy skip.") from None

    return [pool.submit(read, entry) for entry in entries]


def _rows(path: Path, width: int) -> int:
    return path.stat().st_size // width if path.is_file() else 0


def _appending(path: Path, size: int) -> BinaryIO:
    file = path.open("r+b" if path.is_file() else "w+b")
    file.truncate(size)
    file.seek(0, os.SEEK_END)
    return file


def items(recipe: Recipe, name: str, entries: list[Entry], folder: Path, left: list[dict[str, Any]]) -> Iterator[Item]:
    """The images of a split with their features; those that could not be read go to ``left``."""
    good = np.fromfile(folder / f"{name}.good", np.uint8)
    dtype = records.DTYPES[recipe.dtype]
    arrays = {
        feature: np.memmap(folder / f"{name}.{feature}", dtype, "r", shape=(len(entries), *recipe.shape(feature)))
        for feature in recipe.features
    }
    boxes = recipe.boxes() if "region" in recipe.features else None
    for row, entry in enumerate(entries):
        if not good[row]:
            left.append({"split": name, "image": entry.id, "reason": "its picture is missing or cannot be read"})
            continue
        assert entry.path is not None
        size = entry.size or pictures.examine(entry.path).size
        values = {feature: np.array(array[row]) for feature, array in arrays.items()}
        yield Item(entry.id, entry.captions, values, boxes, size, entry.path)


def main(args: argparse.Namespace) -> int:
    """`xmodal extract`."""
    require("PIL", "image")
    if args.batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1, not {args.batch_size}.")
    recipe, variables = recipe_of(args)
    name, splits, identity = open_source(args.source)
    out = Path(args.out).resolve()
    folder = out.with_name(f".{out.name}.extract")
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / "lock"):
        recipe = recipe._replace(weights=extractor.save(variables, folder / records.BACKBONE))
        job = {"kind": "extract", "source": identity, "extractor": recipe.manifest(), "policy": args.policy}
        job["batch_size"] = args.batch_size
        if writer.prepared(out, job) is not None:
            print(f"{out}: already extracted from this source, nothing to do.")
            shutil.rmtree(folder)
            return 0
        begun = folder / "job.json"
        if begun.is_file() and json.loads(begun.read_text()) != job:
            raise DataError(
                f"{folder} was begun from another source or with other options; give the same again, or remove it."
            )
        begun.write_text(json.dumps(job))
        extract = Extractor(recipe, variables)
        for split, entries in splits.items():
            extract_split(extract, split, entries, folder, args.batch_size, args.policy)
        left: list[dict[str, Any]] = []
        writer.write(
            out,
            {split: items(recipe, split, entries, folder, left) for split, entries in splits.items()},
            name=args.name or name,
            source=job,
            totals={split: len(entries) for split, entries in splits.items()},
            report=left,
            extractor=recipe.manifest(),
            files={records.BACKBONE: folder / records.BACKBONE},
        )
    shutil.rmtree(folder)
    for entry in left[:NAMED]:
        print(f'left out: image "{entry["image"]}" of {entry["split"]}, {entry["reason"]}')
    if len(left) > NAMED:
        print(f"left out: {len(left) - NAMED:,} more, all in {out / records.REPORT}")
    shapes = ", ".join(f"{feature} {list(recipe.shape(feature))}" for feature in recipe.features)
    count = sum(map(len, splits.values())) - len(left)
    print(f"{out}: {shapes} of {recipe.network} ({recipe.origin}) for {count:,} pictures")
    return 0
