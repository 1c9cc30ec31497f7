"""Files as an attacker would make them, built here so that no binary of the kind is kept."""

import gzip
import io
import itertools
import marshal
import struct
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from torch_files import (
    SYSTEM,
    Entry,
    Raw,
    archive,
    call,
    checkpoint,
    entries,
    instance,
    name,
    ordered,
    put,
    run,
    storage,
    stream,
    tensor,
    zipped,
)


class Attack(NamedTuple):
    name: str
    kind: str  # its class
    data: bytes
    says: str  # regular expression that the message has to match


def calls(marker: Path) -> dict[str, Raw]:
    """Values that make the file ``marker`` when Python's own pickle builds them."""
    shell, where = f"touch {marker}", str(marker)
    code = f"open({where!r}, 'w').close()"
    os_module, inner = call("importlib", "import_module", "os"), run(call("os", "system", shell))
    compiled = call("marshal", "loads", marshal.dumps(compile(code, "", "exec")))
    names = {"__builtins__": call("importlib", "import_module", "builtins")}
    state = (name("os", "system"), (shell,), {}, None)
    return {
        "os.system": call("os", "system", shell),
        "posix.system": call("posix", "system", shell),
        "os.popen": call("os", "popen", shell),
        "os.mkdir": call("os", "mkdir", where),
        "subprocess.Popen": call("subprocess", "Popen", ["touch", where]),
        "subprocess.check_output": call("subprocess", "check_output", ["touch", where]),
        "eval": call("builtins", "eval", code),
        "exec": call("builtins", "exec", code),
        "Python 2's eval": call("__builtin__", "eval", code),
        "getattr": Raw(call("builtins", "getattr", os_module, "system") + put((shell,)) + b"R"),
        "__import__": Raw(
            call("builtins", "getattr", call("builtins", "__import__", "os"), "mkdir") + put((where,)) + b"R"
        ),
        "timeit": call("timeit", "timeit", code, "pass", name("time", "perf_counter"), 1),
        "runstring": call("numpy.testing._private.utils", "runstring", code, {}),
        "a log file": call("logging", "FileHandler", where),
        "map": call("builtins", "list", call("builtins", "map", name("os", "system"), [shell])),
        "methodcaller": Raw(call("operator", "methodcaller", "system", shell) + put((os_module,)) + b"R"),
        "partial": Raw(call("functools", "partial", name("os", "system"), shell) + b")R"),
        "marshal": Raw(call("types", "FunctionType", compiled, names) + b")R"),
        "nested pickle": call("pickle", "loads", inner),
        "nested C pickle": call("_pickle", "loads", inner),
        "__setstate__ of partial": Raw(
            name("functools", "partial") + put((name("builtins", "print"),)) + b"\x81" + put(state) + b"b)R"
        ),
        "__setstate__ given to a class": Raw(
            name("argparse", "Namespace")
            + put((None, {"__setstate__": name("os", "system")}))
            + (b"b)\x81" + put(shell) + b"b")
        ),
        "STACK_GLOBAL": Raw(put("os") + put("system") + b"\x93" + put((shell,)) + b"R"),
        "STACK_GLOBAL with dots": Raw(put("os") + put("path.os.system") + b"\x93" + put((shell,)) + b"R"),
        "INST": Raw(b"(" + put(shell) + b"ios\nsystem\n"),
        "OBJ": Raw(b"(" + name("os", "system") + put(shell) + b"o"),
        "NEWOBJ": Raw(name("subprocess", "Popen") + b")\x810" + call("os", "system", shell)),
        "NEWOBJ_EX": Raw(name("pathlib", "Path") + put(()) + put({}) + b"\x920" + call("os", "mkdir", where)),
        "behind a sound value": Raw(put({"epoch": 1}) + b"0" + call("os", "system", shell)),
    }


