"""Importers: what each layout means, and what each kind of bad input says."""

import base64
import json
import struct
import time
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from importing import refused, run

from xmodal_jax.data.records import open_dataset
from xmodal_jax.errors import DataError, UsageError


def numbers(*shape, dtype: Any = np.float16):
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


def make_pictures(folder, names, size=(6, 4)):
    from PIL import Image

    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(folder / name)
    return folder


# precomp


def make_precomp(folder, split="train", images=3, per_image=2, **arrays):
    folder.mkdir(exist_ok=True)
    arrays = {"ims": numbers(images, 4, 5), **arrays}
    for name, array in arrays.items():
        np.save(folder / f"{split}_{name}.npy", array)
    lines = [f"Caption {turn} of {split} image {image}" for image in range(images) for turn in range(per_image)]
    (folder / f"{split}_caps.txt").write_text("".join(line + "\n" for line in lines))
    return folder


def test_precomp_stores_features_boxes_ids_and_captions(tmp_path):
    boxes = np.tile(np.array([0, 0, 0.5, 1.001], np.float16), (3, 4, 1))
    folder = make_precomp(tmp_path / "src", boxes=boxes, glob=numbers(3, 7), obj=np.zeros((3, 4), np.int8))
    make_precomp(folder, "testall", boxes=boxes, glob=numbers(3, 7))
    make_precomp(folder, "dev", boxes=boxes, glob=numbers(3, 7))
    (folder / "train_ids.txt").write_text("a\nb\nc\n")
    data = run("precomp", folder, tmp_path, features=["ims,glob"])
    assert data.splits == ["train", "dev", "testall"]
    split = data.split("train")
    assert split.ids == ["a", "b", "c"] and data.split("dev").ids == ["dev_0", "dev_1", "dev_2"]
    assert split.captions[1] == ["Caption 0 of train image 1", "Caption 1 of train image 1"]
    for row, item in enumerate(split.read(range(3))):
        assert item.features["region"].dtype == item.features["global"].dtype == np.float16
        np.testing.assert_array_equal(item.features["region"], np.load(folder / "train_ims.npy")[row])
        np.testing.assert_array_equal(item.features["global"], np.load(folder / "train_glob.npy")[row])
        np.testing.assert_array_equal(item.boxes, [[0, 0, 0.5, 1]] * 4)


def test_precomp_chooses_the_array_and_a_flat_one_is_global(tmp_path):
    folder = make_precomp(tmp_path / "src", ims=numbers(3, 9, dtype=np.float32))
    (item,) = run("precomp", folder, tmp_path).split("train").read([2])
    assert item.features["global"].shape == (9,) and item.features["global"].dtype == np.float32
    assert "region" not in item.features


@pytest.mark.parametrize(
    ("dtype", "stored"), [("float64", "float32"), (">f4", "float32"), (ml_dtypes.bfloat16, "bfloat16")]
)
def test_precomp_dtypes(tmp_path, dtype, stored):
    array = numbers(3, 4, 5).astype(dtype)
    folder = make_precomp(tmp_path / "src", ims=array)
    (item,) = run("precomp", folder, tmp_path).split("train").read([1])
    assert item.features["region"].dtype.name == stored
    np.testing.assert_array_equal(item.features["region"], array[1].astype(stored))


def test_precomp_rows_repeated_for_each_caption_are_stored_once(tmp_path):
    single = numbers(4, 4, 5)
    single[1] = single[0]  # two images that look alike must not hide the pattern
    folder = make_precomp(tmp_path / "src", "testall", images=4, per_image=5, ims=np.repeat(single, 5, axis=0))
    split = run("precomp", folder, tmp_path).split("testall")
    assert len(split) == 4 and [len(captions) for captions in split.captions] == [5] * 4
    for item, want in zip(split.read(range(4)), single, strict=True):
        np.testing.assert_array_equal(item.features["region"], want)


def test_precomp_one_caption_an_image(tmp_path):
    split = run("precomp", make_precomp(tmp_path / "src", images=6, per_image=1), tmp_path).split("train")
    assert len(split) == 6 and split.captions[5] == ["Caption 0 of train image 5"]


