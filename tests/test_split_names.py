"""Names of splits: one mapping for all importers, said at import; what is missing is said at once."""

import base64
import json

import numpy as np
import pytest
from importing import refused, run, save_numbers

from xmodal_jax.data.sources.splits import split_name
from xmodal_jax.errors import DataError

WORDS = {
    "train": "train training Train TRAIN train2014 train2017 train_2014 trn",
    "dev": "dev val valid validation Validation val2014 val2017 devel development",
    "test": "test Test testing test2015",
    "testall": "testall",
    "restval": "restval",
    "trainval": "trainval",
}


@pytest.mark.parametrize(("split", "word"), [(split, word) for split, words in WORDS.items() for word in words.split()])
def test_words(split, word):
    assert split_name(word) == split


def test_restval():
    assert split_name("restval", restval_to_train=True) == "train"


def sources(folder, names):
    """Kind, source and options of one set in the form of each importer: an image a split, called by ``names``."""
    for n, name in enumerate(names):
        (folder / "pre").mkdir(exist_ok=True)
        np.save(folder / "pre" / f"{name}_ims.npy", np.full((1, 4), n + 1, np.float32))
        (folder / "pre" / f"{name}_caps.txt").write_text("a caption\n")
    images = [{"filename": f"{n}.jpg", "split": name, "sentences": [{"raw": "x"}]} for n, name in enumerate(names)]
    (folder / "dataset_x.json").write_text(json.dumps({"images": images}))
    lines = [f"{n}.jpg,caption,{name}\n" for n, name in enumerate(names)]
    (folder / "t.csv").write_text("image,caption,split\n" + "".join(lines))
    boxes, values = (base64.b64encode(np.ones((1, 4), np.float32).tobytes()).decode() for _ in range(2))
    (folder / "a.tsv").write_text("".join(f"{n}.jpg\t9\t9\t1\t{boxes}\t{values}\n" for n, _ in enumerate(names)))
    features = {"features": save_numbers(folder / "f.npy", len(names))}
    return {
        "precomp": (folder / "pre", {}),
        "karpathy": (folder / "dataset_x.json", features),
        "csv": (folder / "t.csv", features),
        "butd": (folder / "a.tsv", {"captions": str(folder / "dataset_x.json")}),
    }


@pytest.mark.parametrize("kind", ["precomp", "karpathy", "csv", "butd"])
def test_all_importers_use_it_and_say_so(tmp_path, kind, capsys):
    source, options = sources(tmp_path, ["Training", "val2014", "restval", "testing"])[kind]
    data = run(kind, source, tmp_path / "a", **options)
    assert data.splits == ["train", "dev", "test", "restval"]
    said = capsys.readouterr().out
    assert all(words in said for words in ('"Training" is train', '"val2014" is dev', '"testing" is test'))
    assert "--restval-to-train adds it to train" in said and "there is no split" not in said
    data = run(kind, source, tmp_path / "b", restval_to_train=True, **options)
    assert data.splits == ["train", "dev", "test"] and len(data.split("train")) == 2


@pytest.mark.parametrize("kind", ["precomp", "karpathy", "csv", "butd"])
def test_what_is_missing_is_said(tmp_path, kind, capsys):
    source, options = sources(tmp_path, ["test"])[kind]
    run(kind, source, tmp_path, **options)
    said = capsys.readouterr().out
    assert 'note: there is no split "train"' in said and 'note: there is no split "dev"' in said


def test_two_words_for_one_split(tmp_path):
    found = sources(tmp_path, ["train", "val", "dev"])
    message = '"dev" and "val" both mean the split "dev"; move'
    refused(message, DataError, "precomp", found["precomp"][0], tmp_path)
    data = run("csv", found["csv"][0], tmp_path, **found["csv"][1])
    assert len(data.split("dev")) == 2


def test_a_row_without_a_split(tmp_path):
    (tmp_path / "t.csv").write_text("image,caption,split\na,x,train\nb,y,\n")
    options = {"features": save_numbers(tmp_path / "f.npy", 2)}
    refused("line 3: the split column is empty", DataError, "csv", tmp_path / "t.csv", tmp_path, **options)
