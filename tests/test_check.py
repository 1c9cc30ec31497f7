"""`xmodal data check`: every kind of trouble is found, named, and judged as error or warning."""

import argparse
import json

import numpy as np
import pytest

from xmodal_jax.data import writer
from xmodal_jax.data.check import check, main
from xmodal_jax.data.records import Item, open_dataset
from xmodal_jax.data.writer import write
from xmodal_jax.errors import DataError

AS_GIVEN = {"minimum_count": 4, "allow_unknown": False}


def image(name, *captions, value=None, picture=None):
    """An image whose features are made from its name, unless given."""
    seed = sum(name.encode())
    feature = np.random.default_rng(seed).normal(size=(2, 3)).astype(np.float16)
    return Item(
        name, captions or [f"caption of {name}"], {"region": feature if value is None else value}, None, (0, 0), picture
    )


def make(tmp_path, **splits):
    write(tmp_path / "set", splits, name="tiny", source={})
    return tmp_path / "set"


def test_a_clean_set(tmp_path, capsys):
    directory = make(tmp_path, train=[image("a", "one two", "three"), image("b")], dev=[image("c")])
    result = check(directory)
    assert (result["errors"], result["warnings"], result["verdict"]) == ([], [], "clean")
    assert result["splits"]["train"] == {
        "images": 2,
        "captions": 3,
        "captions_per_image": [1, 2],
        "words": [1, 2, 3],
        "pictures": 0,
    }
    assert main(argparse.Namespace(directory=directory, json=tmp_path / "out.json", **AS_GIVEN)) == 0
    assert json.loads((tmp_path / "out.json").read_text()) == result
    out = capsys.readouterr().out
    assert "verdict: clean (0 errors, 0 warnings)" in out and "region: 2 x 3 float16" in out and "1 to 2" in out


def judge(directory):
    """(errors, warnings); the exit code must follow the errors."""
    result = check(directory)
    assert main(argparse.Namespace(directory=directory, json=None, **AS_GIVEN)) == (3 if result["errors"] else 0)
    return result["errors"], result["warnings"]


def test_an_image_in_two_splits_is_an_error(tmp_path):
    same = np.ones((2, 3), np.float16)
    errors, warnings = judge(
        make(
            tmp_path,
            train=[image("a"), image("x", value=same)],
            dev=[image("a", "another"), image("y", value=same)],
        )
    )
    assert errors == [
        '1 image id in both "train" and "dev": a',
        '1 image in both "train" and "dev" under two ids, by their features: x = y',
    ]
    assert warnings == []


def test_the_same_picture_in_two_splits_is_an_error(tmp_path):
    for name in ("p", "q"):
        (tmp_path / f"{name}.jpg").write_bytes(b"the same bytes")
    (tmp_path / "r.jpg").write_bytes(b"others")
    errors, _ = judge(
        make(
            tmp_path,
            train=[image("a", picture=tmp_path / "p.jpg"), image("b", picture=tmp_path / "r.jpg")],
            test=[image("c", picture=tmp_path / "q.jpg")],
        )
    )
    assert errors == ['1 image in both "train" and "test" under two ids, by their picture: a = c']


def test_a_test_inside_a_testall_is_no_leak(tmp_path):
    assert judge(make(tmp_path, test=[image("a")], testall=[image("a"), image("b")])) == ([], [])


def test_captions_repeated_or_shared_are_warnings(tmp_path):
    errors, warnings = judge(
        make(
            tmp_path,
            train=[image("a", "A dog.", "a  dog."), image("b", "A dog.", "x"), image("c", "y")],
            dev=[image("d", "X"), image("e", "word " * 300)],
        )
    )
    assert errors == []
    assert warnings == [
        'split "train": 1 image with the same caption twice: a',
        'split "train": 2 captions already in it: "a dog." x 3',
        'split "dev": 1 caption of more than 256 words, by image: e (300)',
        '1 caption in both "train" and "dev": "x"',
    ]


def test_images_that_occur_twice_or_are_all_zero_are_warnings(tmp_path):
    same, zero = np.ones((2, 3), np.float16), np.zeros((2, 3), np.float16)
    errors, warnings = judge(
        make(
            tmp_path,
            train=[image("a", value=same), image("b", value=same), image("c", value=zero), image("d", value=zero)],
            dev=[image("e", value=zero)],
        )
    )
    assert errors == []
    assert warnings == [
        'split "train": 2 images whose features are all zero: c; d',
        'split "dev": 1 image whose features are all zero: e',
        'split "train": 1 image with the features of another one: a = b',
    ]


def test_features_that_are_not_finite_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "finite", lambda array: True)
    bad = np.array([[1, np.nan, 0], [0, 0, np.inf]], np.float16)
    errors, _ = judge(make(tmp_path, train=[image(f"i{n}", value=bad if n else None) for n in range(5)]))
    assert errors == [
        'split "train": 4 images with features that are not finite: i1 (region); i2 (region); i3 (region); ...'
    ]


def test_empty_captions_are_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(writer.Schema, "check", lambda self, item, where: self.regions.setdefault("region", (2, 2)))
    _, warnings = judge(make(tmp_path, train=[image("a", "x", " ")]))
    assert warnings == ['split "train": 1 image with an empty caption: a']


def test_damaged_files_are_errors_and_the_rest_is_still_checked(tmp_path):
    directory = make(tmp_path, train=[image("a")], dev=[image("b")], test=[image("c", "x", "X")])
    (shard,) = open_dataset(directory).split("train").paths
    shard.write_bytes(shard.read_bytes()[:100])
    (directory / "dev.captions.jsonl").unlink()
    errors, warnings = judge(directory)
    assert len(errors) == 4
    for part in ("dev.captions.jsonl: missing", f"{shard.name}: 100 bytes", "cut short", "import the data again"):
        assert any(part in error for error in errors), part
    assert warnings[0] == 'split "test": 1 image with the same caption twice: c'


def test_what_is_no_set_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        check(tmp_path / "nowhere")


@pytest.mark.data
def test_real_captions(flickr8k, tmp_path):
    """The README of the data says that 4,993 of the 5,000 test captions are distinct; one more differs by case."""
    lines = (flickr8k / "test_caps.txt").read_text(encoding="utf-8").split("\n")[:5000]
    items = [Item(str(i), lines[5 * i : 5 * i + 5], {}) for i in range(1000)]
    result = check(make(tmp_path, test=items))
    assert len(set(lines)) == 4993 and result["errors"] == []
    assert any(warning.startswith('split "test": 8 captions already in it') for warning in result["warnings"])