@pytest.mark.parametrize("rows_a_caption", [False, True])
def test_precomp_ids_that_repeat_give_ragged_captions(tmp_path, rows_a_caption):
    counts = [1, 3, 2]
    ims = numbers(3, 4, 5)
    folder = make_precomp(
        tmp_path / "src", images=3, per_image=2, ims=np.repeat(ims, counts, axis=0) if rows_a_caption else ims
    )
    (folder / "train_ids.txt").write_text("".join(f"id{image}\n" * count for image, count in enumerate(counts)))
    split = run("precomp", folder, tmp_path).split("train")
    assert split.ids == ["id0", "id1", "id2"] and [len(captions) for captions in split.captions] == counts
    np.testing.assert_array_equal(split.read([2])[0].features["region"], ims[2])


def test_precomp_copies_that_differ_are_refused(tmp_path):
    folder = make_precomp(tmp_path / "src", images=6, per_image=1)
    refused("rows 0 and 1 should be copies", DataError, "precomp", folder, tmp_path, captions_per_image=2)


@pytest.mark.parametrize(
    ("rows", "per_image", "message"),
    [
        (4, None, "4 images and 6 captions, which is not a whole number"),
        (7, None, "7 images and 6 captions"),
        (3, 3, "wants 9. First image without all its captions: row 2"),
    ],
)
def test_precomp_rows_that_do_not_divide(tmp_path, rows, per_image, message):
    folder = make_precomp(tmp_path / "src", ims=numbers(rows, 4, 5))
    refused(message, DataError, "precomp", folder, tmp_path, captions_per_image=per_image)


def damage_missing(folder):
    (folder / "train_ims.npy").rename(folder / "train_other.npy")


def damage_extra(folder):
    np.save(folder / "dev_ims.npy", numbers(3, 4, 5))


def damage_cut(folder):
    path = folder / "train_ims.npy"
    path.write_bytes(path.read_bytes()[:-10])


def damage_grown(folder):
    path = folder / "train_ims.npy"
    path.write_bytes(path.read_bytes() + b"0123")


def damage_header(folder):
    (folder / "train_ims.npy").write_bytes(b"no array at all")


def damage_pickle(folder):
    np.save(folder / "train_ims.npy", np.array([{}], object), allow_pickle=True)


def damage_integers(folder):
    np.save(folder / "train_ims.npy", np.zeros((3, 4, 5), np.int64))


def damage_axes(folder):
    np.save(folder / "train_ims.npy", np.zeros((3, 4, 5, 1), np.float32))


def damage_captions(folder):
    path = folder / "train_caps.txt"
    path.write_bytes(path.read_bytes().replace(b"image 1", b"caf\xe9", 1))


def damage_empty(folder):
    (folder / "train_caps.txt").write_text("")


def damage_ids(folder):
    (folder / "train_ids.txt").write_text("a\nb\n")


def damage_boxes(folder):
    np.save(folder / "train_boxes.npy", np.full((3, 4, 4), 99, np.float32))


def damage_box_shape(folder):
    np.save(folder / "train_boxes.npy", np.zeros((3, 5, 4), np.float32))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_missing, r"train_ims\.npy: no such file; --features can be one or more of: other"),
        (damage_extra, r"dev_ims\.npy has no dev_caps\.txt"),
        (damage_cut, r"train_ims\.npy: not a whole \.npy array"),
        (damage_grown, r"train_ims\.npy: 4 bytes more"),
        (damage_header, r"train_ims\.npy: not a whole \.npy array"),
        (damage_pickle, r"train_ims\.npy: an array of Python objects"),
        (damage_integers, r"train_ims\.npy: wanted float16.*found int64"),
        (damage_axes, r"train_ims\.npy: wanted \[images, F\] or \[images, R, F\]"),
        (damage_captions, r"train_caps\.txt, line 3: byte 0xe9 is not UTF-8; in cp1252 the line reads"),
        (damage_empty, r"train_caps\.txt: no caption"),
        (damage_ids, r"train_ids\.txt: 2 ids for 3 images with 6 captions"),
        (damage_boxes, r"train_boxes\.npy, image 0: boxes outside"),
        (damage_box_shape, r"train_boxes\.npy: wanted \[3, 4, 4\]"),
    ],
)
def test_precomp_bad_files_are_named(tmp_path, damage, message):
    folder = make_precomp(tmp_path / "src")
    damage(folder)
    refused(message, DataError, "precomp", folder, tmp_path)


def test_precomp_folders_that_are_none(tmp_path):
    refused("no such folder", DataError, "precomp", tmp_path / "src", tmp_path)
    (tmp_path / "src").mkdir()
    refused("no precomp folder", DataError, "precomp", tmp_path / "src", tmp_path)
    make_precomp(tmp_path / "src" / "precomp")
    refused("src/precomp has some: give that", DataError, "precomp", tmp_path / "src", tmp_path)
    make_precomp(tmp_path / "src", ims2=numbers(3, 4, 5))
    refused("hold the same kind", DataError, "precomp", tmp_path / "src", tmp_path, features=["ims", "ims2"])


