"""Features by an image network: what they are, extraction that goes on, bad pictures, bundles that take pictures."""

import json
import shutil

import jax
import numpy as np
import pytest

from xmodal_jax import cli
from xmodal_jax.data.records import BACKBONE, open_dataset
from xmodal_jax.export import gallery
from xmodal_jax.inference import extractor, load
from xmodal_jax.layers.backbones import Backbone
from xmodal_jax.serve.live import open_state
from xmodal_jax.verbs import extract

Image = pytest.importorskip("PIL.Image", reason="pillow (extra image) is not installed")
from photographs import photographs  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_device")
SMALL = ["--backbone", "small", "--weights", "random", "--side", "24", "--resize", "28", "--batch-size", "8"]


def run(source, out, *options):
    return cli.run(["extract", str(source), "--out", str(out), *SMALL, *options])


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A prepared set with pictures and no features; the photographs alone are in its parent's folder of that name."""
    return photographs(tmp_path_factory.mktemp("extract"), train=20, other=8)


@pytest.fixture(scope="module")
def featured(pictures):
    out = pictures.parent / "featured"
    assert run(pictures, out, "--mode", "global,grid", "--mirror", "--dtype", "float32") == 0
    return out


def test_features_are_the_network_s_over_picture_and_mirror_image(pictures, featured):
    dataset, split = open_dataset(featured), open_dataset(pictures).split("train")
    item = dataset.split("train").read([3])[0]
    assert item.id == split.ids[3] and list(item.captions) == split.captions[3]
    recipe = extractor.recipe_in(dataset.manifest["extractor"])
    view = recipe.read(split.pictures[3], 10**6)[0]
    network = Backbone("small")
    variables = extractor.random_variables("small")
    plain, mirrored = (np.asarray(network.apply(variables, x[None]))[0] for x in (view, view[:, ::-1]))
    place = (plain + mirrored[:, ::-1]) / 2
    np.testing.assert_allclose(item.features["region"], place.reshape(9, 32), atol=1e-5)
    np.testing.assert_allclose(item.features["global"], place.mean((0, 1)), atol=1e-5)
    assert item.boxes is not None
    np.testing.assert_allclose(item.boxes[5], [2 / 3, 1 / 3, 1, 2 / 3], atol=1e-6)


def test_ten_crops(pictures, tmp_path):
    assert run(pictures, tmp_path / "ten", "--mode", "10crop", "--dtype", "float32") == 0
    dataset = open_dataset(tmp_path / "ten")
    recipe = extractor.recipe_in(dataset.manifest["extractor"])
    path = open_dataset(pictures).split("dev").pictures[0]
    maps = Backbone("small").apply(extractor.random_variables("small"), recipe.read(path, 10**6))
    made = dataset.split("dev").read([0])[0].features["global"]
    np.testing.assert_allclose(made, np.asarray(maps).mean((0, 1, 2)), atol=1e-5)


