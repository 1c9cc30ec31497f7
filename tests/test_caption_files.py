"""Files of captions in the forms that people have, and what is said when the wrong importer is used on them."""

import json
import re

import numpy as np
import pytest
from importing import first_numbers, karpathy_json, refused, run, save_numbers

from xmodal_jax.data.sources import IMPORTERS
from xmodal_jax.errors import DataError, UsageError
from xmodal_jax.verbs.arguments.data import KINDS

COCO_IDS = (9, 25, 30, 42)


def coco_json(path, ids=COCO_IDS):
    """With 5 or 6 captions an image, the annotations not in the order of the images."""
    images = [{"id": i, "file_name": f"COCO_val2014_{i:012d}.jpg", "height": 48, "width": 64} for i in ids]
    annotations = [
        {"image_id": i, "id": 100 * i + turn, "caption": f"sentence {turn} about {i}"}
        for turn in range(6)
        for number, i in enumerate(ids)
        if turn < 5 + number % 2
    ]
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": annotations[::-1]}))
    return path


def with_ids(folder, names):
    (folder / "ids.txt").write_text("".join(f"{name}\n" for name in names))
    return {"features": save_numbers(folder / "f.npy", len(names)), "ids": str(folder / "ids.txt")}


def test_coco_captions(tmp_path, capsys):
    source, options = coco_json(tmp_path / "captions_val2014.json"), with_ids(tmp_path, [42, 30, 25, 9])
    data = run("coco", source, tmp_path, **options)
    assert data.splits == ["dev"] and data.manifest["name"] == "val2014"
    assert data.split("dev").ids == ["9", "25", "30", "42"]
    assert [len(captions) for captions in data.split("dev").captions] == [5, 6, 5, 6]
    assert all(caption.endswith(" 25") for caption in data.split("dev").captions[1])
    assert data.split("dev").sizes.tolist() == [[48, 64]] * 4
    assert first_numbers(data) == {"42": 1, "30": 2, "25": 3, "9": 4}
    said = capsys.readouterr().out
    assert '"val2014" is dev' in said and 'there is no split "train"' in said


def test_a_folder_of_coco_captions(tmp_path):
    folder = tmp_path / "annotations"
    folder.mkdir()
    coco_json(folder / "captions_val2014.json")
    coco_json(folder / "captions_train2014.json", (7, 8))
    (folder / "instances_val2014.json").write_text("{}")
    data = run("coco", folder, tmp_path, **with_ids(tmp_path, [*COCO_IDS, 7, 8]))
    assert data.splits == ["train", "dev"] and data.split("train").ids == ["7", "8"]


def test_coco_captions_that_are_none(tmp_path):
    source, options = coco_json(tmp_path / "mine.json"), with_ids(tmp_path, COCO_IDS)
    refused("does not say which split it is: give --split", UsageError, "coco", source, tmp_path, **options)
    assert run("coco", source, tmp_path, split="test", **options).splits == ["test"]
    source = tmp_path / "captions_train.json"
    content = json.loads((tmp_path / "mine.json").read_text())
    for change, message in (
        ({"annotations": [{"image_id": 1, "caption": "x"}]}, r'annotations\[0\] is of image 1, which "images"'),
        ({"annotations": [{"image_id": 9, "bbox": []}]}, r'annotations\[0\] has no text "caption"'),
        ({"annotations": []}, "none of its images has a caption"),
        ({"images": content["images"] + content["images"]}, "the id 9 is there twice"),
    ):
        source.write_text(json.dumps(content | change))
        refused(message, DataError, "coco", source, tmp_path / "b", **options)


