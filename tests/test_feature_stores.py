"""Features in archives, HDF5, object arrays and folders: each image gets its own regions."""

import builtins
import pickle
import sys
import zipfile
from typing import Any

import numpy as np
import pytest
from importing import karpathy_json, refused, run

from xmodal_jax.data.sources.common import Report
from xmodal_jax.data.sources.stores import open_features
from xmodal_jax.errors import DataError, UsageError

IDS = [11, 12, 13, 14, 15, 16]
FEATURES = {id_: np.random.default_rng(id_).normal(size=(3 + id_ % 4, 8)).astype(np.float32) for id_ in IDS}
BOXES = {id_: np.tile(np.array([0, 0, 32, 24], np.float32), (len(value), 1)) for id_, value in FEATURES.items()}
GLOBAL = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)


def hdf5():
    return pytest.importorskip("h5py", reason="HDF5 needs the extra hdf5")


def npz_folder(path, turned=False):
    path.mkdir()
    for id_, value in FEATURES.items():
        x = value.T if turned else value
        np.savez(path / f"{id_}.npz", x=x, bbox=BOXES[id_], num_bbox=len(value), image_h=48, image_w=64)


def npz_folder_turned(path):
    npz_folder(path, turned=True)


def npy_folder(path):
    path.mkdir()
    for id_, value in FEATURES.items():
        np.save(path / f"COCO_val2014_{id_:012d}.npy", value)


def npy_folder_turned(path):
    path.mkdir()
    for id_, value in FEATURES.items():
        np.save(path / f"{id_}.npy", value.T)


def hdf5_each(path):
    with hdf5().File(path, "w") as file:
        for id_, value in FEATURES.items():
            file[f"{id_}_features"], file[f"{id_}_boxes"] = value, BOXES[id_] / 100


def hdf5_groups(path):
    with hdf5().File(path, "w") as file:
        for id_, value in FEATURES.items():
            file.create_dataset(f"{id_}/features", data=value, fletcher32=True, compression="gzip", chunks=True)


def hdf5_plain(path):
    with hdf5().File(path, "w") as file:
        for id_, value in FEATURES.items():
            file[str(id_)] = value


def hdf5_stacked(path):
    with hdf5().File(path, "w") as file:
        file.create_dataset("image_features", data=np.concatenate(list(FEATURES.values())), fletcher32=True)
        ends = np.cumsum([len(value) for value in FEATURES.values()])
        file["pos_boxes"] = np.stack([ends - [len(value) for value in FEATURES.values()], ends], 1)


def hdf5_padded(path):
    padded = np.zeros((6, 8, 8), np.float32)
    for row, value in enumerate(FEATURES.values()):
        padded[row, : len(value)] = value
        padded[row, len(value) :] = 7
    with hdf5().File(path, "w") as file:
        file["features"], file["num_boxes"] = padded, [len(value) for value in FEATURES.values()]
        file["ids"] = np.array([str(id_).encode() for id_ in IDS])


def objects(path):
    array = np.empty(6, object)
    array[:] = list(FEATURES.values())
    np.save(path, array, allow_pickle=True)


def dictionary(path):
    np.save(path, FEATURES, allow_pickle=True)  # pyright: ignore[reportArgumentType]


def npz_each(path):
    arrays: dict[str, Any] = {str(id_): value for id_, value in FEATURES.items()}
    np.savez(path, **arrays)


NAMED = [npz_folder, npz_folder_turned, npy_folder, npy_folder_turned, hdf5_each, hdf5_groups, hdf5_plain, hdf5_padded]
NAMED += [dictionary, npz_each]
ENDINGS = {"hdf5": ".hdf5", "objects": ".npy", "dictionary": ".npy", "npz_each": ".npz"}


def make(folder, write):
    """The store that ``write`` makes, and a JSON file whose images are in another order."""
    path = folder / f"store{next((end for name, end in ENDINGS.items() if write.__name__.startswith(name)), '')}"
    write(path)
    images = [{"filename": f"COCO_val2014_{id_:012d}.jpg", "cocoid": id_} for id_ in IDS[::-1]]
    return path, karpathy_json(folder / "dataset_x.json", images)


def items(data):
    return {item.id: item for name in data.splits for item in data.split(name).read(range(len(data.split(name))))}


@pytest.mark.parametrize("write", NAMED, ids=lambda write: write.__name__)
def test_stores_that_name_their_images(tmp_path, write, capsys):
    path, captions = make(tmp_path, write)
    found = items(run("karpathy", captions, tmp_path, features=[str(path)]))
    for id_, value in FEATURES.items():
        np.testing.assert_array_equal(found[str(id_)].features["region"], value)
    boxes = found["11"].boxes
    if write in (npz_folder, npz_folder_turned):
        assert boxes is not None and boxes.tolist() == [[0, 0, 0.5, 0.5]] * 6 and found["11"].size == (48, 64)
    elif write is hdf5_each:
        assert boxes is not None and np.allclose(boxes, [0, 0, 0.32, 0.24])
    else:
        assert boxes is None
    assert "its images are named in it" in capsys.readouterr().out
    (tmp_path / "t.csv").write_text("image,caption\n" + "".join(f"{id_}.jpg,picture {id_}\n" for id_ in IDS))
    found = items(run("csv", tmp_path / "t.csv", tmp_path / "csv", features=[str(path)]))
    np.testing.assert_array_equal(found["13.jpg"].features["region"], FEATURES[13])


