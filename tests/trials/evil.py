"""Files as an attacker makes them: arrays, JSON, parameters and functions that lie, or would run something."""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Evil(NamedTuple):
    """A file to put in place of one that a verb reads."""

    name: str
    data: bytes


def evil_arrays(marker: Path) -> Iterator[Evil]:
    """``.npy`` files that lie, or would run something."""

    def header(text: str, body: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
        raw = text.encode("latin1")
        size = struct.pack("<H", len(raw)) if version == b"\x01\x00" else struct.pack("<I", len(raw))
        return b"\x93NUMPY" + version + size + raw + body

    def form(shape: str, descr: str = "'<f4'", order: str = "False") -> str:
        return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"

    command = f"__import__('os').system('touch {marker}')"
    objects = pickle.dumps(np.array([Touch(marker)], object))
    yield Evil("a shape of 2^40 rows", header(form(f"({1 << 40}, 8)"), bytes(64)))
    yield Evil("a shape that wraps", header(form(f"({1 << 32}, {1 << 32})"), bytes(64)))
    yield Evil("a negative shape", header(form("(-4, 8)"), bytes(64)))
    yield Evil("a shape of 10,000 axes", header(form("(" + "1," * 10_000 + ")"), bytes(4)))
    yield Evil("pickled objects", header(form("(1,)", "'|O'"), objects))
    yield Evil("objects within a record", header(form("(1,)", "[('a', '|O')]"), objects))
    yield Evil("a header that is code", header(command))
    yield Evil("a shape that is code", header(form(command)))
    yield Evil("a deep header", header("(" * 30_000))
    yield Evil("a header of 4 GiB", b"\x93NUMPY\x02\x00" + b"\xff" * 4 + b"x" * 100)
    yield Evil("a type of 2^30 numbers", header(form("(1,)", f"('<f4', ({1 << 30},))"), bytes(64)))
    yield Evil("strings", header(form("(4, 8)", "'<U9'"), bytes(4 * 8 * 36)))
    yield Evil("complex numbers", header(form("(4, 8)", "'<c8'"), bytes(256)))
    yield Evil("an unknown version", header(form("(4, 8)"), bytes(128), b"\x09\x00"))
    yield Evil("no array", pickle.dumps(Touch(marker)))
    yield Evil("an array of NaN", header(form("(4, 8)"), b"\xff" * 128))


class Touch:
    """Makes the marker when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def evil_json(sound_text: str) -> Iterator[Evil]:
    """JSON that is deep, large, of other types or no JSON at all."""
    yield Evil("200,000 lists deep", b"[" * 200_000 + b"]" * 200_000)
    yield Evil("200,000 objects deep", b'{"a":' * 200_000 + b"1" + b"}" * 200_000)
    yield Evil("a number of 100,000 digits", b'{"version": ' + b"9" * 100_000 + b"}")
    yield Evil("8 MB", b'{"a": "' + b"x" * 8_000_000 + b'"}')
    yield Evil("null", b"null")
    yield Evil("a list", b"[1, 2, 3]")
    yield Evil("nothing", b"")
    yield Evil("no UTF-8", b'{"a": "\xff\xfe"}')
    yield Evil("half a character", sound_text.replace('"', '"\\ud800', 1).encode())
    yield Evil("other types", changed(sound_text, lambda value: [value]).encode())
    yield Evil(
        "infinite numbers", changed(sound_text, lambda value: 1e999 if isinstance(value, int) else value).encode()
    )
    yield Evil("huge numbers", changed(sound_text, lambda value: 1 << 62 if isinstance(value, int) else value).encode())
    yield Evil("negative numbers", changed(sound_text, lambda value: -7 if isinstance(value, int) else value).encode())
    yield Evil("nothing in it", changed(sound_text, lambda _: None).encode())


def changed(text: str, change: Callable[[Any], Any]) -> str:
    """Every leaf of every line of JSON changed, but for what says which format it is."""

    def of(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: of(entry, name) for name, entry in value.items()}
        if isinstance(value, list):
            return [of(entry) for entry in value]
        return value if key in ("format", "version", "sha256", "bytes") else change(value)

    return "\n".join(json.dumps(of(json.loads(line))) for line in documents(text))


def documents(text: str) -> list[str]:
    """The JSON texts of a file: one, or one a line."""
    try:
        json.loads(text)
        return [text]
    except ValueError:
        return text.splitlines()


def evil_parameters() -> Iterator[Evil]:
    """safetensors files that lie."""

    def file(header: Any, body: bytes = bytes(64)) -> bytes:
        raw = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(raw)) + raw + body

    entry = {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64]}
    yield Evil("a header of 2^60 bytes", struct.pack("<Q", 1 << 60) + b"{}")
    yield Evil("a deep header", file(b"[" * 200_000))
    yield Evil("a huge shape", file({"a": {**entry, "shape": [1 << 40, 1 << 40]}}))
    yield Evil("offsets outside", file({"a": {**entry, "data_offsets": [0, 1 << 50]}}))
    yield Evil("offsets backwards", file({"a": {**entry, "data_offsets": [64, 0]}}))
    yield Evil("overlapping", file({"a": entry, "b": entry}))
    yield Evil("an unknown type", file({"a": {**entry, "dtype": "OBJ"}}))
    yield Evil("a negative shape", file({"a": {**entry, "shape": [-4, -4]}}))
    yield Evil("none of the parameters", file({"a": entry}))


def evil_functions(whole: bytes) -> Iterator[Evil]:
    """Exported functions that are none."""
    yield Evil("noise", bytes(range(256)) * 50)
    yield Evil("nothing", b"")
    yield Evil("half a function", whole[: len(whole) // 2])
    yield Evil("zeros behind", whole[: len(whole) // 2] + bytes(len(whole) // 2))
    yield Evil("offsets of 0xff", whole[:8] + b"\xff" * 64 + whole[72:])
