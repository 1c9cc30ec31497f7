"""Files of PyTorch's two layouts, written without PyTorch: a little assembler of pickles, and writers that can lie."""

import pickle
import struct
import zlib
from typing import Any, NamedTuple

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
SYSTEM = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
NUMBERS = {"0": struct.pack("<6f", *range(6))}  # of one storage


class Raw(bytes):
    """Instructions, where a value could stand."""


def put(value: Any) -> bytes:
    """Instructions that push a value."""
    if isinstance(value, Raw):
        return value
    if isinstance(value, str | bytes):
        data = value.encode() if isinstance(value, str) else value
        return (b"X" if isinstance(value, str) else b"B") + struct.pack("<I", len(data)) + data
    if value is None or isinstance(value, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[value]
    if isinstance(value, int):
        data = pickle.encode_long(value)
        return b"\x8a" + bytes([len(data)]) + data
    if isinstance(value, float):
        return b"G" + struct.pack(">d", value)
    if isinstance(value, tuple):
        return b"(" + b"".join(map(put, value)) + b"t"
    if isinstance(value, list):
        return b"]" + fill(value)
    return b"}" + fill(value)


def fill(items: Any) -> bytes:
    """Instructions that put items into the list or dictionary before them."""
    if isinstance(items, dict):
        return b"(" + b"".join(put(key) + put(item) for key, item in items.items()) + b"u"
    return b"(" + b"".join(map(put, items)) + b"e"


def run(value: Any, protocol: int = 2) -> bytes:
    """A whole pickle."""
    return bytes([0x80, protocol]) + put(value) + b"."


def name(module: str, attribute: str) -> Raw:
    return Raw(f"c{module}\n{attribute}\n".encode())


def call(module: str, attribute: str, *args: Any) -> Raw:
    return Raw(name(module, attribute) + put(args) + b"R")


def storage(key: Any = "0", numel: Any = 6, kind: str = "FloatStorage", *view: Any) -> Raw:
    return Raw(put(("storage", name("torch", kind), key, "cuda:0", numel, *view)) + b"Q")


def tensor(shape: Any = (2, 3), stride: Any = (3, 1), offset: Any = 0, base: Any = None, hooks: Any = None) -> Raw:
    hooks = call("collections", "OrderedDict") if hooks is None else hooks
    base = storage() if base is None else base
    return call("torch._utils", "_rebuild_tensor_v2", base, offset, shape, stride, False, hooks)


def ordered(items: dict[str, Any], notes: Any = None) -> Raw:
    """A state as PyTorch saves it, with its notes on versions."""
    notes = {"_metadata": {"": {"version": 1}}} if notes is None else notes
    return Raw(call("collections", "OrderedDict") + fill(items) + put(notes) + b"b")


def instance(module: str, attribute: str, items: Any) -> Raw:
    return Raw(name(module, attribute) + b")\x81" + put(items) + b"b")


def checkpoint(weight: Any = None, opt: Any = None, **more: Any) -> dict[str, Any]:
    weight = tensor() if weight is None else weight
    opt = instance("argparse", "Namespace", {"margin": 0.2}) if opt is None else opt
    return {"epoch": 3, "model": [ordered({"weight": weight}), ordered({})], "opt": opt, **more}


class Entry(NamedTuple):
    """An entry of a zip archive; the fields after the data may contradict it."""

    name: str
    data: bytes
    method: int = 0
    flags: int = 0
    size: int | None = None
    packed: int | None = None
    offset: int | None = None
    crc: int | None = None
    local_name: str | None = None
    extra: bytes = b""


def archive(entries: list[Entry], before: bytes = b"") -> bytes:
    body, directory = before, b""
    for e in entries:
        at, crc = len(body) if e.offset is None else e.offset, zlib.crc32(e.data) if e.crc is None else e.crc
        size, packed = (len(e.data) if n is None else n for n in (e.size, e.packed))
        sizes = struct.pack("<HHHHHIII", 20, e.flags, e.method, 0, 33, crc, packed, size)
        local, central = (e.local_name or e.name).encode(), e.name.encode()
        body += b"PK\3\4" + sizes + struct.pack("<HH", len(local), 0) + local + e.data
        directory += b"PK\1\2" + struct.pack("<H", 20) + sizes
        directory += struct.pack("<HHHHHII", len(central), len(e.extra), 0, 0, 0, 0, at) + central + e.extra
    counts = min(len(entries), 0xFFFF), min(len(entries), 0xFFFF)
    return body + directory + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, *counts, len(directory), len(body), 0)


def entries(value: Any, storages: dict[str, bytes] = NUMBERS) -> list[Entry]:
    """Those of the zip layout; ``value`` may be a whole pickle."""
    return [
        Entry("a/data.pkl", value if type(value) is bytes else run(value)),
        Entry("a/byteorder", b"little"),
        *(Entry(f"a/data/{key}", data) for key, data in storages.items()),
        Entry("a/version", b"3\n"),
    ]


def zipped(value: Any, storages: dict[str, bytes] = NUMBERS) -> bytes:
    """A file of the zip layout."""
    return archive(entries(value, storages))


def stream(
    value: Any,
    storages: dict[str, bytes] = NUMBERS,
    *,
    magic: Any = MAGIC,
    version: Any = 1001,
    system: Any = SYSTEM,
    keys: Any = None,
    sizes: dict[str, int] | None = None,
) -> bytes:
    """A file of the older layout; ``sizes`` are the bytes of a number where that is not 4."""
    head = b"".join(map(run, (magic, version, system, value, list(storages) if keys is None else keys)))
    sizes = sizes or {}
    return head + b"".join(struct.pack("<q", len(data) // sizes.get(key, 4)) + data for key, data in storages.items())


class Tensors:
    """Tensors of a file as they are asked for, each with a storage of its own."""

    def __init__(self):
        self.storages: dict[str, bytes] = {}
        self.sizes: dict[str, int] = {}

    def __call__(self, array: np.ndarray) -> Raw:
        key = str(len(self.storages))
        kind = {"f4": "FloatStorage", "f8": "DoubleStorage", "i8": "LongStorage"}[array.dtype.str[1:]]
        self.storages[key], self.sizes[key] = array.tobytes(), array.itemsize
        strides = tuple(step // array.itemsize for step in array.strides)
        return tensor(array.shape, strides, 0, storage(key, array.size, kind))

    def state(self, arrays: dict[str, np.ndarray]) -> Raw:
        return ordered({key: self(np.ascontiguousarray(array)) for key, array in arrays.items()})


def addict(value: Any) -> Any:
    """Options as ADAPT's trainer saves them."""
    if not isinstance(value, dict):
        return value
    return Raw(
        name("addict.addict", "Dict") + b")\x81" + fill({key: addict(item) for key, item in value.items()}) + b"}b"
    )
