"""The prepared data set: what is written is what is read, and damage never passes unseen."""

import json
import subprocess
import sys
import weakref

import ml_dtypes
import numpy as np
import pytest

from xmodal_jax.data import records, writer
from xmodal_jax.data.records import Item, finite, open_dataset, verify
from xmodal_jax.data.writer import write
from xmodal_jax.errors import DataError

SOURCE = {"importer": "test"}


def make_items(count, seed=0, dtype=np.float16, width=6):
    """Ragged captions (1 to 4) and regions (2 to 4), with boxes and sizes."""
    rng = np.random.default_rng(seed)
    for index in range(count):
        regions = 2 + index % 3
        features = {
            "region": rng.normal(size=(regions, width)).astype(dtype),
            "global": rng.normal(size=5).astype(np.float32),
        }
        captions = [f"Caption {index}.{turn}, é 犬" for turn in range(1 + index % 4)]
        yield Item(f"im é {seed}-{index}", captions, features, rng.random((regions, 4), np.float32), (30, 40 + index))


@pytest.fixture
def prepared(tmp_path):
    directory = tmp_path / "set"
    write(directory, {"train": make_items(9), "test": make_items(3, seed=1)}, name="My set", source=SOURCE)
    return directory


def assert_same(item, expected):
    assert (item.id, list(item.captions), item.size) == (expected.id, list(expected.captions), expected.size)
    assert item.features.keys() == expected.features.keys()
    for name, value in expected.features.items():
        assert item.features[name].dtype == value.dtype
        np.testing.assert_array_equal(item.features[name], value)
    np.testing.assert_array_equal(item.boxes, expected.boxes)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
def test_round_trip_keeps_order_dtype_and_raggedness(tmp_path, dtype):
    expected = list(make_items(9, dtype=dtype))
    write(tmp_path / "set", {"train": expected}, name="x", source=SOURCE)
    split = open_dataset(tmp_path / "set").split("train")
    assert len(split) == 9
    for item, want in zip(split.read([8, 0, 3, 3]), [expected[row] for row in (8, 0, 3, 3)], strict=True):
        assert_same(item, want)
    assert split.ids == [item.id for item in expected]
    assert split.captions == [list(item.captions) for item in expected]
    np.testing.assert_array_equal(split.sizes, [item.size for item in expected])
    assert split.pictures == [None] * 9


def test_manifest_counts_shapes_and_files(prepared):
    manifest = json.loads((prepared / "manifest.json").read_text())
    assert manifest["splits"]["train"] == {"images": 9, "captions": 21, "captions_per_image": [1, 4], "pictures": 0}
    assert manifest["features"] == {
        "region": {"dtype": "float16", "shape": [None, 6], "regions": [2, 4]},
        "global": {"dtype": "float32", "shape": [5]},
    }
    assert manifest["boxes"] is True
    assert set(manifest["files"]) == {path.name for path in prepared.iterdir()} - {"manifest.json"}


def test_tfds_opens_it_and_nothing_imports_tensorflow(prepared):
    code = """if True:
        import sys
        import numpy as np, tensorflow_datasets as tfds
        from xmodal_jax.data.records import Item, open_dataset
        from xmodal_jax.data.writer import write
        source = tfds.builder_from_directory(sys.argv[1]).as_data_source("test")
        example = source[1]
        print(len(source), example["features"]["region"].dtype, example["features"]["region"].shape,
              len(example["captions"]), example["boxes"].shape, example["id"].decode())
        item = Item("a", ["b"], {"global": np.ones(3, np.float16)})
        write(sys.argv[1] + "2", {"train": [item]}, name="x", source={})
        open_dataset(sys.argv[1] + "2").split("train").read([0])
        print("tensorflow" in sys.modules)
    """
    out = subprocess.run(
        [sys.executable, "-c", code, str(prepared)], capture_output=True, text=True, check=True, encoding="utf-8"
    )
    assert out.stdout.splitlines() == ["3 float16 (3, 6) 2 (3, 4) im é 1-1", "False"]


def test_shards_are_bounded_named_and_read_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "SHARD_BYTES", 700)
    expected = list(make_items(12))
    write(tmp_path / "set", {"train": expected}, name="x", source=SOURCE)
    split = open_dataset(tmp_path / "set").split("train")
    count = len(split.paths)
    assert 3 <= count < 12
    assert [path.name for path in split.paths] == [
        f"x-train.array_record-{index:05d}-of-{count:05d}" for index in range(count)
    ]
    for item, want in zip(split.read(range(12)), expected, strict=True):
        assert_same(item, want)


