"""Imports for tests: by the arguments of the command line, into a folder of their own."""

import json

import numpy as np
import pytest

from xmodal_jax.cli import make_parser
from xmodal_jax.data.records import open_dataset
from xmodal_jax.data.sources import main


def run(kind, source, out, **options):
    """Import and open; ``out`` is the folder above the set, which is made anew."""
    args = make_parser().parse_args(["data", "import", kind, str(source), "--out", str(out / "set")])
    for name, value in options.items():
        assert hasattr(args, name), name
        setattr(args, name, value)
    assert main(args) == 0
    return open_dataset(out / "set")


def refused(message, error, kind, source, out, **options):
    """The import fails with ``message``, and leaves nothing behind."""
    with pytest.raises(error, match=message):
        run(kind, source, out, **options)
    assert not (out / "set").exists() and not (out / "set.partial").exists()


def first_numbers(data):
    """{id: first number of its features} of all splits: tests give each image features of its own number."""
    items = [item for name in data.splits for item in data.split(name).read(range(len(data.split(name))))]
    return {item.id: float(next(iter(item.features.values())).flat[0]) for item in items}


def save_numbers(path, count, first=1):
    """Features of ``count`` images as a .npy; those of the first are all ``first``, then one more each."""
    np.save(path, np.repeat(np.arange(first, first + count, dtype=np.float32)[:, None], 4, 1))
    return [str(path)]


def karpathy_json(path, images):
    """A `dataset_*.json` of images given as dicts; splits are train but for the last two, sentences say the number."""
    splits = ["train"] * (len(images) - 2) + ["val", "test"]
    entries = [
        {"imgid": number, "split": split, "sentences": [{"raw": f"picture {number}"}], **image}
        for number, (image, split) in enumerate(zip(images, splits, strict=True))
    ]
    path.write_text(json.dumps({"images": entries}))
    return path
