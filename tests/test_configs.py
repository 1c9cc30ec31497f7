"""Every variant of every config at `tiny`: stopped in the middle and resumed, it equals the run that was not; and its
losses are those of the golden table.

Losses in tests/golden/steps.json are those of the first four steps, on a CPU. When a change of a system, an initial
value or the order of batches is meant, write the table anew and say in the commit which rows moved and why:

    XMODAL_WRITE_STEPS=1 .venv/bin/python -m pytest tests/test_configs.py -p no:xdist
"""

import importlib.util
import json
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import GOLDEN, ROOT
from helpers import planted

from xmodal_jax import cli
from xmodal_jax.training import log
from xmodal_jax.training.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("one_device")


def specs() -> list[str]:
    """``FILE.py:VARIANT`` of every config of the repository."""
    found = []
    for path in sorted((ROOT / "configs").glob("*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found += [f"{path.name}:{variant}" for variant in module.VARIANTS]
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = planted(tmp_path_factory.mktemp("data") / "set", train=20, other=6, pictures=True)
    assert cli.run(["data", "text-features", "tfidf", str(folder)]) == 0
    assert cli.run(["data", "concepts", str(folder), "--count", "8", "--epochs", "2"]) == 0
    return folder


# One length: each further one that captions are cut to is a compilation of the scores and of their gradients
SMALL = [
    "--config.log.every_steps=1",
    "--config.data.batch_size=8",
    "--config.data.lengths=(8,)",
    "--config.data.minimum_count=1",
]


STEPS = GOLDEN / "steps.json"


def golden():
    return json.loads(STEPS.read_text()) if STEPS.is_file() else {}


def train(spec, data, workdir, *options):
    argv = ["train", "--config", f"{spec},scenes,tiny", "--data", str(data), "--workdir", str(workdir)]
    return cli.run([*argv, *SMALL, *options])


def final(workdir):
    checkpoints = Checkpoints(Path(workdir), read_only=True)
    step = checkpoints.steps()[-1]
    return step, {item: checkpoints.restore_plain(step, item) for item in ("model", "training")}


@pytest.mark.parametrize("spec", specs())
def test_stops_in_the_middle_and_goes_on_as_if_it_had_not(spec, data, tmp_path):
    steps = ["steps=4", "checkpoint.every_steps=2", "checkpoint.keep=4", "log.every_steps=1"]
    steps = [f"--config.{setting}" for setting in steps]
    assert train(spec, data, tmp_path / "whole", *steps) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    for step in (3, 4):  # as if it had been stopped before; a step 3 is there where a stage ends with it
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step), ignore_errors=step == 3)
    assert final(tmp_path / "run")[0] == 2
    assert train(spec, data, tmp_path / "run", *steps) == 0
    whole, resumed = final(tmp_path / "whole"), final(tmp_path / "run")
    assert whole[0] == resumed[0] == 4
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), whole[1], resumed[1])

    losses = [line["loss"] for line in log.read(tmp_path / "whole" / "metrics.jsonl") if "loss" in line]
    if os.environ.get("XMODAL_WRITE_STEPS"):
        STEPS.write_text(json.dumps(dict(sorted((golden() | {spec: losses}).items())), indent=1) + "\n")
    assert losses == pytest.approx(golden()[spec], rel=2e-3)

    assert cli.run(["eval", "--workdir", str(tmp_path / "run"), "--json", str(tmp_path / "table.json")]) == 0
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["images"] == 6
    assert 0 <= table["rsum"] <= 600


@pytest.mark.parametrize("spec", ["scan.py:t2i_lse", "chan.py:chan", "adapt.py:i2t"])
def test_one_region_an_image_and_few_known_words(spec, tmp_path):
    data = planted(tmp_path / "set", train=20, other=6, regions=(1, 1))
    assert train(spec, data, tmp_path / "run", "--config.steps=3", "--config.data.minimum_count=18") == 0
    assert cli.run(["eval", "--workdir", str(tmp_path / "run"), "--json", str(tmp_path / "table.json")]) == 0
    table = json.loads((tmp_path / "table.json").read_text())
    assert 0 <= table["rsum"] <= 600
