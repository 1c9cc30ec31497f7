"""Importers: damage of any kind to any source raises errors of the package alone."""

import numpy as np
import pytest
from importing import run
from test_butd import make_row, make_tsv
from test_csv import make_csv
from test_karpathy import make_json
from test_precomp import make_precomp, numbers

from xmodal_jax.errors import DataError, UsageError


def mutate(data, rng):
    """A few bits flipped, bytes cut, doubled or put in between."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        left, right = sorted(rng.integers(0, len(data) + 1, 2).tolist())
        change = rng.integers(4)
        if change == 0 and left < len(data):
            data[left] ^= 1 << int(rng.integers(8))
        elif change == 1:
            del data[left : min(right, left + 30)]
        elif change == 2:
            data[left:left] = data[left : min(right, left + 30)]
        else:
            data[left:left] = rng.choice(
                [b"\n", b"\t", b",", b'"', b"-1", b"1e999", b"NaN", b"\xff", b"\0", b"\\ud800"]
            )
    return bytes(data)


def make_all(folder):
    """Kind, options and files of one import of each kind."""
    make_precomp(folder / "pre", boxes=np.zeros((3, 4, 4), np.float32))
    (folder / "pre" / "train_ids.txt").write_text("a\nb\nc\n")
    captions = make_json(folder / "dataset_tiny.json")
    np.save(folder / "f.npy", numbers(5, 7))
    (folder / "ids.txt").write_text("".join(f"{900 + index}\n" for index in range(5)))
    table = make_csv(folder / "t.csv", rows=[(f"{900 + i}", '"a, b"') for i in range(5)], header=("image", "caption"))
    rows = make_tsv(folder / "a.tsv", [make_row(900 + index) for index in range(5)])
    features = {"features": [str(folder / "f.npy")], "ids": str(folder / "ids.txt")}
    files = [folder / "f.npy", folder / "ids.txt"]
    return [
        ("precomp", folder / "pre", {}, sorted((folder / "pre").iterdir())),
        ("karpathy", captions, features, [captions, *files]),
        ("csv", table, features, [table, *files]),
        ("butd", rows, {"captions": str(captions), "max_broken": 0.5}, [captions, rows]),
    ]


@pytest.mark.parametrize("turn", range(4))
def test_damaged_files_raise_our_errors_only(tmp_path, turn):
    kind, source, options, files = make_all(tmp_path)[turn]
    rng = np.random.default_rng(turn)
    ends = {"refused": 0, "kept": 0}
    for number in range(40):
        path = files[number % len(files)]
        whole = path.read_bytes()
        path.write_bytes(mutate(whole, rng))
        out = tmp_path / f"out{number}"
        try:
            data = run(kind, source, out, **options)
            for split in data.splits:
                data.split(split).read(range(len(data.split(split))))
            ends["kept"] += 1
        except (DataError, UsageError):
            ends["refused"] += 1
            assert not out.exists() or list(out.iterdir()) == []
        path.write_bytes(whole)
    assert ends["refused"] >= 10
    run(kind, source, tmp_path / "whole", **options)
