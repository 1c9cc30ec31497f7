"""Bytes of features read as another type of number: refused by their looks; --feature-dtype says what they are."""

import base64

import ml_dtypes
import numpy as np
import pytest
from importing import karpathy_json, refused, run

from xmodal_jax.data.sources.dtypes import likely_type
from xmodal_jax.errors import DataError

TYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32, "float64": np.float64}
RANDOM = np.random.default_rng(0)
LIKELY = {  # what features look like
    "normal": RANDOM.normal(size=4096),
    "ReLU": np.maximum(RANDOM.normal(size=4096), 0) * 3,
    "sparse": np.maximum(RANDOM.normal(size=4096) - 1.5, 0),
    "unit length": RANDOM.normal(size=4096) / 45,
    "narrow": np.abs(RANDOM.normal(size=4096)) + 0.5,
    "wide": np.exp(2 * RANDOM.normal(size=4096)),
    "softmax": np.exp(2 * RANDOM.normal(size=4096)) / 30000,
    "whole numbers": RANDOM.integers(0, 20, 4096),
    "one-hot": np.eye(32).ravel(),
    "few": np.repeat(np.arange(1, 7), 24),
    "once float16": RANDOM.normal(size=4096).astype(np.float16),
}


@pytest.mark.parametrize("name", LIKELY)
def test_the_right_type_is_believed_and_a_wrong_one_found(name):
    for dtype, kind in TYPES.items():
        values = LIKELY[name].astype(kind)
        assert likely_type(values) is None
        if kind != np.float32:
            wrong = "float16" if dtype == "bfloat16" and name in ("one-hot", "few") else dtype
            assert likely_type(np.frombuffer(values.tobytes(), np.float32)) in (dtype, wrong)
    assert likely_type(np.frombuffer(LIKELY[name].astype(np.float32).tobytes(), np.float64)) == "float32"
    assert likely_type(np.frombuffer(LIKELY[name].astype(np.float32).tobytes(), np.float16)) == "float32"


def encode(array):
    return base64.b64encode(array.tobytes()).decode()


def make_tsv(path, dtype, boxes=np.float32):
    features = np.random.default_rng(0).normal(size=(6, 3, 16)).astype(dtype)
    rows = [
        f"{n}\t100\t50\t3\t{encode(np.array([[0, 0, 50, 25]] * 3, boxes))}\t{encode(value)}\n"
        for n, value in enumerate(features)
    ]
    path.write_text("".join(rows))
    return features


@pytest.mark.parametrize("boxes", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("dtype", TYPES)
def test_a_tsv(tmp_path, dtype, boxes):
    captions = str(karpathy_json(tmp_path / "dataset_x.json", [{"filename": f"{n}.jpg"} for n in range(6)]))
    features = make_tsv(tmp_path / "a.tsv", TYPES[dtype], boxes)
    if dtype != "float32":
        message = rf"a\.tsv: read as float32, .* look like the bytes of {dtype}; give --feature-dtype {dtype}"
        refused(message, DataError, "butd", tmp_path / "a.tsv", tmp_path, captions=captions)
    data = run("butd", tmp_path / "a.tsv", tmp_path, captions=captions, feature_dtype=dtype)
    items = [item for name in data.splits for item in data.split(name).read(range(len(data.split(name))))]
    for item, want in zip(items, features, strict=True):
        np.testing.assert_array_equal(item.features["region"], want.astype(np.float32))
        assert item.boxes is not None and item.boxes.tolist() == [[0, 0, 0.5, 0.5]] * 3


def test_odd_numbers_of_bytes_name_the_type_that_fits(tmp_path):
    captions = str(karpathy_json(tmp_path / "dataset_x.json", [{"filename": f"{n}.jpg"} for n in range(3)]))
    boxes = encode(np.array([[0, 0, 50, 25]] * 3, np.float32))
    rows = [f"{n}\t100\t50\t3\t{boxes}\t{encode(np.ones((1, 3), np.float16))}\n" for n in range(3)]
    (tmp_path / "a.tsv").write_text("".join(rows))
    message = "6 bytes are not 3 rows of float32; --feature-dtype float16 would fit"
    refused(message, DataError, "butd", tmp_path / "a.tsv", tmp_path, captions=captions)


def test_an_array(tmp_path):
    folder = tmp_path / "src"
    folder.mkdir()
    (folder / "train_caps.txt").write_text("".join(f"caption {n}\n" for n in range(6)))
    features = np.random.default_rng(0).normal(size=(6, 3, 16)).astype(np.float16)
    for stored in (np.float32, np.uint16):
        np.save(folder / "train_ims.npy", features.view(stored))
        message = "look like the bytes of float16" if stored == np.float32 else "found uint16.*give --feature-dtype"
        refused(message, DataError, "precomp", folder, tmp_path)
        data = run("precomp", folder, tmp_path / stored.__name__, feature_dtype="float16")
        for item, want in zip(data.split("train").read(range(6)), features, strict=True):
            np.testing.assert_array_equal(item.features["region"], want)
    np.save(tmp_path / "f.npy", features.view(np.float32))
    captions = karpathy_json(tmp_path / "dataset_x.json", [{"filename": f"{n}.jpg"} for n in range(6)])
    options = {"features": [str(tmp_path / "f.npy")]}
    refused("f.npy: read as float32", DataError, "karpathy", captions, tmp_path, **options)
    data = run("karpathy", captions, tmp_path, feature_dtype="float32", **options)
    assert data.split("train").read([0])[0].features["region"].shape == (3, 8)
    np.save(tmp_path / "f.npy", np.ones((6, 3, 3), np.float32))
    message = r"3 x float32 are no whole number of float64 \(--feature-dtype\)"
    refused(message, DataError, "karpathy", captions, tmp_path / "b", feature_dtype="float64", **options)
