"""Import of Karpathy's dataset_*.json, with features in the order of its images."""

import json
import struct

import numpy as np
import pytest
from importing import refused, run
from test_precomp import make_pictures, numbers

from xmodal_jax.errors import DataError, UsageError

SPLITS = ("train", "restval", "val", "test", "train")


def make_json(path, **extra):
    images = [
        {
            "filename": f"COCO_val2014_{900 + index:012d}.jpg",
            "filepath": "val2014",
            "imgid": index,
            "cocoid": 900 + index,
            "split": split,
            "sentences": [{"raw": f"Sentence {turn} of {index}."} for turn in range(1 + index)],
        }
        for index, split in enumerate(SPLITS)
    ]
    path.write_text(json.dumps({"images": images, **extra}))
    return path


def test_karpathy_in_json_order(tmp_path):
    source = make_json(tmp_path / "dataset_tiny.json")
    np.save(tmp_path / "feats.npy", numbers(5, 7))
    data = run("karpathy", source, tmp_path, features=[str(tmp_path / "feats.npy")])
    assert data.manifest["name"] == "tiny" and data.splits == ["train", "dev", "test", "restval"]
    assert data.split("train").ids == ["900", "904"] and data.split("dev").ids == ["902"]
    assert len(data.split("train").captions[1]) == 5
    np.testing.assert_array_equal(data.split("train").read([1])[0].features["global"], numbers(5, 7)[4])


def test_karpathy_restval_ids_and_pictures(tmp_path, capsys):
    source = make_json(tmp_path / "dataset_tiny.json")
    np.save(tmp_path / "feats.npy", numbers(4, 3, 7))
    (tmp_path / "ids.txt").write_text("904\n903\n901\n900\n")  # cocoids in another order, one image missing
    pictures = make_pictures(tmp_path / "coco", ["val2014/COCO_val2014_000000000900.jpg"])
    data = run(
        "karpathy",
        source,
        tmp_path,
        features=[str(tmp_path / "feats.npy")],
        ids=str(tmp_path / "ids.txt"),
        images=str(pictures),
        restval_to_train=True,
        name="mine",
    )
    split = data.split("train")
    assert data.manifest["name"] == "mine" and data.splits == ["train", "test"] and split.ids == ["900", "901", "904"]
    for item, row in zip(split.read(range(3)), (3, 2, 0), strict=True):
        np.testing.assert_array_equal(item.features["region"], numbers(4, 3, 7)[row])
    assert [path is not None for path in split.pictures] == [True, False, False]
    out = capsys.readouterr().out
    assert "1 x image without features" in out and "split dev: left out, nothing of it was kept" in out


def test_karpathy_pictures_alone(tmp_path):
    source = make_json(tmp_path / "dataset_tiny.json")
    pictures = make_pictures(tmp_path / "coco", [f"COCO_val2014_{900 + i:012d}.jpg" for i in range(4)])
    data = run("karpathy", source, tmp_path, images=str(pictures))
    assert data.split("train").ids == ["900"] and data.split("train").feature_names == []


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_karpathy_matlab_features(tmp_path, compressed, dtype):
    from scipy.io import savemat

    source, path = make_json(tmp_path / "dataset_tiny.json"), tmp_path / "vgg_feats.mat"
    feats = numbers(5, 700, dtype=dtype)
    savemat(path, {"other": np.ones((2, 2)), "feats": feats.T}, do_compression=compressed)
    data = run("karpathy", source, tmp_path, features=[str(path)])
    (item,) = data.split("test").read([0])
    np.testing.assert_array_equal(item.features["global"], feats[3].astype(np.float32))


def test_karpathy_matlab_bad_input(tmp_path):
    from scipy.io import savemat

    source, path = make_json(tmp_path / "dataset_tiny.json"), tmp_path / "vgg_feats.mat"
    savemat(path, {"feats": numbers(5, 700, dtype=np.float32).T}, do_compression=True)
    whole = path.read_bytes()
    for data, message in (
        (whole[:-20], "cut short"),
        (whole[:200] + bytes(50) + whole[250:], "damaged"),
        (b"MATLAB 7.3 MAT-file" + whole[19:], "not a MATLAB 5 file"),
        (whole[:100], "not a MATLAB 5 file"),
    ):
        path.write_bytes(data)
        refused(f"vgg_feats.mat: .*{message}", DataError, "karpathy", source, tmp_path, features=[str(path)])
    savemat(path, {"feats": numbers(5, 700, dtype=np.float32).T})
    path.write_bytes(path.read_bytes().replace(struct.pack("<ii", 700, 5), struct.pack("<ii", 350, 5)))
    refused("14000 bytes for 350 x 5", DataError, "karpathy", source, tmp_path, features=[str(path)])
    savemat(path, {"fits": np.ones((7, 5))})
    refused('no matrix of floats "feats"', DataError, "karpathy", source, tmp_path, features=[str(path)])


def test_karpathy_bad_input(tmp_path):
    source = make_json(tmp_path / "dataset_tiny.json")
    refused("Captions alone", UsageError, "karpathy", source, tmp_path)
    np.save(tmp_path / "feats.npy", numbers(4, 7))
    options = {"features": [str(tmp_path / "feats.npy")]}
    refused("4 rows for 5 images", DataError, "karpathy", source, tmp_path, **options)
    (tmp_path / "ids.txt").write_text("a\nb\nc\nd\n")
    refused("fit no image", DataError, "karpathy", source, tmp_path, ids=str(tmp_path / "ids.txt"), **options)
    (tmp_path / "ids.txt").write_text("900\n")
    refused("1 ids for the 4 rows", DataError, "karpathy", source, tmp_path, ids=str(tmp_path / "ids.txt"), **options)
    for text, message in (
        ("{", "not valid JSON"),
        ("[]", 'no list "images"'),
        ('{"images": [3]}', r"images\[0\] is not an object"),
        ('{"images": [{"filename": "a", "split": "train"}]}', r'images\[0\] has no "sentences"'),
        ('{"images": [{"filename": "a", "split": "train", "sentences": [{"raw": 1}]}]}', 'no text "raw"'),
        ("[" * 100_000, "not valid JSON"),
    ):
        source.write_text(text)
        refused(message, DataError, "karpathy", source, tmp_path, **options)