def executing(marker: Path) -> Iterator[Attack]:
    """The calls in all the places of a checkpoint, in both layouts."""
    places = itertools.cycle(
        [
            lambda bad: bad,
            lambda bad: checkpoint(opt=bad),
            lambda bad: checkpoint(weight=bad),
            lambda bad: checkpoint(opt=instance("argparse", "Namespace", {"margin": bad})),
            lambda bad: checkpoint(weight=tensor(hooks=bad)),
            lambda bad: checkpoint(weight=tensor(base=bad)),
            lambda bad: checkpoint(opt=ordered({}, {"_metadata": bad})),
            lambda bad: checkpoint(more=call("collections", "OrderedDict", [["key", bad]])),
            lambda bad: {bad: 1},
            lambda bad: checkpoint(optimizer={"state": bad}),
        ]
    )
    files = itertools.cycle([zipped, stream])
    for harmless, bad in calls(marker).items():
        kind = next(word for word in ("nested", "setstate", "GLOBAL", "") if word in harmless) or "reduce"
        says = (
            "instruction INST"
            if harmless == "INST"
            else "instruction POP"
            if "sound" in harmless
            else r"asks for \w+\.\w+"
        )
        yield Attack(harmless, kind.lower(), next(files)(next(places)(bad)), says)
    bad = calls(marker)["os.system"]
    yield Attack("in the machine's description", "stream", stream(checkpoint(), system=bad), "asks for os.system")
    yield Attack("in the list of keys", "stream", stream(checkpoint(), keys=bad), "asks for os.system")
    yield Attack("instead of the magic number", "stream", stream(checkpoint(), magic=bad), "asks for os.system")


def instructions() -> Iterator[Attack]:
    """Every instruction that no checkpoint needs, and lies about the pickle itself."""
    space = name("argparse", "Namespace")
    programs = {
        "INST": b"(iargparse\nNamespace\n",
        "OBJ": b"(" + space + b"o",
        "NEWOBJ_EX": space + b")}\x92",
        "PERSID": b"Pstorage\n",
        "EXT1": b"\x82\x01",
        "EXT2": b"\x83\x01\x00",
        "EXT4": b"\x84\x01\x00\x00\x00",
        "DUP": b"N2",
        "POP": b"NN0",
        "POP_MARK": b"N(N1",
        "GET": b"g0\n",
        "PUT": b"Np0\n",
        "INT": b"I01\n",
        "LONG": b"L" + b"9" * 100_000 + b"L\n",
        "LONG4": b"\x8b" + struct.pack("<i", 0x7FFFFFFF) + b"\xff" * 1000,
        "FLOAT": b"F1e999\n",
        "STRING": b"S'a'\n",
        "UNICODE": b"Va\n",
        "BINUNICODE8": b"\x8d" + struct.pack("<Q", 1 << 62),
        "BINBYTES8": b"\x8e" + struct.pack("<Q", 1 << 40),
        "BYTEARRAY8": b"\x96" + struct.pack("<Q", 1 << 40),
        "NEXT_BUFFER": b"\x97",
        "READONLY_BUFFER": b"N\x98",
        "DICT": b"(d",
        "LIST": b"(l",
        "ff": b"\xff",
    }
    for code, bad in programs.items():
        yield Attack(code, "instruction", zipped(checkpoint(opt=Raw(bad))), f"instruction {code};")
    lies = {
        "a frame longer than the file": (b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"N.", "a frame longer"),
        "protocol 0": (b"\x80\x00N.", "protocol 0"),
        "protocol 255": (b"\x80\xffN.", "protocol 255"),
        "two protocols": (b"\x80\x02\x80\x02N.", "a second one"),
        "no protocol": (b"N.", "does not start with a protocol"),
        "a long string cut short": (b"\x80\x02X\xff\xff\xff\xffabc", "cut short or damaged at BINUNICODE"),
        "a name cut short": (b"\x80\x02ccollections\nOrd", "cut short or damaged at GLOBAL"),
        "no end": (b"\x80\x02N", "ends too early"),
        "two values": (b"\x80\x02NN.", "does not end with one value"),
        "an open mark": (b"\x80\x02(N.", "does not end with one value"),
        "more behind": (run(checkpoint()) + b"N.", "bytes follow its pickle"),
        "an empty stack": (b"\x80\x02R.", "no sense at REDUCE"),
        "items without a pair": (b"\x80\x02}(NNNu.", "no sense at SETITEMS"),
        "items into a tuple": (b"\x80\x02)(Ne.", "no sense at APPENDS"),
        "pairs into a list": (b"\x80\x02](NNu.", "no sense at SETITEMS"),
        "items into a dictionary": (b"\x80\x02}(NNe.", "no sense at APPENDS"),
        "no such memo": (b"\x80\x02j\xff\xff\xff\xff.", "no sense at LONG_BINGET"),
    }
    for label, (data, says) in lies.items():
        yield Attack(label, "pickle", zipped(data), says)


