"""The restricted reader: it reads PyTorch's two layouts to the bit, and no attack is executed or slow."""

import argparse
import os
import pickle
import resource
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from attacks import attacks, calls
from conftest import GOLDEN
from torch_files import (
    Raw,
    archive,
    call,
    checkpoint,
    entries,
    fill,
    instance,
    name,
    put,
    run,
    storage,
    stream,
    tensor,
    zipped,
)

from xmodal_jax.errors import CheckpointError
from xmodal_jax.torch_files import pth

MARKER = Path(tempfile.gettempdir()) / f"xmodal-attack-{os.getpid()}"
ATTACKS = attacks(MARKER)
NAMES = [f"{attack.kind}: {attack.name}" for attack in ATTACKS]


def test_there_are_attacks_of_every_class():
    assert len(set(NAMES)) == len(NAMES) >= 60
    kinds = {name.partition(":")[0] for name in NAMES}
    assert kinds >= {"reduce", "nested", "setstate", "global", "instruction", "names", "bomb", "storage", "zip", "tar"}


@pytest.mark.parametrize("attack", ATTACKS, ids=NAMES)
def test_an_attack_is_refused_and_not_executed(attack, tmp_path):
    path = tmp_path / "model_best.pth.tar"
    path.write_bytes(attack.data)
    start = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])  # processor time: other tests run beside this
    with pytest.raises(CheckpointError, match=attack.says) as caught:
        pth.read(path)
    assert sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2]) - start < 5
    assert not MARKER.exists()
    message = str(caught.value)
    assert message.startswith(f"{path} is refused, and nothing in it was executed: ")
    assert "\n" not in message and len(message) < 500
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("call", calls(MARKER))
def test_the_same_calls_are_executed_by_pickle(call, tmp_path):
    """Otherwise the markers above would prove nothing."""
    marker = tmp_path / "executed"
    load = "import pickle, sys; pickle.loads(sys.stdin.buffer.read())"
    data = run(calls(marker)[call], protocol=4 if "dots" in call else 2)
    subprocess.run([sys.executable, "-c", load], input=data, capture_output=True, timeout=60)
    for _ in range(50):  # os.popen and Popen do not wait
        if marker.exists():
            return
        time.sleep(0.1)
    pytest.fail(f"{call} makes no marker")


def write(folder, data):
    path = folder / "file.pth"
    path.write_bytes(data)
    return path


# What is sound


@pytest.mark.parametrize("layout", [zipped, stream])
def test_both_layouts_give_plain_data_and_arrays(layout, tmp_path):
    found = pth.read(write(tmp_path, layout(checkpoint())))
    (image, text), weight = found["model"], found["model"][0]["weight"]
    assert (found["epoch"], found["opt"], text, list(image)) == (3, {"margin": 0.2}, {}, ["weight"])
    assert weight.dtype == np.float32 and weight.flags.writeable
    np.testing.assert_array_equal(weight, [[0, 1, 2], [3, 4, 5]])


