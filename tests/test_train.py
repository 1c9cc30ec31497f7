"""Whole runs through the command line: learn, stop, resume bit-equal, stages, warm start, refusals."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from helpers import child_environment, planted

from xmodal_jax import cli, digest
from xmodal_jax import config as configs
from xmodal_jax.train import Trainer
from xmodal_jax.training import folder, log, setup
from xmodal_jax.training.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("one_device")

TINY = ["train", "--config", "vse.py:vsepp,tiny", "--config.model.feature=region", "--config.data.minimum_count=1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return planted(tmp_path_factory.mktemp("data") / "set")


def train(data, workdir, *options):
    return cli.run([*TINY, f"--config.data.dir={data}", "--workdir", str(workdir), *options])


def final(workdir):
    """All arrays of the last checkpoint: parameters, optimiser, random numbers, step."""
    checkpoints = Checkpoints(Path(workdir), read_only=True)
    step = checkpoints.steps()[-1]
    return step, {item: checkpoints.restore_plain(step, item) for item in ("model", "training")}


def assert_bit_equal(left, right):
    assert left[0] == right[0]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), left[1], right[1])


def test_learns_evaluates_and_shows(data, tmp_path, capsys):
    run = tmp_path / "run"
    options = [
        "--config.loss.warmup_epochs=3",
        "--config.epochs=40",
        "--config.optim.lr=1e-2",
        "--config.eval.every_epochs=8",
    ]
    assert train(data, run, *options) == 0
    assert (run / "finished.json").is_file()
    target = tmp_path / "table.json"
    assert cli.run(["eval", "--workdir", str(run), "--split", "test", "--json", str(target)]) == 0
    said = capsys.readouterr().out
    assert " on 16 images)" in said and "\nchance" in said
    table = json.loads(target.read_text())
    chance = 100 / 16
    assert table["t2i"]["r1"] > 4 * chance
    assert table["i2t"]["r1"] > 4 * chance
    assert table["weights"] == "raw"
    assert (run / "eval").is_dir()
    lines = log.read(run / "metrics.jsonl")
    assert {"loss", "grad_norm", "waited_s", "hardness"} <= set(lines[0])
    assert {"violations", "score_positive", "score_hardest"} <= set(lines[0])
    assert 0 <= lines[0]["violations"] <= 1 and lines[0]["lr"] == pytest.approx(1e-2)
    assert lines[0]["hardness"] == 0.0
    assert lines[-2]["hardness"] == 1.0
    capsys.readouterr()
    assert cli.run(["show", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "optim.lr = 0.01" in shown
    assert "best dev rsum" in shown and " on 16 images" in shown
    alone = {side: {k: v for k, v in table[side].items() if k.startswith("r")} for side in ("i2t", "t2i")}
    pair = ["eval", "--ensemble", str(run), str(run), "--json", str(tmp_path / "pair.json")]
    assert cli.run(pair) == 0
    both = json.loads((tmp_path / "pair.json").read_text())
    assert {side: {k: v for k, v in both[side].items() if k.startswith("r")} for side in ("i2t", "t2i")} == alone
    assert cli.run([*pair, "--step", "1"]) == 2
    other = planted(tmp_path / "other", seed=1)
    assert train(other, tmp_path / "run2", "--config.steps=2") == 0
    capsys.readouterr()
    assert cli.run(["eval", "--ensemble", str(run), str(tmp_path / "run2")]) == 2
    assert "other data. An ensemble ranks one set" in capsys.readouterr().err
    for name, runs in (("one.png", [run]), ("two.png", [run, run])):
        assert cli.run(["show", *map(str, runs), "--curves", str(tmp_path / name)]) == 0
        assert (tmp_path / name).stat().st_size > 10_000


def test_the_same_command_again_changes_nothing(data, tmp_path):
    assert train(data, tmp_path / "run") == 0
    before = final(tmp_path / "run")
    assert train(data, tmp_path / "run") == 0
    assert_bit_equal(before, final(tmp_path / "run"))


@pytest.mark.parametrize("schedule", [[], ["--config.optim.schedule.kind=constant", "--config.ema=0.9"]])
def test_more_epochs_in_the_same_folder_end_bit_equal(data, tmp_path, capsys, schedule):
    assert train(data, tmp_path / "run", "--config.epochs=2", *schedule) == 0
    half = final(tmp_path / "run")
    capsys.readouterr()
    assert train(data, tmp_path / "run", "--config.epochs=4", *schedule) == 0
    said = capsys.readouterr().out
    assert f"{tmp_path / 'run'}: the run of 2 epochs there goes on to 4 epochs" in said
    assert f"resumed step {half[0]:,}" in said
    assert train(data, tmp_path / "whole", "--config.epochs=4", *schedule) == 0
    assert final(tmp_path / "run")[0] == 2 * half[0]
    assert_bit_equal(final(tmp_path / "whole"), final(tmp_path / "run"))
    ended = json.loads((tmp_path / "run" / "finished.json").read_text())
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().count("\n")
    assert ended == {"step": 2 * half[0], "lines": lines}
    for name in ("config.json", "run.json"):  # nothing tells the two folders apart
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    capsys.readouterr()
    assert train(data, tmp_path / "run", "--config.epochs=2", *schedule) == 4
    said = capsys.readouterr().err
    assert "epochs: 4.0 there, 2.0 here" in said and "can only be made longer" in said


def test_what_cannot_be_made_longer_is_refused(data, tmp_path, capsys):
    cosine = "--config.optim.schedule.kind=cosine"
    assert train(data, tmp_path / "cosine", "--config.steps=2", cosine) == 0
    assert train(data, tmp_path / "run", "--config.steps=2") == 0
    before = (tmp_path / "run" / "config.json").read_bytes()
    for name, options, says in (
        ("cosine", ["--config.steps=4", cosine], "the cosine schedule, whose rates depend on the number of steps"),
        ("run", ["--config.epochs=9"], "steps: 2 there, 0 here"),
        ("run", ["--config.steps=4", "--config.optim.lr=1e-3"], "optim.lr"),
        ("run", ["--config.steps=1"], "can only be made longer"),
        ("run", ["--config.steps=4", "--config.stages=({'steps': 4},)"], "stages"),
    ):
        capsys.readouterr()
        assert train(data, tmp_path / name, *options) == 4
        assert says in capsys.readouterr().err
    assert (tmp_path / "run" / "config.json").read_bytes() == before and (tmp_path / "run" / "finished.json").is_file()


@pytest.mark.parametrize("kill", [1, 2, 3])
def test_a_kill_while_a_run_is_made_longer_loses_nothing(data, tmp_path, monkeypatch, kill):
    assert train(data, tmp_path / "run", "--config.steps=2") == 0
    write, count = digest.write, iter(range(1, 9))

    def killed(path, text):
        if path.name in ("config.json", "run.json") and next(count) == kill:
            raise KeyboardInterrupt
        write(path, text)

    monkeypatch.setattr(digest, "write", killed)
    assert train(data, tmp_path / "run", "--config.steps=4") not in (0, 4)  # interrupted
    monkeypatch.setattr(digest, "write", write)
    assert folder.read_vocabulary(tmp_path / "run") is not None
    assert configs.read(tmp_path / "run").steps == (2 if kill < 3 else 4)
    assert train(data, tmp_path / "run", "--config.steps=4") == 0
    assert final(tmp_path / "run")[0] == 4


def test_a_signal_saves_and_the_same_command_goes_on(data, tmp_path, monkeypatch, capsys):
    assert train(data, tmp_path / "whole", "--config.steps=12") == 0
    seen = log.CollapseDetector.see

    def interrupt(self, step, metrics):
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        seen(self, step, metrics)

    monkeypatch.setattr(log.CollapseDetector, "see", interrupt)
    assert train(data, tmp_path / "run", "--config.steps=12") == 75
    monkeypatch.setattr(log.CollapseDetector, "see", seen)
    capsys.readouterr()
    assert train(data, tmp_path / "run", "--config.steps=12") == 0
    assert "nothing repeated, nothing skipped" in capsys.readouterr().out
    assert_bit_equal(final(tmp_path / "whole"), final(tmp_path / "run"))


@pytest.mark.slow
def test_killed_at_three_random_steps_it_ends_bit_equal(data, tmp_path):
    options = [
        "--config.steps=90",
        "--config.checkpoint.every_steps=6",
        "--config.log.every_steps=1",
        "--config.ema=0.9",
    ]
    assert train(data, tmp_path / "whole", *options) == 0
    argv = [sys.executable, "-m", "xmodal_jax", *TINY, f"--config.data.dir={data}", "--workdir", str(tmp_path / "run")]
    rng = random.Random(0)
    kills = 0
    env = child_environment()
    for target in sorted(rng.sample(range(5, 70), 3)):
        null = subprocess.DEVNULL
        process = subprocess.Popen([*argv, *options], env=env, stdout=null, stderr=null)
        metrics = tmp_path / "run" / "metrics.jsonl"
        while process.poll() is None:
            lines = log.read(metrics)
            if lines and lines[-1]["step"] >= target:
                process.kill()
                kills += process.wait() == -signal.SIGKILL
                break
            time.sleep(0.005)
    assert kills == 3
    done = subprocess.run([*argv, *options], env=env, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "resumed step" in done.stdout
    assert_bit_equal(final(tmp_path / "whole"), final(tmp_path / "run"))
    whole, run = (log.read(tmp_path / name / "metrics.jsonl") for name in ("whole", "run"))
    times = ("wall_s", "step_s", "waited_s")
    plain = [[{k: v for k, v in line.items() if k not in times} for line in lines] for lines in (whole, run)]
    assert plain[0] == plain[1]


def test_pmap_bfloat16_and_averaging_run(data, tmp_path, capsys):
    assert (
        train(data, tmp_path / "run", "--config.parallel=pmap", "--config.model.dtype=bfloat16", "--config.ema=0.5")
        == 0
    )
    capsys.readouterr()
    assert cli.run(["eval", "--workdir", str(tmp_path / "run")]) == 0
    assert "ema" in capsys.readouterr().out.lower()


def test_stages_freeze_and_start_the_optimiser_anew(data, tmp_path):
    config = tmp_path / "staged.py"
    config.write_text(
        "from xmodal_jax import config\n"
        "def get_config(arg=None):\n"
        "    c = config.load('vse.py:vsepp,tiny')\n"
        "    c.model.feature = 'region'\n"
        "    c.data.minimum_count = 1\n"
        "    frozen = {'match': 'image_encoder/.*', 'lr': 0.0, 'decay': 1.0}\n"
        "    rest = {'match': '.*', 'lr': 1.0, 'decay': 1.0}\n"
        "    c.stages = ({'steps': 4, 'optim': {'rules': (frozen, rest)}}, {'steps': 3, 'optim': {'lr': 1e-3}})\n"
        "    c.checkpoint.keep = 9\n"
        "    c.checkpoint.every_steps = 1\n"
        "    c.log.every_steps = 1\n"
        "    return c\n"
    )
    run = tmp_path / "run"
    argv = ["train", "--config", str(config), f"--config.data.dir={data}", "--workdir", str(run)]
    assert cli.run(argv) == 0
    rates = [line["lr"] for line in log.read(run / "metrics.jsonl") if "lr" in line]
    assert rates == pytest.approx([2e-3] * 4 + [1e-3] * 3)
    checkpoints = Checkpoints(run, read_only=True)
    first, boundary, last = (checkpoints.restore_model(step)["params"]["image_encoder"] for step in (1, 4, 7))
    jax.tree.map(np.testing.assert_array_equal, first, boundary)
    assert not np.array_equal(boundary["kernel"], last["kernel"])
    adam = [checkpoints.restore_plain(step, "training") for step in (4, 5)]
    counts = [
        [int(x) for path, x in jax.tree_util.tree_leaves_with_path(t["opt_state"]) if "count" in str(path)]
        for t in adam
    ]
    assert set(counts[0]) == {4}
    assert set(counts[1]) == {1}


def test_rate_goes_on_where_the_optimiser_does(monkeypatch):
    def stage(start, keep) -> Any:
        return SimpleNamespace(start=start, config=SimpleNamespace(keep_optimiser=keep))

    stages = [stage(0, False), stage(4, True), stage(9, False)]
    monkeypatch.setattr(setup, "schedule_of", lambda stage: lambda step: 100 * stage.start + step)
    trainer: Any = SimpleNamespace(stages=stages)
    places = ((0, 1), (0, 4), (1, 5), (1, 9), (2, 10), (2, 12))
    assert [Trainer.rate(trainer, stages[s], step) for s, step in places] == [0, 3, 404, 408, 900, 902]


def test_warm_start_from_another_run(data, tmp_path, capsys):
    assert train(data, tmp_path / "first", "--config.steps=3") == 0
    assert train(data, tmp_path / "second", f"--config.init.workdir={tmp_path / 'first'}", "--config.optim.lr=0.0") == 0
    first, second = (Checkpoints(tmp_path / name, read_only=True) for name in ("first", "second"))
    jax.tree.map(
        np.testing.assert_array_equal,
        first.restore_model(3)["params"],
        second.restore_model(second.steps()[-1])["params"],
    )
    capsys.readouterr()
    wide = [f"--config.init.workdir={tmp_path / 'first'}", "--config.model.embed_dim=40"]
    assert train(data, tmp_path / "third", *wide) == 4
    assert "in the checkpoint" in capsys.readouterr().err


def test_refusals_are_one_sentence_with_their_code(data, tmp_path, capsys):
    assert train(data, tmp_path / "run", "--config.steps=2") == 0
    other = planted(tmp_path / "other", seed=5)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("not a run")
    cases = [
        (lambda: train(data, tmp_path / "run", "--config.steps=1"), 4, "holds a run of another config (steps: 2"),
        (lambda: train(other, tmp_path / "run", "--config.steps=2"), 3, "has changed since"),
        (lambda: train(data, tmp_path / "full"), 4, "not a run folder"),
        (lambda: train(tmp_path / "nowhere", tmp_path / "x"), 3, "nowhere"),
        (lambda: train(data, tmp_path / "x", "--config.lr=1"), 2, 'Did you mean "optim.lr"?'),
        (lambda: train(data, tmp_path / "x", "--config.model.name=vsse"), 2, 'No model "vsse"'),
        (lambda: train(data, tmp_path / "x", "--config.model.feature=wavelets"), 2, 'no feature "wavelets"'),
        (lambda: train(data, tmp_path / "x", "--config.data.batch_size=0"), 2, "batch_size is 0; it must be at least"),
        (lambda: train(data, tmp_path / "x", "--config.model.dtype=float8"), 2, 'dtype is "float8"; it must be one of'),
        (lambda: train(data, tmp_path / "x", "--config.model.text=gruu"), 2, "text is"),
        (lambda: cli.run(["eval", "--workdir", str(tmp_path / "nowhere")]), 4, "not a run folder"),
        (lambda: cli.run(["eval", "--workdir", str(tmp_path / "run"), "--split", "tset"]), 3, 'Did you mean "test"'),
        (lambda: cli.run(["eval", "--workdir", str(tmp_path / "run"), "--step", "77"]), 4, "no checkpoint of step 77"),
        (lambda: cli.run(["eval", "--workdir", str(tmp_path / "run"), "--protocol", "fold5"]), 2, "5,000"),
    ]
    for call, code, words in cases:
        capsys.readouterr()
        assert call() == code, words
        error = capsys.readouterr().err
        sentence = [line for line in error.splitlines() if line.startswith("xmodal:")]
        assert len(sentence) == 1, error
        assert words in sentence[0]
        assert "Traceback" not in error


def test_features_that_turn_bad_stop_the_run_with_the_image_named(data, tmp_path, capsys, monkeypatch):
    from xmodal_jax.data.pipeline import FeatureReader

    images = FeatureReader.images

    def broken(self, arrays, rows):
        arrays = {
            **arrays,
            "region": arrays["region"] * np.where(rows == 7, np.nan, 1).astype(np.float16)[:, None, None],
        }
        return images(self, arrays, rows)

    monkeypatch.setattr(FeatureReader, "images", broken)
    assert train(data, tmp_path / "run", "--config.epochs=1") == 5
    assert "is not finite" in capsys.readouterr().err
    monkeypatch.undo()
    assert not (tmp_path / "run" / "finished.json").exists()


@pytest.mark.parametrize(("power", "level"), [(1.0, "2 * margin"), (2.0, "2 * margin ** 2")])
def test_collapse_is_warned_about_and_then_stops(tmp_path, data, capsys, power, level):
    flat = ["--config.optim.lr=0.0", "--config.collapse.warn_steps=2", "--config.collapse.stop_steps=4"]
    # A margin this wide makes every hinge that of equal scores to within a thousandth, whatever they are.
    wide = ["--config.loss.margin=5000.0", f"--config.loss.hinge_power={power}"]
    assert train(data, tmp_path / "run", *flat, *wide) == 5
    error = capsys.readouterr().err
    assert f"warning: Loss has been within 0.1 % of {level} a pair for 2 steps" in error
    assert "--config.loss.warmup_epochs=1" in error


def test_the_plateau_is_that_of_the_loss_itself_and_of_the_stage(capsys):
    from ml_collections import ConfigDict

    from xmodal_jax.losses.ranking import triplet

    config: Any = ConfigDict({"collapse": {"warn_steps": 1, "stop_steps": 0}, "loss": {"margin": 0.2}})
    positive, scores = np.eye(4, dtype=bool), np.full((4, 4), 0.3, np.float32)
    for margin, power in ((0.2, 1.0), (0.2, 2.0), (0.05, 0.5)):
        options = {"margin": margin, "hinge_power": power, "hardness": 1.0}
        loss = float(triplet(scores, positive, margin=margin, hinge_power=power, hardness=1.0)) / 4
        assert log.plateau(options) == pytest.approx(loss)
        log.CollapseDetector(config).see(1, {**options, "loss_per_pair": loss})
        assert "have collapsed" in capsys.readouterr().err
        log.CollapseDetector(config).see(1, {**options, "loss_per_pair": 1.01 * loss})
        assert capsys.readouterr().err == ""


def test_watch_ends_with_the_run(data, tmp_path, capsys):
    assert train(data, tmp_path / "run", "--config.steps=2") == 0
    assert cli.run(["eval", "--workdir", str(tmp_path / "run"), "--watch", "--interval", "0.1"]) == 0
    assert (tmp_path / "run" / "eval" / "test-2.json").is_file()