def names() -> Iterator[Attack]:
    """Allowed names in the wrong places, and names that look like them."""
    space, empty = name("argparse", "Namespace"), call("collections", "OrderedDict")
    f8, scalar = call("numpy", "dtype", "f8", False, True), ("numpy.core.multiarray", "scalar")
    programs = {
        "dots behind an allowed name": (put("collections") + put("OrderedDict.__class__") + b"\x93", "asks for collec"),
        "dots of GLOBAL": (name("argparse", "Namespace.__init__.__globals__"), "asks for argparse"),
        "a blank behind": (name("argparse ", "Namespace"), "asks for argparse"),
        "a name of no strings": (b"]]\x93", "no sense at STACK_GLOBAL"),
        "a class as a function": (call("argparse", "Namespace"), "calls argparse.Namespace"),
        "a function as a class": (name("collections", "OrderedDict") + b")\x81", "calls collections.OrderedDict"),
        "a storage as a function": (call("torch", "FloatStorage", 9), "calls torch.FloatStorage"),
        "arguments of a class": (space + put(("x",)) + b"\x81", "calls argparse.Namespace"),
        "a call of a string": (put("os") + b")R", "calls something that is no name"),
        "a call of a type": (f8 + b")R", "calls something that is no name"),
        "a list of arguments": (name("collections", "OrderedDict") + b"]R", "without a tuple of arguments"),
        "a bare class": (space, "bare name"),
        "PyTorch's own loader": (call("torch.storage", "_load_from_bytes", b"x"), "asks for torch.storage"),
        "copyreg": (call("copyreg", "_reconstructor", space, space, None), "asks for copyreg"),
        "copyreg's extensions": (call("copyreg", "add_extension", "os", "system", 1), "asks for copyreg"),
        "a class of vocabularies": (instance("vocab", "Vocabulary", {}), "asks for vocab.Vocabulary"),
        "NumPy's objects": (call("numpy", "dtype", "O8", False, True), "NumPy number of type O8"),
        "state of a class": (space + put((None, {"a": 1})) + b"b", "sets the state"),
        "state of slots": (instance("argparse", "Namespace", (None, {"a": 1})), "sets the state"),
        "state of a dictionary": (put({}) + put({"a": 1}) + b"b", "sets the state"),
        "state of an OrderedDict": (empty + put([1]) + b"b", "sets the state"),
        "state of a type": (
            f8 + put((3, ">", None, None, None, -1, -1, 0)) + b"b",
            "sets the state",
        ),
        "a scalar cut short": (
            call(*scalar, f8, b"1234"),
            "wrong number of bytes",
        ),
        "a scalar of no type": (call(*scalar, "f8", bytes(8)), "wrong number of bytes"),
        "a scalar of no bytes": (
            call(*scalar, f8, [0] * 8),
            "wrong number of bytes",
        ),
        "a type of no string": (call("numpy", "dtype", ["f8"], False, True), "NumPy number of type list"),
        "a parameter of no tensor": (call("torch._utils", "_rebuild_parameter", "w", True, None), "is not a tensor"),
        "bytes of no string": (call("_codecs", "encode", [1], "latin1"), "unknown encoding"),
        "another encoding": (call("_codecs", "encode", "a", "rot13"), "unknown encoding"),
    }
    for label, (bad, says) in programs.items():
        yield Attack(label, "names", zipped(checkpoint(opt=Raw(bad))), says)


