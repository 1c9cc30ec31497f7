"""Arrays padded to one number of regions: what lies behind the last real region of an image is not kept."""

import base64

import numpy as np
import pytest
from importing import karpathy_json, refused, run

from xmodal_jax.data import check, writer
from xmodal_jax.data.records import Item
from xmodal_jax.errors import DataError

COUNTS = [2, 5, 3]


def regions(rows=6, dtype=np.float32):
    """Of three images, with zeros behind the last region; the second has a region of zeros between others."""
    array = np.zeros((3, rows, 8), dtype)
    for image, count in enumerate(COUNTS):
        array[image, :count] = np.random.default_rng(image).normal(size=(count, 8))
    array[1, 2] = 0
    return array


def make_folder(folder, array, **others):
    folder.mkdir()
    for name, values in {"ims": array, **others}.items():
        np.save(folder / f"train_{name}.npy", values)
    (folder / "train_caps.txt").write_text("one\ntwo\nthree\n")
    return folder


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_zeros_behind_the_last_region_are_dropped(tmp_path, dtype, capsys):
    boxes = np.tile(np.array([0.1, 0.1, 0.9, 0.9], np.float32), (3, 6, 1))
    folder = make_folder(tmp_path / "src", regions(dtype=dtype), boxes=boxes)
    data = run("precomp", folder, tmp_path)
    for item, want, count in zip(data.split("train").read(range(3)), regions(dtype=dtype), COUNTS, strict=True):
        np.testing.assert_array_equal(item.features["region"], want[:count].astype(item.features["region"].dtype))
        assert item.boxes is not None and len(item.boxes) == count
    assert data.manifest["features"]["region"]["regions"] == [2, 5]
    assert "8 x row of zeros behind the last region of an image, taken for padding" in capsys.readouterr().out


def test_an_image_of_zeros_keeps_one_row(tmp_path):
    array = regions()
    array[2] = 0
    data = run("precomp", make_folder(tmp_path / "src", array), tmp_path)
    assert [len(item.features["region"]) for item in data.split("train").read(range(3))] == [2, 5, 1]
    assert any("all zero" in warning for warning in check.check(data.directory)["warnings"])


def test_num_boxes_say_what_is_real(tmp_path, capsys):
    array = np.random.default_rng(0).normal(size=(3, 6, 8)).astype(np.float32)  # nothing is zero
    folder = make_folder(tmp_path / "src", array, num_boxes=np.array(COUNTS))
    data = run("precomp", folder, tmp_path / "a")
    for item, want, count in zip(data.split("train").read(range(3)), array, COUNTS, strict=True):
        np.testing.assert_array_equal(item.features["region"], want[:count])
    assert "8 x row behind the number of regions of an image" in capsys.readouterr().out
    np.save(folder / "train_num_boxes.npy", np.array([[2], [0], [6]]))
    data = run("precomp", folder, tmp_path / "b")
    assert data.split("train").ids == ["train_0", "train_2"]
    assert "1 x image without a region" in capsys.readouterr().out
    for number, (counts, message) in enumerate(
        (([2, 7, 3], "image 1 has 7, which is no number of regions from 0 to 6"), ([2, 5], "wanted 3 whole numbers"))
    ):
        np.save(folder / "train_num_boxes.npy", np.array(counts))
        refused(message, DataError, "precomp", folder, tmp_path / f"c{number}")


def test_karpathy_and_csv_drop_padding_too(tmp_path):
    np.save(tmp_path / "f.npy", regions())
    captions = karpathy_json(tmp_path / "dataset_x.json", [{"filename": f"{n}.jpg"} for n in range(3)])
    (tmp_path / "t.csv").write_text("image,caption\na,one\nb,two\nc,three\n")
    for kind, source in (("karpathy", captions), ("csv", tmp_path / "t.csv")):
        data = run(kind, source, tmp_path / kind, features=[str(tmp_path / "f.npy")])
        counts = [len(item.features["region"]) for split in data.splits for item in data.split(split).read([0])]
        assert data.manifest["features"]["region"]["regions"] == [2, 5] and counts[0] == 2


def encode(array):
    return base64.b64encode(array.tobytes()).decode()


@pytest.mark.parametrize("layout", ["six", "ten"])
@pytest.mark.parametrize(("padded_boxes", "counted"), [(True, True), (False, True), (True, False)])
def test_rows_of_a_tsv(tmp_path, layout, padded_boxes, counted):
    captions = karpathy_json(tmp_path / "dataset_x.json", [{"filename": f"{n}.jpg"} for n in range(3)])
    lines = []
    for image in (1, 0, 2) if padded_boxes else (3, 1, 0, 2):  # one row that is not padded says how wide a region is
        array = regions()[image % 3][: COUNTS[0] if image == 3 else None]
        count = COUNTS[image % 3] if counted else 6
        boxes = np.zeros((6 if padded_boxes else count, 4), np.float32)
        boxes[:count] = [0, 0, 75, 25]
        between = ["100", "50"] if layout == "six" else ["50", "100", "", "", "", ""]
        lines.append("\t".join([str(image), *between, str(count), encode(boxes), encode(array)]) + "\n")
    (tmp_path / "a.tsv").write_text("".join(lines))
    if not padded_boxes:
        captions = karpathy_json(tmp_path / "dataset_x.json", [{"filename": f"{n}.jpg"} for n in (3, 0, 1, 2)])
    data = run("butd", tmp_path / "a.tsv", tmp_path, captions=str(captions))
    items = {item.id: item for name in data.splits for item in data.split(name).read(range(len(data.split(name))))}
    for image, count in enumerate(COUNTS):
        item = items[f"{image}.jpg"]
        np.testing.assert_array_equal(item.features["region"], regions()[image, :count])
        assert item.size == (50, 100)
        assert item.boxes is not None and item.boxes.tolist() == [[0, 0, 0.75, 0.5]] * count


def test_check_names_padding_in_a_set_that_has_it(tmp_path):
    items = [Item(f"{n}", ["x"], {"region": array}) for n, array in enumerate(regions())]
    writer.write(tmp_path / "set", {"train": items}, name="old", source={})
    warnings = check.check(tmp_path / "set")["warnings"]
    assert any("3 images whose last region is all zero" in warning for warning in warnings)
