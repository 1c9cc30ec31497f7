"""A bundle where a run would do: its recall table, its attention, a training that starts from it."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import planted
from PIL import Image
from safetensors.numpy import load_file

from xmodal_jax import cli
from xmodal_jax.errors import UsageError
from xmodal_jax.evaluation.run import Run
from xmodal_jax.inference import load
from xmodal_jax.training import bundle as parts
from xmodal_jax.training.checkpoint import Checkpoints, flat
from xmodal_jax.verbs import attend

pytestmark = pytest.mark.usefixtures("one_device")
SYSTEMS = {"vse": "vse.py:vsepp,tiny", "scan": "scan.py:t2i_lse,tiny"}


def train(spec, data, workdir, *options):
    argv = ["train", "--config", spec, f"--config.data.dir={data}", "--workdir", str(workdir)]
    argv += ["--config.model.feature=region", "--config.data.minimum_count=1", "--config.data.batch_size=8"]
    return cli.run([*argv, "--config.steps=2", *options])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set, a short run of each system and its bundle."""
    folder = tmp_path_factory.mktemp("bundles")
    data = planted(folder / "data", train=20, other=6)
    for name, spec in SYSTEMS.items():
        assert train(spec, data, folder / name) == 0
        assert cli.run(["export", "--workdir", str(folder / name), "--out", str(folder / f"{name}.bundle")]) == 0
    return folder


def evaluated(folder, tmp_path, *argv):
    target = tmp_path / "table.json"
    assert cli.run(["eval", *argv, "--json", str(target)]) == 0
    return json.loads(target.read_text())


def test_a_report_needs_a_run(folder, tmp_path, capsys):
    bundle = ["--bundle", str(folder / "vse.bundle"), "--data", str(folder / "data")]
    assert cli.run(["eval", *bundle, "--report", str(tmp_path / "page")]) == 2
    assert "--report is of one step of a run: give --workdir" in capsys.readouterr().err
    assert not (tmp_path / "page").exists()


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_bundle_has_the_table_of_its_run(name, folder, tmp_path, capsys):
    ours = evaluated(folder, tmp_path, "--workdir", str(folder / name))
    argv = ["--bundle", str(folder / f"{name}.bundle"), "--data", str(folder / "data")]
    capsys.readouterr()
    theirs = evaluated(folder, tmp_path, *argv)
    shown, stored = capsys.readouterr()
    for key in ("i2t", "t2i", "rsum", "interval_95", "images", "captions", "identity", "equal_captions"):
        assert theirs[key] == ours[key], key
    assert "captions of test: 0.0 %" in stored and "\nchance" in shown and "exported weights" in shown
    assert evaluated(folder, tmp_path, *argv, "--split", "dev", "--duplicates", "shared")["duplicates"] == "shared"


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_bundle_votes_as_its_run(name, folder, tmp_path, capsys):
    run, bundle = str(folder / name), str(folder / f"{name}.bundle")
    alone = evaluated(folder, tmp_path, "--workdir", run)
    for members in ([bundle, run], [bundle, bundle, "--data", str(folder / "data")], [run, bundle, "--scale"]):
        voted = evaluated(folder, tmp_path, "--ensemble", *members)
        for key in ("i2t", "t2i", "rsum", "identity"):
            assert voted[key] == alone[key], key
    assert f"{bundle} ({SYSTEMS[name].partition('.')[0]}, exported)" in capsys.readouterr().out
    both = [str(folder / f"{each}.bundle") for each in SYSTEMS]
    runs = [evaluated(folder, tmp_path, "--ensemble", *(str(folder / each) for each in SYSTEMS))["rsum"]]
    assert [evaluated(folder, tmp_path, "--ensemble", *both, "--data", str(folder / "data"))["rsum"]] == runs
    assert "bundles alone needs --data" in refused(capsys, 2, "eval", "--ensemble", *both)


def test_a_bundle_is_compared_with_its_run_by_its_table(folder, tmp_path, capsys):
    argv = ["--bundle", str(folder / "vse.bundle"), "--data", str(folder / "data")]
    evaluated(folder, tmp_path, *argv)
    assert cli.run(["compare", str(folder / "vse"), str(tmp_path / "table.json")]) == 0
    assert "No difference in rsum is shown: B minus A is +0.0" in capsys.readouterr().out


def refused(capsys, code, *argv):
    capsys.readouterr()
    assert cli.run(list(map(str, argv))) == code
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("xmodal: ")]
    assert len(error) == 1
    return error[0]


def test_what_a_bundle_cannot_be_asked(folder, tmp_path, capsys):
    bundle, data = folder / "vse.bundle", folder / "data"
    assert "--bundle needs --data" in refused(capsys, 2, "eval", "--bundle", bundle)
    assert "leave out --step" in refused(capsys, 2, "eval", "--bundle", bundle, "--data", data, "--step", 1)
    assert "does not describe an xmodal_jax bundle" in refused(capsys, 4, "eval", "--bundle", data, "--data", data)
    other = planted(tmp_path / "wide", train=2, other=2, features=9)
    assert '"region" is [images, regions, 8], not' in refused(capsys, 2, "eval", "--bundle", bundle, "--data", other)
    out = ["--image", "test-1", "--out", tmp_path / "x.png"]
    assert "needs --data" in refused(capsys, 2, "attend", "--bundle", folder / "scan.bundle", *out)
    assert "has no attention" in refused(capsys, 2, "attend", "--bundle", bundle, "--data", data, *out)