def bombs() -> Iterator[Attack]:
    """Small files that grow: references to references, depth, repetition."""
    double = b"](" + b"]q\x00" + b"](h\x00h\x00eq\x00" * 60
    tuples = b"](" + b"N\x85q\x00" + b"h\x00h\x00\x86q\x00" * 60
    again = (
        name("torch._utils", "_rebuild_tensor_v2") + b"q\x01" + put((storage(), 0, (6,), (1,), False, None)) + b"q\x02"
    )
    hashes = b"".join(put(k * ((1 << 61) - 1)) + b"N" for k in range(1, 60_000))  # building it here would take as long
    wide = storage("0", 10_000)
    programs = {
        "lists of lists of lists": (double + b"e", "too large or too deep"),
        "itself": (b"]q\x00h\x00a", "too large or too deep"),
        "depth": (b"]" * 100_000 + b"a" * 99_999, "too large or too deep"),
        "a key of tuples": (tuples + b"}h\x00Nse", "key that is neither"),
        "a shape of tuples": (tuples + tensor(Raw(b"h\x00"), (1, 1)) + b"e", "shape, strides or an offset"),
        "keys with one hash": (b"}(" + hashes + b"u", "key that is neither"),
        "instructions": (b"(" + b"N" * 300_000 + b"t", "more than 250,000 instructions"),
        "a long string": (put("a" * 100_000), "string of 100,000 characters"),
        "a long string often": (
            b"](" + put("a" * 60_000) + b"q\x00" + b"h\x00" * 1_000 + b"e",
            "too large or too deep",
        ),
        "many values": (b"](" + b"](" + b"N" * 400 + b"eq\x00" + b"h\x00" * 900 + b"e", "too large or too deep"),
        "many tensors": (b"](" + again + b"h\x01h\x02R" * 5_100 + b"e", "more than 5,000 tensors"),
    }
    for label, (bad, says) in programs.items():
        yield Attack(label, "bomb", zipped(checkpoint(opt=Raw(bad))), says)
    views = [tensor((10_000 - k,), (1,), k, wide) for k in range(100)]
    overlapping = zipped(checkpoint(tensor(base=wide), views), {"0": bytes(40_000)})
    yield Attack("overlapping tensors", "bomb", overlapping, "overlap so much")


