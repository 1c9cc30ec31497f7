"""Import of tables of picture files and captions."""

import json

import numpy as np
import pytest
from importing import refused, run
from test_precomp import make_pictures, numbers

from xmodal_jax.data.records import open_dataset
from xmodal_jax.errors import DataError, UsageError


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
