"""Every variant of every config at `tiny`: one run of a few steps, stopped, resumed, evaluated."""

import importlib.util
import json
from pathlib import Path

import pytest
from helpers import planted

from xmodal_jax import cli

pytestmark = pytest.mark.usefixtures("one_device")

CONFIGS = sorted((Path(__file__).resolve().parent.parent / "configs").glob("*.py"))


def variants(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.VARIANTS


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return planted(tmp_path_factory.mktemp("data") / "set", train=20, other=6)


# One length: each further one that captions are cut to is a compilation of the scores and of their gradients
SMALL = ["--config.data.batch_size=8", "--config.data.lengths=(8,)", "--config.steps=3"]


@pytest.mark.parametrize("spec", [f"{path.name}:{variant},tiny" for path in CONFIGS for variant in variants(path)])
def test_trains_resumes_and_evaluates(spec, data, tmp_path):
    argv = ["train", "--config", spec, f"--config.data.dir={data}", "--config.data.minimum_count=1"]
    argv += ["--workdir", str(tmp_path / "run"), *SMALL]
    assert cli.run(argv) == 0
    assert cli.run(argv) == 0
    assert cli.run(["eval", "--workdir", str(tmp_path / "run"), "--json", str(tmp_path / "table.json")]) == 0
    table = json.loads((tmp_path / "table.json").read_text())
    assert table["images"] == 6
    assert 0 <= table["rsum"] <= 600


@pytest.mark.parametrize("spec", ["scan.py:t2i_lse,tiny", "chan.py:chan,tiny", "adapt.py:i2t,tiny"])
def test_one_region_an_image_and_few_known_words(spec, tmp_path):
    data = planted(tmp_path / "set", train=20, other=6, regions=(1, 1))
    argv = ["train", "--config", spec, f"--config.data.dir={data}", "--config.data.minimum_count=18"]
    argv += ["--workdir", str(tmp_path / "run"), *SMALL]
    assert cli.run(argv) == 0
    assert cli.run(["eval", "--workdir", str(tmp_path / "run"), "--json", str(tmp_path / "table.json")]) == 0
    table = json.loads((tmp_path / "table.json").read_text())
    assert 0 <= table["rsum"] <= 600
