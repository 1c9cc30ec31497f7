"""A system of raw pixels, a model file of the user's: trained, killed, evaluated, exported, indexed, served."""

import json
import os
import shutil
import signal

import numpy as np
import pytest

pytest.importorskip("PIL", reason="pillow (extra image) is not installed")

from photographs import CONFIG, MODEL, files, photographs, words
from test_pixels import damage

import xmodal_jax
from xmodal_jax import cli
from xmodal_jax.data.pixels import read, transform_in
from xmodal_jax.errors import SAVED_ON_SIGNAL, DataError, UsageError
from xmodal_jax.evaluation.run import Run
from xmodal_jax.inference.gallery import Gallery
from xmodal_jax.inference.search import Searcher

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("eyes")
    (home / "eyes.py").write_text(MODEL)
    (home / "eyes_config.py").write_text(CONFIG)
    photographs(home)
    return home


def train(home, run, *options, data=None):
    argv = ["train", "--config", f"{home / 'eyes_config.py'}", "--data", str(data or home / "set")]
    return cli.run([*argv, "--workdir", str(run), *options])


LENGTH = ("--config.steps=40", "--config.optim.lr=1e-2", "--config.eval.every_steps=40")
MILD = ("--config.data.pixels.area=(0.9,1.0)", "--config.data.pixels.flip=False")


@pytest.fixture(scope="module")
def trained(home):
    assert train(home, home / "run", *LENGTH, *MILD) == 0
    assert cli.run(["eval", "--workdir", str(home / "run"), "--json", str(home / "table.json")]) == 0
    return home / "run"


@pytest.fixture(scope="module")
def bundle(home, trained):
    assert cli.run(["export", "--workdir", str(trained), "--out", str(home / "bundle")]) == 0
    return home / "bundle"


def parameters(run):
    opened = Run(run)
    return opened.variables(opened.checkpoints.steps()[-1])[0]


def test_it_learns_and_is_evaluated(home, trained):
    table = json.loads((home / "table.json").read_text())
    assert table["images"] == 16
    assert table["rsum"] > 250  # by chance: about 200