def test_precomp_boxes_in_some_splits_only(tmp_path):
    folder = make_precomp(tmp_path / "src", boxes=np.zeros((3, 4, 4), np.float32))
    make_precomp(folder, "dev")
    refused(r"dev_boxes\.npy is missing", DataError, "precomp", folder, tmp_path)


def test_nonfinite_features_stop_the_import_or_drop_the_image(tmp_path, capsys):
    ims = numbers(5, 4, 5)
    ims[1, 2, 0] = np.nan
    ims[1, 3, 0] = np.inf
    ims[4, 0, 0] = -np.inf
    folder = make_precomp(tmp_path / "src", images=5, ims=ims)
    message = r"train_ims\.npy: image 1 has 2 non-finite regions \(and 1 more images\)"
    refused(message, DataError, "precomp", folder, tmp_path)
    data = run("precomp", folder, tmp_path, on_nonfinite="drop-image")
    assert data.split("train").ids == ["train_0", "train_2", "train_3"]
    assert "2 x image with non-finite features" in capsys.readouterr().out
    report = (data.directory / "import_report.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in report] == [1, 4]


def test_empty_captions_are_dropped_unless_the_image_has_no_other(tmp_path, capsys):
    folder = make_precomp(tmp_path / "src")
    lines = (folder / "train_caps.txt").read_text().split("\n")
    lines[3] = "  "
    (folder / "train_caps.txt").write_text("\n".join(lines))
    data = run("precomp", folder, tmp_path / "a")
    assert [len(captions) for captions in data.split("train").captions] == [2, 1, 2]
    assert "1 x empty caption" in capsys.readouterr().out
    entry = json.loads((data.directory / "import_report.jsonl").read_text())
    assert (entry["what"], entry["file"], entry["line"]) == ("empty caption", "train_caps.txt", 4)
    lines[2] = ""
    (folder / "train_caps.txt").write_text("\n".join(lines))
    refused(r'train_caps\.txt, line 3: image "train_1" has no caption', DataError, "precomp", folder, tmp_path / "b")


def test_long_captions_and_odd_separators_are_kept_whole(tmp_path):
    folder = make_precomp(tmp_path / "src", images=2, per_image=1)
    captions = ["a b " * 25_000, "line\u2028separator \x0b and \x85 end no line"]
    (folder / "train_caps.txt").write_bytes("\r\n".join(captions).encode() + b"\r\n")
    began = time.monotonic()
    assert run("precomp", folder, tmp_path).split("train").captions == [[caption] for caption in captions]
    assert time.monotonic() - began < 5


def test_precomp_pictures_are_attached_with_their_size(tmp_path, capsys):
    folder = make_precomp(tmp_path / "src", images=4)
    (folder / "train_ids.txt").write_text("a.jpg\n42\nc\nlost\n")
    pictures = make_pictures(tmp_path / "pictures", ["a.jpg", "COCO_val2014_000000000042.jpg", "deep/c.png"])
    (pictures / "lost.jpg").write_bytes(b"not a picture")
    split = run("precomp", folder, tmp_path, images=str(pictures)).split("train")
    names = [path and path.name for path in split.pictures]
    assert names == ["a.jpg", "COCO_val2014_000000000042.jpg", "c.png", None]
    assert split.sizes.tolist() == [[4, 6], [4, 6], [4, 6], [0, 0]]
    assert "1 x picture that cannot be read" in capsys.readouterr().out
    other = make_pictures(tmp_path / "other", ["x.jpg"])
    refused(
        'an image is called "a.jpg", a picture "x.jpg"', DataError, "precomp", folder, tmp_path / "b", images=str(other)
    )


def test_importing_twice_does_nothing_until_the_source_changes(tmp_path, capsys):
    folder = make_precomp(tmp_path / "src")
    run("precomp", folder, tmp_path)
    run("precomp", folder, tmp_path)
    assert "nothing to do" in capsys.readouterr().out
    (folder / "train_caps.txt").write_text((folder / "train_caps.txt").read_text().replace("Caption", "A caption"))
    with pytest.raises(DataError, match="changed since"):
        run("precomp", folder, tmp_path)


@pytest.mark.data
def test_precomp_real_dev_split(flickr8k, tmp_path):
    folder = tmp_path / "src"
    folder.mkdir()
    for ending in ("ims.npy", "glob.npy", "boxes.npy", "caps.txt", "ids.txt"):
        (folder / f"dev_{ending}").symlink_to(flickr8k / f"dev_{ending}")
    split = run("precomp", folder, tmp_path, features=["ims", "glob"]).split("dev")
    captions = (flickr8k / "dev_caps.txt").read_text(encoding="utf-8").split("\n")
    assert len(split) == 1000 and split.captions[999] == captions[4995:5000]
    (item,) = split.read([999])
    np.testing.assert_array_equal(item.features["global"], np.load(flickr8k / "dev_glob.npy", mmap_mode="r")[999])
    boxes = np.load(flickr8k / "dev_boxes.npy", mmap_mode="r")[999]
    np.testing.assert_array_equal(item.boxes, boxes.astype(np.float32).clip(0, 1))


# karpathy

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


# csv


def make_csv(path, separator=",", rows=None, header=("id", "photo", "name")):
    rows = rows or [(str(i), f"p{i % 3}.jpg", f"thing {i}") for i in range(5)]
    path.write_text("".join(separator.join(row) + "\n" for row in [header, *rows]))
    return path


COLUMNS = {"image_col": "photo", "caption_col": "name"}


@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
def test_csv_separators_and_ragged_captions(tmp_path, separator):
    source = make_csv(tmp_path / "shop.csv", separator)
    np.save(tmp_path / "f.npy", numbers(3, 4))
    split = run("csv", source, tmp_path, features=[str(tmp_path / "f.npy")], **COLUMNS).split("train")
    assert split.ids == ["p0.jpg", "p1.jpg", "p2.jpg"]
    assert split.captions == [["thing 0", "thing 3"], ["thing 1", "thing 4"], ["thing 2"]]
    np.testing.assert_array_equal(split.read([2])[0].features["global"], numbers(3, 4)[2])


def test_csv_splits_quotes_ids_and_pictures(tmp_path, capsys):
    rows = [
        ("a.jpg", '"red, ""big"" shoe\nleft"', "train"),
        ("b.jpg", "hat", "val"),
        ("a.jpg", "", "train"),
        ("c.jpg", "sock", "train"),
        ("d.jpg", "glove", "train"),
    ]
    source = make_csv(tmp_path / "shop.csv", rows=rows, header=("image", "caption", "split"))
    np.save(tmp_path / "f.npy", numbers(3, 4))
    (tmp_path / "ids.txt").write_text("d\nb.jpg\na.jpg\n")
    pictures = make_pictures(tmp_path / "photos", ["a.jpg", "b.jpg"])
    options = {"features": [str(tmp_path / "f.npy")], "ids": str(tmp_path / "ids.txt"), "images": str(pictures)}
    data = run("csv", source, tmp_path, **options)
    assert data.splits == ["train", "dev"]
    assert data.split("train").captions == [['red, "big" shoe\nleft'], ["glove"]]
    np.testing.assert_array_equal(data.split("train").read([1])[0].features["global"], numbers(3, 4)[0])
    assert data.split("dev").pictures[0] is not None
    out = capsys.readouterr().out
    assert "1 x empty caption" in out and "1 x image without features" in out
    entries = [json.loads(line) for line in (data.directory / "import_report.jsonl").read_text().splitlines()]
    assert [entry["line"] for entry in entries] == [5, 6, 7]  # a quoted line feed counts
    assert entries[2]["what"] == "image without its picture"


def test_csv_split_by_hash_never_moves_an_image(tmp_path):
    rows = [(f"{i}.jpg", "x") for i in range(400)]
    options = {"dev": 0.1, "test": 0.2}
    for count, name in ((400, "a"), (300, "b")):
        source = make_csv(tmp_path / f"{name}.csv", rows=rows[:count], header=("image", "caption"))
        np.save(tmp_path / f"{name}.npy", numbers(count, 2))
        run("csv", source, tmp_path / name, features=[str(tmp_path / f"{name}.npy")], **options)
    more, fewer = (open_dataset(tmp_path / name / "set") for name in "ab")
    assert 20 <= len(more.split("dev")) <= 60 and 50 <= len(more.split("test")) <= 110
    for split in ("train", "dev", "test"):
        assert set(fewer.split(split).ids) <= set(more.split(split).ids)


def test_csv_wrong_column_or_separator_says_which(tmp_path):
    source = make_csv(tmp_path / "products.csv")
    options = {"features": ["f.npy"]}
    np.save(tmp_path / "f.npy", numbers(3, 4))
    options = {"features": [str(tmp_path / "f.npy")]}
    message = (
        r'^products\.csv: no column "title"\. It looks comma-separated with columns: id, photo, name\. '
        r"Did you mean --caption-col name\?$"
    )
    refused(message, DataError, "csv", source, tmp_path, image_col="photo", caption_col="title", **options)
    refused(r"Did you mean --image-col photo\?", DataError, "csv", source, tmp_path, image_col="foto", **options)
    message = 'no column "photo". It looks tab-separated with columns: id,photo,name'
    refused(message, DataError, "csv", source, tmp_path, delimiter="tab", **COLUMNS, **options)
    refused("neither one character", UsageError, "csv", source, tmp_path, delimiter="||", **COLUMNS, **options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,caption\na,b\nc,d,e\n", "line 3: 3 fields, but the header has 2"),
        ("image,caption\n,b\n", "line 2: the image column is empty"),
        ('image,caption\na,b\na,"never closed\n', "line 3: unexpected end of data"),
        ("image,caption\n", "a header but no rows"),
        ("image,caption,split\na,b,train\na,c,test\n", 'line 3: image "a" is in split "test" here and in "train"'),
        ("image,caption\na, \n", 'line 2: image "a" has no caption'),
        ("", 'no column "image"'),
    ],
)
def test_csv_bad_rows_are_named(tmp_path, text, message):
    source = tmp_path / "t.csv"
    source.write_text(text)
    np.save(tmp_path / "f.npy", numbers(1, 4))
    refused(message, DataError, "csv", source, tmp_path, features=[str(tmp_path / "f.npy")])


