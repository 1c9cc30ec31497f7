"""Features that are added to a prepared data set: files beside its records, entered into its manifest."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from xmodal_jax.data import records, writer
from xmodal_jax.digest import sha256
from xmodal_jax.progress import track


def add_text_features(directory: Path, name: str, entry: Mapping[str, Any], moves: Mapping[Path, Path]) -> None:
    """Enter the text features ``name`` and their finished files, by the paths that these get, into the manifest."""
    _enter(directory, "text_features", name, entry, _hashes(moves), moves)


def add_image_features(
    directory: Path,
    name: str,
    entry: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    others: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Write the image feature ``name``, an array [N, F] a split, and ``others``, file contents by name, and enter both.

    The entry gets shape, dtype and the SHA-256 of the files, which get their names when all of them are complete.
    """
    moves: dict[Path, Path] = {}
    for split, array in arrays.items():
        path = directory / records.image_file(name, split)
        moves[path.with_name(f".{path.name}.partial")] = path
        with path.with_name(f".{path.name}.partial").open("wb") as file:
            np.save(file, array)
            file.flush()
            os.fsync(file.fileno())
    for path, content in ((directory / other, content) for other, content in others.items()):
        moves[path.with_name(f".{path.name}.partial")] = path
        path.with_name(f".{path.name}.partial").write_bytes(content)
    hashes, first = _hashes(moves), next(iter(arrays.values()))
    known = {"shape": [first.shape[1]], "dtype": first.dtype.name}
    known["files"] = {file: written["sha256"] for file, written in hashes.items()}
    _enter(directory, "image_features", name, {**known, **entry}, hashes, moves)


def _hashes(moves: Mapping[Path, Path]) -> dict[str, dict[str, Any]]:
    """Bytes and SHA-256 of finished files by the names that they get."""
    hashes: dict[str, dict[str, Any]] = {}
    for path in track(moves, "hash", len(moves), unit="files"):
        hashes[moves[path].name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    return hashes


def _enter(
    directory: Path,
    kind: str,
    name: str,
    entry: Mapping[str, Any],
    files: Mapping[str, Any],
    moves: Mapping[Path, Path],
) -> None:
    manifest = records.open_dataset(directory).manifest  # as it is now: others may have been added meanwhile
    manifest[kind] = {**manifest.get(kind, {}), name: dict(entry)}
    manifest["files"] |= files
    writer.save_manifest(directory, manifest, moves)
