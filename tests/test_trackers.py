"""Trackers: what is written to them is what the JSONL log has; missing, refusing and failing ones."""

import importlib.util
import json
import sys
from types import ModuleType

import pytest
from helpers import planted

from xmodal_jax import cli
from xmodal_jax import config as configs
from xmodal_jax.errors import NumericError, UsageError
from xmodal_jax.training import log, trackers


class Run:
    """A run of the stub."""

    def __init__(self, options):
        self.options, self.id, self.lines, self.ended = options, options.get("id", "first"), [], None

    def log(self, values, step):
        if step == 666:
            raise ConnectionError("no route")
        self.lines.append({"step": step, **values})

    def finish(self, exit_code):
        self.ended = exit_code


@pytest.fixture
def runs(monkeypatch):
    """The runs that a stub of wandb was asked for."""
    started, module = [], ModuleType("wandb")

    def init(**options):
        started.append(Run(options))
        return started[-1]

    module.__dict__["init"] = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return started


def config_of(*overrides):
    return configs.load("vse.py:vsepp,scenes,tiny", ["--config.log.tracker=wandb", *overrides])


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_what_is_tracked_is_the_log(runs, tmp_path):
    with log.Log(tmp_path, config_of(), 0, {}) as kept:
        kept.write(5, {"loss": 2.0})
        kept.write(5, {"dev_rsum": 90.0})
        kept.write(10, {"loss": 1.0})
    written = [{key: value for key, value in line.items() if key != "crc"} for line in lines_of(tmp_path)]
    assert runs[0].lines == written and len(written) == 3
    assert runs[0].ended == 0
    options = runs[0].options
    assert (options["project"], options["name"], options["dir"]) == ("xmodal_jax", tmp_path.name, str(tmp_path))
    assert options["config"]["optim.lr"] == config_of().optim.lr and "id" not in options


def test_a_resumed_run_keeps_its_id_and_a_new_one_does_not(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    for start, resumed in ((0, None), (5, "allow"), (0, None)):
        with log.Log(tmp_path, config_of(), start, {}):
            assert runs[-1].options.get("resume") == resumed
            assert runs[-1].options.get("id") == ("first" if resumed else None)
            assert runs[-1].options["project"] == "mine"
    (tmp_path / trackers.FILE).write_text("{")
    with log.Log(tmp_path, config_of(), 5, {}):
        assert "id" not in runs[-1].options
    assert "tracker.json is damaged" in capsys.readouterr().err


def test_a_run_that_fails_is_told_apart(runs, tmp_path):
    with pytest.raises(NumericError), log.Log(tmp_path, config_of(), 0, {}):
        raise NumericError("collapsed")
    assert runs[0].ended == 1


def test_a_tracker_that_fails_does_not_stop_the_training(runs, tmp_path, capsys):
    with log.Log(tmp_path, config_of(), 0, {}) as kept:
        for step in (5, 666, 700):
            kept.write(step, {"loss": 1.0})
    assert [line["step"] for line in runs[0].lines] == [5]
    assert [line["step"] for line in lines_of(tmp_path)] == [5, 666, 700]
    assert capsys.readouterr().err.count("tracking ends (no route)") == 1


def test_nothing_is_tracked_unless_asked_for_nor_by_all_processes(runs, tmp_path):
    with log.Log(tmp_path, config_of("--config.log.tracker="), 0, {}) as kept:
        kept.write(5, {"loss": 1.0})
    with log.Log(tmp_path, config_of(), 0, {}, active=False) as kept:
        kept.write(5, {"loss": 1.0})
    assert runs == []


def test_what_cannot_start_is_refused_in_a_sentence(tmp_path, monkeypatch, runs, capsys):
    def refuse(**_):
        raise RuntimeError("api_key not configured\nmore")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    with pytest.raises(UsageError, match=r"wandb cannot start \(api_key not configured\); run `wandb login`"):
        log.Log(tmp_path, config_of(), 0, {})
    asked = ["train", "--config", "vse.py:vsepp,tiny", f"--config.data.dir={planted(tmp_path / 'set')}"]
    asked += ["--workdir", str(tmp_path / "run")]
    assert cli.run([*asked, "--config.log.tracker=wandv"]) == 2
    assert 'config.log.tracker is "wandv"; it must be empty or wandb.' in capsys.readouterr().err
    monkeypatch.delitem(sys.modules, "wandb")
    if importlib.util.find_spec("wandb") is None:
        assert cli.run([*asked, "--config.log.tracker=wandb"]) == 2
        error = capsys.readouterr().err
        assert 'pip install "xmodal_jax[wandb]"' in error and "Traceback" not in error
    assert not (tmp_path / "run").exists()
