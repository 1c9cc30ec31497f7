"""docs/add-a-system.md as it stands: its files, outside the repository, trained, evaluated, exported, used."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from helpers import planted, with_mean_vectors

import xmodal_jax
from xmodal_jax import cli
from xmodal_jax.inference.gallery import Gallery
from xmodal_jax.inference.search import Searcher
from xmodal_jax.training.model import model_class

pytestmark = pytest.mark.usefixtures("one_device")

PAGE = (ROOT / "docs" / "add-a-system.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL))
SYSTEMS = [name.removesuffix(".py") for name in FILES if not name.endswith("_config.py")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return with_mean_vectors(planted(tmp_path_factory.mktemp("data") / "set", train=20, other=6))


def test_the_page_has_a_system_of_each_kind():
    assert SYSTEMS == ["chars", "dense", "speaker", "classes"]
    assert set(FILES) == {f"{name}{end}" for name in SYSTEMS for end in (".py", "_config.py")}


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_stranger_adds_it_in_two_files(name, data, tmp_path, monkeypatch, capsys):
    for end in (".py", "_config.py"):
        (tmp_path / f"{name}{end}").write_text(FILES[f"{name}{end}"], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    argv = ["train", "--config", f"{name}_config.py", "--data", str(data), "--workdir", "run"]
    argv += ["--config.steps=2", "--config.data.batch_size=8", "--config.data.minimum_count=1"]
    assert cli.run(argv) == 0
    (tmp_path / f"{name}.py").write_text(FILES[f"{name}.py"] + "# changed\n", encoding="utf-8")
    assert cli.run(argv) == 4
    assert "The model file has changed" in capsys.readouterr().err
    (tmp_path / f"{name}.py").write_text(FILES[f"{name}.py"], encoding="utf-8")
    monkeypatch.chdir("/")  # the run knows where its model file is
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    assert cli.run(["eval", "--workdir", str(run), "--json", str(tmp_path / "table.json")]) == 0
    assert json.loads((tmp_path / "table.json").read_text())["images"] == 6
    assert cli.run(["export", "--workdir", str(run), "--out", str(bundle)]) == 0

    for end in (".py", "_config.py"):  # neither the bundle nor what is made of it needs them
        (tmp_path / f"{name}{end}").unlink()
    m = xmodal_jax.load(bundle)
    region = np.ones((3, 4, 8), np.float32)
    assert m.score(m.embed_images(region), m.embed_texts(["red0 dog1", "sea2"])).shape == (3, 2)
    gallery = str(tmp_path / "gallery")
    assert cli.run(["index", "--bundle", str(bundle), "--data", str(data), "--out", gallery]) == 0
    assert cli.run(["search", gallery, "red0 dog1", "-k", "2"]) == 0
    Searcher(Gallery(Path(gallery))).warm(2, 2)
    capsys.readouterr()
    if name == "speaker":
        assert all(m.caption(region))
        assert cli.run(["paraphrase", "--bundle", str(bundle), "red0 dog1"]) == 2
        assert "does not speak of sentences" in capsys.readouterr().err
    else:
        assert cli.run(["caption", "--bundle", str(bundle), "--data", str(data), "--split", "test"]) == 2
        assert "does not speak of images" in capsys.readouterr().err
    model_class.cache_clear()
    assert cli.run(["eval", "--workdir", str(run)]) == 2
    assert "no such model file" in capsys.readouterr().err
