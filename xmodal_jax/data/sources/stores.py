"""Feature files and folders of all kinds, opened as one kind of thing: an array, an archive, HDF5, a picture a file.

Entries of an archive or an HDF5 file, and files of a folder, are either one array of all images or arrays of an image
each, called by its name, with or without `_features`; beside them may be boxes, sizes and numbers of regions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xmodal_jax.data.sources import pickles
from xmodal_jax.data.sources.common import Report
from xmodal_jax.data.sources.features import Features, load_array, numbers
from xmodal_jax.data.sources.matlab import load_matrix
from xmodal_jax.data.sources.ragged import Ragged, pictures
from xmodal_jax.errors import DataError, require

WHOLE = ("image_features", "features", "feats", "feat", "x", "ims", "images", "data", "arr_0")
NAMES = ("ids", "image_ids", "img_ids", "image_id", "names", "filenames", "keys")
COUNTS = ("num_boxes", "num_bbox", "num_bboxes", "num_regions")
BOXES = ("boxes", "bboxes", "bbox", "spatial_features")  # the last: four of six numbers are a box in 0..1
HDF5 = b"\x89HDF\r\n\x1a\n"
OTHERS = {  # what cannot be opened: how a file is told, and what to do
    ".pt": "a PyTorch file; save it as numpy.save(FILE.npy, tensor.numpy())",
    ".pth": "a PyTorch file; save it as numpy.save(FILE.npy, tensor.numpy())",
    ".pkl": "a pickle; save what is in it with numpy.save or numpy.savez",
    ".pickle": "a pickle; save what is in it with numpy.save or numpy.savez",
    ".mdb": "an LMDB data base; write its arrays as .npy files into a folder, or into an .npz or HDF5 file",
    ".lmdb": "an LMDB data base; write its arrays as .npy files into a folder, or into an .npz or HDF5 file",
    ".tsv": "a TSV of regions: xmodal data import butd takes it",
}


def open_features(path: Path, dtype: str | None, report: Report) -> Features:
    """The features at ``path``, told by its content; DataError where it is nothing that can be read.

    Formats: .npy [N, F], [N, R, F] or of N arrays [R, F]; .npz; MATLAB's .mat; HDF5; a folder of .npy or .npz files, an
    image each.
    """
    if path.is_dir() and not (path / "data.mdb").is_file():
        return _folder(path, dtype, report)
    kind = OTHERS.get(".mdb" if path.is_dir() else path.suffix.lower())
    if kind:
        raise DataError(f"{path}: {kind}.")
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder (features).")
    if is_hdf5(path):
        return _hdf5(path, dtype, report)
    if path.suffix == ".mat":
        return Features(path, load_matrix(path, "feats"))
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"PK\x03\x04":
        return _archive(path, dtype, report)
    objects = pickles.load_objects(path) if start == b"\x93NUM" else None
    if isinstance(objects, dict):
        return pictures(path, {str(name): {"features": value} for name, value in objects.items()}, dtype, report)
    if objects is not None:
        array = Ragged(path, len(objects), lambda row: objects[row], dtype)
        return Features(path, array)
    return Features(path, load_array(path, dtype))


def is_hdf5(path: Path) -> bool:
    """HDF5's mark is at the beginning, or, as in MATLAB 7.3 files, behind a block of 512, 1024 or 2048 bytes."""
    with path.open("rb") as file:
        return any(file.seek(place) == place and file.read(8) == HDF5 for place in (0, 512, 1024, 2048))


def _hdf5(path: Path, dtype: str | None, report: Report) -> Features:
    require("h5py", "hdf5")
    import h5py

    try:
        file = h5py.File(path, "r")
        entries: dict[str, Any] = {}
        file.visititems(lambda name, entry: entries.update({name: entry}) if isinstance(entry, h5py.Dataset) else None)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise DataError(f"{path}: not a whole HDF5 file ({error}).") from None
    return _entries(path, entries, dtype, report)


def _archive(path: Path, dtype: str | None, report: Report) -> Features:
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile) or not archive.files:
            raise ValueError("no array in it")
    except Exception as error:  # zipfile and NumPy raise what they like
        raise DataError(f"{path}: not a whole .npz archive ({error}).") from None
    return _entries(path, _Members(path, archive), dtype, report)


class _Members(Mapping[str, np.ndarray]):
    """Arrays of an archive, read when asked for."""

    def __init__(self, path: Path, archive: Any):
        self.path, self.archive = path, archive

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.archive.files:
            raise KeyError(name)
        try:
            array = self.archive[name]
            if not isinstance(array, np.ndarray):  # of a member that is no array NumPy gives the bytes
                raise ValueError
            return array
        except Exception:  # as above; a damaged member is known only now
            raise DataError(
                f'{self.path}: its array "{name}" is cut short, damaged or full of Python objects.'
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.archive.files)

    def __len__(self) -> int:
        return len(self.archive.files)


