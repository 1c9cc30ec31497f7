"""Prepared sets that get pictures later, or other splits."""

import numpy as np
import pytest
from importing import first_numbers

from xmodal_jax import cli
from xmodal_jax.data import check, writer
from xmodal_jax.data.records import Item, open_dataset, verify


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
