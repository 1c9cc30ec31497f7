"""A run folder: one changed bit is found, and its data, vocabulary and model are those it was trained with."""

import json
import shutil

import numpy as np
import pytest
from helpers import planted

from xmodal_jax import cli, digest
from xmodal_jax import config as configs
from xmodal_jax.data.records import open_dataset
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


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("model", None, "it has no groups model and data"),
        ("model", [7], "it has no groups model and data"),
        ("model.name", ["vse"], "it must be the name of a model"),
        ("model.embed_dim", 1 << 62, "it must be below 2,147,483,648"),
        ("eval.batch_size", -7, "it must be at least"),
        ("eval", None, "does not describe a run"),
    ],
)
def test_a_config_that_a_stranger_sealed_is_one_sentence(run, capsys, key, value, says):
    record = json.loads((run / configs.RECORD).read_text())
    config = json.loads((run / configs.FILE).read_text())
    *groups, last = key.split(".")
    place = config
    for group in groups:
        place = place[group]
    place[last] = value
    (run / configs.FILE).write_text(json.dumps(config))
    record["files"][configs.FILE] = digest.sha256(run / configs.FILE)
    (run / configs.RECORD).write_text(json.dumps(digest.sealed({k: v for k, v in record.items() if k != "sha256"})))
    assert says in refused(capsys, ["eval", "--workdir", run], 4)


def test_a_run_that_lost_its_vocabulary_is_one_sentence(run, capsys):
    record = json.loads((run / configs.RECORD).read_text())
    record["vocabulary"] = ""
    (run / configs.RECORD).write_text(json.dumps(digest.sealed({k: v for k, v in record.items() if k != "sha256"})))
    assert "has no vocabulary, but its system reads tokens" in refused(capsys, ["eval", "--workdir", run], 4)


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


def test_figures_on_other_data_are_kept_apart_and_name_it(run, tmp_path, capsys):
    other, table = planted(tmp_path / "other", seed=3, other=9), tmp_path / "other.json"
    second = ["--workdir", str(run), "--step", "2"]
    assert cli.run(["eval", *second]) == 0
    before = (run / "eval" / "test-2.json").read_bytes()
    assert json.loads(before)["data"] == "planted" and "trained_on" not in json.loads(before)
    assert json.loads(before)["sha256"] == digest.digest(json.loads(before))
    capsys.readouterr()
    assert cli.run(["eval", *second, "--data", str(other), "--json", str(table)]) == 0
    title = capsys.readouterr().out.splitlines()[0]
    identity = open_dataset(other).identity
    assert (run / "eval" / "test-2.json").read_bytes() == before
    (kept,) = (run / "eval").glob("*/test-2.json")
    content = json.loads(kept.read_text())
    assert content == json.loads(table.read_text()) and content["images"] == 9
    assert (content["data"], content["identity"], content["trained_on"]) == ("planted", identity, "planted")
    for text in (title, kept.with_suffix(".md").read_text()):
        assert f"planted (manifest {identity[:8]}; trained on planted) test" in text
    assert cli.run(["export", *second, "--data", str(other), "--out", str(tmp_path / "bundle")]) == 0
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert f"| data | planted, manifest {json.loads(before)['identity'][:12]}" in card
    assert title in card and "16 images" in card and "9 images" in card
    capsys.readouterr()
    assert cli.run(["results", str(run), str(kept)]) == 0
    assert sum("| 2 steps, finished |" in line for line in capsys.readouterr().out.splitlines()) == 2


def test_data_of_other_shapes_is_refused_with_both_named(run, tmp_path, capsys):
    wide = planted(tmp_path / "wide", features=12)
    error = refused(capsys, ["eval", "--workdir", run, "--data", wide], 3)
    assert f"{run} cannot be used on {wide}, which has features of 12 numbers a region instead of 8 numbers" in error
    assert not (run / "eval").exists()
    record = json.loads((run / configs.RECORD).read_text())
    (run / configs.RECORD).write_text(json.dumps({key: record[key] for key in ("data", "vocabulary")}))
    error = refused(capsys, ["eval", "--workdir", run, "--data", wide], 3)
    assert f"other shapes than {wide}: image_encoder/kernel is [8, 32] there, [12, 32] for these" in error


def test_text_vectors_fitted_on_other_captions_are_refused(tmp_path, capsys):
    folders = [planted(tmp_path / name, seed=seed, train=20) for name, seed in (("a", 0), ("b", 1))]
    for data in folders:
        assert cli.run(["data", "text-features", "tfidf", str(data)]) == 0
    argv = ["train", "--config", "dspe.py:dspe,scenes,tiny", "--config.data.batch_size=8", "--config.steps=1"]
    assert cli.run([*argv, "--data", str(folders[0]), "--workdir", str(tmp_path / "run")]) == 0
    error = refused(capsys, ["eval", "--workdir", tmp_path / "run", "--data", folders[1]], 3)
    assert "text.tfidf.npz of the run" in error or "numbers in all instead of" in error
