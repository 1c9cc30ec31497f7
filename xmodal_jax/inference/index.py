"""`xmodal index`: embed the images and captions of a data set once, as a gallery (:mod:`xmodal_jax.inference.gallery`).

The work happens in ``<out>.partial`` and is taken up there after any interruption: arrays have their full size from
the start, and a small state file says how many blocks of them are done. Where the system speaks of images, what it says
of each is kept too: a sentence needs features, which a gallery does not hold.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xmodal_jax import digest
from xmodal_jax.data.pixels import Reading
from xmodal_jax.errors import CheckpointError, UsageError, XmodalError
from xmodal_jax.inference import gallery as galleries
from xmodal_jax.inference import layout
from xmodal_jax.inference.arrays import Arrays
from xmodal_jax.inference.bundle import GREEDY, Bundle, Embedding, load
from xmodal_jax.inference.functions import take
from xmodal_jax.progress import Progress
from xmodal_jax.training import lock
from xmodal_jax.training.lock import Lock

BLOCK = 256  # items embedded at a time; the state counts these
EVERY = 2.0  # seconds between saves of the state
PROBES = 64  # items a side that tell whether the score is an inner product
LINE = 80  # characters of a caption that is shown as an example
STATE, LOCK, SAID = "state.json", lock.FILE, "said.jsonl"

Read = tuple[dict[str, np.ndarray], np.ndarray, np.ndarray | None]


class Items(NamedTuple):
    """What is to be indexed: N images with their captions."""

    about: dict[str, Any]  # name, manifest, split, folder (of the pictures' paths)
    ids: Sequence[str]
    captions: Sequence[Sequence[str]]
    pictures: Sequence[str | None]
    sizes: Sequence[Sequence[int]]
    read: Callable[[int], Iterator[Read]]  # from this block on, BLOCK images each: features, mask [B, R], boxes
    regions: int = 1  # the most that an image has


def items_of(data: Path, split: str, features: Sequence[str], reading: Reading | None = None) -> Items:
    """A split of a prepared data set; ``reading`` is how a bundle reads its pictures, where it does.

    Raises:
        DataError: no data set, no such split, or damage.
        UsageError: the data has not all of ``features``.
    """
    from xmodal_jax.data.pipeline import FeatureReader
    from xmodal_jax.data.records import open_dataset

    dataset = open_dataset(data)
    records = dataset.split(split)
    known = dataset.features
    most = max((known[name]["regions"][1] for name in features if "regions" in known.get(name, {})), default=1)
    boxes = bool(dataset.manifest.get("boxes")) and any("regions" in known.get(name, {}) for name in features)
    reader = FeatureReader(records, features, boxes=boxes, reading=reading)

    def read(start: int) -> Iterator[Read]:
        blocks = -(-reader.count // BLOCK)

        def rows(step: int) -> np.ndarray:
            return np.arange(step * BLOCK, min((step + 1) * BLOCK, reader.count))

        for arrays in reader.stream(start, blocks, rows):
            yield {name: arrays[name] for name in features}, arrays["mask"], arrays.get("boxes")

    folder = dataset.directory.resolve()
    about = {"name": dataset.manifest["name"], "manifest": dataset.identity, "split": split}
    pictures = [None if path is None else path.relative_to(dataset.directory).as_posix() for path in records.pictures]
    about["folder"] = str(folder)
    return Items(about, records.ids, records.captions, pictures, records.sizes.tolist(), read, most)


def decoding_of(bundle: Bundle) -> dict[str, Any] | None:
    """How the sentences that are kept of images are made, None where the system does not speak of images."""
    speaks = "begin_image" in bundle.manifest["functions"]
    return {"method": GREEDY.method, "longest": GREEDY.longest} if speaks else None


class State:
    """What is done in ``folder``, block by block, and for which job."""

    def __init__(self, folder: Path, job: dict[str, Any]):
        self.path, self.job = folder / STATE, job
        self.done: dict[str, int] = dict.fromkeys(galleries.SIDES, 0)
        self.saved = time.monotonic()
        if self.path.is_file():
            try:
                known = json.loads(self.path.read_text(encoding="utf-8"))
                other = [key for key in job if known["job"].get(key) != job[key]]
                self.done = {side: int(known["done"][side]) for side in galleries.SIDES}
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise CheckpointError(f"{self.path} is damaged ({error}); remove {folder} and start anew.") from None
            if other:
                raise CheckpointError(
                    f"{folder} was begun with another {', '.join(other)}; give the same again, or remove it."
                )

    def save(self, arrays: Arrays, blocks: int, *, now: bool = False) -> None:
        """Note that ``blocks`` are done, once what they hold is on disk; seldom, unless ``now``."""
        if not now and time.monotonic() - self.saved < EVERY:
            return
        arrays.flush()
        self.done[arrays.side] = blocks
        unfinished = self.path.with_name(f"{STATE}.tmp")
        with unfinished.open("w", encoding="utf-8") as file:
            json.dump({"job": self.job, "done": self.done}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, self.path)
        self.saved = time.monotonic()


class Builder:
    """The work in one folder: images first, then texts, then the manifest."""

    def __init__(self, folder: Path, bundle: Bundle, items: Items, coarse: Bundle | None, dtype: str, job: dict):
        self.folder, self.bundle, self.items, self.coarse, self.dtype = folder, bundle, items, coarse, dtype
        self.decoding = job["decoding"]
        self.captions = [text for captions in items.captions for text in captions]
        self.owner = np.repeat(np.arange(len(items.ids)), [len(captions) for captions in items.captions])
        # The longest first: they tell the width of the arrays, and blocks of equal lengths compute little padding.
        lengths = [bundle.length(text) for text in self.captions]
        self.order = np.argsort(-np.array(lengths, np.int64), kind="stable")
        most = max(bundle.lengths)
        full = (text for text, length in zip(self.captions, lengths, strict=True) if length == most)
        self.cut = sum(bundle.cut(text) > 0 for text in full)
        self.state = State(folder, job)
        self.dot, self.leaves = self._probe()

    def _source(self, read: Read, bundle: Bundle) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        regional = any(len(shape) == 2 for shape in bundle.features.values())
        return {name: read[0][name] for name in bundle.features}, read[1] if regional else None

    def _images(self, read: Read, bundle: Bundle, start: int = 0) -> Embedding:
        return bundle.embed_images(*self._source(read, bundle), names=self.items.ids[start:])

    def _probe(self) -> tuple[tuple[float, float] | None, dict[str, list[str]]]:
        """Whether scores are inner products, and the names of the arrays; refuses what cannot be pooled, early."""
        images = self._images(next(iter(self.items.read(0))), self.bundle)
        texts = self.bundle.embed_texts(self.captions[:PROBES] or ["a"])
        pair = zip(galleries.SIDES, (images, texts), strict=True)
        leaves = {side: list(galleries.parts_of(embedding)) for side, embedding in pair}
        dot = galleries.dot_of(self.bundle, take(images, slice(PROBES)), texts)
        if self.coarse is not None:
            if dot:
                raise UsageError(
                    f"The scores of {self.bundle.path} are inner products already and need no coarse vectors; leave "
                    "out --coarse."
                )
            pair = self._images(next(iter(self.items.read(0))), self.coarse), self.coarse.embed_texts(["a"])
            if any(isinstance(embedding, Mapping) for embedding in pair):
                raise UsageError(
                    f"{self.coarse.path} has more than one vector an item; --coarse takes a bundle of one."
                )
        elif not dot:
            widths = [galleries.pooled(embedding).shape[1] for embedding in (images, texts)]
            if widths[0] != widths[1]:
                raise UsageError(f"Pooled vectors have {widths} numbers; give a second bundle with --coarse.")
        for side, names in leaves.items():
            files = {galleries.file_of(side, name) for name in (*names, galleries.COARSE, galleries.BOXES)}
            if len(files) < len(names) + 2:
                raise CheckpointError(f"The arrays {', '.join(names)} of {self.bundle.path} share a file name.")
        return dot, leaves

    def _parts(self, embedding: Embedding, other: Callable[[Bundle], Embedding]) -> dict[str, np.ndarray]:
        parts = galleries.parts_of(embedding)
        if self.dot is None:
            parts[galleries.COARSE] = galleries.pooled(other(self.coarse) if self.coarse else embedding)
        return parts

    def images(self, progress: Progress) -> None:
        count, done = len(self.items.ids), self.state.done["images"]
        arrays = Arrays(self.folder, "images", count, self.dtype, fresh=not done)
        blocks = -(-count // BLOCK)
        said = self.folder / SAID
        if self.decoding:
            layout.cut_lines(said, min(done * BLOCK, count))  # more were written just before a kill
        for block, read in zip(range(done, blocks), self.items.read(done), strict=True):
            rows = np.arange(block * BLOCK, min((block + 1) * BLOCK, count))
            parts = self._parts(
                self._images(read, self.bundle, block * BLOCK),
                lambda other, read=read, start=block * BLOCK: self._images(read, other, start),
            )
            arrays.put(rows, parts, lambda row: f'image "{self.items.ids[row]}"')
            if read[2] is not None:
                self._boxes(arrays, rows, read[2])
            if self.decoding:
                layout.add_lines(said, self.bundle.caption(*self._source(read, self.bundle)))
            self.state.save(arrays, block + 1, now=block + 1 == blocks)
            progress.advance(len(rows))

    def _boxes(self, arrays: Arrays, rows: np.ndarray, boxes: np.ndarray) -> None:
        name = galleries.BOXES
        if name not in arrays.arrays:  # in float32 whatever the type of the rest
            arrays.arrays[name] = arrays.open(name, np.dtype(np.float32), (arrays.count, *boxes.shape[1:]))
        arrays.arrays[name][rows] = boxes

    def texts(self, progress: Progress) -> None:
        done, blocks = self.state.done["texts"], -(-len(self.captions) // BLOCK)
        arrays = Arrays(self.folder, "texts", len(self.captions), self.dtype, fresh=not done)
        for block in range(done, blocks):
            rows = self.order[block * BLOCK : (block + 1) * BLOCK]
            sentences = [self.captions[row] for row in rows]
            parts = self._parts(
                self.bundle.embed_texts(sentences), lambda other, sentences=sentences: other.embed_texts(sentences)
            )
            arrays.put(rows, parts, lambda row: f"caption {row}")
            self.state.save(arrays, block + 1, now=block + 1 == blocks)
            progress.advance(len(rows))
        if not blocks:
            for name, value in self._parts(self.bundle.embed_texts(["a"]), lambda b: b.embed_texts(["a"])).items():
                kind = np.dtype(self.dtype) if value.dtype.kind == "f" else value.dtype
                np.save(self.folder / galleries.file_of("texts", name), np.zeros((0, *value.shape[1:]), kind))

    def finish(self) -> dict[str, Any]:
        """Lines, copies of the bundles and the manifest; returns it."""
        first = np.concatenate([[0], np.cumsum([len(captions) for captions in self.items.captions])]).astype(int)
        said = (self.folder / SAID).read_text(encoding="utf-8").splitlines() if self.decoding else None
        with (self.folder / "images.jsonl").open("w", encoding="utf-8") as file:
            for row, id_ in enumerate(self.items.ids):
                line = {"id": id_, "captions": list(range(first[row], first[row + 1]))}
                line |= {"picture": self.items.pictures[row], "size": list(self.items.sizes[row])}
                line |= {"said": json.loads(said[row])} if said else {}
                file.write(json.dumps(line) + "\n")
        with (self.folder / "texts.jsonl").open("w", encoding="utf-8") as file:
            for text, owner in zip(self.captions, self.owner.tolist(), strict=True):
                file.write(json.dumps({"caption": text, "image": owner}) + "\n")
        copies = {galleries.BUNDLE: self.bundle, galleries.COARSE_BUNDLE: self.coarse}
        for name, bundle in copies.items():
            shutil.rmtree(self.folder / name, ignore_errors=True)  # half of one, where the last run was killed here
            if bundle is not None:
                shutil.copytree(bundle.path, self.folder / name)
        for name in (STATE, LOCK, SAID):
            (self.folder / name).unlink(missing_ok=True)
        return layout.seal(self.folder, self.manifest())

    def manifest(self) -> dict[str, Any]:
        return {
            "format": galleries.FORMAT,
            "version": galleries.VERSION,
            "bundle": self.bundle.fingerprint,
            "coarse_bundle": self.coarse.fingerprint if self.coarse else None,
            "system": self.bundle.system,
            "data": self.items.about,
            "counts": {"images": len(self.items.ids), "texts": len(self.captions)},
            "dtype": self.dtype,
            "leaves": self.leaves,
            "dot": self.dot,
            "decoding": self.decoding,
        }


def _lock(folder: Path) -> Lock:
    """Keep other processes out of ``folder`` while this one lives."""
    return Lock(folder / LOCK, CheckpointError)


def build(
    out: Path, bundle: Bundle, items: Items, *, coarse: Bundle | None = None, dtype: str = "float16"
) -> dict[str, Any]:
    """Index ``items`` as the gallery ``out``, or go on where an earlier call stopped; returns the manifest.

    Args:
        coarse: a bundle of one vector an item that makes the coarse vectors of a system without such.
        dtype: stored type of all numbers, "float16" or "float32".

    Raises:
        CheckpointError: ``out`` holds something else, or was begun with another bundle, data set or option, or its disk
            is full (what is done then is kept).
        NumericError: an embedding that is not finite.
        UsageError: no coarse vectors can be had.
    """
    if not len(items.ids):
        raise UsageError(f'Split "{items.about["split"]}" has no images to index.')
    for user in (bundle, coarse):
        if user is not None:
            user.check_regions(items.regions)
    job = {
        "bundle": bundle.fingerprint,
        "coarse": coarse.fingerprint if coarse else None,
        "data": items.about,
        "dtype": dtype,
        "block": BLOCK,
        "decoding": decoding_of(bundle),
    }
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        known = layout.read_manifest(out, galleries.FORMAT, galleries.VERSION, "choose another --out")
        of_it = {"bundle": known["bundle"], "coarse": known["coarse_bundle"]}
        of_it |= {key: known.get(key) for key in ("data", "dtype", "decoding")}
        other = [key for key, value in of_it.items() if value != job[key]]
        if other:
            raise CheckpointError(f"{out} was made with another {', '.join(other)}; choose another --out or remove it.")
        print(f"{out}: already indexed, nothing to do.", file=sys.stderr)
        return known
    partial = out.with_name(out.name + ".partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{out} cannot be made ({error.strerror}); choose another --out.") from None
    with digest.writing(out), _lock(partial):
        try:
            work = Builder(partial, bundle, items, coarse, dtype, job)
        except XmodalError:  # nothing has been claimed that a later try, without this mistake, could not have
            if not (partial / STATE).exists():
                shutil.rmtree(partial)
            raise
        if work.cut:
            most = max(bundle.lengths)
            print(f"{out}: {work.cut:,} captions are longer than {most} tokens and are cut.", file=sys.stderr)
        done = sum(
            min(work.state.done[side] * BLOCK, count)
            for side, count in zip(galleries.SIDES, (len(items.ids), len(work.captions)), strict=True)
        )
        total = len(items.ids) + len(work.captions)
        if done:
            print(f"{out}: going on, {done:,} of {total:,} items are done.", file=sys.stderr)
        with Progress("index", total, unit="items", start=done) as progress:
            work.images(progress)
            work.texts(progress)
        manifest = work.finish()
        if out.exists():
            out.rmdir()
        partial.rename(out)
    return manifest


def main(args: argparse.Namespace) -> int:
    """`xmodal index`: a data set's split as a gallery."""
    bundle = load(args.bundle)
    coarse = load(args.coarse) if args.coarse else None
    names = list(dict.fromkeys([*bundle.features, *(coarse.features if coarse else ())]))
    readings = {used.reading for used in (bundle, coarse) if used is not None} - {None}
    if len(readings) > 1:
        raise UsageError(
            f"{args.bundle} and {args.coarse} read other pixels of a picture; --coarse takes one that reads the same."
        )
    items = items_of(args.data, args.split, names, next(iter(readings), None))
    manifest = build(args.out, bundle, items, coarse=coarse, dtype=args.dtype)
    size = sum(entry["bytes"] for entry in manifest["files"].values())
    counts = manifest["counts"]
    how = "inner products" if manifest["dot"] else "coarse search, then the full score"
    held = f"{counts['images']:,} images and {counts['texts']:,} captions, {size / 1e6:.1f} MB"
    print(f"{args.out}: {held}, ranked by {how}")
    print(f"next: xmodal search {shlex.quote(str(args.out))} {example(items)}")
    return 0


def example(items: Items) -> str:
    """What one may search for: the first caption that fits a line, else the first image."""
    texts = (text for captions in items.captions for text in captions)
    caption = next((text for text in texts if text.isprintable() and 0 < len(text) <= LINE), None)
    return shlex.quote(caption) if caption else f"--image {shlex.quote(items.ids[0])}"
