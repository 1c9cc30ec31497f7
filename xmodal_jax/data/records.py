"""The prepared data set: one folder of ArrayRecord files that TFDS opens, captions beside them, a manifest last.

    DIR/<name>-<split>.array_record-00000-of-00004  one tf.Example an image, in source order; at most 1 GiB a file
    DIR/dataset_info.json, features.json            for `tfds.builder_from_directory(DIR).as_data_source(split)`
    DIR/<split>.captions.jsonl                      one line an image: id, captions, size, picture
    DIR/images/                                     the pictures, where the importer was given any
    DIR/import_report.jsonl                         what the importer dropped and why, where it dropped anything
    DIR/backbone.safetensors                        what made the features of the pictures, after `xmodal extract`
    DIR/<split>.text.<name>.npy, text.<name>.npz    text features added later: [captions, F], and what makes them
    DIR/<split>.image.<name>.npy                    image features added later: [images, F]
    DIR/image.<name>.npz, image.<name>.words.txt    what makes them, where they are computed: concepts and their words
    DIR/manifest.json                               counts, shapes, source; bytes and SHA-256 of every other file

Nothing here imports TensorFlow, neither to write nor to read.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # registers "bfloat16" with NumPy; TFDS would ask TensorFlow for it
import numpy as np

from xmodal_jax.data import form
from xmodal_jax.digest import digest, sha256
from xmodal_jax.errors import DataError, require
from xmodal_jax.progress import Progress

VERSION = 1
MANIFEST = "manifest.json"
REPORT = "import_report.jsonl"
BACKBONE = "backbone.safetensors"  # of the network that made the features of the pictures, where the manifest tells one
DTYPES = {"float16": np.float16, "float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
_EXPONENT = {  # by dtype: the bits that are all ones in NaN and infinities, and in nothing else
    np.dtype(np.float16): (np.uint16, 0x7C00),
    np.dtype(ml_dtypes.bfloat16): (np.uint16, 0x7F80),
    np.dtype(np.float32): (np.uint32, 0x7F800000),
}


class Item(NamedTuple):
    """One image with its captions."""

    id: str
    captions: Sequence[str]  # raw text, any number
    features: Mapping[str, np.ndarray]  # {"region": [R, F]} and, or, {"global": [F]}: float16, float32, bfloat16
    boxes: np.ndarray | None = None  # [R, 4] float32: x1, y1, x2, y2 in 0..1
    size: tuple[int, int] = (0, 0)  # height, width in pixels; (0, 0) = unknown
    picture: Path | None = None  # copied to DIR/images


def finite(array: np.ndarray) -> bool:
    """Whether no value of a float16, float32 or bfloat16 array is NaN or infinite, told by the exponent bits."""
    unsigned, exponent = _EXPONENT[array.dtype]
    return array.size == 0 or int((array.view(unsigned) & exponent).max()) != exponent


# Integrity


def captions_path(directory: Path, split: str) -> Path:
    return directory / f"{split}.captions.jsonl"


def text_file(name: str, split: str = "") -> str:
    """The file of the text features ``name`` of a split, or, without one, of the model that makes them."""
    return f"{split}.text.{name}.npy" if split else f"text.{name}.npz"


def image_file(name: str, split: str = "", ending: str = "npz") -> str:
    """The file of the added image feature ``name`` of a split, or, without one, of the model that makes it."""
    return f"{split}.image.{name}.npy" if split else f"image.{name}.{ending}"


def _files(directory: Path) -> dict[str, Path]:
    """Every file that the manifest must name; hidden ones, and those of hidden folders, belong to the system."""
    paths = {path.relative_to(directory): path for path in sorted(directory.rglob("*")) if path.is_file()}
    named = {name: path for name, path in paths.items() if not any(part.startswith(".") for part in name.parts)}
    return {name.as_posix(): path for name, path in named.items() if path != directory / MANIFEST}


def hash_files(directory: Path, task: str = "hash") -> dict[str, dict[str, Any]]:
    """Bytes and SHA-256 of every file but the manifest."""
    files = _files(directory)
    entries: dict[str, dict[str, Any]] = {}
    with Progress(task, len(files), unit="files") as progress:
        for name, path in files.items():
            entries[name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
            progress.advance()
    return entries


def verify(directory: str | Path) -> list[str]:
    """Hold every file against the manifest; one sentence a problem, none if the set is whole."""
    dataset = open_dataset(directory)
    wanted: dict[str, Any] = dataset.manifest["files"]
    there = hash_files(dataset.directory, "verify")
    problems = [f"{name}: missing" for name in wanted if name not in there]
    problems += [f"{name}: not in the manifest" for name in there if name not in wanted]
    for name, have in there.items():
        want = wanted.get(name, have)
        if have["bytes"] != want["bytes"]:
            problems.append(f"{name}: {have['bytes']:,} bytes, the manifest says {want['bytes']:,}")
        elif have["sha256"] != want["sha256"]:
            problems.append(f"{name}: SHA-256 differs from the manifest")
    return problems


# Reading


def open_dataset(directory: str | Path) -> Dataset:
    """Open a prepared data set; DataError where ``directory`` is not one, or its manifest is damaged."""
    directory = Path(directory)
    if not directory.is_dir():
        raise DataError(f"{directory}: no such folder.")
    path = directory / MANIFEST
    if not path.is_file():
        kind = "precomp" if any(directory.glob("*_caps.txt")) else "KIND"
        raise DataError(
            f"{directory} is not a prepared data set (no {MANIFEST}); "
            f"make one with: xmodal data import {kind} {directory} --out DIR"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is damaged ({error}); import the data again.") from None
    if not isinstance(manifest, dict) or manifest.get("version") != VERSION:
        raise DataError(f"{path} is not of format version {VERSION}; import the data again.")
    if manifest.get("sha256") != digest(manifest):
        raise DataError(f"{path} is damaged: it does not match its own SHA-256; import the data again.")
    if part := form.unfit(manifest):
        raise DataError(
            f'{path} does not describe a data set ("{part}" is missing or of another form); import it again.'
        )
    return Dataset(directory, manifest)


class Dataset:
    """A prepared data set: ``directory``, ``manifest`` and its splits."""

    def __init__(self, directory: Path, manifest: dict[str, Any]):
        self.directory, self.manifest = directory, manifest

    @property
    def splits(self) -> list[str]:
        return list(self.manifest["splits"])

    def split(self, name: str) -> Split:
        """One split; DataError names those there are."""
        if name not in self.splits:
            near = difflib.get_close_matches(name, self.splits, n=1)
            hint = f' Did you mean "{near[0]}"?' if near else ""
            raise DataError(f'{self.directory} has no split "{name}", only {", ".join(self.splits)}.{hint}')
        return Split(self, name)

    @property
    def features(self) -> dict[str, Any]:
        """What the manifest says of each image feature, those in the records first, then those that were added."""
        return {**self.manifest["features"], **self.manifest.get("image_features", {})}

    @functools.cached_property
    def identity(self) -> str:
        """SHA-256 of the manifest as the importer left it: features that were added since do not change it."""
        names = self.manifest.get("text_features", ())
        added = {text_file(name, split) for name in names for split in (*self.splits, "")}
        added.update(*(entry["files"] for entry in self.manifest.get("image_features", {}).values()))
        files = {name: entry for name, entry in self.manifest["files"].items() if name not in added}
        kept = {key: value for key, value in self.manifest.items() if key not in ("text_features", "image_features")}
        return digest(kept | {"files": files})

    @functools.cached_property
    def builder(self) -> Any:
        """The TFDS builder over the folder."""
        require("tensorflow_datasets", "train")
        import tensorflow_datasets as tfds

        return tfds.builder_from_directory(self.directory)


class Split:
    """The images of one split in source order, with their captions; features are read on demand."""

    def __init__(self, dataset: Dataset, name: str):
        self.dataset, self.name = dataset, name
        self.feature_names: list[str] = list(dataset.features)

    def __len__(self) -> int:
        return self.dataset.manifest["splits"][self.name]["images"]

    @functools.cached_property
    def _lines(self) -> list[dict[str, Any]]:
        path = captions_path(self.dataset.directory, self.name)
        try:
            text = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}; import the data again.") from None
        if hashlib.sha256(text).hexdigest() != self.dataset.manifest["files"][path.name]["sha256"]:
            raise DataError(f"{path} is damaged: its SHA-256 differs from the manifest; import the data again.")
        lines = []
        for number, line in enumerate(text.split(b"\n"), 1):
            try:
                lines += [form.parse_line(line)] if line else []
            except ValueError as error:
                raise DataError(
                    f"{path} line {number} is not that of an image ({error}); import the data again."
                ) from None
        counts = self.dataset.manifest["splits"][self.name]
        found = {"images": len(lines), "captions": sum(len(line["captions"]) for line in lines)}
        for what, number in found.items():
            if number != counts[what]:
                raise DataError(
                    f"{path} has {number:,} {what}, the manifest says {counts[what]:,}; import the data again."
                )
        return lines

    @functools.cached_property
    def ids(self) -> list[str]:
        return [line["id"] for line in self._lines]

    @functools.cached_property
    def captions(self) -> list[list[str]]:
        """The captions of each image."""
        return [line["captions"] for line in self._lines]

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """[N, 2] int32: height, width in pixels; 0 = unknown."""
        return np.array([line["size"] for line in self._lines], np.int32).reshape(-1, 2)

    @functools.cached_property
    def pictures(self) -> list[Path | None]:
        folder = self.dataset.directory / "images"
        return [folder / line["picture"] if line["picture"] else None for line in self._lines]

    @property
    def text_features(self) -> list[str]:
        """Names of the text features that have been added."""
        return list(self.dataset.manifest.get("text_features", ()))

    def text_feature(self, name: str) -> np.ndarray:
        """[C, F] float32, memory-mapped: a vector of every caption, in their order through all images.

        Raises:
          DataError: there are none of this name, or their file is missing, cut short or something else.
        """
        directory, manifest = self.dataset.directory, self.dataset.manifest
        if name not in self.text_features:
            raise DataError(
                f'{directory} has no text features "{name}", only {", ".join(self.text_features) or "none"}; add them '
                f"with: xmodal data text-features KIND {directory} --name {name}"
            )
        shape = (manifest["splits"][self.name]["captions"], *manifest["text_features"][name]["shape"])
        return self._added(text_file(name, self.name), shape, "float32", "text features")

    @functools.cached_property
    def image_features(self) -> dict[str, np.ndarray]:
        """The image features that have been added, [N, F] float16 or float32 by name, memory-mapped.

        Raises:
          DataError: a file is missing, cut short or something else.
        """
        known = self.dataset.manifest.get("image_features", {})
        return {
            name: self._added(image_file(name, self.name), (len(self), *entry["shape"]), entry["dtype"], "features")
            for name, entry in known.items()
        }

    def _added(self, file: str, shape: tuple[int, ...], dtype: str, what: str) -> np.ndarray:
        path = self.dataset.directory / file
        try:
            whole = path.stat().st_size == self.dataset.manifest["files"][file]["bytes"]
            array = np.load(path, mmap_mode="r" if shape[0] else None, allow_pickle=False) if whole else None
        except (OSError, ValueError, OverflowError, EOFError):
            array = None
        if array is None or array.shape != shape or array.dtype != np.dtype(dtype):
            raise DataError(f"{path} is missing or damaged; add the {what} to the imported data again.")
        return array

    @property
    def paths(self) -> list[Path]:
        """The ArrayRecord files in order."""
        files = (
            name for name in self.dataset.manifest["files"] if f"-{self.name}.array_record-" in name and "/" not in name
        )
        return [self.dataset.directory / name for name in sorted(files)]

    def check_files(self) -> None:
        """Raise a DataError unless every ArrayRecord file is there in its full length."""
        for path in self.paths:
            if not path.is_file() or path.stat().st_size != self.dataset.manifest["files"][path.name]["bytes"]:
                raise DataError(f"{path} is missing or cut short; import the data again.")

    @functools.cached_property
    def _source(self) -> Any:
        self.check_files()
        return self.dataset.builder.as_data_source(self.name)

    def read(self, rows: Sequence[int]) -> list[Item]:
        """The images at ``rows`` with all their features, by random access; DataError where a record is damaged."""
        items = []
        for row in rows:
            if not 0 <= row < len(self):
                raise IndexError(f'Split "{self.name}" has rows 0 to {len(self) - 1}, not {row}.')
            try:
                record = self._source[int(row)]
            except DataError:
                raise
            except Exception as error:  # array_record and protobuf raise what they like on damaged bytes
                raise DataError(
                    f'{self.dataset.directory}: image {row} of split "{self.name}" cannot be read ({error}); '
                    f"see: xmodal data check {self.dataset.directory}"
                ) from None
            captions = [caption.decode("utf-8") for caption in record["captions"]]
            height, width = self._lines[row]["size"]  # pictures may have been attached since the record was written
            features, boxes = dict(record.get("features", {})), record.get("boxes")
            features |= {name: np.array(array[row]) for name, array in self.image_features.items()}
            id_ = record["id"].decode("utf-8")
            items.append(Item(id_, captions, features, boxes, (height, width), self.pictures[row]))
        return items