def storages() -> Iterator[Attack]:
    """Sizes that are not there."""
    far, shape = 1 << 62, "shape, strides or an offset"
    real = name("torch", "FloatStorage")
    base = {
        "a huge storage": (storage(numel=far), "should have 18,446"),
        "a storage of 2^64 numbers": (storage(numel=1 << 64), "should have"),
        "a negative storage": (storage(numel=-6), "it has a storage of -6 numbers"),
        "a storage of True": (storage(numel=True), "it has a storage of bool"),
        "a storage too long": (storage(numel=7), "28 bytes and has 24"),
        "a storage too short": (storage(numel=5), "does not fit|20 bytes and has 24"),
        "wider numbers": (storage(kind="DoubleStorage"), "48 bytes and has 24"),
        "a missing storage": (storage("1"), "24 bytes and has 0"),
        "a path as a key": (storage("../../../../etc/passwd"), "has 0"),
        "an absolute key": (storage("/etc/passwd"), "has 0"),
        "a number as a key": (storage(0), "not a storage"),
        "untyped": (storage(kind="UntypedStorage"), "asks for torch.UntypedStorage"),
        "part of another": (storage("0", 6, "FloatStorage", ("1", 0, 6)), "parts of others"),
        "a list for a storage": ([1], "not described by a storage"),
        "a list for a reference": (Raw(put(["storage", real, "0", "", 6]) + b"Q"), "refers to something that"),
        "a long reference": (storage("0", 6, "FloatStorage", None, None), "refers to something that is not"),
        "a word for a type": (Raw(put(("storage", "FloatStorage", "0", "", 6)) + b"Q"), "that is not a storage"),
        "a class for a type": (
            Raw(put(("storage", name("argparse", "Namespace"), "0", "", 6)) + b"Q"),
            "not a storage",
        ),
        "a reference to a float": (Raw(put(("module", real, "0", "", 6)) + b"Q"), "refers to something that"),
        "a reference to a string": (Raw(put("0") + b"Q"), "not a storage"),
        "a reference to a module": (Raw(put(("module", "os", "0", "cpu", 6)) + b"Q"), "not a storage"),
    }
    for label, (base_tensor, says) in base.items():
        yield Attack(label, "storage", zipped(checkpoint(weight=tensor(base=base_tensor))), says)
    views = {
        "a huge shape": (((far, far), (1, 1), 0), "does not fit"),
        "a wrapping shape": (((1 << 32, 1 << 32), (0, 0), 0), "does not fit"),
        "one number for many": (((1 << 30,), (0,), 0), "does not fit"),
        "huge strides": (((2, 3), (far, far), 0), "does not fit"),
        "one past the end": (((2, 3), (3, 1), 1), "does not fit"),
        "negative strides": (((2, 3), (-3, 1), 3), shape),
        "a negative offset": (((2, 3), (3, 1), -1), shape),
        "a negative shape": (((-2, -3), (3, 1), 0), shape),
        "no numbers": (((0, far), (1, 1), 0), shape),
        "too few strides": (((2, 3), (1,), 0), shape),
        "a hundred axes": (((1,) * 100, (1,) * 100, 0), shape),
        "a list as shape": (([2, 3], (3, 1), 0), "not described by"),
        "a list as strides": (((2, 3), [3, 1], 0), "not described by"),
        "fractions": (((2.0, 3.0), (3, 1), 0), shape),
    }
    for label, (base_tensor, says) in views.items():
        yield Attack(label, "storage", zipped(checkpoint(weight=tensor(*base_tensor))), says)
    twice = checkpoint(opt=[storage(), storage(kind="IntStorage")])
    yield Attack("two types of one storage", "storage", zipped(twice), "in two ways")


