"""A run folder: one changed bit is found, and its data, vocabulary and model are those it was trained with."""

import json
import shutil

import numpy as np
import pytest
from helpers import planted

from xmodal_jax import cli
from xmodal_jax import config as configs
from xmodal_jax.errors import CheckpointError, DataError
from xmodal_jax.evaluation.run import Run
from xmodal_jax.text.vocabulary import Vocabulary
from xmodal_jax.training import folder

pytestmark = pytest.mark.usefixtures("one_device")

TINY = ["train", "--config", "vse.py:vsepp,tiny", "--config.model.feature=region", "--config.data.minimum_count=1"]
STEPS = ["--config.steps=2", "--config.eval.every_steps=1"]


def train(data, workdir, *options):
    return cli.run([*TINY, f"--config.data.dir={data}", "--workdir", str(workdir), *options])


def refused(capsys, argv, code):
    """The one sentence with which a command line is refused."""
    capsys.readouterr()
    assert cli.run([str(word) for word in argv]) == code
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("xmodal:")]
    assert len(lines) == 1 and "Traceback" not in error, error
    return lines[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        import jax

        from xmodal_jax.training import parallel

        patch.setitem(parallel.RUNNERS, "jit", lambda _: parallel.jit_runner(jax.devices()[:1]))
        patch.setattr(parallel, "check_divides", lambda *_: None)
        assert train(planted(root / "set"), root / "run", *STEPS) == 0
    return root


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained / "run", tmp_path / "run")


def test_one_changed_bit_anywhere_in_what_describes_a_run_is_found(run):
    random = np.random.default_rng(0)
    for name in (configs.FILE, folder.VOCABULARY, configs.RECORD):
        path = run / name
        raw = path.read_bytes()
        for place in random.integers(len(raw), size=20):
            damaged = bytearray(raw)
            damaged[place] ^= 1 << int(random.integers(7))
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
                configs.read(run)
                folder.read_vocabulary(run)
        path.write_bytes(raw)
    assert folder.read_vocabulary(run) is not None


def test_changed_config_and_vocabulary_stop_every_use(trained, run, capsys):
    train_again = [*TINY, f"--config.data.dir={trained / 'set'}", "--workdir", run, *STEPS]
    for name, old, new in ((configs.FILE, '"feature": "region"', '"feature": "global"'), (folder.VOCABULARY, "0", "1")):
        raw = (run / name).read_text()
        (run / name).write_text(raw.replace(old, new, 1))
        uses = [["eval", "--workdir", run], ["export", "--workdir", run, "--out", run / "b"], train_again]
        for argv in uses if name == folder.VOCABULARY else [*uses, ["show", run]]:
            assert name in refused(capsys, argv, 4)
        (run / name).write_text(raw)
    assert cli.run(["show", str(run)]) == 0


def test_a_folder_of_an_earlier_version_is_read_and_the_fact_said(run, capsys):
    path = run / configs.RECORD
    content = json.loads(path.read_text())
    path.write_text(json.dumps({key: content[key] for key in ("data", "vocabulary")}))
    capsys.readouterr()
    Run(run)
    assert capsys.readouterr().err.count("no hashes were kept of its config and vocabulary") == 1
    path.write_text(json.dumps({key: content[key] for key in ("data", "vocabulary")} | {"filez": {}}))
    with pytest.raises(CheckpointError, match=r"run\.json is damaged"):
        Run(run)
    path.unlink()
    assert "run.json is missing" in refused(capsys, ["eval", "--workdir", run], 4)


def test_vocabulary_of_another_run_is_refused(trained, run, tmp_path):
    record = json.loads((run / configs.RECORD).read_text())
    del record["sha256"], record["files"]
    words = Vocabulary.load(run / folder.VOCABULARY).words
    Vocabulary([*words[:4], *words[5:]]).save(run / folder.VOCABULARY)
    (run / configs.RECORD).write_text(json.dumps({key: record[key] for key in ("data", "vocabulary")}))
    with pytest.raises(CheckpointError, match="is not that which the run was trained with"):
        Run(run)


def test_data_that_changed_since_training_is_used_only_where_it_is_named(trained, run, tmp_path, capsys):
    data = shutil.move(trained / "set", tmp_path / "kept")
    planted(trained / "set", seed=7)
    try:
        assert "has changed since" in refused(capsys, ["eval", "--workdir", run], 3)
        with pytest.raises(DataError, match="--data"):
            Run(run)
        assert Run(run, data).dataset.directory == data
    finally:
        shutil.rmtree(trained / "set")
        shutil.move(data, trained / "set")
