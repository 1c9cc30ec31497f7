"""Checkpoints: what is kept, what a flipped bit does, warm start, a full disk."""

import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xmodal_jax.errors import CheckpointError
from xmodal_jax.training.checkpoint import Checkpoints, warm_start
from xmodal_jax.training.step import TrainState

PARAMS = {"a": {"kernel": jnp.arange(4.0)}, "embed": jnp.ones((2, 3))}


def state(step, params=PARAMS):
    return TrainState(
        jnp.int32(step), params, {}, optax.adam(0.1).init(params), {}, jax.random.key_data(jax.random.key(7))
    )


@pytest.fixture
def saved(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step, rsum in enumerate([5.0, 9.0, 3.0, None, 2.0], start=1):
        checkpoints.save(state(step), None if rsum is None else {"rsum": rsum})
    checkpoints.wait()
    yield checkpoints
    checkpoints.close()


def files(checkpoints, step):
    return [p for p in (checkpoints.folder / str(step)).rglob("*") if p.is_file() and p.stat().st_size]


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1
    path.write_bytes(data)


def test_the_last_two_and_the_best_are_kept(saved):
    assert saved.steps() == [2, 4, 5]
    assert saved.best() == 2
    assert saved.rsum(4) is None
    assert sorted(int(p.stem) for p in saved.manifests.glob("*.json")) == [2, 4, 5]


def test_the_whole_state_comes_back(saved):
    back = saved.restore_training(5, jax.tree.map(jnp.zeros_like, state(0)))
    jax.tree.map(np.testing.assert_array_equal, back, state(5))
    jax.tree.map(np.testing.assert_array_equal, saved.restore_model(5)["params"], PARAMS)


def test_a_flipped_bit_anywhere_is_found_and_the_step_before_is_used(saved, capsys):
    random = np.random.default_rng(0)
    for path in files(saved, 5):
        original = path.read_bytes()
        flip(path, int(random.integers(1 << 30)))
        assert path.name in str(saved.problem(5))
        with pytest.raises(CheckpointError, match="step 5 cannot be used"):
            saved.restore_model(5)
        path.write_bytes(original)
    assert saved.problem(5) is None
    flip(files(saved, 5)[0], 3)
    assert saved.latest_good() == 4
    assert "step 5 is not used" in capsys.readouterr().err
    assert saved.steps() == [2, 4]


def test_a_step_without_a_manifest_does_not_count(saved):
    (saved.manifests / "5.json").unlink()
    assert saved.steps() == [2, 4]
    assert saved.latest_good() == 4


def test_an_empty_folder_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoints yet"):
        Checkpoints(tmp_path, read_only=True)


def test_warm_start_takes_what_fits_and_lists_what_does_not():
    source = {"a": {"kernel": np.full(4, 2.0)}, "embed": np.zeros((5, 3))}
    started = warm_start(PARAMS, source, skip=("embed",))
    np.testing.assert_array_equal(started["a"]["kernel"], np.full(4, 2.0))
    np.testing.assert_array_equal(started["embed"], PARAMS["embed"])
    with pytest.raises(CheckpointError, match=r"embed: \[5, 3\] in the checkpoint, \[2, 3\] here"):
        warm_start(PARAMS, source)
    with pytest.raises(CheckpointError, match="embed: not in the checkpoint"):
        warm_start(PARAMS, {"a": source["a"]})


FULL_DISK = """
import resource, signal, sys
sys.path.insert(0, {tests!r})
import jax.numpy as jnp
from pathlib import Path
from test_checkpoint import state
from xmodal_jax.training.checkpoint import Checkpoints
from xmodal_jax.errors import CheckpointError

checkpoints = Checkpoints(Path({folder!r}))
checkpoints.save(state(1))
checkpoints.wait()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # larger files fail, as on a full disk
import numpy as np
big = dict(noise=jnp.asarray(np.random.default_rng(0).random(500_000)))
try:
    checkpoints.save(state(2, big))
    checkpoints.wait()
except CheckpointError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def test_a_full_disk_is_one_sentence_and_leaves_the_last_good_step(tmp_path):
    code = FULL_DISK.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 4, done.stderr[-2000:]
    assert "Saving step 2" in done.stdout
    assert "step 1 is the last good one" in done.stdout
    assert done.stdout.count("\n") == 1
    assert [p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.startswith("2")] == []
    reopened = Checkpoints(tmp_path)
    assert reopened.latest_good() == 1
    jax.tree.map(np.testing.assert_array_equal, reopened.restore_training(1, state(0)), state(1))
    reopened.close()


def test_a_changed_metric_chooses_no_other_step_in_silence(saved):
    path = saved.folder / "2" / "metrics" / "metrics"
    path.write_text(path.read_text().replace("9.0", "1.0"))
    reader = Checkpoints(saved.folder.parent, read_only=True)
    with pytest.raises(CheckpointError, match="the best step is not known, metrics/metrics of step 2 differs"):
        reader.best()
    assert reader.problem(4) is None
    manifest = saved.manifests / "2.json"
    manifest.write_text(manifest.read_text().replace("metrics/metrics", "metrics/metricr"))
    with pytest.raises(CheckpointError, match="best step is not known"):
        reader.best()
    path.write_text("{")
    saved.close()
    reopened = Checkpoints(saved.folder.parent)
    assert reopened.steps() == [4, 5]
    reopened.close()


def test_a_manifest_of_another_step_is_refused(saved):
    (saved.manifests / "5.json").write_bytes((saved.manifests / "4.json").read_bytes())
    with pytest.raises(CheckpointError, match="the manifest of step 5 belongs to step 4"):
        saved.restore_model(5)
    assert saved.latest_good() == 4


def test_a_stray_manifest_deletes_no_step(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(state(1))
    checkpoints.wait()
    for name in ("notes.json", "1 (copy).json", "07.json", "\u0663.json"):
        (checkpoints.manifests / name).write_text("{}")
    checkpoints.save(state(2))
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2]
    assert len(list(checkpoints.manifests.iterdir())) == 6
    checkpoints.close()


def test_a_kill_while_a_step_is_deleted_leaves_no_half_of_it(saved, monkeypatch):
    def killed(path, *_, **__):
        for file in list(Path(path).rglob("*"))[:1]:
            file.unlink() if file.is_file() else None
        raise SystemExit("killed")

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(SystemExit):
            saved.save(state(6))
            saved.wait()
    assert saved.steps() == [2, 5, 6]
    assert [saved.problem(step) for step in saved.steps()] == [None] * 3
    saved.close()
    reopened = Checkpoints(saved.folder.parent)
    assert reopened.steps() == [2, 5, 6]
    assert sorted(path.name for path in reopened.folder.iterdir()) == ["2", "5", "6"]
    reopened.close()


def test_a_step_that_a_training_removes_while_it_is_read_is_one_sentence(saved, monkeypatch):
    """As `xmodal eval --watch` beside a training meets it."""
    reader = Checkpoints(saved.folder.parent, read_only=True)
    problem, read = Checkpoints.problem, Path.read_bytes

    def gone(self, step):
        found = problem(self, step)
        shutil.rmtree(self.folder / str(step), ignore_errors=True)
        return found

    monkeypatch.setattr(Checkpoints, "problem", gone)
    with pytest.raises(CheckpointError, match=r"step 4 was removed while it was read \(.* is missing\)"):
        reader.restore_model(4)
    monkeypatch.undo()

    def vanishes(self):
        if self.name == "metrics":
            raise FileNotFoundError(2, "No such file or directory", str(self))
        return read(self)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", vanishes)
        with pytest.raises(CheckpointError, match="of step 2 cannot be read"):
            reader.metrics(2)
        patch.setattr("xmodal_jax.digest.sha256", lambda path: Path(path, "gone").read_bytes())
        assert "cannot be read" in str(reader.problem(5))