def archives() -> Iterator[Attack]:
    """Zip archives that lie."""
    sound = entries(checkpoint())
    pickled, order, numbers, version = sound
    packed = zlib.compress(bytes(10 << 20))[2:-4]
    zip64 = struct.pack("<HHQQ", 1, 16, 1 << 60, 1 << 60)
    files = {
        "an entry far away": ([pickled, order, numbers._replace(offset=1 << 30), version], "reaches into|damaged"),
        "an entry in the directory": ([pickled, order, numbers._replace(offset=600), version], "reaches into|damaged"),
        "overlapping entries": ([pickled, order, numbers._replace(offset=0), version], "reaches into another"),
        "another name inside": ([pickled, order, numbers._replace(local_name="a/data/1"), version], "damaged"),
        "a size past the end": ([pickled, order, numbers._replace(size=1 << 30, packed=1 << 30), version], "reaches"),
        "sizes of zip64": (
            [pickled, order, numbers._replace(size=0xFFFFFFFF, packed=0xFFFFFFFF, extra=zip64), version],
            "reaches into",
        ),
        "broken zip64": ([pickled, order, numbers._replace(size=0xFFFFFFFF, extra=b"\1\0\2\0ab"), version], "damaged"),
        "two pickles": ([*sound, Entry("b/data.pkl", pickled.data)], "has 2 entries"),
        "one name twice": ([*sound, Entry("a/data.pkl", run(call("os", "system", "true")))], "the same name"),
        "no pickle": ([order, numbers, version], "has 0 entries"),
        "nothing": ([], "archive is empty"),
        "a deflated pickle": ([Entry("a/data.pkl", packed, method=8, size=10 << 20), order, numbers], "compressed"),
        "a deflated storage": ([pickled, Entry("a/data/0", packed, method=8, size=10 << 20), order], "compressed"),
        "an unknown method": ([pickled, order, numbers._replace(method=99), version], "compressed"),
        "a stored bomb": ([pickled, order, numbers._replace(size=1 << 20), version], "compressed"),
        "encrypted": ([pickled._replace(flags=1), order, numbers, version], "compressed or encrypted"),
        "a folder outside": ([*sound, Entry("../evil", b"x")], "outside"),
        "an absolute name": ([*sound, Entry("/etc/evil", b"x")], "outside"),
        "dots": ([*sound, Entry("a/../../evil", b"x")], "outside"),
        "a flipped bit": ([pickled, order, numbers._replace(crc=1), version], "damaged"),
        "big-endian": ([pickled, Entry("a/byteorder", b"bigbig"), numbers, version], "not little-endian"),
        "a huge byte order": ([pickled, Entry("a/byteorder", bytes(1000)), numbers, version], "not little-endian"),
        "a large pickle": ([Entry("a/data.pkl", bytes((16 << 20) + 1)), order, numbers], "more than 16 MiB"),
        "many entries": ([*sound, *(Entry(f"a/{k}", b"") for k in range(10_100))], "more than 10,000 entries"),
    }
    for label, (content, says) in files.items():
        yield Attack(label, "zip", archive(content), says)
    yield Attack("two files in one", "zip", archive(sound, b"PK\3\4" + bytes(96)), "stands before")
    whole = archive(sound)
    for cut in (30, len(whole) // 2, len(whole) - 10):
        yield Attack(f"cut at {cut}", "truncated", whole[:cut], "damaged")


def streams() -> Iterator[Attack]:
    """The older layout, lying; and files that are something else."""
    value = checkpoint()
    whole = stream(value)
    chains = b"](" + b"]q\x00" + b"](h\x00h\x00eq\x00" * 60
    chains += b"]q\x01" + b"](h\x01h\x01eq\x01" * 60
    programs = {
        "no magic number": (stream(value, magic=1), "not one that PyTorch"),
        "another version": (stream(value, version=1002), "not one that PyTorch"),
        "big-endian": (stream(value, system=SYSTEM | {"little_endian": False}), "not little-endian"),
        "no machine": (stream(value, system=[1]), "not little-endian"),
        "a key too many": (stream(value, keys=["0", "1"]), "does not name"),
        "a key twice": (stream(value, keys=["0", "0"]), "does not name"),
        "no key": (stream(value, keys=[]), "does not name"),
        "keys of lists": (stream(value, keys=[["0"]]), "does not name"),
        "keys in a tuple": (stream(value, keys=("0",)), "does not name"),
        "keys that are long to compare": (stream(value, keys=Raw(chains + b"e")), "does not name"),
        "another count": (stream(value, sizes={"0": 8}), "which are not there"),
        "a storage that is not there": (stream(checkpoint(weight=tensor(base=storage(numel=1 << 61)))), "not there"),
        "more behind": (whole + b"x", "follow its last storage"),
        "a zip behind": (whole + zipped(value), "follow its last storage"),
    }
    for label, (data, says) in programs.items():
        yield Attack(label, "stream", data, says)
    for cut in (1, 20, len(whole) // 2, len(whole) - 1):
        yield Attack(f"cut at {cut}", "truncated", whole[:cut], "too early|cut short|not there")
    with io.BytesIO() as out:
        with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for label, target in (("storages", "/etc/passwd"), ("pickle", "../../evil")):
                link = tarfile.TarInfo(label)
                link.type, link.linkname = tarfile.SYMTYPE, target
                tar.addfile(link)
        tarred = out.getvalue()
    neither = "neither of PyTorch's two layouts"
    yield Attack("a tar of links", "tar", tarred, "tar archive")
    yield Attack("a packed tar", "tar", gzip.compress(tarred), neither)
    yield Attack("an empty file", "other", b"", neither)
    yield Attack("noise", "other", bytes(range(255, 200, -1)) * 100, neither)
    yield Attack("a web page", "other", b"<!DOCTYPE html><html>Too many users have viewed this file", "web page")


def attacks(marker: Path) -> list[Attack]:
    """All of them."""
    makers = (instructions, names, bombs, storages, archives, streams)
    return [*executing(marker), *itertools.chain.from_iterable(make() for make in makers)]
