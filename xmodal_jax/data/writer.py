"""How a prepared data set is written: shards, pictures, TFDS metadata, manifest. The way in is `records.write`."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from xmodal_jax import digest
from xmodal_jax.data import records
from xmodal_jax.data.records import DTYPES, MANIFEST, REPORT, Item, finite, open_dataset
from xmodal_jax.errors import DataError, require
from xmodal_jax.progress import Progress

SHARD_BYTES = 1 << 30


class Schema:
    """What all records of a set share, taken from the first image: TFDS has one description for all splits."""

    def __init__(self, item: Item):
        self.first = item.id
        self.form = _form(item)
        self.regions: dict[str, tuple[int, int]] = {}  # fewest and most regions an image

    def check(self, item: Item, where: str) -> None:
        for index, caption in enumerate(item.captions):
            if not caption.strip():
                raise DataError(f"{where}: caption {index} is empty.")
        if _form(item) != self.form:
            raise DataError(
                f'{where} has {_describe(item)}, which is not what image "{self.first}" has; all must agree.'
            )
        for key, value in item.features.items():
            if value.ndim == 2 and not len(value):
                raise DataError(f'{where} has no regions of feature "{key}"; leave it out or give it one.')
            if value.dtype.name not in DTYPES or value.ndim not in (1, 2) or 0 in value.shape:
                raise DataError(f"{where} has {_describe(item)}; wanted [F] or [R, F] of {', '.join(DTYPES)}.")
            if not finite(value):
                raise DataError(f"{where}: {key} features are not finite.")
            if value.ndim == 2:
                low, high = self.regions.get(key, (len(value), len(value)))
                self.regions[key] = min(low, len(value)), max(high, len(value))
        if item.boxes is not None:
            _check_boxes(item, where)

    def tfds_features(self) -> Any:
        """The TFDS features; BYTES encoding, because the default one stores float16 as float32."""
        import tensorflow_datasets as tfds

        def tensor(shape: tuple[int | None, ...], dtype: Any) -> Any:
            return tfds.features.Tensor(shape=shape, dtype=dtype, encoding=tfds.features.Encoding.BYTES)

        features, boxes = self.form
        spec: dict[str, Any] = {
            "id": tfds.features.Text(),
            "captions": tfds.features.Sequence(tfds.features.Text()),
            "size": tfds.features.Tensor(shape=(2,), dtype=np.int32),
        }
        if features:
            spec["features"] = {
                key: tensor((None, width) if rank == 2 else (width,), DTYPES[dtype])
                for key, (dtype, rank, width) in features.items()
            }
        if boxes:
            spec["boxes"] = tensor((None, 4), np.float32)
        return tfds.features.FeaturesDict(spec)

    def describe(self) -> dict[str, Any]:
        """For the manifest: dtype and shape of each feature; R is null where it varies, "regions" has its range."""
        described: dict[str, Any] = {}
        for key, (dtype, rank, width) in self.form[0].items():
            described[key] = {"dtype": dtype, "shape": [width]}
            if rank == 2:
                low, high = self.regions[key]
                described[key] |= {"shape": [high if low == high else None, width], "regions": [low, high]}
        return described


def _form(item: Item) -> tuple[dict[str, tuple[str, int, int]], bool]:
    """What two images of one set have alike: dtype, rank and width of each feature, and whether there are boxes."""
    widths = {key: value.shape[-1] if value.ndim else 0 for key, value in item.features.items()}
    features = {key: (value.dtype.name, value.ndim, widths[key]) for key, value in item.features.items()}
    return features, item.boxes is not None


def _describe(item: Item) -> str:
    parts = [f"{key} {list(value.shape)} {value.dtype.name}" for key, value in item.features.items()]
    return ", ".join(parts + ["boxes"] * (item.boxes is not None)) or "no features"


def _check_boxes(item: Item, where: str) -> None:
    boxes = item.boxes
    assert boxes is not None
    regions = {len(value) for value in item.features.values() if value.ndim == 2} or {len(boxes)}
    if boxes.dtype != np.float32 or boxes.ndim != 2 or boxes.shape[1] != 4 or regions != {len(boxes)}:
        raise DataError(f"{where}: boxes are {list(boxes.shape)} {boxes.dtype} beside {_describe(item)}.")
    if not finite(boxes) or boxes.min() < 0 or boxes.max() > 1:
        raise DataError(f"{where}: boxes must be x1, y1, x2, y2 between 0 and 1.")


class Shards:
    """ArrayRecord files of one split; a new one is begun before the current one would pass SHARD_BYTES."""

    def __init__(self, directory: Path, stem: str):
        self.directory, self.stem, self.writer = directory, stem, None
        self.lengths: list[int] = []  # records a file
        self.bytes = self.total = 0

    def add(self, record: bytes) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter

        if self.writer is None or self.bytes + len(record) > SHARD_BYTES:
            self.close()
            path = self.directory / f"{self.stem}-{len(self.lengths):05d}"
            # One record a group makes random access cheap. Compression would save little on dense float features
            # and makes reading two to four times slower.
            self.writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
            self.lengths.append(0)
            self.bytes = 0
        self.writer.write(record)
        self.lengths[-1] += 1
        self.bytes += len(record)
        self.total += len(record)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def finish(self) -> None:
        """Close, and put the number of files, now known, into their names."""
        self.close()
        for index in range(len(self.lengths)):
            path = self.directory / f"{self.stem}-{index:05d}"
            path.rename(f"{path}-of-{len(self.lengths):05d}")


class Pictures:
    """Copies pictures into one folder: the same file once, different files of one name under different names."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.names: dict[Path, str] = {}
        self.used: set[str] = set()

    def add(self, path: Path) -> str:
        if path not in self.names:
            name, copy = path.name, 1
            while name.lower() in self.used:
                copy += 1
                name = f"{path.stem}-{copy}{path.suffix}"
            self.directory.mkdir(exist_ok=True)
            try:
                shutil.copyfile(path, self.directory / name)
            except OSError as error:
                raise DataError(f"{path}: the picture cannot be copied ({error.strerror}).") from None
            self.used.add(name.lower())
            self.names[path] = name
        return self.names[path]