def test_a_bundle_attends_as_its_run(folder, tmp_path, capsys):
    run, bundle = Run(folder / "scan"), load(folder / "scan.bundle")
    split = run.dataset.split("test")
    for caption in ("red1 zebra big0", "red1 " * 70):
        want = attend.look(run, run.variables(2)[0], split, 3, caption)
        got = attend.look_by(bundle, split, 3, caption)
        assert (got.words, got.known, got.id, got.size) == (want.words, want.known, want.id, want.size)
        np.testing.assert_allclose(got.weight, want.weight, atol=1e-6)
        np.testing.assert_allclose(got.boxes, want.boxes)
        assert got.score == pytest.approx(want.score, abs=1e-5)
    assert capsys.readouterr().out.count("was cut after") == 2
    argv = ["attend", "--bundle", folder / "scan.bundle", "--data", folder / "data", "--image", "test-1"]
    assert cli.run([*map(str, argv), "--caption", "red1 Zebra", "--out", str(tmp_path / "a.png")]) == 0
    assert "not in the vocabulary of" in capsys.readouterr().out
    assert Image.open(tmp_path / "a.png").width > 100


def test_the_steps_of_a_bundle_look_where_those_of_its_run_do(folder, tmp_path, capsys):
    assert train("mdan.py:mdan", folder / "data", tmp_path / "run") == 0
    assert cli.run(["export", "--workdir", str(tmp_path / "run"), "--out", str(tmp_path / "bundle")]) == 0
    run, bundle = Run(tmp_path / "run"), load(tmp_path / "bundle")
    split = run.dataset.split("test")
    for caption in ("red1 zebra big0", "red1 " * 70):
        want = attend.look(run, run.variables(2)[0], split, 3, caption)
        got = attend.look_by(bundle, split, 3, caption)
        assert want.steps is not None and got.steps is not None and got.titles == want.titles == ["step 1", "step 2"]
        np.testing.assert_allclose(got.weight, want.weight, atol=1e-6)
        np.testing.assert_allclose(got.steps, want.steps, atol=1e-6)
    argv = ["attend", "--bundle", tmp_path / "bundle", "--data", folder / "data", "--image", "test-1"]
    assert cli.run([*map(str, argv), "--out", str(tmp_path / "a.png")]) == 0
    assert Image.open(tmp_path / "a.png").width > 100
    with pytest.raises(UsageError, match="has no steps that look"):
        load(folder / "scan.bundle").glimpses(np.zeros((1, 2, 8), np.float32), ["red1"])


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_training_starts_from_a_bundle(name, folder, tmp_path):
    start = f"--config.init.workdir={folder / f'{name}.bundle'}"
    assert train(SYSTEMS[name], folder / "data", tmp_path / "run", start, "--config.optim.lr=0.0") == 0
    trees = [Checkpoints(Path(run), read_only=True).restore_model(2) for run in (tmp_path / "run", folder / name)]
    jax.tree.map(np.testing.assert_array_equal, *(tree["params"] for tree in trees))
    stored = load_file(folder / f"{name}.bundle" / "parameters.safetensors")
    assert {f"params/{key}" for key in flat(trees[0]["params"])} >= set(stored)


def test_a_training_on_other_words_keeps_those_of_the_bundle_or_is_refused(folder, tmp_path, capsys):
    bundle, spec = folder / "vse.bundle", SYSTEMS["vse"]
    other = planted(tmp_path / "other", train=3, other=3, captions=(1, 2), seed=5)  # not every word
    begun = [spec, other, tmp_path / "run", f"--config.init.workdir={bundle}", "--config.data.batch_size=2"]
    assert train(*begun) == 4
    assert "keep its words with --config.init.vocabulary=True" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert train(*begun, "--config.init.vocabulary=True") == 0
    words = [json.loads((path / "vocabulary.json").read_text())["words"] for path in (tmp_path / "run", bundle)]
    assert words[0] == words[1]
    assert train(*begun, "--config.init.vocabulary=True", "--config.seed=3") == 4  # another config, not another fault
    assert "seed: 0 there, 3 here" in capsys.readouterr().err
    assert train(spec, other, tmp_path / "none", "--config.init.vocabulary=True") == 2
    assert "name a run or a bundle" in capsys.readouterr().err


def test_a_bundle_that_does_not_fit_is_one_sentence(folder, tmp_path, capsys):
    start = f"--config.init.workdir={folder / 'vse.bundle'}"
    assert train(SYSTEMS["vse"], folder / "data", tmp_path / "run", start, "--config.model.embed_dim=48") == 4
    assert "Cannot start from" in capsys.readouterr().err
    assert train(SYSTEMS["scan"], folder / "data", tmp_path / "run", start) == 4
    assert "Cannot start from" in capsys.readouterr().err
    broken = tmp_path / "broken"
    for name in (parts.PARAMETERS, parts.VOCABULARY, parts.MANIFEST):
        shutil.copytree(folder / "vse.bundle", broken)
        raw = bytearray((broken / name).read_bytes())
        raw[len(raw) // 2] ^= 1
        (broken / name).write_bytes(raw)
        assert train(SYSTEMS["vse"], folder / "data", tmp_path / "run", f"--config.init.workdir={broken}") == 4
        error = capsys.readouterr().err
        assert "is no sound bundle" in error and "Traceback" not in error
        shutil.rmtree(broken)
    assert not (tmp_path / "run").exists()
