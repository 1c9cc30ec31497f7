"""The arrays of a gallery while `xmodal index` fills them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xmodal_jax.errors import CheckpointError, NumericError
from xmodal_jax.inference import gallery as galleries


class Arrays:
    """The arrays of one side, made at full size by the first block, and opened again when work goes on."""

    def __init__(self, folder: Path, side: str, count: int, dtype: str, fresh: bool):
        self.folder, self.side, self.count, self.dtype, self.fresh = folder, side, count, np.dtype(dtype), fresh
        self.arrays: dict[str, np.memmap] = {}
        (folder / side).mkdir(exist_ok=True)

    def put(self, rows: np.ndarray, parts: Mapping[str, np.ndarray], name: Callable[[int], str]) -> None:
        """Write the items ``rows``; narrower ones than the first are padded with zeros.

        Raises:
            NumericError: a value that is not finite in the stored type.
        """
        for leaf, value in parts.items():
            stored = self.dtype if value.dtype.kind == "f" else value.dtype
            array = self.arrays.get(leaf)
            if array is None:
                array = self.arrays[leaf] = self.open(leaf, stored, (self.count, *value.shape[1:]))
            with np.errstate(over="ignore"):
                value = value.astype(stored)
            if stored.kind == "f" and not np.isfinite(value).all():
                bad = int(np.argmin(np.isfinite(value).reshape(len(value), -1).all(1)))
                raise NumericError(
                    f'"{leaf}" of {name(int(rows[bad]))} is not finite as {stored}; check the features with '
                    "`xmodal data check`, or index with --dtype float32."
                )
            array[(rows, *(slice(size) for size in value.shape[1:]))] = value

    def open(self, leaf: str, dtype: np.dtype, shape: tuple[int, ...]) -> Any:
        path = self.folder / galleries.file_of(self.side, leaf)
        if self.fresh:
            return self._reserved(path, dtype, shape)
        try:
            return np.lib.format.open_memmap(path, mode="r+")
        except (OSError, ValueError, OverflowError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}); remove {self.folder} and start anew.") from None

    @staticmethod
    def _reserved(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> Any:
        """A new mapped array that has its place on the disk: a full one would end the process, later, with SIGBUS."""
        try:
            array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
            if hasattr(os, "posix_fallocate"):
                with path.open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be made ({error.strerror}); choose another --out.") from None
        return array

    def flush(self) -> None:
        for array in self.arrays.values():
            array.flush()
