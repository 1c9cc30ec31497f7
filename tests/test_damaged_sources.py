"""Damage of any kind to the newer sources ends in one of the package's errors, or in a set that can be read."""

import numpy as np
import pytest
from importing import run
from test_caption_files import NAMES, OBJECTS, coco_json, flickr, with_ids
from test_feature_stores import FEATURES, hdf5_each, hdf5_padded, hdf5_stacked, npz_each, npz_folder, objects
from test_sources import mutate

from xmodal_jax.errors import DataError, UsageError


def make_all(folder):
    """Source, kind and options of an import, and the files that may be damaged, by what they are."""
    import json

    table = folder / "t.csv"
    table.write_text("image,caption\n" + "".join(f"{id_},picture {id_}\n" for id_ in FEATURES))
    (folder / "six.txt").write_text("".join(f"{id_}\n" for id_ in FEATURES))
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, OBJECTS * 2)) + "\n")
    coco, tokens = coco_json(folder / "captions_val2014.json"), flickr(folder / "a.token")
    cases = {
        "coco": ("coco", coco, with_ids(folder, [42, 30, 25, 9]), [coco]),
        "jsonl": ("jsonl", folder / "a.jsonl", {"features": [str(folder / "two.npy")]}, [folder / "a.jsonl"]),
        "flickr": ("flickr", tokens, {"features": [str(folder / "six.npy")]}, [tokens]),
    }
    np.save(folder / "two.npy", np.eye(2, 4, dtype=np.float32))
    np.save(folder / "six.npy", np.eye(len(NAMES), 8, dtype=np.float32))
    for write, name in ((objects, "o.npy"), (npz_each, "e.npz"), (npz_folder, "npz")):
        write(folder / name)
        files = sorted((folder / name).iterdir()) if write is npz_folder else [folder / name]
        options = {"features": [str(folder / name)], "ids": str(folder / "six.txt")}
        cases[write.__name__] = ("csv", table, options, files)
    return cases, table


@pytest.mark.parametrize("name", ["coco", "jsonl", "flickr", "objects", "npz_each", "npz_folder", "hdf5"])
def test_damage(tmp_path, name):
    cases, table = make_all(tmp_path)
    if name == "hdf5":
        pytest.importorskip("h5py", reason="HDF5 needs the extra hdf5")
        writes = (hdf5_each, hdf5_padded, hdf5_stacked)
        files = [tmp_path / f"{write.__name__}.h5" for write in writes]
        for write, path in zip(writes, files, strict=True):
            write(path)
        kind, source, options = "csv", table, {"ids": str(tmp_path / "six.txt")}
    else:
        kind, source, options, files = cases[name]
    rng = np.random.default_rng(0)
    refused = 0
    for number in range(30):
        path = files[number % len(files)]
        if name == "hdf5":
            options = options | {"features": [str(path)]}
        whole, out = path.read_bytes(), tmp_path / f"out{number}"
        path.write_bytes(mutate(whole, rng))
        try:
            data = run(kind, source, out, **options)
            for split in data.splits:
                data.split(split).read(range(len(data.split(split))))
        except (DataError, UsageError):
            refused += 1
            assert not out.exists() or list(out.iterdir()) == []
        path.write_bytes(whole)
    assert refused >= 3
    run(kind, source, tmp_path / "whole", **options)