def test_csv_bad_options_and_bytes(tmp_path):
    source = make_csv(tmp_path / "t.csv")
    np.save(tmp_path / "f.npy", numbers(2, 4))
    refused("Captions alone", UsageError, "csv", source, tmp_path, **COLUMNS)
    options = {"features": [str(tmp_path / "f.npy")], **COLUMNS}
    refused("2 rows for 3 images with 5 captions; without --ids FILE", DataError, "csv", source, tmp_path, **options)
    refused("parts of one", UsageError, "csv", source, tmp_path, dev=0.5, test=0.5, **options)
    source.write_bytes(source.read_bytes() + b"9,p9.jpg,\xff\n")
    refused(r"t\.csv, line 7: byte 0xff", DataError, "csv", source, tmp_path, **options)


def test_csv_long_caption(tmp_path):
    source = make_csv(tmp_path / "t.csv", rows=[("a", "word " * 40_000)], header=("image", "caption"))
    np.save(tmp_path / "f.npy", numbers(1, 4))
    data = run("csv", source, tmp_path, features=[str(tmp_path / "f.npy")])
    assert len(data.split("train").captions[0][0]) == 199_999


# butd


def encode(array):
    return base64.b64encode(np.asarray(array, np.float32).tobytes()).decode()


def make_row(image, regions=3, width=4, **changes):
    """One TSV line; boxes in pixels of a 100 x 50 image."""
    rng = np.random.default_rng(image)
    fields = {
        "image_id": str(image),
        "image_w": "100",
        "image_h": "50",
        "num_boxes": str(regions),
        "boxes": encode([[0, 0, 50, 50]] * regions),
        "features": encode(rng.normal(size=(regions, width))),
    }
    return "\t".join((fields | changes).values())


