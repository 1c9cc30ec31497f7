"""Import of bottom-up attention's TSV, beside Karpathy's JSON."""

import base64
import json

import numpy as np
import pytest
from importing import refused, run
from test_karpathy import make_json

from xmodal_jax.errors import DataError, UsageError


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