def test_harmless_things_in_options_are_read_as_text_and_lists(tmp_path):
    """As PyTorch's protocol 2 writes them, and as protocol 4 and other versions of Python do."""
    options = {
        "device": call("torch", "device", "cuda", 1),
        "cpu": call("torch", "device", "cpu"),
        "size": call("torch", "Size", (3, 224, 224)),
        "dtype": name("torch", "bfloat16"),
        "path": call("pathlib", "PosixPath", "/", "home", "somebody", "runs"),
        "relative": call("pathlib._local", "PosixPath", "data", "f30k"),
        "empty": call("pathlib", "PurePosixPath"),
        "windows": call("pathlib", "WindowsPath", "C:\\", "data", "f30k"),
        "splits": call("__builtin__", "set", ["dev", "test"]),
        "frozen": call("builtins", "frozenset", [1, 2]),
        "nothing": call("builtins", "set"),
        "later": Raw(b"\x8f(" + put("a") + put("b") + b"\x90"),
        "fixed": Raw(b"(" + put("a") + put("b") + b"\x91"),
    }
    data = run(checkpoint(opt=instance("argparse", "Namespace", options)), 4)
    found = pth.read(write(tmp_path, zipped(data)))["opt"]
    assert found == {
        "device": "cuda:1",
        "cpu": "cpu",
        "size": (3, 224, 224),
        "dtype": "torch.bfloat16",
        "path": "/home/somebody/runs",
        "relative": "data/f30k",
        "empty": "",
        "windows": "C:\\data\\f30k",
        "splits": ["dev", "test"],
        "frozen": [1, 2],
        "nothing": [],
        "later": ["a", "b"],
        "fixed": ["a", "b"],
    }
    (tmp_path / "own.pkl").write_bytes(zipped(pickle.dumps({"here": Path("/a/b"), "some": {"x"}}, 2)))
    assert pth.read(tmp_path / "own.pkl") == {"here": "/a/b", "some": ["x"]}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (call("torch", "device", 3), "a device that PyTorch does not know"),
        (call("torch", "device", "cuda", "0"), "a device that PyTorch does not know"),
        (call("torch", "device", "c" * 41), "a device that PyTorch does not know"),
        (call("torch", "Size", [2]), "a size that no tensor has"),
        (call("torch", "Size", (1,) * 9), "a size that no tensor has"),
        (call("torch", "Size", (-1,)), "a size that no tensor has"),
        (call("pathlib", "PosixPath", *"a" * 101), "a path of more parts or characters"),
        (call("pathlib", "PosixPath", "a" * 4097), "a path of more parts or characters"),
        (call("pathlib", "PosixPath", name("os", "system")), "asks for os.system"),
        (call("pathlib", "PosixPath", 1), "of other things than strings"),
        (call("pathlib", "os.system", "x"), "asks for pathlib.os.system"),
        (call("builtins", "set", "abc"), "a set that is not made of a list"),
        (call("builtins", "list", ["abc"]), "asks for builtins.list"),
        (Raw(name("torch", "float32") + put(("x",)) + b"R"), "calls something that is no name"),
        (Raw(name("torch", "device") + b")\x81"), "calls torch.device"),
        (Raw(put({}) + b"(" + put("a") + b"\x90"), "makes no sense at ADDITEMS"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_harmless_names_with_other_arguments_are_refused(value, says, tmp_path):
    with pytest.raises(CheckpointError, match=says):
        pth.read(write(tmp_path, zipped(checkpoint(opt=value))))


def test_a_path_named_many_times_takes_no_time(tmp_path):
    many = call("pathlib", "PosixPath", *["a" * 40] * 100)
    start = time.monotonic()
    pth.read(write(tmp_path, zipped(checkpoint(opt=[many] * 500))))
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("layout", [zipped, stream])
def test_views_types_and_shared_storages(layout, tmp_path):
    views = {
        "turned": tensor((3, 2), (1, 3)),
        "part": tensor((2,), (2,), 1),
        "scalar": tensor((), (), 0, storage("1", 1, "LongStorage")),
        "half": tensor((2,), (1,), 0, storage("2", 2, "HalfStorage")),
        "brain": tensor((2,), (1,), 0, storage("3", 2, "BFloat16Storage")),
        "double": tensor((1,), (1,), 0, storage("4", 1, "DoubleStorage")),
        "flags": tensor((3,), (1,), 0, storage("5", 3, "BoolStorage")),
        "old": call("torch._utils", "_rebuild_tensor", storage(), 0, (6,), (1,)),
        "learned": call("torch._utils", "_rebuild_parameter", tensor(), True, call("collections", "OrderedDict")),
    }
    half = np.array([1.5, -2], "<f2")
    brain = (np.array([1.5, -3], "<f4").view("<u4") >> 16).astype("<u2")
    numbers = {
        "0": struct.pack("<6f", *range(6)),
        "1": struct.pack("<q", -7),
        "2": half.tobytes(),
        "3": brain.tobytes(),
        "4": struct.pack("<d", np.pi),
        "5": b"\1\0\1",
    }
    sizes = {"1": 8, "2": 2, "3": 2, "4": 8, "5": 1}
    value = checkpoint(more=views)
    data = zipped(value, numbers) if layout is zipped else stream(value, numbers, sizes=sizes)
    found = pth.read(write(tmp_path, data))["more"]
    whole = np.arange(6, dtype="f4").reshape(2, 3)
    expected = {
        "turned": whole.T,
        "part": [1, 3],
        "scalar": -7,
        "half": half,
        "brain": [1.5, -3],
        "double": [np.pi],
        "flags": [1, 0, 1],
        "old": whole.ravel(),
        "learned": whole,
    }
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array, err_msg=key)
    assert found["scalar"].dtype == np.int64 and found["brain"].dtype == np.float32


