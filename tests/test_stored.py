"""Arrays on disk: they read as NumPy's do, and one that is cut short is an error and never the end of the process."""

import os
import threading

import numpy as np
import pytest

from xmodal_jax.errors import CheckpointError
from xmodal_jax.inference.stored import Stored

ARRAY = np.random.default_rng(0).normal(size=(40, 3, 5)).astype(np.float16)


@pytest.fixture
def path(tmp_path):
    np.save(tmp_path / "a.npy", ARRAY)
    return tmp_path / "a.npy"


@pytest.mark.parametrize(
    "rows",
    [
        0,
        -1,
        np.int64(7),
        slice(None),
        slice(3, 9),
        slice(9, 3),
        slice(-5, None),
        slice(None, None, 7),
        [],
        [3],
        [3, 4, 5, 9, 9, 0, -1],
        np.arange(40)[::-1],
        np.array([[1, 2], [2, 39]]),
    ],
)
def test_it_reads_as_the_array(path, rows):
    stored = Stored(path, "again")
    assert (stored.shape, stored.dtype, stored.ndim, stored.size, len(stored)) == ((40, 3, 5), np.float16, 3, 600, 40)
    got = stored[rows]
    want = ARRAY[np.asarray(rows, int)] if isinstance(rows, list) else ARRAY[rows]
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(np.asarray(stored, np.float32), ARRAY.astype(np.float32))


def test_no_rows(tmp_path):
    np.save(tmp_path / "a.npy", ARRAY[:0])
    assert Stored(tmp_path / "a.npy", "again")[:].shape == (0, 3, 5)


@pytest.mark.parametrize("rows", [40, [-41], [0.5], np.ones(40, bool)])
def test_rows_that_there_are_not(path, rows):
    with pytest.raises(IndexError):
        Stored(path, "again")[rows]


def test_a_file_cut_short_while_it_is_open(path):
    stored = Stored(path, "fetch it again")
    os.truncate(path, path.stat().st_size - 1)
    np.testing.assert_array_equal(stored[:39], ARRAY[:39])
    with pytest.raises(CheckpointError, match=r"a\.npy has been cut short since it was opened; fetch it again"):
        stored[39]
    os.truncate(path, 0)
    with pytest.raises(CheckpointError, match="cut short"):
        stored[:]


def test_a_file_that_is_replaced_is_read_on(path):
    stored = Stored(path, "again")
    path.rename(path.with_name("old.npy"))
    np.save(path, np.zeros_like(ARRAY))
    np.testing.assert_array_equal(stored[:], ARRAY)


@pytest.mark.parametrize(
    "array", [np.array(3.0), np.array(["a"]), np.array([{}], object), np.asfortranarray(np.ones((3, 2)))]
)
def test_what_is_no_array_of_rows(tmp_path, array):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(CheckpointError, match=r"a\.npy"):
        Stored(tmp_path / "a.npy", "again")


def test_sizes_are_held_against_the_header(path):
    raw = path.read_bytes()
    for content in (raw[:-1], raw + b"0", b"", b"\x93NUMPY\x07\x00", raw.replace(b"(40, 3, 5)", b"(-9,-3, 5)")):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"a\.npy"):
            Stored(path, "again")


def test_threads_read_their_own_rows(path):
    stored, wrong = Stored(path, "again"), []

    def read(seed):
        for rows in np.random.default_rng(seed).integers(0, 40, (200, 9)):
            if not np.array_equal(stored[rows], ARRAY[rows]):
                wrong.append(rows)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
