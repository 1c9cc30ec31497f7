"""Names of features and pictures: each image gets its own, or the import stops and says which two fit."""

import base64
import unicodedata

import numpy as np
import pytest
from importing import first_numbers, karpathy_json, refused, run, save_numbers

from xmodal_jax.data.sources.matching import Index
from xmodal_jax.errors import DataError


def make_tsv(path, names):
    """A row a name, in which every feature of the row n is n, from 1."""

    def encode(array):
        return base64.b64encode(np.asarray(array, np.float32).tobytes()).decode()

    boxes = encode([[0, 0, 50, 25]] * 3)
    rows = [f"{name}\t100\t50\t3\t{boxes}\t{encode(np.full((3, 8), n))}\n" for n, name in enumerate(names, 1)]
    path.write_text("".join(rows))
    return path


def pictures_in(folder, colours):
    """Pictures of one grey each; ``colours`` by file name."""
    from PIL import Image

    for name, grey in colours.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), grey).save(folder / name, "PNG" if name.lower().endswith("png") else "JPEG")
    return folder


FILES = [{"filename": f"{n:05d}.jpg"} for n in range(1, 7)]


@pytest.mark.parametrize("form", ["{:05d}", "{}", "{:05d}.jpg", "{:05d}.JPG", "photos/{:05d}.jpg", "./{:08d}"])
def test_zero_padded_names_are_not_row_numbers(tmp_path, form, capsys):
    source = make_tsv(tmp_path / "own.tsv", [form.format(n) for n in range(1, 7)])
    captions = karpathy_json(tmp_path / "dataset_own.json", FILES)
    data = run("butd", source, tmp_path / "butd", captions=str(captions))
    want = {f"{n:05d}.jpg": n for n in range(1, 7)}
    assert first_numbers(data) == want
    assert "6 of 6 images found by name" in capsys.readouterr().out
    (tmp_path / "ids.txt").write_text("".join(form.format(n) + "\n" for n in range(1, 7)))
    options = {"features": save_numbers(tmp_path / "f.npy", 6), "ids": str(tmp_path / "ids.txt")}
    assert first_numbers(run("karpathy", captions, tmp_path / "karpathy", **options)) == want
    table = tmp_path / "t.csv"
    table.write_text("image,caption\n" + "".join(f"{n:05d}.jpg,picture {n}\n" for n in range(1, 7)))
    assert first_numbers(run("csv", table, tmp_path / "csv", **options)) == want


def test_row_numbers_are_used_only_when_asked_for(tmp_path):
    images = [{"filename": f"x{n}.jpg"} for n in range(6)]
    source = make_tsv(tmp_path / "own.tsv", [str(n) for n in (5, 4, 3, 2, 1, 0)])
    captions = str(karpathy_json(tmp_path / "dataset_own.json", images))
    refused("fit no image.*give --match imgid", DataError, "butd", source, tmp_path, captions=captions)
    data = run("butd", source, tmp_path, captions=captions, match="imgid")
    assert first_numbers(data) == {f"x{n}.jpg": 6 - n for n in range(6)}


def test_a_whole_name_comes_before_a_number(tmp_path):
    """COCO ids of some images are the numbers in the file names of others."""
    images = [{"filename": f"{7 - n:05d}.jpg", "cocoid": n} for n in range(1, 7)]
    captions = str(karpathy_json(tmp_path / "dataset_own.json", images))
    for name, form, want in (
        ("files", "{:05d}", {str(n): 7 - n for n in range(1, 7)}),
        ("ids", "{}", {str(n): n for n in range(1, 7)}),
    ):
        source = make_tsv(tmp_path / f"{name}.tsv", [form.format(n) for n in range(1, 7)])
        assert first_numbers(run("butd", source, tmp_path / name, captions=captions)) == want


def test_two_kinds_of_name_that_fit_different_images_are_refused(tmp_path):
    images = [{"filename": f"{7 - n}.jpg", "cocoid": n} for n in range(1, 7)]
    captions = str(karpathy_json(tmp_path / "dataset_own.json", images))
    source = make_tsv(tmp_path / "own.tsv", [str(n) for n in range(1, 7)])
    message = r'own\.tsv: "1" and "6" both fit image "6.jpg".*--match'
    refused(message, DataError, "butd", source, tmp_path, captions=captions)
    data = run("butd", source, tmp_path / "a", captions=captions, match="cocoid")
    assert first_numbers(data) == {str(n): n for n in range(1, 7)}
    data = run("butd", source, tmp_path / "b", captions=captions, match="filename")
    assert first_numbers(data) == {str(n): 7 - n for n in range(1, 7)}


