"""The child process of :mod:`xmodal_jax.torch_files.pth`: a file of PyTorch's in, JSON and raw numbers out.

It imports the standard library alone. Every size is held against the bytes that are really there before
anything of that size is made.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from xmodal_jax.torch_files.pickles import Machine, Refused, Storage, Tensor, show

PICKLE = 16 << 20  # bytes of a pickle; that of a ResNet-152 has 0.2 MB
TEXTS = 1 << 24  # characters of all strings of the result
NODES = 300_000  # values of the result
DEPTH = 64
ENTRIES = 10_000  # of a zip archive
MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of PyTorch's older layout
LEFT_OUT = ("optimizer",)  # parts of a checkpoint that converting has no use for

Reader = Callable[[Storage], bytes]


def entries_of(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Entries by name, once none is compressed, none stands twice and none lies in another or outside."""
    infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
    if len(infos) > ENTRIES:
        raise Refused(f"its archive has more than {ENTRIES:,} entries")
    if not infos or infos[0].header_offset != 0:
        raise Refused("its archive is empty, or something stands before its first entry")
    ends = [info.header_offset for info in infos[1:]] + [archive.start_dir]
    for info, end in zip(infos, ends, strict=True):
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
            raise Refused(f"its entry {show(info.filename)} is compressed or encrypted, which PyTorch's never are")
        if info.header_offset + 30 + info.file_size > end:
            raise Refused(f"its entry {show(info.filename)} reaches into another one or past the end")
    entries = {info.filename: info for info in infos}
    if len(entries) < len(infos):
        raise Refused("two entries of its archive have the same name")
    return entries


def read_zip(file: BinaryIO, kind: str) -> tuple[Any, Reader]:
    """The layout since PyTorch 1.6: a zip archive of FOLDER/data.pkl and FOLDER/data/KEY."""
    archive = zipfile.ZipFile(file)
    entries = entries_of(archive)
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise Refused(f"its archive has {len(pickles)} entries FOLDER/data.pkl instead of one")
    root = pickles[0].removesuffix("data.pkl")
    if any(not name.startswith(root) or ".." in name.split("/") for name in entries):
        raise Refused(f"its archive has entries outside {show(root)}")
    order = entries.get(f"{root}byteorder")
    if order is not None and (order.file_size != 6 or archive.read(order) != b"little"):
        raise Refused("its numbers are not little-endian")
    if entries[pickles[0]].file_size > PICKLE:
        raise Refused(f"its pickle has more than {PICKLE >> 20} MiB")
    machine = Machine(archive.read(entries[pickles[0]]), kind)
    tree = machine.run()
    if machine.file.read(1):
        raise Refused("bytes follow its pickle")
    for key, storage in machine.storages.items():
        entry = entries.get(f"{root}data/{key}")
        if entry is None or entry.file_size != storage.bytes:
            there = entry.file_size if entry else 0
            raise Refused(f"storage {show(key)} should have {storage.bytes:,} bytes and has {there:,}")
    return tree, lambda storage: archive.read(entries[f"{root}data/{storage.key}"])


def read_stream(file: BinaryIO, size: int, kind: str) -> tuple[Any, Reader]:
    """The layout before: pickles of a number, a version, the machine, the data and the keys, then the storages."""
    machine = Machine(file.read(PICKLE), kind)
    if machine.run() != MAGIC or machine.run() != 1001:
        raise Refused("it is a pickle, but not one that PyTorch wrote")
    system = machine.run()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Refused("its numbers are not little-endian")
    tree, keys = machine.run(), machine.run()
    if (
        type(keys) is not list
        or not all(isinstance(key, str) for key in keys)
        or sorted(keys) != sorted(machine.storages)
    ):
        raise Refused("its list of storages does not name those that its tensors use")
    places: dict[str, int] = {}
    place = machine.file.tell()
    for key in keys:
        file.seek(place)
        storage = machine.storages[key]
        numel, place = int.from_bytes(file.read(8), "little"), place + 8
        if numel != storage.numel or place + storage.bytes > size:
            raise Refused(f"storage {show(key)} should have {storage.bytes:,} bytes, which are not there")
        places[key] = place
        place += storage.bytes
    if place != size:
        raise Refused(f"{size - place:,} bytes follow its last storage")

    def read(storage: Storage) -> bytes:
        file.seek(places[storage.key])
        return file.read(storage.bytes)

    return tree, read


