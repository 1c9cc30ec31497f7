"""Arrays that stay on disk and are read row by row.

They are read, not mapped: where a mapped file is cut short by somebody else, the next look at it ends the process with
SIGBUS, and no `except` helps. A read that comes back short is an error like any other.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from xmodal_jax.errors import CheckpointError

HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class Stored:
    """The array of an ``.npy`` file; indexed along its first axis by an integer, a slice or integers, it gives copies.

    The file stays open, so that a gallery which is replaced goes on being read as it was. Safe to use from several
    threads.

    Raises:
        CheckpointError: not an array of numbers in rows, or a file of another size than its header says; and, when it
            is read, one that has been cut short since.
    """

    def __init__(self, path: Path, again: str):
        self.path, self.again = path, again
        try:
            self._file = path.open("rb", buffering=0)
            shape, columns, dtype = HEADERS[np.lib.format.read_magic(self._file)](self._file)
        except (OSError, ValueError, KeyError, EOFError, RecursionError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}); {again}.") from None
        self.shape: tuple[int, ...] = shape
        self.dtype: np.dtype = dtype
        self._start = self._file.tell()
        self._row = math.prod(shape[1:]) * dtype.itemsize  # bytes
        size = os.fstat(self._file.fileno()).st_size
        if not shape or columns or dtype.kind not in "fiub" or size != self._start + shape[0] * self._row:
            raise CheckpointError(f"{path} holds no array of numbers {list(shape)} of its size; {again}.")

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def __getitem__(self, rows: Any) -> np.ndarray:
        if isinstance(rows, slice):
            first, stop, step = rows.indices(len(self))
            if step == 1:
                return self._read(np.array([first]), np.array([max(stop - first, 0)]))
            rows = np.arange(first, stop, step)
        index = np.asarray(rows)
        if index.dtype.kind not in "iu" and index.size:
            raise IndexError(f"rows are integers, not {index.dtype}")
        flat = np.where(index < 0, index + len(self), index).astype(np.int64).ravel()
        if flat.size and not 0 <= flat.min() <= flat.max() < len(self):
            raise IndexError(f"rows go from 0 to {len(self) - 1}")
        starts = np.flatnonzero(np.diff(flat, prepend=-2) != 1)  # of rows that follow each other in the file
        whole = self._read(flat[starts], np.diff(starts, append=len(flat)))
        return whole.reshape(*index.shape, *self.shape[1:])

    def _read(self, first: np.ndarray, count: np.ndarray) -> np.ndarray:
        """Runs of rows, ``count[i]`` from ``first[i]`` on, one behind the other."""
        out = np.empty((int(count.sum()), *self.shape[1:]), self.dtype)
        view, done = out.reshape(-1).view(np.uint8).data, 0
        for start, rows in zip(first.tolist(), count.tolist(), strict=True):
            end, place = done + rows * self._row, self._start + start * self._row
            while done < end:
                try:
                    got = os.preadv(self._file.fileno(), [view[done:end]], place)
                except OSError as error:
                    raise CheckpointError(f"{self.path} cannot be read ({error.strerror}); {self.again}.") from None
                if not got:
                    raise CheckpointError(f"{self.path} has been cut short since it was opened; {self.again}.")
                done, place = done + got, place + got
        return out
