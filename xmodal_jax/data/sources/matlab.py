"""One matrix out of a MATLAB 5 file, such as the `feats` of Karpathy's `vgg_feats.mat`.

SciPy's reader is not used: a few flipped bits make it crash the process instead of raising an error.
Source of the format: MathWorks, "MAT-File Format", level 5.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from xmodal_jax.errors import DataError

HEADER = 128  # bytes
MATRIX, COMPRESSED = 14, 15
DOUBLE, SINGLE = 6, 7  # classes of matrices; either may be stored in a smaller type
STORED = {1: "<i1", 2: "<u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8"}
PEEK = 4096  # bytes that hold everything of a matrix but its numbers


def load_matrix(path: Path, name: str) -> np.ndarray:
    """The matrix of floats ``name`` as [columns, rows], memory-mapped unless it is compressed; DataError otherwise."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header = file.read(HEADER)
        if header.startswith(b"MATLAB 7.3") or len(header) < HEADER or header[124:] != b"\x00\x01IM":
            raise DataError(f"{path}: not a MATLAB 5 file.")
        start = HEADER
        while start + 8 <= size:
            file.seek(start)
            kind, length = struct.unpack("<II", file.read(8))
            unpacker = zlib.decompressobj() if kind == COMPRESSED else None
            try:
                head = unpacker.decompress(file.read(length), PEEK)[8:] if unpacker else file.read(min(length, PEEK))
                found = _describe(head, name) if kind in (MATRIX, COMPRESSED) else None
                if found:
                    shape, dtype, offset = found
                    count = math.prod(shape)
                    if unpacker is None and offset + count * dtype.itemsize <= length:
                        return np.memmap(path, dtype, "r", start + 8 + offset, shape[::-1])
                    data = head[offset:]
                    if unpacker:
                        data += unpacker.decompress(unpacker.unconsumed_tail, count * dtype.itemsize)
                    return np.frombuffer(data, dtype, count).reshape(shape[::-1])
            except (struct.error, zlib.error, ValueError) as error:
                raise DataError(f"{path}: cut short, or damaged ({error}).") from None
            start += 8 + length
    raise DataError(f'{path}: no matrix of floats "{name}".')


def _describe(head: bytes, name: str) -> tuple[tuple[int, int], np.dtype, int] | None:
    """Shape, stored type and offset of the numbers of a matrix called ``name``, None if it is another thing."""
    elements = _elements(head)
    flags, dims, label = (head[start : start + length] for _, start, length in (next(elements) for _ in range(3)))
    if label != name.encode() or flags[:1] not in (bytes([DOUBLE]), bytes([SINGLE])) or len(dims) != 8:
        return None
    kind, start, length = next(elements)
    rows, columns = struct.unpack("<ii", dims)
    if kind not in STORED or min(rows, columns) < 1:
        raise ValueError("a matrix without numbers")
    dtype = np.dtype(STORED[kind])
    if length != rows * columns * dtype.itemsize:
        raise ValueError(f"{length} bytes for {rows} x {columns} numbers")
    return (rows, columns), dtype, start


def _elements(head: bytes) -> Iterator[tuple[int, int, int]]:
    """Type, start and length of the elements of a matrix; short ones keep their bytes inside the tag."""
    position = 0
    while True:
        kind, length = struct.unpack_from("<II", head, position)
        if kind >> 16:
            yield kind & 0xFFFF, position + 4, kind >> 16
            position += 8
        else:
            yield kind, position + 8, length
            position += 8 + -(-length // 8) * 8