def test_records_are_grouped_one_by_one_and_features_are_not_widened(tmp_path):
    from array_record.python.array_record_module import ArrayRecordReader

    item = Item("a", ["b"], {"region": np.ones((100, 1000), np.float16)})
    write(tmp_path / "set", {"train": [item]}, name="x", source=SOURCE)
    (path,) = open_dataset(tmp_path / "set").split("train").paths
    assert "group_size:1," in ArrayRecordReader(str(path)).writer_options_string() + ","
    assert 200_000 < path.stat().st_size < 390_000  # two bytes a number, and whole blocks of 64 KiB


def test_writing_streams(tmp_path):
    alive = []  # weak references to the features handed out

    def items():
        for index in range(20):
            array = np.full((2, 3), index, np.float16)
            alive.append(weakref.ref(array))
            assert sum(reference() is not None for reference in alive) <= 3, "images are piling up in memory"
            yield Item(str(index), ["a"], {"region": array})
            del array

    write(tmp_path / "set", {"train": items()}, name="x", source=SOURCE)
    assert len(alive) == 20


def test_images_without_features_or_captions(tmp_path):
    write(tmp_path / "set", {"test": [Item("a", [], {}), Item("b", ["c"], {})]}, name="1", source=SOURCE)
    split = open_dataset(tmp_path / "set").split("test")
    assert [item.captions for item in split.read([0, 1])] == [[], ["c"]]
    assert split.feature_names == [] and split.read([0])[0].boxes is None


def test_pictures_are_copied_once_and_never_onto_each_other(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.jpg").write_bytes(folder.encode())
    paths = [tmp_path / "one" / "a.jpg", tmp_path / "two" / "a.jpg", tmp_path / "one" / "a.jpg"]
    items = [Item(str(index), ["x"], {}, picture=path) for index, path in enumerate(paths)]
    write(tmp_path / "set", {"train": items}, name="x", source=SOURCE)
    pictures = open_dataset(tmp_path / "set").split("train").pictures
    assert [path and path.read_text() for path in pictures] == ["one", "two", "one"]
    assert pictures[0] == pictures[2]
    assert open_dataset(tmp_path / "set").split("train").read([1])[0].picture == pictures[1]


def test_a_split_without_images_is_left_out(tmp_path):
    manifest = write(tmp_path / "set", {"train": [GOOD], "dev": []}, name="x", source=SOURCE)
    assert list(manifest["splits"]) == ["train"] and not (tmp_path / "set" / "dev.captions.jsonl").exists()


# Bad images

GOOD = Item("good", ["a dog"], {"region": np.ones((2, 3), np.float16)}, np.zeros((2, 4), np.float32))
NAN = np.array([[1, np.nan, 1], [1, 1, 1]], np.float16)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (GOOD, "twice"),
        (GOOD._replace(id=""), "empty or there twice"),
        (GOOD._replace(id="x", captions=["a", "  "]), "caption 1 is empty"),
        (GOOD._replace(id="x", captions=[]), "has no caption"),
        (GOOD._replace(id="x", captions=["\ud800"]), "not valid Unicode"),
        (GOOD._replace(id="x", features={"region": NAN}), "region features are not finite"),
        (GOOD._replace(id="x", features={"region": np.ones((2, 4), np.float16)}), "all must agree"),
        (GOOD._replace(id="x", features={"region": np.ones((2, 3), np.float32)}), "all must agree"),
        (GOOD._replace(id="x", features={"region": np.ones((0, 3), np.float16)}), "no regions of feature"),
        (GOOD._replace(id="x", boxes=None), "all must agree"),
        (GOOD._replace(id="x", boxes=np.zeros((3, 4), np.float32)), "boxes are"),
        (GOOD._replace(id="x", boxes=np.full((2, 4), 7, np.float32)), "between 0 and 1"),
    ],
)
def test_a_bad_image_is_named_and_leaves_nothing_behind(tmp_path, bad, message):
    with pytest.raises(DataError, match=message) as error:
        write(tmp_path / "set", {"train": [GOOD, bad]}, name="x", source=SOURCE)
    assert f'"{bad.id}"' in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({}, "no image"),
        ({"train": []}, "no image"),
        ({"a b": [GOOD]}, "cannot name a split"),
        ({"train": [GOOD._replace(features={"region": np.ones((2, 3), np.int32)})]}, "wanted"),
    ],
)
def test_a_bad_set_is_refused(tmp_path, splits, message):
    with pytest.raises(DataError, match=message):
        write(tmp_path / "set", splits, name="x", source=SOURCE)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
def test_finite_agrees_with_isfinite(dtype):
    largest = ml_dtypes.finfo(dtype).max
    for value in (0, -1, largest, -largest, ml_dtypes.finfo(dtype).smallest_subnormal, np.inf, -np.inf, np.nan):
        array = np.array([[0, 1, value]], np.float64).astype(dtype)
        assert finite(array) == np.isfinite(array.astype(np.float64)).all(), value
    assert finite(np.zeros((0, 3), dtype))