def make_tsv(path, rows):
    path.write_text("".join(row + "\n" for row in rows))
    return path


def test_butd_regions_boxes_and_captions_in_json_order(tmp_path, capsys):
    source = tmp_path / "src"
    source.mkdir()
    make_tsv(
        source / "a.tsv", ["image_id\timage_w\timage_h\tnum_boxes\tboxes\tfeatures", make_row(904, 5), make_row(7)]
    )
    make_tsv(source / "b.tsv.1", [make_row(902), make_row(900), make_row(901), make_row(902)])
    captions = str(make_json(tmp_path / "dataset_tiny.json"))
    data = run("butd", source, tmp_path, captions=captions)
    assert data.splits == ["train", "dev", "restval"] and data.split("train").ids == ["900", "904"]
    (item,) = data.split("train").read([1])
    assert item.captions[4] == "Sentence 4 of 4." and item.size == (50, 100)
    np.testing.assert_array_equal(
        item.features["region"], np.random.default_rng(904).normal(size=(5, 4)).astype(np.float32)
    )
    np.testing.assert_array_equal(item.boxes, [[0, 0, 0.5, 1]] * 5)
    assert data.manifest["features"]["region"]["regions"] == [3, 5]
    out = capsys.readouterr().out
    assert "1 x image without a row in the TSV" in out and "1 x name in src that belongs to no image" in out


