"""An interpreter of pickles that runs nothing: part of the child process, see :mod:`xmodal_jax.torch_files.pth`.

Nothing of the file is ever called or imported. The pickle's instructions are read one by one, those on a list build
dictionaries, lists and descriptions of tensors, and any other instruction or name ends the reading.
"""

from __future__ import annotations

import dataclasses
import io
import math
import pickletools
import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

OPERATIONS = 250_000
TENSORS = 5_000
TEXT = 1 << 16  # characters of a string
PATH, PARTS = 1 << 12, 100  # characters and parts of a path

STORAGES = {  # types of numbers, by NumPy's names but for bf2
    "torch FloatStorage": "f4",
    "torch DoubleStorage": "f8",
    "torch HalfStorage": "f2",
    "torch BFloat16Storage": "bf2",
    "torch LongStorage": "i8",
    "torch IntStorage": "i4",
    "torch ShortStorage": "i2",
    "torch CharStorage": "i1",
    "torch ByteStorage": "u1",
    "torch BoolStorage": "u1",
}
SCALARS = {"f2": "e", "f4": "f", "f8": "d", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I"}
SCALARS |= {"u8": "Q", "b1": "?"}  # NumPy's names of types, and struct's
CLASSES = {  # whose instances become dictionaries of their attributes
    "checkpoint": ("argparse Namespace", "addict.addict Dict"),
    "vocabulary": ("vocab Vocabulary", "build_vocab Vocabulary", "__main__ Vocabulary"),
}
VALUES = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINSTRING")
VALUES += ("BINSTRING", "BINBYTES", "SHORT_BINBYTES")
ALLOWED = frozenset(
    f"""{" ".join(VALUES)} PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1
    TUPLE2 TUPLE3 APPEND APPENDS SETITEM SETITEMS EMPTY_SET ADDITEMS FROZENSET BINPUT LONG_BINPUT
    MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL
    REDUCE NEWOBJ BUILD BINPERSID""".split()
)
DTYPES = frozenset(f"torch {kind}{bits}" for kind in ("float", "int", "uint") for bits in (8, 16, 32, 64))
DTYPES |= {"torch bfloat16", "torch bool"}
OPCODES = {op.code.encode("latin-1"): op for op in pickletools.opcodes}


class Refused(Exception):
    """Why the file is not read, as the middle of a sentence."""


@dataclasses.dataclass(frozen=True)
class Name:
    """A global of the list, which is never looked up."""

    text: str


@dataclasses.dataclass(frozen=True)
class Storage:
    key: str
    kind: str  # a value of STORAGES
    numel: int

    @property
    def width(self) -> int:
        return int(self.kind[-1])

    @property
    def bytes(self) -> int:
        return self.numel * self.width


@dataclasses.dataclass(frozen=True)
class Tensor:
    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def span(self) -> int:
        """Numbers of the storage from its first to its last."""
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))


@dataclasses.dataclass
class Dtype:
    text: str


class Object(dict):
    """Attributes of an instance."""


class Ordered(dict):
    """What an OrderedDict holds."""


def show(value: Any) -> str:
    """The file's own words in a message: short, and no control characters. Never the text of a container, which may
    hold itself a million times."""
    text = value if isinstance(value, str) else str(value) if type(value) is int else type(value).__name__
    return ascii(text[:80])[1:-1]


def whole(*values: Any) -> bool:
    """Whether all are integers from 0."""
    return all(type(value) is int and value >= 0 for value in values)


def key_of(value: Any) -> Any:
    """``value`` where it may be a key. No tuples: hashing nested ones can take for ever, as can integers chosen to
    have one hash."""
    if not isinstance(value, str | bytes | int | None) or (isinstance(value, int) and abs(value) >> 60):
        raise Refused("a dictionary in it has a key that is neither a string nor an integer of a usual size")
    return value


def make_ordered(items: Any = ()) -> Ordered:
    return Ordered((key_of(key), value) for key, value in items)


def make_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> Tensor:
    """Further arguments are whether it takes gradients, hooks and metadata."""
    if not isinstance(storage, Storage) or type(shape) is not tuple or type(stride) is not tuple:
        raise Refused("a tensor in it is not described by a storage, a shape and strides")
    if not whole(offset, *shape, *stride) or len(shape) != len(stride) or len(shape) > 8 or 0 in shape:
        raise Refused("a tensor in it has a shape, strides or an offset that no tensor has")
    # A stride of 0 would make an array of any size out of one number.
    tensor = Tensor(storage, offset, shape, stride)
    if offset + tensor.span > storage.numel or math.prod(shape) > storage.numel:
        sizes = " x ".join(map(show, shape))
        raise Refused(f"a tensor in it, {sizes}, does not fit its storage of {show(storage.numel)} numbers")
    return tensor