# The folder


def test_a_finished_set_is_left_alone_and_another_source_refused(prepared, capsys):
    def touched():
        raise AssertionError("the source was read again")
        yield

    before = (prepared / "manifest.json").stat().st_mtime_ns
    manifest = write(prepared, {"train": touched()}, name="My set", source=SOURCE)
    assert manifest["splits"]["train"]["images"] == 9
    assert (prepared / "manifest.json").stat().st_mtime_ns == before
    assert "nothing to do" in capsys.readouterr().err
    with pytest.raises(DataError, match="another source"):
        write(prepared, {"train": touched()}, name="My set", source={"importer": "other"})


def test_a_foreign_or_half_written_folder_is_refused(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="not a prepared data set"):
        write(tmp_path / "full", {"train": [GOOD]}, name="x", source=SOURCE)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", {"train": [GOOD]}, name="x", source=SOURCE)
    (tmp_path / "new.partial").mkdir()
    with pytest.raises(DataError, match="remove it"):
        write(tmp_path / "new", {"train": [GOOD]}, name="x", source=SOURCE)
    assert (tmp_path / "new.partial").is_dir()


def test_opening_what_is_not_a_set_says_what_to_do(tmp_path, prepared):
    with pytest.raises(DataError, match="no such folder"):
        open_dataset(tmp_path / "nowhere")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "train_caps.txt").touch()
    with pytest.raises(DataError, match="xmodal data import precomp"):
        open_dataset(tmp_path / "raw")
    with pytest.raises(DataError, match=r'only train, test\. Did you mean "train"\?'):
        open_dataset(prepared).split("trian")
    with pytest.raises(IndexError):
        open_dataset(prepared).split("train").read([9])


# Damage


def test_verify_names_missing_extra_cut_and_changed_files(prepared):
    assert verify(prepared) == []
    (prepared / "features.json").unlink()
    (prepared / "notes.txt").write_text("hello")
    (prepared / ".DS_Store").write_text("the system's")
    path = prepared / "test.captions.jsonl"
    path.write_bytes(path.read_bytes()[:-3])
    (shard,) = open_dataset(prepared).split("train").paths
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    assert sorted(problem.split(":")[0] for problem in verify(prepared)) == sorted(
        ["features.json", "notes.txt", "test.captions.jsonl", shard.name]
    )


def test_a_changed_manifest_or_caption_file_is_refused(prepared):
    captions = prepared / "test.captions.jsonl"
    captions.write_text(captions.read_text().replace("Caption", "caption"))
    with pytest.raises(DataError, match="damaged"):
        _ = open_dataset(prepared).split("test").captions
    manifest = prepared / "manifest.json"
    text = manifest.read_text()
    for damaged in (text.replace('"images": 9', '"images": 8'), text[:-20], "[]", text.replace('"version": 1', "")):
        manifest.write_text(damaged)
        with pytest.raises(DataError, match=r"manifest\.json"):
            open_dataset(prepared)


def test_a_cut_or_missing_shard_is_named(prepared):
    (shard,) = open_dataset(prepared).split("train").paths
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"train\.array_record.*cut short"):
        open_dataset(prepared).split("train").read([0])


def test_flipped_bits_are_never_read_as_data(prepared):
    """Each flip is an error of ours, or it hit bytes that carry nothing and all records are equal."""
    (shard,) = open_dataset(prepared).split("train").paths
    whole = shard.read_bytes()
    expected = list(make_items(9))
    rng = np.random.default_rng(0)
    used = np.flatnonzero(np.frombuffer(whole, np.uint8))  # most of a small file is padding
    refused = 0
    for _ in range(40):
        data = bytearray(whole)
        data[int(rng.choice(used))] ^= 1 << int(rng.integers(8))
        shard.write_bytes(data)
        assert verify(prepared), "the manifest must notice"
        try:
            items = open_dataset(prepared).split("train").read(range(9))
        except DataError as error:
            assert "xmodal data check" in str(error)
            refused += 1
            continue
        for item, want in zip(items, expected, strict=True):
            assert_same(item, want)
    assert refused > 20


@pytest.mark.data
def test_real_features_come_back_bit_for_bit(flickr8k, tmp_path):
    array = np.load(flickr8k / "dev_ims.npy", mmap_mode="r")
    items = (Item(str(row), ["x"], {"region": np.array(array[row])}) for row in range(50))
    write(tmp_path / "set", {"dev": items}, name="f8k", source=SOURCE)
    for row, item in enumerate(open_dataset(tmp_path / "set").split("dev").read(range(50))):
        np.testing.assert_array_equal(item.features["region"], array[row])
    assert records.verify(tmp_path / "set") == []