def test_coco_captions_beside_a_tsv(tmp_path):
    import base64

    boxes, values = (base64.b64encode(np.ones((1, 4), np.float32).tobytes()).decode() for _ in range(2))
    (tmp_path / "a.tsv").write_text("".join(f"{i}\t9\t9\t1\t{boxes}\t{values}\n" for i in COCO_IDS))
    captions = coco_json(tmp_path / "captions_train2014.json")
    data = run("butd", tmp_path / "a.tsv", tmp_path, captions=str(captions))
    assert data.split("train").ids == [str(i) for i in COCO_IDS]


NAMES = [f"10000{n}_ab12.jpg" for n in range(6)]


def flickr(path, form="token"):
    """Two captions an image, with quotes and separators in them; the last line of a table lacks its second bar."""
    lines = []
    for number, name in enumerate(NAMES):
        for turn in range(2):
            caption = f'A "dog" , number {number} | said {turn} .'
            lines.append(f"{name}#{turn}\t{caption}" if form == "token" else f"{name}| {turn}| {caption}")
    if form == "results":
        lines = ["image_name| comment_number| comment", *lines]
        lines[-1] = lines[-1].replace("| 1| A", "| 1   A")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("form", ["token", "results"])
def test_flickr_captions(tmp_path, form):
    source = flickr(tmp_path / ("results.csv" if form == "results" else "Flickr8k.token.txt"), form)
    data = run("flickr", source, tmp_path, **with_ids(tmp_path, NAMES[::-1]))
    split = data.split("train")
    assert split.ids == NAMES and split.captions[5] == [f'A "dog" , number 5 | said {turn} .' for turn in range(2)]
    assert first_numbers(data) == {name: 6 - number for number, name in enumerate(NAMES)}
    data = run("flickr", source, tmp_path / "b", split="test", **with_ids(tmp_path, NAMES))
    assert data.splits == ["test"]
    drawn = run("flickr", source, tmp_path / "c", dev=0.3, test=0.3, **with_ids(tmp_path, NAMES))
    assert set(drawn.splits) <= {"train", "dev", "test"} and len(drawn.splits) > 1


def test_flickr_lists_of_splits(tmp_path, capsys):
    source, options = flickr(tmp_path / "Flickr8k.token.txt"), with_ids(tmp_path, NAMES)
    for split, names in (("train", [*NAMES[:3], "gone.jpg"]), ("dev", NAMES[3:4]), ("test", NAMES[4:5])):
        (tmp_path / f"Flickr_8k.{split}Images.txt").write_text("\n".join(names) + "\n")
    data = run("flickr", source, tmp_path, **options)
    assert {split: data.split(split).ids for split in data.splits} == {
        "train": NAMES[:3],
        "dev": NAMES[3:4],
        "test": NAMES[4:5],
    }
    said = capsys.readouterr().out
    assert "1 x image in no list of a split" in said and "splits by Flickr_8k.trainImages.txt" in said
    assert "1 x name in Flickr_8k.trainImages.txt without a caption" in said
    (tmp_path / "test.txt").write_text("x\n")
    refused("both look like the list of test", DataError, "flickr", source, tmp_path / "b", **options)
    (tmp_path / "test.txt").unlink()
    (tmp_path / "Flickr_8k.devImages.txt").write_text("\n".join(NAMES[2:4]))
    refused("is in Flickr_8k.trainImages.txt too", DataError, "flickr", source, tmp_path / "b", **options)


def test_flickr_bad_lines(tmp_path):
    source, options = flickr(tmp_path / "a.token"), with_ids(tmp_path, NAMES)
    source.write_text(source.read_text() + "no caption here\n")
    refused(r'a\.token, line 13: no "picture.jpg#0"', DataError, "flickr", source, tmp_path, **options)


OBJECTS = [
    {"split": "train", "captions": ["a man", "red coat"], "file_path": "cam/1.jpg", "id": 1},
    {"split": "val", "captions": ["a woman"], "file_path": "cam/2.jpg", "id": 1},
    {"split": "train", "captions": ["a boy"], "file_path": "cam/1.jpg", "id": 1},
]


