"""Import of the precomputed features of VSE++ and SCAN, and what all importers share."""

import json
import time
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from importing import refused, run

from xmodal_jax.errors import DataError


def numbers(*shape, dtype: Any = np.float16):
    return np.random.default_rng(0).normal(size=shape).astype(dtype)


def make_pictures(folder, names, size=(6, 4)):
    from PIL import Image

    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(folder / name)
    return folder


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
    began = time.process_time()
    assert run("precomp", folder, tmp_path).split("train").captions == [[caption] for caption in captions]
    assert time.process_time() - began < 5


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