@pytest.mark.parametrize("write", [hdf5_stacked, objects], ids=lambda write: write.__name__)
def test_stores_in_the_order_of_an_ids_file(tmp_path, write):
    path, captions = make(tmp_path, write)
    (tmp_path / "ids.txt").write_text("".join(f"{id_}\n" for id_ in IDS))
    found = items(run("karpathy", captions, tmp_path, features=[str(path)], ids=str(tmp_path / "ids.txt")))
    for id_, value in FEATURES.items():
        np.testing.assert_array_equal(found[str(id_)].features["region"], value)


@pytest.mark.parametrize("end", [".npz", ".h5", ".mat"])
def test_one_array_of_all_images(tmp_path, end):
    path = tmp_path / f"all{end}"
    if end == ".npz":
        np.savez(path, feats=GLOBAL)
    else:
        with hdf5().File(path, "w", userblock_size=512 if end == ".mat" else 0) as file:
            file["feats"] = GLOBAL
    if end == ".mat":
        path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM" + path.read_bytes()[128:])
    captions = karpathy_json(tmp_path / "dataset_x.json", [{"filename": f"{id_}.jpg"} for id_ in IDS])
    found = items(run("karpathy", captions, tmp_path, features=[str(path)]))
    np.testing.assert_array_equal([item.features["global"] for item in found.values()], GLOBAL)


def test_ragged_arrays_in_the_precomp_layout(tmp_path):
    folder = tmp_path / "src"
    folder.mkdir()
    objects(folder / "train_ims.npy")
    (folder / "train_caps.txt").write_text("".join(f"caption {n}\n" for n in range(12)))
    found = items(run("precomp", folder, tmp_path))
    for item, want in zip(found.values(), FEATURES.values(), strict=True):
        np.testing.assert_array_equal(item.features["region"], want)


class Evil:
    def __reduce__(self):
        return builtins.print, ("this must not be run",)


def test_pickles_that_hold_more_than_arrays_are_not_run(tmp_path, capsys):
    array = np.empty(2, object)
    array[:] = [Evil(), Evil()]
    np.save(tmp_path / "f.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match="print is not let in"):
        open_features(tmp_path / "f.npy", None, Report())
    assert "must not" not in capsys.readouterr().out


def test_a_checksum_that_does_not_fit(tmp_path):
    path = tmp_path / "f.h5"
    with hdf5().File(path, "w") as file:
        file.create_dataset("feats", data=GLOBAL, fletcher32=True)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(GLOBAL.tobytes()[:8], b"\1" * 8))
    with pytest.raises(DataError, match=r"f\.h5: cut short or damaged"):
        open_features(path, None, Report())


def test_without_h5py_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "f.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UsageError, match=r'h5py.*pip install "xmodal_jax\[hdf5\]"'):
        open_features(tmp_path / "f.h5", None, Report())


def test_what_cannot_be_opened_is_named(tmp_path):
    captions = karpathy_json(tmp_path / "dataset_x.json", [{"filename": f"{id_}.jpg"} for id_ in IDS])

    def check(name, message, write):
        path = tmp_path / name
        write(path)
        refused(message, DataError, "karpathy", captions, tmp_path, features=[str(path)])

    with zipfile.ZipFile(tmp_path / "zip", "w") as file:
        file.writestr("archive/data.pkl", b"x")
    check("a.pt", "a PyTorch file; save it as numpy.save", lambda path: (tmp_path / "zip").rename(path))
    check("a.pkl", "a pickle", lambda path: path.write_bytes(pickle.dumps([1])))
    check("lmdb", "an LMDB data base", lambda path: (path.mkdir(), (path / "data.mdb").write_bytes(b"x")))
    check("a.npz", r"not a whole \.npz archive", lambda path: path.write_bytes(b"PK\3\4 no"))
    check("folder", "no .npy or .npz in this folder", lambda path: path.mkdir())
    check("b.npy", r"image 1 is \[2, 3\] float32, the first \[R, 4\]", lambda path: np.save(path, mixed()))
    check("c.npy", "an array of Python objects", lambda path: np.save(path, np.array(["a", None], object)))
    check("d.npy", "not a whole .npy", lambda path: path.write_bytes(b"\x93NUMPY"))
    refused(r"none.npy: no such file", DataError, "karpathy", captions, tmp_path, features=[str(tmp_path / "none.npy")])


def mixed():
    array = np.empty(6, object)
    array[:] = [np.ones((2, 3 if row == 1 else 4), np.float32) for row in range(6)]
    return array


def test_boxes_in_pixels_of_unknown_pictures_are_left_out(tmp_path, capsys):
    path = tmp_path / "f.npz"
    captions = karpathy_json(tmp_path / "dataset_x.json", [{"filename": f"{id_}.jpg"} for id_ in IDS])
    arrays: dict[str, Any] = {f"{id_}_features": value for id_, value in FEATURES.items()}
    arrays |= {f"{id_}_boxes": value for id_, value in BOXES.items()}
    np.savez(path, **arrays)
    data = run("karpathy", captions, tmp_path, features=[str(path)])
    assert not data.manifest["boxes"] and "boxes are in pixels" in capsys.readouterr().out