@pytest.mark.parametrize(
    ("names", "images", "message"),
    [
        (["001", "01"], ["1.jpg"], '"001" and "01" both fit image "1.jpg"'),
        (["a.png", "a.jpg"], ["a"], '"a.png" and "a.jpg" both fit image "a"'),
        (["x/a.jpg", "y/a.jpg"], ["a.jpg"], '"x/a.jpg" and "y/a.jpg" both fit'),
        (["7"], ["07.jpg", "007.jpg"], '"7" fits image "07.jpg" and image "007.jpg"'),
        (["a"], ["a.jpg", "a.png"], '"a" fits image "a.jpg" and image "a.png"'),
    ],
)
def test_two_that_fit_are_named(names, images, message):
    with pytest.raises(DataError, match=message):
        Index(names, "ids.txt").match([[[image]] for image in images])


@pytest.mark.parametrize(
    ("names", "images", "places"),
    [
        (["00042", "42"], ["42", "00042"], [1, 0]),
        (["00042.jpg", "42.jpg"], ["42"], [1]),
        (["a.jpg", "a"], ["a", "a.jpg"], [1, 0]),
        (["a"], ["a.jpg", "a"], [None, 0]),
        (["a"], ["a", "a.jpg"], [0, None]),
        (["42"], ["00042.jpg", "42.jpg"], [None, 0]),
        (["a.JPG", "a.jpg"], ["a.jpg", "a.JPG"], [1, 0]),
        (["sub/a.jpg", "a.jpg"], ["a.jpg"], [1]),
        (["0", "000"], ["000", "0"], [1, 0]),
        ([unicodedata.normalize("NFD", "café.JPG")], [unicodedata.normalize("NFC", "café.jpg")], [0]),
        (["photo.v2", "photo.v1"], ["photo.v1", "photo.v2"], [1, 0]),
        (["COCO_train2014_000000000042"], ["000000000042.jpg"], [0]),
        (["", "a"], ["b"], [None]),
    ],
)
def test_a_shortened_name_never_takes_the_place_of_a_whole_one(names, images, places):
    assert Index(names, "ids.txt").match([[[image]] for image in images])[0] == places


def test_pictures_exact_names_first(tmp_path):
    from PIL import Image

    captions = karpathy_json(tmp_path / "dataset_own.json", [{"filename": f"{n}.jpg"} for n in (1, 2, 3)])
    folder = pictures_in(tmp_path / "pictures", {"01.jpg": 10, "1.jpg": 90, "old/2.jpg": 10, "2.jpg": 90, "3.JPG": 90})
    data = run("karpathy", captions, tmp_path, images=str(folder))
    paths = [path for name in data.splits for path in data.split(name).pictures]
    assert [Image.open(path).getpixel((0, 0)) for path in paths if path] == [90] * 3
    pictures_in(folder, {"a/9.jpg": 1, "b/9.jpg": 2})
    captions = karpathy_json(tmp_path / "dataset_own.json", [{"filename": f"{n}.jpg"} for n in (1, 9, 3)])
    refused('"a/9.jpg" and "b/9.jpg" both fit', DataError, "karpathy", captions, tmp_path / "b", images=str(folder))


def test_ids_that_occur_twice_must_have_the_same_row(tmp_path):
    captions = karpathy_json(tmp_path / "dataset_own.json", FILES[:3])
    (tmp_path / "ids.txt").write_text("00001\n00002\n00003\n00001\n")
    options = {"features": save_numbers(tmp_path / "f.npy", 4), "ids": str(tmp_path / "ids.txt")}
    message = 'image "00001": rows 0 and 3 should be copies but differ by .*ids.txt gives them one name'
    refused(message, DataError, "karpathy", captions, tmp_path, **options)
    np.save(tmp_path / "f.npy", np.load(tmp_path / "f.npy")[[0, 1, 2, 0]])
    assert len(first_numbers(run("karpathy", captions, tmp_path, **options))) == 3
