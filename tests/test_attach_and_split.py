"""Prepared sets that get pictures later, or other splits."""

import numpy as np
import pytest
from importing import first_numbers

from xmodal_jax import cli
from xmodal_jax.data import check, writer
from xmodal_jax.data.pipeline import FeatureReader, image_batches
from xmodal_jax.data.records import Item, open_dataset, verify
from xmodal_jax.errors import DataError


def make_set(folder, count=40):
    """Images called a0, a1 ...; of each pair the features are the same."""
    items = [Item(f"a{n}", [f"text {n}"], {"global": np.full(4, n // 2 + 1, np.float32)}) for n in range(count)]
    writer.write(folder, {"train": items[:-5], "dev": items[-5:]}, name="mine", source={})
    return folder


def test_attach(tmp_path, capsys):
    from PIL import Image

    folder, pictures = make_set(tmp_path / "set"), tmp_path / "pictures"
    pictures.mkdir()
    for n in (0, 3, 39):
        Image.new("RGB", (6, 4)).save(pictures / f"a{n}.JPG", "JPEG")
    before = first_numbers(open_dataset(folder))
    assert cli.run(["data", "attach", str(folder), "--images", str(pictures)]) == 0
    data = open_dataset(folder)
    assert verify(folder) == [] and first_numbers(data) == before
    train = data.split("train")
    assert [row for row, path in enumerate(train.pictures) if path] == [0, 3] and train.read([3])[0].size == (4, 6)
    assert data.manifest["splits"]["dev"]["pictures"] == 1 and train.sizes[1].tolist() == [0, 0]
    said = capsys.readouterr().out
    assert "3 images have a picture now" in said and "37 x image without its picture" in said
    assert cli.run(["data", "attach", str(folder), "--images", str(pictures)]) == 3
    assert "has pictures already" in capsys.readouterr().err


def test_attach_leaves_a_set_alone_when_no_picture_fits(tmp_path, capsys):
    from PIL import Image

    folder = make_set(tmp_path / "set")
    Image.new("RGB", (6, 4)).save(tmp_path / "x.jpg")
    assert cli.run(["data", "attach", str(folder), "--images", str(tmp_path)]) == 3
    assert verify(folder) == [] and "none of its pictures belongs" in capsys.readouterr().err


def feature_files(tmp_path, kind, values):
    """What --feature and further arguments are, to give image a<n> the row values[n]."""
    train, dev = values[:-5], values[-5:]
    if kind == "a file a split":
        np.save(tmp_path / "x_train.npy", train)
        np.save(tmp_path / "x_dev.npy", dev)
        return [f"{tmp_path}/x_{{split}}.npy"]
    order = np.random.default_rng(0).permutation(len(values))
    if kind == "names beside it":
        np.save(tmp_path / "x.npy", values[order])
        (tmp_path / "ids.txt").write_text("".join(f"folder/a{n}.jpg\n" for n in order))
        return [f"{tmp_path}/x.npy", "--ids", str(tmp_path / "ids.txt")]
    np.savez(tmp_path / "x.npz", **{f"a{n}": values[n] for n in order})
    return [f"{tmp_path}/x.npz"]


@pytest.mark.parametrize("kind", ["a file a split", "names beside it", "names in it"])
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_a_further_feature(tmp_path, kind, dtype, capsys):
    folder = make_set(tmp_path / "set")
    before, values = open_dataset(folder), np.random.default_rng(1).random((40, 3)).astype(dtype)
    file, *ids = feature_files(tmp_path, kind, values)
    argv = ["data", "attach", str(folder), "--feature", f"concept={file}", *ids]
    assert cli.run(argv) == 0 and '"concept" of 3 numbers now' in capsys.readouterr().out
    data = open_dataset(folder)
    stored = {"float64": "float32"}.get(dtype, dtype)
    assert data.identity == before.identity and data.features["concept"]["dtype"] == stored
    errors = check.check(folder, allow_unknown=True)["errors"]
    assert verify(folder) == [] and len(errors) == 1 and "a34 = a35" in errors[0]  # what was added hides no leak
    for name, rows in (("train", values[:-5]), ("dev", values[-5:])):
        split = data.split(name)
        assert split.feature_names == ["global", "concept"]
        np.testing.assert_array_equal(split.image_features["concept"], rows.astype(stored))
        np.testing.assert_array_equal(split.read([2])[0].features["concept"], rows[2].astype(stored))
        for names in (["global", "concept"], ["concept"]):
            batches = list(image_batches(FeatureReader(split, names), 4))
            got = np.concatenate([batch.feature["concept"] for batch in batches])[: len(split)]
            np.testing.assert_array_equal(got, rows.astype(stored))
            assert all(batch.mask.shape == (4, 1) and list(batch.feature) == names for batch in batches)
    assert cli.run(argv) == 3 and 'has a feature "concept" already' in capsys.readouterr().err
    (folder / "dev.image.concept.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"dev.image.concept.npy is missing or damaged; add the features"):
        data.split("dev").image_features  # noqa: B018


VALUES = np.linspace(0, 1, 120, dtype="f4").reshape(40, 3)


def changed(value):
    return np.where(np.arange(120).reshape(40, 3) == 40, np.float32(value), VALUES)


@pytest.mark.parametrize(
    ("values", "name", "code", "sentence"),
    [
        (changed(np.nan), "concept", 3, 'x_train.npy, split "train": 1 images have values that are not finite, "a13"'),
        (changed(np.inf), "x", 3, "not finite"),
        (changed(-0.5), "concept", 3, "scores of concepts are probabilities, these go from -0.5 to"),
        (changed(1.5), "concept2", 3, "to 1.5; apply a sigmoid to logits"),
        (VALUES[:-1], "concept", 3, 'x_train.npy has 34 rows, split "train" of'),
        (
            VALUES[:, :, None],
            "concept",
            3,
            "a further feature is one vector an image; wanted [images, F], found regions",
        ),
        (VALUES, "global", 3, 'has a feature "global" already'),
        (VALUES, "a/b", 2, '"a/b" cannot name a feature'),
        (VALUES, "pixels", 2, '"pixels" cannot name a feature'),
    ],
)
def test_a_bad_feature_is_one_sentence(tmp_path, capsys, values, name, code, sentence):
    folder = make_set(tmp_path / "set")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    (file,) = feature_files(tmp_path, "a file a split", values)
    assert cli.run(["data", "attach", str(folder), "--feature", f"{name}={file}"]) == code
    error = capsys.readouterr().err
    assert sentence in error and "Traceback" not in error
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


def test_features_of_other_values_are_taken_under_another_name(tmp_path):
    folder = make_set(tmp_path / "set")
    (file,) = feature_files(tmp_path, "a file a split", changed(-0.5))
    assert cli.run(["data", "attach", str(folder), "--feature", f"scores={file}"]) == 0


def test_arguments_of_a_feature(tmp_path, capsys):
    folder = make_set(tmp_path / "set")
    np.save(tmp_path / "x.npy", VALUES)
    (tmp_path / "ids.txt").write_text("".join(f"b{n}\n" for n in range(5)) + "".join(f"a{n}\n" for n in range(35)))
    for more, code, message in (
        ([], 2, "give --images FOLDER or --feature NAME=FILE"),
        (["--feature", "x"], 2, '--feature "x" must be NAME=FILE'),
        (["--images", "x", "--ids", "y"], 2, "--ids names the rows of --feature"),
        (["--feature", f"x={tmp_path}/x.npy"], 2, "does not say whose its rows are: give --ids FILE"),
        (["--feature", f"x={tmp_path}/nowhere.npy"], 3, "nowhere.npy: no such file"),
        (["--feature", f"x={tmp_path}/{{split}}.npy", "--ids", "y"], 2, "--ids names the rows of one file"),
        (["--feature", f"x={tmp_path}/x.npy", "--ids", f"{tmp_path}/ids.txt"], 3, 'are not in it, "a35" first'),
    ):
        assert cli.run(["data", "attach", str(folder), *more]) == code
        assert message in capsys.readouterr().err


def test_a_split_leaves_added_features_behind(tmp_path, capsys):
    folder = make_set(tmp_path / "set", 200)
    (file,) = feature_files(tmp_path, "a file a split", np.random.default_rng(0).random((200, 3)).astype("f4"))
    assert cli.run(["data", "attach", str(folder), "--feature", f"concept={file}"]) == 0
    argv = ["data", "split", str(folder), "--dev", "0.2", "--out", str(tmp_path / "new")]
    assert cli.run(argv) == 0 and "added later are not in it: concept" in capsys.readouterr().out
    data = open_dataset(tmp_path / "new")
    assert list(data.features) == ["global"]
    where = {int(id_[1:]): name for name in data.splits for id_ in data.split(name).ids}
    assert all(where[n] == where[n + 1] for n in range(0, 200, 2))  # they are one image, whatever was added


@pytest.mark.parametrize("by", ["id", "product"])
def test_split_keeps_together_what_belongs_together(tmp_path, by, capsys):
    folder, table = make_set(tmp_path / "set", 200), tmp_path / "t.csv"
    table.write_text("image,product\n" + "".join(f"a{n}.jpg,{n % 50}\n" for n in range(200)))
    argv = ["data", "split", str(folder), "--dev", "0.2", "--test", "0.2", "--out", str(tmp_path / "new")]
    argv += ["--by", "product", "--table", str(table)] if by == "product" else []
    assert cli.run(argv) == 0
    data = open_dataset(tmp_path / "new")
    assert data.splits == ["train", "dev", "test"] and len(first_numbers(data)) == 200
    assert min(len(data.split(name)) for name in data.splits) >= 8
    where = {int(id_[1:]): name for name in data.splits for id_ in data.split(name).ids}
    assert all(where[n] == where[n + 1] for n in range(0, 200, 2))  # the same features
    assert by == "id" or all(where[n] == where[n % 50] for n in range(200))
    assert not check.check(tmp_path / "new", allow_unknown=True)["errors"]
    assert first_numbers(data) == {f"a{n}": n // 2 + 1 for n in range(200)}
    assert cli.run(argv) == 0 and "nothing to do" in capsys.readouterr().out


def test_split_bad_options(tmp_path, capsys):
    folder, table = make_set(tmp_path / "set"), tmp_path / "t.csv"
    table.write_text("image,product\na0,1\n")
    argv = ["data", "split", str(folder), "--out", str(tmp_path / "new")]
    for more, code, message in (
        ([], 2, "give --dev, --test, or both"),
        (["--dev", "0.2", "--by", "product"], 2, "--by product needs --table FILE"),
        (["--dev", "0.2", "--by", "x", "--table", str(table)], 3, 'no column "x", only image, product'),
        (["--dev", "0.2", "--by", "product", "--table", str(table)], 3, '39 images have no "product" in it'),
        (["--dev", "0.6", "--test", "0.5"], 2, "parts of one"),
    ):
        assert cli.run([*argv, *more]) == code
        assert message in capsys.readouterr().err