def test_a_run_that_is_stopped_in_the_middle_ends_as_one_that_is_not(home, tmp_path, monkeypatch):
    import jax

    from xmodal_jax.train import Trainer

    options = ("--config.steps=10",)
    assert train(home, tmp_path / "whole", *options) == 0
    account = Trainer.account

    def stop(self, stage, pending, *rest):
        account(self, stage, pending, *rest)
        self.signal = self.signal or (signal.SIGTERM if pending[0] == 5 else None)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "account", stop)
        assert train(home, tmp_path / "halves", *options) == SAVED_ON_SIGNAL
    assert train(home, tmp_path / "halves", *options) == 0
    for a, b in zip(*(jax.tree.leaves(parameters(tmp_path / run)) for run in ("whole", "halves")), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_bundle_scores_as_evaluation_does_from_files_bytes_and_arrays(home, trained, bundle):
    run = Run(trained)
    member, _, _ = run.vote("test")
    split = run.dataset.split("test")
    want = np.asarray(member.score(member.variables, member.images, member.texts))
    m = xmodal_jax.load(bundle)
    assert m.manifest["pixels"] == {"kind": "centre", "side": 24, "resize": 28}
    assert m.manifest["extractor"] == "pixels" and m.features == {"pixels": [24, 24, 3]} and m.takes_pictures
    assert "or pictures (centre, 28 to 24 pixels)" in (bundle / "README.md").read_text()
    texts = [text for captions in split.captions for text in captions]
    paths = files(home / "set", "test")
    images = m.embed_images([str(path) for path in paths])
    np.testing.assert_allclose(m.score(images, texts), want, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(m.embed_images([path.read_bytes() for path in paths]), images)
    square = np.stack([read(path, transform_in(m.manifest)) for path in paths])
    np.testing.assert_array_equal(m.embed_images(square), images)
    many = m.embed_images([paths[i % 16] for i in range(300)])  # in parts
    np.testing.assert_allclose(many, images[np.arange(300) % 16], atol=1e-6)
    with pytest.raises(UsageError, match="uint8, 0 to 255, not float32"):
        m.embed_images(square.astype(np.float32) / 255)
    with pytest.raises(UsageError, match=r"\[images, 24, 24, 3\], not \[16, 12, 24, 3\]"):
        m.embed_images(square[:, ::2])
    with pytest.raises(DataError, match="no such picture"):
        m.embed_images([home / "nowhere.jpg"])
    assert cli.run(["eval", "--bundle", str(bundle), "--data", str(home / "set"), "--json", str(home / "b.json")]) == 0
    assert json.loads((home / "b.json").read_text())["rsum"] == json.loads((home / "table.json").read_text())["rsum"]


def test_a_gallery_is_searched_by_picture_and_the_service_sees_the_same(home, bundle, tmp_path):
    pytest.importorskip("fastapi", reason="the service needs the extra serve")
    from xmodal_jax.serve.live import State

    out = str(tmp_path / "gallery")
    assert cli.run(["index", "--bundle", str(bundle), "--data", str(home / "set"), "--out", out]) == 0
    picture = files(home / "set", "test")[3]
    assert cli.run(["search", out, "--image", str(picture), "-k", "2"]) == 0
    gallery = Gallery(tmp_path / "gallery")
    searcher = Searcher(gallery)
    np.testing.assert_allclose(
        np.asarray(gallery.images.vectors, np.float32),
        gallery.bundle.embed_images(files(home / "set", "test")),
        atol=1e-3,
    )
    state = State(gallery, searcher)
    state.warm()
    assert state.facts()["pixels"]
    kept = state.read(picture.read_bytes())
    assert kept["pixels"].shape == (24, 24, 3)  # not the picture itself, of which many may wait
    (answer,) = state.by_picture([(kept, 5)])
    hits = searcher.by_image(str(picture), 5)
    assert [hit["score"] for hit in answer["hits"]] == [round(float(hit.score), 4) for hit in hits]
    with pytest.raises(DataError, match="not a readable"):
        state.read(b"no picture")


def test_it_is_evaluated_on_other_pictures(home, trained, tmp_path, capsys):
    other = photographs(tmp_path, train=8, other=5)
    argv = ["eval", "--workdir", str(trained), "--data", str(other), "--allow-unknown"]
    assert cli.run([*argv, "--json", str(tmp_path / "t.json")]) == 0
    assert json.loads((tmp_path / "t.json").read_text())["images"] == 5
    files(other, "test")[1].unlink()
    assert cli.run(argv) == 3
    assert '1 of 5 pictures of split "test" are missing or not what was imported' in capsys.readouterr().err


def test_evaluation_never_skips(home, tmp_path, capsys):
    shutil.copytree(home / "set", tmp_path / "set")
    path = files(tmp_path / "set", "test")[2]
    size = path.stat().st_size
    assert (
        train(home, tmp_path / "run", "--config.steps=2", "--config.data.pixels.policy=skip", data=tmp_path / "set")
        == 0
    )
    path.write_bytes(b"\0" * size)
    assert cli.run(["eval", "--workdir", str(tmp_path / "run")]) == 3
    assert f'split "test", row 2 (image "{path.name}")' in capsys.readouterr().err
    assert cli.run(["data", "check", str(tmp_path / "set")]) == 3
    assert f"images/{path.name}: SHA-256 differs" in capsys.readouterr().out


def test_training_goes_on_without_a_bad_picture_and_says_how_many(home, tmp_path, capsys):
    shutil.copytree(home / "set", tmp_path / "set")
    options = ("--config.steps=6", "--config.log.every_steps=6")
    damage(tmp_path / "set", 4, b"\1" * 500)
    assert train(home, tmp_path / "refused", *options, data=tmp_path / "set") == 3
    assert 'split "train", row 4 (image "train04.jpg")' in capsys.readouterr().err
    assert train(home, tmp_path / "run", *options, "--config.data.pixels.policy=skip", data=tmp_path / "set") == 0
    out, err = capsys.readouterr()
    assert 'skipped: split "train", row 4 (image "train04.jpg")' in err
    assert "1 picture of the training was skipped" in out
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines if "skipped" in line] == [1]


def test_a_set_without_pictures_is_told_how_to_get_them(home, tmp_path, capsys):
    from helpers import planted

    data = planted(tmp_path / "set", train=20, other=6)
    assert train(home, tmp_path / "run", data=data) == 3
    assert f"xmodal data attach {data} --images FOLDER" in capsys.readouterr().err
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    source = files(home / "set", "train")
    for split in ("train", "dev", "test"):
        for row in range(20 if split == "train" else 6):
            if (split, row) != ("train", 7):
                shutil.copyfile(source[3 * (row % 8)], pictures / f"{split}-{row}.png")
    assert cli.run(["data", "attach", str(data), "--images", str(pictures)]) == 0
    capsys.readouterr()
    assert train(home, tmp_path / "run", "--config.steps=2", data=data) == 3
    told = capsys.readouterr().err
    assert '1 of 20 images of split "train" have no picture (the first is "train-7")' in told and "policy=skip" in told
    assert train(home, tmp_path / "run", "--config.steps=2", "--config.data.pixels.policy=skip", data=data) == 0


def test_a_changed_picture_ends_a_run_that_goes_on(home, tmp_path, capsys):
    shutil.copytree(home / "set", tmp_path / "set")
    options = ("--config.steps=2",)
    assert train(home, tmp_path / "run", *options, data=tmp_path / "set") == 0
    path = files(tmp_path / "set", "train")[0]
    os.truncate(path, path.stat().st_size - 1)
    assert train(home, tmp_path / "run", "--config.steps=4", data=tmp_path / "set") == 3
    assert "1 of 24 pictures" in capsys.readouterr().err


def test_words_of_the_pictures():
    assert len({words(row) for row in range(16)}) == 16