def test_butd_float16(tmp_path):
    source = make_tsv(tmp_path / "a.tsv", [make_row(900), make_row(901, features=encode(np.full((3, 4), 1e6)))])
    captions = str(make_json(tmp_path / "dataset_tiny.json"))
    data = run("butd", source, tmp_path, captions=captions, dtype="float16", max_broken=0.5, restval_to_train=True)
    assert data.split("train").ids == ["900"]
    assert data.split("train").read([0])[0].features["region"].dtype == np.float16


BROKEN = [
    ({"features": encode(np.ones((3, 4)))[:-8]}, "bytes are not 3 rows"),
    ({"features": "!" + encode(np.ones((3, 4)))[1:]}, "not valid base64"),
    ({"features": encode(np.ones((3, 4)))[:-1]}, "not valid base64"),
    ({"features": "!" + encode(np.ones((3, 4)))}, "not valid base64"),  # a lenient decoder skips the sign
    ({"features": encode(np.ones((3, 5)))}, "5 features a region, 4 in the rows before"),
    ({"features": encode(np.full((3, 4), np.nan))}, "not finite"),
    ({"boxes": encode(np.ones((3, 5)))}, "5 numbers a box"),
    ({"boxes": encode([[0, 0, 999, 1]] * 3)}, "boxes outside the image"),
    ({"boxes": encode([[9, 9, 1, 1]] * 3)}, "not x1, y1, x2, y2"),
    ({"boxes": ""}, "boxes: 0 bytes"),
    ({"num_boxes": "x"}, "not a whole number"),
    ({"num_boxes": "0"}, "not positive"),
    ({"image_w": "-5"}, "not positive"),
    ({"features": "AAAA\textra"}, "7 columns"),
]


@pytest.mark.parametrize(("changes", "why"), BROKEN)
def test_butd_broken_rows_are_reported_by_line_and_skipped(tmp_path, changes, why, capsys):
    source = make_tsv(tmp_path / "a.tsv", [make_row(900), make_row(904, **changes), make_row(901)])
    captions = str(make_json(tmp_path / "dataset_tiny.json"))
    data = run("butd", source, tmp_path / "a", captions=captions, max_broken=0.34)
    assert data.split("train").ids == ["900"]
    entries = [json.loads(line) for line in (data.directory / "import_report.jsonl").read_text().splitlines()]
    (entry,) = [entry for entry in entries if entry["what"] == "broken row"]
    assert (entry["file"], entry["line"]) == ("a.tsv", 2) and why in entry["why"]
    assert "1 x broken row" in capsys.readouterr().out
    message = r"a\.tsv, line 2: image 904: .*1 of 3 rows are broken, more than --max-broken 0\.33"
    refused(message, DataError, "butd", source, tmp_path / "b", captions=captions, max_broken=0.33)


def test_butd_a_repeated_image_falls_back_on_its_good_row(tmp_path):
    rows = [make_row(900, features="????"), make_row(900), make_row(901)]
    captions = str(make_json(tmp_path / "dataset_tiny.json"))
    data = run("butd", make_tsv(tmp_path / "a.tsv", rows), tmp_path, captions=captions, max_broken=0.34)
    assert data.split("train").ids == ["900"]


def test_butd_bad_input(tmp_path):
    captions = str(make_json(tmp_path / "dataset_tiny.json"))
    source = make_tsv(tmp_path / "a.tsv", [make_row(77), make_row(78)])
    refused("give --captions", UsageError, "butd", source, tmp_path)
    refused("--dtype is", UsageError, "butd", source, tmp_path, captions=captions, dtype="int8")
    refused("fit no image", DataError, "butd", source, tmp_path, captions=captions)
    refused("no such file", DataError, "butd", tmp_path / "b.tsv", tmp_path, captions=captions)
    (tmp_path / "none").mkdir()
    refused(r"no \*\.tsv", DataError, "butd", tmp_path / "none", tmp_path, captions=captions)
    make_tsv(source, ["no columns here", make_row(900), make_row(904)])
    refused("line 1: no image_id", DataError, "butd", source, tmp_path, captions=captions)
    source.write_text("")
    refused("no row in it", DataError, "butd", source, tmp_path, captions=captions)


# Damage of any kind


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