def make_parameter(tensor: Any, *_: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise Refused("a parameter in it is not a tensor")
    return tensor


def make_dtype(text: Any, *_: Any) -> Dtype:
    if not isinstance(text, str) or text not in SCALARS:
        raise Refused(f"it has a NumPy number of type {show(text)}")
    return Dtype(text)


def make_scalar(dtype: Any, data: Any) -> Any:
    raw = data.encode("latin-1") if isinstance(data, str) else data
    if not isinstance(dtype, Dtype) or not isinstance(raw, bytes) or len(raw) != int(dtype.text[1]):
        raise Refused("a NumPy number in it has the wrong number of bytes")
    return struct.unpack(f"<{SCALARS[dtype.text]}", raw)[0]


def make_bytes(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Refused("it has bytes in an unknown encoding")
    return text.encode("latin-1")


def make_device(kind: Any, index: Any = None) -> str:
    if not isinstance(kind, str) or len(kind) > 40 or not (index is None or whole(index)):
        raise Refused("it has a device that PyTorch does not know")
    return kind if index is None else f"{kind}:{index}"


def make_size(sizes: Any = ()) -> tuple[int, ...]:
    if type(sizes) is not tuple or len(sizes) > 8 or not whole(*sizes):
        raise Refused("it has a size that no tensor has")
    return sizes


def make_path(mark: str, *parts: Any) -> str:
    """The text of a path. Its parts are bounded before anything is joined: a file may name one string many times."""
    if len(parts) > PARTS or not all(isinstance(part, str) for part in parts) or sum(map(len, parts)) > PATH:
        raise Refused("it has a path of more parts or characters than paths have, or of other things than strings")
    root, rest = (parts[0], parts[1:]) if parts and parts[0].endswith(mark) else ("", parts)
    return root + mark.join(rest)


def make_set(items: Any = None) -> list[Any]:
    """A list, since hashing what a file chooses can take for ever. It is not copied."""
    items = [] if items is None else items
    if type(items) is not list:
        raise Refused("it has a set that is not made of a list")
    return items


HARMLESS: dict[str, Callable[..., Any]] = {
    "torch device": make_device,
    "torch Size": make_size,
    **{f"{module} {kind}": make_set for module in ("builtins", "__builtin__") for kind in ("set", "frozenset")},
    **{
        f"{module} {pure}{kind}Path": partial(make_path, mark)
        for module in ("pathlib", "pathlib._local")  # the latter is Python 3.13's
        for pure in ("", "Pure")
        for kind, mark in (("Posix", "/"), ("Windows", "\\"))
    },
}  # what options hold besides numbers and text
FUNCTIONS: dict[str, dict[str, Callable[..., Any]]] = {
    "checkpoint": {
        "collections OrderedDict": make_ordered,
        "torch._utils _rebuild_tensor": make_tensor,
        "torch._utils _rebuild_tensor_v2": make_tensor,
        "torch._utils _rebuild_parameter": make_parameter,
        "numpy dtype": make_dtype,
        "numpy.core.multiarray scalar": make_scalar,
        "numpy._core.multiarray scalar": make_scalar,
        "_codecs encode": make_bytes,
        **HARMLESS,
    },
    "vocabulary": {"collections OrderedDict": make_ordered},
}


class Machine:
    """Runs pickles of ``kind`` that follow each other in ``file``; ``storages`` are those that they have named."""

    def __init__(self, data: bytes, kind: str):
        self.file, self.size = io.BytesIO(data), len(data)
        self.functions, self.classes = FUNCTIONS[kind], CLASSES[kind]
        self.names = {*self.functions, *self.classes, *((*STORAGES, *DTYPES) if kind == "checkpoint" else ())}
        self.storages: dict[str, Storage] = {}
        self.left = OPERATIONS
        self.tensors = 0

    def operations(self) -> Iterator[tuple[str, Any]]:
        while self.left:
            self.left -= 1
            byte = self.file.read(1)
            code = OPCODES.get(byte)
            if not byte:
                raise Refused("its pickle ends too early")
            if code is None or code.name not in ALLOWED:  # refused before its argument is read
                raise Refused(f"its pickle has the instruction {code.name if code else byte.hex()}")
            try:
                yield code.name, code.arg.reader(self.file) if code.arg else None
            except (ValueError, EOFError):
                raise Refused(f"its pickle is cut short or damaged at {code.name}") from None
        raise Refused(f"its pickles have more than {OPERATIONS:,} instructions")

    def run(self) -> Any:
        """What the next pickle describes."""
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        for place, (code, argument) in enumerate(self.operations()):
            if (place == 0) != (code == "PROTO"):
                raise Refused("its pickle does not start with a protocol number, or has a second one")
            if code == "STOP":
                break
            try:
                self.step(code, argument)
            except (IndexError, KeyError, TypeError, ValueError, AttributeError):
                raise Refused(f"its pickle makes no sense at {code}") from None
        if len(self.stack) != 1 or self.below:
            raise Refused("its pickle does not end with one value")
        return self.stack[0]

    def step(self, code: str, argument: Any) -> None:
        stack = self.stack
        match code:
            case "PROTO":
                if argument not in range(2, 6):
                    raise Refused(f"its pickle has protocol {argument}, this reads 2 to 5")
            case "FRAME":
                if argument > self.size - self.file.tell():
                    raise Refused("its pickle announces a frame longer than itself")
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[code])
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_SET" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}.get(code, list)())
            case "MARK":
                self.below.append(stack)
                self.stack = []
            case "TUPLE":
                self.stack = self.below.pop()
                self.stack.append(tuple(stack))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [stack.pop() for _ in range(int(code[-1]))]
                stack.append(tuple(items[::-1]))
            case "APPEND" | "SETITEM":
                items = [stack.pop() for _ in range(1 + (code == "SETITEM"))]
                self.fill(code, items[::-1])
            case "FROZENSET":
                self.stack = self.below.pop()
                self.stack.append(list(stack))
            case "APPENDS" | "SETITEMS" | "ADDITEMS":
                self.stack = self.below.pop()
                self.fill(code, stack)
            case "GLOBAL":
                stack.append(self.find(argument))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(self.find(" ".join((module, name))))
            case "REDUCE" | "NEWOBJ":
                arguments, callee = stack.pop(), stack.pop()
                stack.append(self.make(code, callee, arguments))
            case "BUILD":
                state = stack.pop()
                self.build(stack[-1], state)
            case "BINPERSID":
                stack.append(self.storage(stack.pop()))
            case _:
                if isinstance(argument, str | bytes) and len(argument) > TEXT:
                    raise Refused(f"it has a string of {len(argument):,} characters")
                stack.append(argument)

    def fill(self, code: str, items: list[Any]) -> None:
        """Put ``items`` into the list or dictionary on the stack."""
        target = self.stack[-1]
        if not isinstance(target, list if code.startswith(("APPEND", "ADD")) else dict):
            raise Refused(f"its pickle makes no sense at {code}")
        if isinstance(target, list):
            target.extend(items)
        else:
            target.update((key_of(key), value) for key, value in zip(items[::2], items[1::2], strict=True))

    def find(self, name: str) -> Name | str:
        if name not in self.names:
            raise Refused(f"it asks for {show('.'.join(name.split()))}, which no such file needs")
        return name.replace(" ", ".") if name in DTYPES else Name(name)

    def make(self, code: str, callee: Any, arguments: Any) -> Any:
        """What our own constructor of that name makes of the arguments, or an instance without attributes."""
        if not isinstance(callee, Name) or type(arguments) is not tuple:
            raise Refused("it calls something that is no name, or without a tuple of arguments")
        if code == "NEWOBJ" and callee.text in self.classes and not arguments:
            return Object()
        if code == "NEWOBJ" or callee.text not in self.functions:
            raise Refused(f"it calls {show('.'.join(callee.text.split()))}")
        value = self.functions[callee.text](*arguments)
        self.tensors += isinstance(value, Tensor)
        if self.tensors > TENSORS:
            raise Refused(f"it has more than {TENSORS:,} tensors")
        return value

    def build(self, target: Any, state: Any) -> None:
        if isinstance(target, Object) and isinstance(state, dict):
            target.update(state)
        elif isinstance(target, Dtype) and type(state) is tuple and state[1] in ("<", "|", "="):
            pass
        elif isinstance(target, Ordered) and isinstance(state, dict):
            pass  # PyTorch's notes on versions of modules
        else:
            raise Refused("it sets the state of something that has none, or not to attributes")

    def storage(self, about: Any) -> Storage:
        if type(about) is not tuple or len(about) not in (5, 6) or about[0] != "storage":
            raise Refused("its pickle refers to something that is not a storage")
        kind, key, numel = about[1], about[2], about[4]
        if not isinstance(kind, Name) or kind.text not in STORAGES or not isinstance(key, str):
            raise Refused("its pickle refers to something that is not a storage")
        if about[5:] not in ((), (None,)):
            raise Refused("it has storages that are parts of others; load and save it again with a newer PyTorch")
        if not whole(numel):
            raise Refused(f"it has a storage of {show(numel)} numbers")
        stored = Storage(key, STORAGES[kind.text], numel)
        if self.storages.setdefault(key, stored) != stored:
            raise Refused(f"it describes the storage {show(key)} in two ways")
        return stored