def test_plain_values_survive(tmp_path):
    dtype = Raw(call("numpy", "dtype", "f8", False, True) + put((3, "<", None, None, None, -1, -1, 0)) + b"b")
    latin = struct.pack("<d", 351.2).decode("latin-1")
    addict = Raw(name("addict.addict", "Dict") + b")\x81q\x05" + fill({"lr": 1e-3}) + b"h\x05b")  # its own state
    value = {
        "opt": {"a": None, "b": True, "c": -5, "d": 1 << 40, "e": "ü", "f": [1, (2, "x")], 3: float("inf")},
        "rsum": call("numpy.core.multiarray", "scalar", dtype, call("_codecs", "encode", latin, "latin1")),
        "count": call("numpy._core.multiarray", "scalar", call("numpy", "dtype", "i8", False, True), b"\7" + bytes(7)),
        "args": addict,
        "pairs": call("collections", "OrderedDict", [["x", 1]]),
        "python 2": Raw(b"U\x02ab"),
        "bytes": b"raw",
        "optimizer": {"state": [1]},
    }
    found = pth.read(write(tmp_path, zipped(value)))
    assert found.pop("opt") == value["opt"]
    assert found == {
        "rsum": 351.2,
        "count": 7,
        "args": {"lr": 1e-3},
        "pairs": {"x": 1},
        "python 2": "ab",
        "bytes": "raw",
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_protocols_of_python_are_read(protocol, tmp_path):
    value = {"opt": argparse.Namespace(margin=0.2, words=["a"] * 3), "n": 1 << 33, "model": [{}, ()]}
    expected = {**value, "opt": {"margin": 0.2, "words": ["a"] * 3}}
    assert pth.read(write(tmp_path, zipped(pickle.dumps(value, protocol)))) == expected


def test_a_vocabulary_has_its_own_list(tmp_path):
    path = write(tmp_path, run(instance("vocab", "Vocabulary", {"word2idx": {"<pad>": 0}, "idx": 1})))
    assert pth.read(path, kind="vocabulary") == {"word2idx": {"<pad>": 0}, "idx": 1}
    for bad, says in (
        (run(tensor()), "asks for torch"),
        (run(instance("argparse", "Namespace", {})), "asks for argparse.Namespace"),
        (run({}) + b"x", "bytes follow"),
    ):
        with pytest.raises(CheckpointError, match=says):
            pth.read(write(tmp_path, bad), kind="vocabulary")


@pytest.mark.parametrize(("system", "arrays"), [("scan", "scan_model_t2i"), ("vsepp", "vsepp_model_cosine")])
def test_the_originals_own_checkpoints(system, arrays):
    found = pth.read(GOLDEN / f"{system}_checkpoint.pth.tar")
    golden = np.load(GOLDEN / f"{arrays}.npz")
    expected = {key.removeprefix("w/"): golden[key] for key in golden.files if key.startswith("w/")}
    tensors = {
        f"{side}/{key}": array
        for side, state in zip(("img", "txt"), found["model"], strict=True)
        for key, array in state.items()
    }
    assert tensors.keys() == expected.keys()
    for key, array in tensors.items():
        np.testing.assert_array_equal(array, expected[key], err_msg=key)
    assert found["opt"]["embed_size"] == 24


def test_damage_is_found(tmp_path):
    """The zip layout has checksums: of flipped bits in it none gives other numbers."""
    good = zipped(checkpoint())
    weight = [[0, 1, 2], [3, 4, 5]]
    random = np.random.default_rng(0)
    refused = 0
    for place in random.choice(len(good), 25, replace=False):
        bad = bytearray(good)
        bad[place] ^= 1 << int(random.integers(8))
        try:
            found = pth.read(write(tmp_path, bytes(bad)))
        except CheckpointError:
            refused += 1
        else:
            np.testing.assert_array_equal(found["model"][0]["weight"], weight)
    assert refused >= 10


# Limits of the child


def test_memory_is_limited(tmp_path):
    count = 32 << 20
    path = write(tmp_path, zipped(checkpoint(tensor((count,), (1,), 0, storage("0", count))), {"0": bytes(4 * count)}))
    assert pth.read(path)["model"][0]["weight"].shape == (count,)
    with pytest.raises(CheckpointError, match=r"more than the 100 MiB that are allowed"):
        pth.read(path, memory=100 << 20)


def test_time_is_limited(tmp_path):
    path = write(tmp_path, zipped(Raw(b"(" + b"N" * 200_000 + b"t")))
    with pytest.raises(CheckpointError, match="takes more than 0 s"):
        pth.read(path, seconds=0)


CHECK = """
import sys
from xmodal_jax.torch_files import unpickle
unpickle.limit(1 << 30, 5, 1000)
import os, resource
assert not {"numpy", "jax", "flax"} & set(sys.modules)
for limit in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC):
    assert resource.getrlimit(limit)[0] in (1 << 30, 5, 1000, 0)
while True:
    pass
"""


def test_the_child_is_small_and_ends_by_itself():
    start = time.monotonic()
    code = subprocess.run([sys.executable, "-S", "-c", CHECK], cwd=pth.ROOT, timeout=60, capture_output=True).returncode
    assert code < 0 and time.monotonic() - start < 50


def test_a_reader_that_dies_or_lies_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path, zipped(checkpoint()))
    monkeypatch.setattr(pth, "CHILD", "xmodal_jax.no_such_module")
    with pytest.raises(CheckpointError, match=r"its reader failed \(exit code 1\)"):
        pth.read(path)
    cases = (
        (-9, "{}", 9, r"more than 60 s or more memory than there is"),
        (1, "{}", 9, r"failed \(exit code 1\)"),
        (0, None, 9, r"failed \(exit code 0\)"),
        (0, "[[[[]]]]", 3, r"failed \(exit code 0\)"),
        (0, "{]", 9, r"answer makes no sense"),
        (0, "[]", 9, r"answer makes no sense"),
    )
    for code, answer, most, says in cases:

        def fake(command, *, cwd, code=code, answer=answer, **_):
            if answer is not None:
                (cwd / "answer.json").write_text(answer)
            return subprocess.CompletedProcess(command, code)

        monkeypatch.setattr(pth, "ANSWER", most)
        monkeypatch.setattr(pth.subprocess, "run", fake)
        with pytest.raises(CheckpointError, match=says):
            pth.read(path)
    (tmp_path / "tensors").write_bytes(bytes(8))
    for listing in (["f4", 2, [3], [1]], ["f4", 3, [3], [1]], ["O8", 1, [1], [1]], ["f4", 2, [2, 3], [-1, 1]]):
        with pytest.raises(ValueError, match=r"numbers for the shape|an array of type"):
            pth.tensors(tmp_path / "tensors", [listing], 100)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="is not a file; give the path of the checkpoint"):
        pth.read(tmp_path)


def test_entries_between_and_gaps_are_no_offence(tmp_path):
    """PyTorch aligns its storages and adds notes of its own."""
    more = entries(checkpoint())
    more.insert(1, more[0]._replace(name="a/.data/serialization_id", data=b"0" * 40))
    assert pth.read(write(tmp_path, archive(more)))["epoch"] == 3
    older = [entry for entry in more if entry.name != "a/byteorder"]  # before PyTorch 2.1
    assert pth.read(write(tmp_path, archive(older)))["epoch"] == 3
