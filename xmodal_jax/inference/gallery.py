"""The gallery on disk: what `xmodal index` makes of a bundle and a data set, and what is searched.

    GALLERY/
      manifest.json        what was indexed with what; bytes and SHA-256 of every other file
      bundle/              a copy of the bundle, so that a gallery needs nothing else to be searched
      coarse_bundle/       the model of the coarse vectors, where another one makes them
      images/LEAF.npy      one array for each part of an embedding, its first axis the item
      images/coarse.npy    a unit vector an item, where the score is no inner product of two vectors
      images/boxes.npy     boxes of the regions, in 0..1, where the data has them; zeros are padding
      images.jsonl         {"id", "captions": rows of texts, "picture": path below the data set's folder, "size"}, and
                           "said", the system's sentence, where it speaks of images
      texts/..., texts.jsonl {"caption", "image": row of images}
      cache/               engines keep rebuildable indices here; not part of the manifest

Arrays stay on disk and are read row by row. Pictures are not copied.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xmodal_jax.data.records import Split, open_dataset
from xmodal_jax.errors import CheckpointError, DataError, UsageError
from xmodal_jax.inference import layout
from xmodal_jax.inference.bundle import Bundle, Embedding, load
from xmodal_jax.inference.shapes import fill
from xmodal_jax.inference.stored import Stored

FORMAT, VERSION = "xmodal_jax gallery", 1
AGAIN = "index the data again with `xmodal index`, or fetch the gallery again"
SIDES = ("images", "texts")
COARSE, BOXES, CACHE = "coarse", "boxes", "cache"
BUNDLE, COARSE_BUNDLE = "bundle", "coarse_bundle"
LINE = 1 << 20  # bytes that are known of an item
KEYS = ("id", "captions", "picture", "size", "said", "caption", "image")
WHOLE = ("embedding", "whole", "query")  # parts of an embedding that stand for the item by themselves


def file_of(side: str, name: str) -> str:
    """Where the array ``name`` of a side lies: ``region/feature`` is ``images/region.feature.npy``."""
    return f"{side}/{re.sub(r'[^A-Za-z0-9_-]+', '.', name).strip('.')}.npy"


def parts_of(embedding: Embedding) -> dict[str, np.ndarray]:
    """The arrays of an embedding by name."""
    return dict(embedding) if isinstance(embedding, Mapping) else {"embedding": embedding}


def pooled(embedding: Embedding) -> np.ndarray:
    """A unit vector [N, D] float32 for each item: its own vector where it has one, else the mean of its fragments.

    Raises:
        UsageError: the embedding has neither.
    """
    parts = parts_of(embedding)
    fragments = [name for name in parts if name.rpartition("/")[2] == "feature"]
    whole = next((parts[name] for name in WHOLE if name in parts and parts[name].ndim == 2), None)
    if whole is not None:
        vector = np.asarray(whole, np.float32)
    elif fragments:
        mask = np.asarray(parts[fragments[0].removesuffix("feature") + "mask"], np.float32)
        total = np.einsum("nrd,nr->nd", np.asarray(parts[fragments[0]], np.float32), mask)
        vector = total / np.maximum(mask.sum(1), 1)[:, None]
    else:
        raise UsageError(
            f"Nothing in ({', '.join(parts)}) can be pooled to one vector; give a second bundle with --coarse."
        )
    return vector / np.maximum(np.linalg.norm(vector, axis=1, keepdims=True), 1e-12)


def dot_of(bundle: Bundle, images: Embedding, texts: Embedding) -> tuple[float, float] | None:
    """(a, b) where every score of these items is a times the inner product of two vectors plus b, and a positive.

    Of fewer than eight pairs nothing is concluded.
    """
    if isinstance(images, Mapping) or isinstance(texts, Mapping) or images.shape[1:] != texts.shape[1:]:
        return None
    score = bundle.score(images, texts).astype(np.float64).ravel()
    inner = (images.astype(np.float64) @ texts.astype(np.float64).T).ravel()
    spread = np.ptp(inner)
    if images.ndim != 2 or len(inner) < 8 or not spread > 0:
        return None
    a, b = np.polyfit(inner, score, 1)
    if a > 0 and np.abs(a * inner + b - score).max() <= 1e-5 * max(np.ptp(score), 1e-30) + 1e-6 * np.abs(score).max():
        exact = max(abs(a - 1), abs(b)) < 1e-5  # what the fit rounds is not part of the score
        return (1.0, 0.0) if exact else (float(a), float(b))
    return None


class Side:
    """The images or the texts of a gallery: arrays by name, [N, ...] each, and one line of JSON an item."""

    def __init__(self, folder: Path, name: str, manifest: Mapping[str, Any]):
        self.folder, self.name, self.count = folder, name, int(manifest["counts"][name])
        self._files: Mapping[str, Any] = manifest["files"]
        self.leaves = {leaf: self._open(leaf) for leaf in manifest["leaves"][name]}
        self.coarse = self._open(COARSE) if manifest["dot"] is None else None
        self.boxes = self._open(BOXES) if file_of(name, BOXES) in self._files else None

    def __len__(self) -> int:
        return self.count

    def _open(self, leaf: str) -> Stored:
        path = self.folder / file_of(self.name, leaf)
        array = Stored(path, AGAIN)
        if len(array) != self.count:
            raise CheckpointError(f"{path} has {len(array):,} rows, not {self.count:,}; {AGAIN}.")
        return array

    @functools.cached_property
    def lines(self) -> list[dict[str, Any]]:
        """What is known of each item."""
        path = self.folder / f"{self.name}.jsonl"
        lines: list[dict[str, Any]] = []
        try:
            with path.open("rb") as file:
                while line := file.readline(LINE + 1):
                    if len(line) > LINE or len(lines) >= self.count:
                        raise ValueError(f"line {len(lines) + 1:,} is longer than {LINE:,} bytes or one too many")
                    content = json.loads(line)
                    lines.append({key: content[key] for key in KEYS if key in content})
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}); {AGAIN}.") from None
        if len(lines) != self.count:
            raise CheckpointError(f"{path} has {len(lines):,} lines, not {self.count:,}; {AGAIN}.")
        return lines

    @property
    def vectors(self) -> Stored:
        """[N, D] what engines search: the embedding where scores are inner products, else the coarse vectors."""
        return next(iter(self.leaves.values())) if self.coarse is None else self.coarse

    @property
    def identity(self) -> str:
        """SHA-256 of the file of :attr:`vectors`."""
        name = next(iter(self.leaves)) if self.coarse is None else COARSE
        return self._files[file_of(self.name, name)]["sha256"]

    def take(self, rows: Any) -> dict[str, np.ndarray]:
        """The embedding of the items ``rows``, read from disk."""
        return {name: leaf[rows] for name, leaf in self.leaves.items()}


class Gallery:
    """An indexed data set, opened for search.

    Args:
        path: the folder.
        verify: hold every file against its SHA-256 first.
        pictures: the data set's folder, where it has moved since indexing. Without it, pictures are taken from the
            gallery itself, or from the folder it names if the data set that was indexed lies there: a gallery from a
            stranger must not make a service show other folders of its host.

    Raises:
        CheckpointError: not a gallery, or one that has changed since it was written.
        DataError: it names a picture outside the data set's folder.
        UsageError: ``pictures`` is not a folder.
    """

    def __init__(self, path: str | os.PathLike[str], *, verify: bool = True, pictures: Path | None = None):
        self.path = Path(path)
        if pictures is not None and not Path(pictures).is_dir():
            raise UsageError(f"--pictures {pictures} is not a folder; give that of the data set.")
        self.manifest = layout.read_manifest(self.path, FORMAT, VERSION, AGAIN)
        with layout.fitting(self.path, AGAIN):
            if verify:
                layout.check_files(self.path, self.manifest, AGAIN)
            self.folder = Path(pictures) if pictures else self._data_folder()
            self._trusted = self.folder if pictures or not self._brings_data() else None
            self.images, self.texts = (Side(self.path, name, self.manifest) for name in SIDES)
            self._check_lines()

    def _data_folder(self) -> Path | None:
        """The folder that the manifest names, if it is in the gallery or holds the data set that was indexed."""
        about = self.manifest["data"]
        folder = Path(about["folder"])
        try:
            if folder.resolve().is_relative_to(self.path.resolve()):
                return folder
            return folder if open_dataset(folder).identity == about["manifest"] else None
        except (DataError, OSError, KeyError, TypeError, AttributeError):  # no data set, or a damaged one
            return None

    def _brings_data(self) -> bool:
        """Whether the data set that the manifest names may have come with the gallery."""
        folder = Path(self.manifest["data"]["folder"])
        return not folder.is_absolute() or folder.resolve().is_relative_to(self.path.resolve())

    @functools.cached_property
    def split(self) -> Split:
        """The split that was indexed. Reading it imports what its files name, so it is not one from a stranger.

        Raises:
            DataError: it is not known where it lies.
        """
        about = self.manifest["data"]
        if self._trusted is None:
            raise DataError(f"{self.path}: it is not known where its data set lies; name the folder with --pictures.")
        dataset = open_dataset(self._trusted)
        if dataset.identity != about.get("manifest"):
            raise DataError(f"{self._trusted} is not the data set that {self.path} was made of.")
        return dataset.split(str(about.get("split")))

    def features(self, row: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """What the bundle reads of an image, which lies in the data set alone: by name, [1, R, F] or [1, F], and its
        real regions [1, R], with one R for all images.

        Raises:
            DataError: the data set is not known, lacks a feature or is damaged.
            UsageError: what reads it is not installed.
        """
        item = self.split.read([row])[0]
        lacking = [name for name in self.bundle.features if name not in item.features]
        if lacking:
            raise DataError(f'{self._trusted} has no feature "{lacking[0]}", which {self.bundle.system} reads.')
        read = {name: np.asarray(item.features[name]) for name in self.bundle.features}
        regions = max((len(value) for value in read.values() if value.ndim == 2), default=1)
        most = regions if self.images.boxes is None else self.images.boxes.shape[1]
        padded = {name: (fill(value, most) if value.ndim == 2 else value)[None] for name, value in read.items()}
        return padded, (np.arange(most) < regions)[None]

    @property
    def note(self) -> str | None:
        """A sentence where pictures are left out, because it is not known where they lie."""
        if self.folder is not None or all(line["picture"] is None for line in self.images.lines):
            return None
        named = str(self.manifest["data"]["folder"])[:200]
        return f"no pictures: {named!r} is not the data set that was indexed; name its folder with --pictures"

    def __repr__(self) -> str:
        return f"<xmodal_jax gallery {self.path}: {len(self.images):,} images, {len(self.texts):,} texts>"

    @property
    def fingerprint(self) -> str:
        """What tells galleries apart: SHA-256 of the manifest, and so of everything in it."""
        return self.manifest["sha256"]

    @property
    def dot(self) -> tuple[float, float] | None:
        """(a, b) where a score is a times the inner product of two vectors plus b, else None."""
        return None if self.manifest["dot"] is None else (self.manifest["dot"][0], self.manifest["dot"][1])

    @property
    def decoding(self) -> dict[str, Any] | None:
        """How the sentences that the system says of the images were made; None where the gallery has none."""
        return self.manifest.get("decoding")  # galleries from before systems spoke do not have the key

    # The manifest of the gallery covers the files of the bundles in it.

    @functools.cached_property
    def bundle(self) -> Bundle:
        return load(self.path / BUNDLE, verify=False)

    @functools.cached_property
    def coarse_bundle(self) -> Bundle | None:
        return load(self.path / COARSE_BUNDLE, verify=False) if self.manifest["coarse_bundle"] else None

    @functools.cached_property
    def _rows(self) -> dict[str, int]:
        return {line["id"]: row for row, line in enumerate(self.images.lines)}

    def row(self, id_: str) -> int | None:
        """The row of the image ``id_``, None where there is none."""
        return self._rows.get(id_)

    def picture(self, row: int) -> Path | None:
        """The picture of an image, which need not exist any more; None where the data has none.

        Raises:
            DataError: its path leaves the data set's folder.
        """
        name = self.images.lines[row]["picture"]
        if name is None or self.folder is None:
            return None
        path = (self.folder / name).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise DataError(f"{self.path}: {self._outside(row)}")
        return path

    def _check_lines(self) -> None:
        images, texts = len(self.images), len(self.texts)
        try:
            for row, line in enumerate(self.images.lines):
                picture = Path(line["picture"] or "")
                if picture.is_absolute() or ".." in picture.parts or "\0" in str(picture):
                    raise DataError(f"{self.path}: {self._outside(row)}")
                strings = [line["id"]] if self.decoding is None else [line["id"], line["said"]]
                if not all(isinstance(string, str) for string in strings):
                    raise ValueError
                if not all(0 <= text < texts for text in line["captions"]):
                    raise ValueError
                if "size" in line and [type(side) for side in line["size"]] != [int, int]:
                    raise ValueError
            if not all(0 <= line["image"] < images and isinstance(line["caption"], str) for line in self.texts.lines):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise CheckpointError(f"{self.path}: images.jsonl does not fit texts.jsonl; {AGAIN}.") from None

    def _outside(self, row: int) -> str:
        line = self.images.lines[row]
        return f'the picture of image "{line["id"]}" lies outside its data set ({line["picture"]}); {AGAIN}.'