def read_any(file: BinaryIO, size: int, kind: str) -> tuple[Any, Reader]:
    start = file.read(512)
    file.seek(0)
    if start.startswith(b"PK"):
        return read_zip(file, kind)
    if start.startswith(b"\x80") and kind == "checkpoint":
        return read_stream(file, size, kind)
    if start.startswith(b"\x80"):
        machine = Machine(file.read(PICKLE), kind)
        tree = machine.run()
        if machine.file.tell() != size:
            raise Refused("bytes follow its pickle")
        return tree, lambda storage: b""
    if start[257:262] == b"ustar":
        raise Refused("it is a tar archive, as PyTorch wrote before 0.1.10; load and save it with a later one first")
    if start.lstrip().startswith(b"<"):
        raise Refused("it is a web page and no checkpoint: its download failed")
    raise Refused("it has neither of PyTorch's two layouts")


class Result:
    """Plain JSON of a tree: containers are ``{"list": [...]}``, ``{"dict": [[key, value], ...]}`` and the like."""

    def __init__(self) -> None:
        self.nodes, self.texts = NODES, TEXTS
        self.tensors: dict[Tensor, int] = {}

    def plain(self, value: Any, depth: int = 0) -> Any:
        self.nodes -= 1
        if isinstance(value, str | bytes):
            self.texts -= len(value)
        if self.nodes < 0 or self.texts < 0 or depth > DEPTH:
            raise Refused("its data is too large or too deeply nested, or contains itself")
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, bytes):
            return value.decode("latin-1")
        if isinstance(value, Tensor):
            return {"tensor": self.tensors.setdefault(value, len(self.tensors))}
        if isinstance(value, list | tuple):
            return {type(value).__name__: [self.plain(item, depth + 1) for item in value]}
        if isinstance(value, dict):
            kept = [(key, item) for key, item in value.items() if depth or key not in LEFT_OUT]
            return {"dict": [[self.plain(key, depth + 1), self.plain(item, depth + 1)] for key, item in kept]}
        raise Refused(f"its data has a bare {type(value).__name__.lower()} in it")

    def write(self, folder: Path, read: Reader, most: int) -> list[Any]:
        """Write the tensors one behind the other; returns ``[type, numbers, shape, strides]`` of each."""
        # Several views of one storage are fine, but not so many that a small file becomes a large one; with small
        # strides a view has more numbers than it spans.
        numbers = ((max(tensor.span, math.prod(tensor.shape)), tensor.storage.width) for tensor in self.tensors)
        if sum(count * width for count, width in numbers) > most:
            raise Refused("its tensors overlap so much that they have more numbers than the file")
        listing: list[Any] = []
        last: Storage | None = None
        data = b""
        with (folder / "tensors").open("wb") as out:
            for tensor in self.tensors:
                if tensor.storage != last:
                    last, data = tensor.storage, read(tensor.storage)
                start, width = tensor.offset, tensor.storage.width
                out.write(memoryview(data)[start * width : (start + tensor.span) * width])
                listing.append([tensor.storage.kind, tensor.span, tensor.shape, tensor.stride])
        return listing


def limit(memory: int, seconds: int, output: int) -> None:
    """Ask the system to end this process past these bounds, and to let it start no other."""
    try:
        import resource
    except ImportError:  # Windows: the parser's own limits and the parent's clock remain
        return
    bounds = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: output,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_AS: memory,
    }
    for which, most in bounds.items():
        with contextlib.suppress(ValueError, OSError):  # macOS does not take all of them
            resource.setrlimit(which, (most, most))


def main(arguments: list[str]) -> int:
    """``FILE FOLDER KIND MEMORY SECONDS``: the answer is FOLDER/answer.json, with the numbers in FOLDER/tensors."""
    path, folder, kind, memory, seconds = arguments
    size = Path(path).stat().st_size
    limit(int(memory), int(seconds), 2 * size + (256 << 20))
    answer: dict[str, Any]
    try:
        with Path(path).open("rb") as file:
            tree, read = read_any(file, size, kind)
            result = Result()
            plain = result.plain(tree)
            answer = {"tree": plain, "tensors": result.write(Path(folder), read, 2 * size)}
    except Refused as error:
        answer = {"refused": str(error)}
    except MemoryError:
        answer = {"refused": f"reading it takes more than the {int(memory) >> 20:,} MiB that are allowed"}
    except Exception as error:  # of zipfile, which says in many ways that a file is broken
        answer = {"refused": f"it is damaged ({type(error).__name__}: {show(str(error))})"}
    (Path(folder) / "answer.json").write_text(json.dumps(answer), encoding="ascii")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