def test_a_stopped_extraction_goes_on_and_ends_as_the_whole(pictures, tmp_path, monkeypatch, capsys):
    assert run(pictures, tmp_path / "whole") == 0
    whole, calls = extractor.Extractor.__call__, []

    def stop(self, views):
        calls.append(len(views))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(self, views)

    monkeypatch.setattr(extract.Extractor, "__call__", stop)
    assert run(pictures, tmp_path / "out") == 130
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(extract.Extractor, "__call__", lambda self, views: calls.append(1) or whole(self, views))
    calls.clear()
    assert run(pictures, tmp_path / "out", "--dtype", "float32") == 3
    assert "was begun" in capsys.readouterr().err
    assert run(pictures, tmp_path / "out") == 0
    assert len(calls) == 3  # of 20 + 8 + 8 pictures, 8 at a time, 16 were done
    ours, theirs = contents(tmp_path / "out"), contents(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    assert [str(name) for name in ours if ours[name] != theirs[name] and name.suffix != ".json"] == []
    assert not (tmp_path / ".out.extract").exists()
    assert run(pictures, tmp_path / "out") == 0
    assert "nothing to do" in capsys.readouterr().out


def test_a_folder_of_photographs_and_bad_ones_among_them(pictures, tmp_path, capsys):
    folder = tmp_path / "photographs"
    shutil.copytree(pictures.parent / "photographs", folder)
    (folder / "broken.jpg").write_bytes((folder / "train00.png").read_bytes()[:80])
    assert run(folder, tmp_path / "out") == 3
    error = capsys.readouterr().err
    assert "broken.jpg" in error and "--policy skip" in error and error.count("\n") < 4
    shutil.rmtree(tmp_path / ".out.extract")
    assert run(folder, tmp_path / "out", "--policy", "skip") == 0
    assert 'left out: image "broken.jpg"' in capsys.readouterr().out
    split = open_dataset(tmp_path / "out").split("all")
    assert len(split) == 36 and "broken.jpg" not in split.ids and all(split.pictures)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "package"], "No Python package has weights of small"),
        (["--mode", "regions"], 'No --mode "regions"'),
        (["--mode", "10crop,grid"], "goes with no other mode"),
        (["--mode", "10crop", "--mirror"], "leave out --mirror"),
        (["--side", "40"], "at most --resize 28"),
        (["--batch-size", "0"], "at least 1"),
        (["--backbone", "alexnet"], "choose one of"),
    ],
)
def test_options_that_do_not_go_together(options, message, pictures, tmp_path, capsys):
    assert run(pictures, tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.extract").exists()


def test_a_network_needs_weights(pictures, tmp_path, capsys):
    assert cli.run(["extract", str(pictures), "--backbone", "resnet18", "--out", str(tmp_path / "out")]) == 2
    assert "give --weights FILE" in capsys.readouterr().err


def test_what_has_no_pictures_is_refused(featured, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty", tmp_path / "out") == 3
    assert "has no pictures" in capsys.readouterr().err
    assert run(tmp_path / "missing", tmp_path / "out") == 3
    assert "neither a prepared data set nor a folder" in capsys.readouterr().err


@pytest.mark.parametrize("feature", ["global", "region"])
def test_a_bundle_of_such_a_run_takes_pictures(feature, featured, tmp_path):
    argv = ["train", "--config", "vse.py:vsepp,tiny", "--data", str(featured), "--workdir", str(tmp_path / "run")]
    argv += [f"--config.model.feature={feature}", "--config.data.minimum_count=1", "--config.steps=2"]
    assert cli.run(argv) == 0
    assert cli.run(["export", "--workdir", str(tmp_path / "run"), "--out", str(tmp_path / "bundle")]) == 0
    shutil.copytree(tmp_path / "bundle", tmp_path / "moved")
    bundle = load(tmp_path / "moved")
    assert bundle.takes_pictures and (tmp_path / "moved" / BACKBONE).is_file()
    split = open_dataset(featured).split("test")
    items = split.read(range(3))
    given = bundle.embed_images({feature: np.stack([item.features[feature] for item in items])})
    seen = bundle.embed_images(list(split.pictures[:3]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), given, seen)


def test_a_service_has_its_network_ready_before_the_first_picture(featured, tmp_path, monkeypatch):
    argv = ["train", "--config", "vse.py:vsepp,tiny", "--data", str(featured), "--workdir", str(tmp_path / "run")]
    argv += ["--config.model.feature=global", "--config.data.minimum_count=1", "--config.steps=1"]
    assert cli.run(argv) == 0
    state = open_state(gallery.of_run(tmp_path / "run"))
    with monkeypatch.context() as patch:
        patch.setattr(extractor, "load", lambda *_: pytest.fail("the network is read only now"))
        picture = open_dataset(featured).split("test").pictures[0]
        assert picture is not None and state.by_picture([(state.read(picture.read_bytes()), 3)])[0]["hits"]


def test_a_new_split_keeps_what_made_the_features(featured, tmp_path):
    assert cli.run(["data", "split", str(featured), "--dev", "0.2", "--out", str(tmp_path / "anew")]) == 0
    anew, before = open_dataset(tmp_path / "anew"), open_dataset(featured)
    assert anew.manifest["extractor"] == before.manifest["extractor"]
    assert (tmp_path / "anew" / BACKBONE).read_bytes() == (featured / BACKBONE).read_bytes()
    assert json.loads((tmp_path / "anew" / "manifest.json").read_text())["files"][BACKBONE]