class Writer:
    """Fills one empty folder, split after split, then closes it with metadata and manifest."""

    def __init__(self, directory: Path, name: str):
        require("array_record", "train")
        require("tensorflow_datasets", "train")
        self.directory, self.name = directory, name
        stem = re.sub(r"[^a-z0-9_]+", "_", name.lower()).strip("_")
        self.stem = stem if stem[:1].isalpha() else f"data_{stem}".strip("_")  # TFDS wants an identifier
        self.pictures = Pictures(directory / "images")
        self.schema: Schema | None = None
        self.splits: dict[str, Any] = {}
        self.infos: list[Any] = []

    def add_split(self, split: str, items: Iterable[Item], total: int) -> None:
        """Write one split; one without images leaves no trace."""
        from tensorflow_datasets.core.splits import SplitInfo

        if not re.fullmatch(r"[A-Za-z]\w*", split, re.ASCII):
            raise DataError(f'"{split}" cannot name a split; use letters, digits and _, a letter first.')
        shards = Shards(self.directory, f"{self.stem}-{split}.array_record")
        per_image: list[int] = []
        seen: set[str] = set()
        pictures = 0
        with (
            records.captions_path(self.directory, split).open("w", encoding="utf-8") as lines,
            Progress(f"write {split}", total, unit="images") as progress,
        ):
            for item in items:
                if item.id in seen or not item.id:
                    raise DataError(f'Split "{split}": image id "{item.id}" is empty or there twice.')
                seen.add(item.id)
                picture = self.add(item, split, shards, lines)
                per_image.append(len(item.captions))
                pictures += picture
                progress.advance()
        shards.finish()
        if not per_image:
            records.captions_path(self.directory, split).unlink()
            return
        self.infos.append(SplitInfo(name=split, shard_lengths=shards.lengths, num_bytes=shards.total))
        self.splits[split] = {
            "images": len(per_image),
            "captions": sum(per_image),
            "captions_per_image": [min(per_image), max(per_image)],
            "pictures": pictures,
        }

    def add(self, item: Item, split: str, shards: Shards, lines: Any) -> bool:
        """Write one image; returns whether it has a picture."""
        where = f'Image "{item.id}" of split "{split}"'
        if self.schema is None:
            self.schema = Schema(item)
            self.serialize = None
        self.schema.check(item, where)
        if split == "train" and not item.captions:
            raise DataError(f"{where} has no caption.")
        # Only now: the schema of an image that fails its own check would fail inside TFDS, less readably.
        self.serialize = self.serialize or self.schema.tfds_features().serialize_example
        picture = None if item.picture is None else self.pictures.add(item.picture)
        common = {"id": item.id, "captions": list(item.captions)}
        line = json.dumps(common | {"size": list(item.size), "picture": picture}, ensure_ascii=False)
        record: dict[str, Any] = common | {"size": np.asarray(item.size, np.int32)}
        if item.features:
            record["features"] = {key: np.asarray(value) for key, value in item.features.items()}
        if item.boxes is not None:
            record["boxes"] = item.boxes
        try:
            lines.write(line + "\n")
            shards.add(self.serialize(record))
        except UnicodeEncodeError:
            raise DataError(f"{where}: a caption or the id is not valid Unicode.") from None
        return picture is not None

    def close(
        self,
        source: Mapping[str, Any],
        extras: Mapping[str, Sequence[Mapping[str, Any]]],
        extractor: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Write TFDS metadata, ``extras`` (JSONL files by name) and, last, the manifest, which is returned."""
        from tensorflow_datasets import folder_dataset

        if self.schema is None:
            raise DataError("There is no image to write: the source is empty, or all of it was dropped.")
        folder_dataset.write_metadata(
            data_dir=self.directory,
            features=self.schema.tfds_features(),
            split_infos=self.infos,
            version="1.0.0",
            filename_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            check_data=False,  # that check reads through tf.data, which TFDS does not offer for array_record
            disable_shuffling=True,
            description=f"{self.name}: images with their captions, prepared by xmodal_jax.",
        )
        for file, entries in extras.items():
            if entries:
                lines = [json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries]
                (self.directory / file).write_text("".join(lines), encoding="utf-8")
        manifest = {
            "format": "xmodal_jax data set",
            "version": records.VERSION,
            "name": self.name,
            "source": source,
            "features": self.schema.describe(),
            "boxes": self.schema.form[1],
            **({"extractor": extractor} if extractor else {}),
            "splits": self.splits,
            "files": records.hash_files(self.directory),
        }
        save_manifest(self.directory, manifest)
        return manifest


def save_manifest(directory: Path, manifest: dict[str, Any], moves: Mapping[Path, Path] = MappingProxyType({})) -> None:
    """Sign the manifest and write it, after ``moves`` of finished files to the names that it has for them.

    A reader never sees half of it, and where the disk is full nothing has been moved: renames need no room.
    """
    manifest["sha256"] = records.digest(manifest)
    unfinished = directory / f".{records.MANIFEST}.partial"
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        digest.remove(unfinished)
        raise
    for source, target in moves.items():
        os.replace(source, target)
    os.replace(unfinished, directory / records.MANIFEST)


def write(
    directory: str | Path,
    splits: Mapping[str, Iterable[Item]],
    *,
    name: str,
    source: Mapping[str, Any],
    totals: Mapping[str, int] | None = None,
    report: Sequence[Mapping[str, Any]] = (),
    extras: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    extractor: Mapping[str, Any] | None = None,
    files: Mapping[str, Path] | None = None,
) -> dict[str, Any]:
    """Write a prepared data set and return its manifest; one image is held in memory at a time.

    A split without images is left out. ``source`` says where the data came from; ``totals`` (images a split) only
    feeds the progress line; ``report`` is read after the last image and becomes ``import_report.jsonl``, and so do
    ``extras``, further JSONL files by name. ``extractor`` tells how the features were made of the pictures, ``files``
    are copied into the set. A finished ``directory`` of the same ``source`` is left as it is. The work happens in
    ``<directory>.partial``, renamed when complete.

    Raises:
      DataError: an image breaks the contract of :class:`Item`, or ``directory`` holds something else, or its disk is
        full.
    """
    directory = Path(directory).resolve()
    finished = prepared(directory, source)
    if finished is not None:
        print(f"{directory}: already prepared from this source, nothing to do.", file=sys.stderr)
        return finished
    partial = directory.with_name(directory.name + ".partial")
    try:
        partial.mkdir(parents=True)
    except FileExistsError:
        raise DataError(
            f"{partial} exists: another import is at work there, or one was killed; remove it and try again."
        ) from None
    try:
        with digest.writing(directory, DataError):
            writer = Writer(partial, name)
            for split, items in splits.items():
                writer.add_split(split, items, (totals or {}).get(split, 0))
            for file, path in (files or {}).items():
                shutil.copyfile(path, partial / file)
            manifest = writer.close(_plain(source), {REPORT: report, **(extras or {})}, _plain(extractor))
            partial.rename(directory)
    except BaseException:  # an interrupt must not leave half a set behind either
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return manifest


def prepared(directory: str | Path, source: Mapping[str, Any]) -> dict[str, Any] | None:
    """The manifest of a set finished from ``source``, None where ``directory`` is free; DataError otherwise."""
    directory = Path(directory)
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return None
    if not (directory / MANIFEST).is_file():
        raise DataError(f"{directory} exists and is not a prepared data set; choose another --out or empty it.")
    manifest = open_dataset(directory).manifest
    if manifest["source"] != _plain(source):
        raise DataError(
            f"{directory} holds a set prepared from another source or with other options, or the source files have "
            "changed since; choose another --out or remove it."
        )
    return manifest


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))