def _entries(path: Path, entries: Mapping[str, Any], dtype: str | None, report: Report) -> Features:
    """One array of all images, or an array an image, by what the entries are called."""
    if not entries:
        raise DataError(f"{path}: no array in it.")
    key = next((name for name in WHOLE if name in entries), next(iter(entries)) if len(entries) == 1 else None)
    if key is None:
        grouped: dict[str, dict[str, Any]] = {}
        for name in entries:
            parts = re.fullmatch(rf"(.+)[_/]({'|'.join((*WHOLE[1:5], *COUNTS, *BOXES[:3], 'image_[hw]'))})", name)
            image, part = (parts[1], parts[2]) if parts else (name, "features")
            grouped.setdefault(image, {})[part] = _Late(entries, name)
        return pictures(path, grouped, dtype, report)
    if "pos_boxes" in entries:
        return _stacked(path, entries, key, dtype)
    stored = _read(path, entries[key])
    if stored.ndim not in (2, 3) or 0 in stored.shape:
        raise DataError(f"{path}: wanted [images, F] or [images, R, F] in {key}, found {list(stored.shape)}.")
    array = numbers(stored, path, dtype)
    counts = next((_read(path, entries[name]).reshape(-1) for name in COUNTS if name in entries), None)
    boxes = next((_read(path, entries[name]) for name in BOXES if name in entries), None)
    if boxes is not None and (array.ndim != 3 or boxes.shape[:2] != array.shape[:2] or boxes.max() > 1.02):
        report.say(f"{path.name}: its boxes are not in 0..1 or not those of the regions, and left out")
        boxes = None
    if counts is not None and (array.ndim != 3 or len(counts) != len(array)):
        counts = None
    return Features(path, array, None if boxes is None else boxes[..., :4], counts, names=_names(path, entries))


class _Late:
    """An entry that is read when it is used."""

    def __init__(self, entries: Mapping[str, Any], name: str):
        self.entries, self.name = entries, name

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.entries[self.name][()], dtype)


def _stacked(path: Path, entries: Mapping[str, Any], key: str, dtype: str | None) -> Features:
    """Regions of all images in one [T, F], with the first and last row of each image beside it."""
    rows, places = entries[key], _read(path, entries["pos_boxes"]).astype(np.int64)
    if len(rows.shape) != 2 or places.ndim != 2 or places.shape[1] != 2:
        raise DataError(f"{path}: wanted {key} [regions, F] and pos_boxes [images, 2].")
    if (places[:, 0] > places[:, 1]).any() or places.min() < 0 or places.max() > len(rows):
        raise DataError(f"{path}: pos_boxes lead outside the {len(rows):,} rows of {key}.")

    def cut(stored: Any, columns: int | None) -> Callable[[int], np.ndarray]:
        return lambda image: np.asarray(stored[places[image, 0] : places[image, 1]])[:, :columns]

    boxes = None
    if "spatial_features" in entries:
        boxes = Ragged(path, len(places), cut(entries["spatial_features"], 4), None, check=False)
    array = Ragged(path, len(places), cut(rows, None), dtype)
    return Features(path, array, boxes, names=_names(path, entries))


def _names(path: Path, entries: Mapping[str, Any]) -> list[str] | None:
    key = next((name for name in NAMES if name in entries), None)
    if key is None:
        return None
    values = _read(path, entries[key]).reshape(-1).tolist()
    return [value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in values]


def _read(path: Path, entry: Any) -> np.ndarray:
    try:
        return np.asarray(entry[()])
    except (OSError, RuntimeError) as error:  # such as a checksum that does not fit
        raise DataError(f"{path}: cut short or damaged ({error}).") from None


def _folder(path: Path, dtype: str | None, report: Report) -> Features:
    files = sorted(file for file in path.iterdir() if file.suffix in (".npy", ".npz") and file.is_file())
    if not files:
        raise DataError(f"{path}: no .npy or .npz in this folder (--features).")
    return pictures(path, {file.stem: _Picture(file) for file in files}, dtype, report)


class _Picture(Mapping[str, Any]):
    """One file of a folder: its arrays by name, that of a .npy called `features`."""

    def __init__(self, path: Path):
        self.path = path

    def _open(self) -> Mapping[str, np.ndarray]:
        try:
            loaded = np.load(self.path, allow_pickle=False)
            return {"features": loaded} if isinstance(loaded, np.ndarray) else _Members(self.path, loaded)
        except Exception:  # as for archives
            raise DataError(
                f"{self.path}: not a whole array or archive of numbers, but cut short, damaged or of Python objects."
            ) from None

    def __getitem__(self, name: str) -> np.ndarray:
        return self._open()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._open())

    def __len__(self) -> int:
        return len(self._open())