@pytest.mark.parametrize("kind", ["jsonl", "reid"])
@pytest.mark.parametrize("lines", [True, False])
def test_objects(tmp_path, lines, kind):
    text = "\n".join(map(json.dumps, OBJECTS)) + "\n" if lines else json.dumps(OBJECTS)
    (tmp_path / "reid_raw.json").write_text(text)
    data = run(kind, tmp_path / "reid_raw.json", tmp_path, **with_ids(tmp_path, ["2.jpg", "1.jpg"]))
    assert data.splits == ["train", "dev"]
    assert data.split("train").captions == [["a man", "red coat", "a boy"]] and data.split("train").ids == ["cam/1.jpg"]
    assert first_numbers(data) == {"cam/1.jpg": 2, "cam/2.jpg": 1}


def test_objects_without_splits_and_with_other_keys(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"pic": "{n}.jpg", "says": "text {n}"}}\n\n' for n in range(3)))
    options = with_ids(tmp_path, range(3))
    refused("line 1: no image among pic, says; give --image-col", DataError, "jsonl", path, tmp_path, **options)
    data = run("jsonl", path, tmp_path, image_col="pic", caption_col="says", split="dev", **options)
    assert data.split("dev").captions == [["text 0"], ["text 1"], ["text 2"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"image": "a", "caption": "x"}\n{"image": \n', "line 2: not valid JSON"),
        ('{"image": "a", "caption": "x"}\n[]\n', "line 2 is not an object"),
        ('{"image": "a", "caption": 3}\n{}\n', "line 1: its captions are no text"),
        ('{"image": "", "caption": "x"}\n{}\n', "line 1: the name of its image is no text"),
        ('{"image": "a", "caption": "x", "split": 1}\n{}\n', 'line 1: its split "split" is no text'),
        (
            '[{"image": "a", "caption": "x", "split": "train"}, {"image": "a", "caption": "x", "split": "test"}]',
            r'\[1\]: image "a" is in split "test" here',
        ),
        ("", "no object in it"),
    ],
)
def test_bad_objects_are_named(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    refused(message, DataError, "jsonl", tmp_path / "a.json", tmp_path, **with_ids(tmp_path, ["a"]))


def every_kind(folder):
    """A source of each kind."""
    (folder / "pre").mkdir()
    (folder / "pre" / "train_caps.txt").write_text("a\n")
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, OBJECTS)))
    (folder / "reid_raw.json").write_text(json.dumps(OBJECTS))
    (folder / "a.tsv").write_text("1\t9\t9\t1\t" + "A" * 24 + "\t" + "A" * 24 + "\n")
    return {
        "precomp": folder / "pre",
        "karpathy": karpathy_json(folder / "dataset_x.json", [{"filename": "a.jpg"}] * 2),
        "coco": coco_json(folder / "captions_val2014.json"),
        "flickr": flickr(folder / "Flickr8k.token.txt"),
        "jsonl": folder / "a.jsonl",
        "reid": folder / "reid_raw.json",
        "butd": folder / "a.tsv",
    }


def test_the_command_line_has_every_importer():
    assert set(KINDS) == set(IMPORTERS)


@pytest.mark.parametrize("used", IMPORTERS)
def test_the_wrong_importer_names_the_right_one(tmp_path, used):
    for kind, source in every_kind(tmp_path).items():
        if IMPORTERS[kind] is not IMPORTERS[used]:
            message = f"{re.escape(str(source))}: .*import it with: xmodal data import {kind} {re.escape(str(source))}"
            refused(message, DataError, used, source, tmp_path / "out", features=["f.npy"])


@pytest.mark.parametrize("used", IMPORTERS)
def test_features_are_no_captions(tmp_path, used):
    np.save(tmp_path / "f.npy", np.ones(3))
    message = "features, not captions; give captions as SOURCE, and this with --features"
    refused(message, DataError, used, tmp_path / "f.npy", tmp_path, features=["f.npy"])
