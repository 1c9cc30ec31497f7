"""Starts of trainings: one at a time in a folder, nothing claimed by a start that is refused, kills lose nothing."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import child_environment, planted

from xmodal_jax import cli, digest
from xmodal_jax import config as configs
from xmodal_jax.errors import CheckpointError, NumericError, UsageError
from xmodal_jax.training import checkpoint, folder, lock, log
from xmodal_jax.training.lock import Lock

pytestmark = pytest.mark.usefixtures("one_device")

TINY = ["train", "--config", "vse.py:vsepp,tiny", "--config.model.feature=region", "--config.data.minimum_count=1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return planted(tmp_path_factory.mktemp("data") / "set", train=20, other=6)


def argv(data, workdir, *options):
    steps = [] if any(option.startswith("--config.steps") for option in options) else ["--config.steps=2"]
    return [*TINY, f"--config.data.dir={data}", "--workdir", str(workdir), *steps, *options]


def train(data, workdir, *options):
    return cli.run(argv(data, workdir, *options))


def refused(capsys, code, data, workdir, *options):
    """The one sentence with which a training is refused."""
    capsys.readouterr()
    assert train(data, workdir, *options) == code
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("xmodal:")]
    assert len(lines) == 1 and "Traceback" not in error, error
    return lines[0]


# Locks


def test_a_lock_is_held_by_one_and_left_without_trace(tmp_path):
    path = tmp_path / lock.FILE
    with Lock(path):
        assert json.loads(path.read_text()) == {"host": socket.gethostname(), "pid": os.getpid()}
        with pytest.raises(UsageError, match=rf"Another process is at work in .* \({os.getpid()} on "):
            Lock(path)
    assert not path.exists()


def test_a_lock_of_a_dead_process_is_taken_over(tmp_path, monkeypatch):
    path = tmp_path / lock.FILE
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    dead = json.dumps({"host": socket.gethostname(), "pid": child.pid})
    for text in (dead, "", "{"):
        path.write_text(text)
        Lock(path).release()
    import fcntl

    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    path.write_text(dead)
    Lock(path).release()
    for holder in ({"host": socket.gethostname(), "pid": os.getppid()}, {"host": "elsewhere", "pid": child.pid}):
        path.write_text(json.dumps(holder))
        with pytest.raises(CheckpointError, match="at work"):
            Lock(path, CheckpointError)
        assert json.loads(path.read_text()) == holder


def test_a_second_training_in_a_folder_is_refused(data, tmp_path, capsys):
    assert train(data, tmp_path / "run") == 0
    before = sorted(path.name for path in (tmp_path / "run").rglob("*"))
    with Lock(tmp_path / "run" / lock.FILE):
        error = refused(capsys, 2, data, tmp_path / "run")
        assert f"at work in {tmp_path / 'run'} ({os.getpid()} on " in error
    assert sorted(path.name for path in (tmp_path / "run").rglob("*")) == before
    assert lock.FILE not in before
    assert train(data, tmp_path / "run") == 0


# Refused starts


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ("--config.data.word_vectors=glve.txt", 3),
        ("--config.init.workdir=nowhere", 4),
        ("--config.optim.lr=-1.0", 2),
        ("--config.data.batch_size=512 --config.data.drop_last=True", 2),
        ("--config.optim.rules=({'match':'.*x','lr':1.0},)", 2),
    ],
)
def test_a_refused_start_claims_nothing(data, tmp_path, capsys, wrong, code):
    refused(capsys, code, data, tmp_path / "run", *wrong.split())
    assert not (tmp_path / "run").exists()


def test_a_refused_start_ends_without_a_traceback_and_its_correction_goes_on(data, tmp_path):
    run, environment = tmp_path / "run", child_environment()
    command = [sys.executable, "-m", "xmodal_jax", *argv(data, run, "--config.init.workdir=nowhere")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 4 and not run.exists()
    assert done.stderr.splitlines() == [
        "xmodal: nowhere is not a run folder (no config.json); give the --workdir of a run."
    ]
    assert train(data, run) == 0


@pytest.mark.parametrize(
    "spec", ["vse.py:order", "vse.py:vsepp", "dspe.py:dspe", "stt.py:stt", "vse.py:uvs", "dspe.py:dspe captions"]
)
def test_a_batch_larger_than_the_data_is_one_sentence(spec, tmp_path, capsys):
    spec, _, sampler = spec.partition(" ")
    small = planted(tmp_path / "small", train=40, other=6, captions=(1, 2))
    if "dspe" in spec:
        assert cli.run(["data", "text-features", "tfidf", str(small)]) == 0
    options = ["--config.data.batch_size=128", "--config.data.drop_last=True", f"--config.data.dir={small}"]
    options += [f"--config.data.sampler={sampler}"] if sampler else []
    capsys.readouterr()
    assert cli.run(["train", "--config", f"{spec},scenes,tiny", *options, "--workdir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "data.batch_size 128 is larger than the split (40 images, " in error and "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_a_run_that_has_saved_nothing_may_be_started_otherwise(data, tmp_path, monkeypatch, capsys):
    def fails(*_):
        raise NumericError("not finite")

    with monkeypatch.context() as patch:
        patch.setattr(log.CollapseDetector, "see", fails)
        refused(capsys, 5, data, tmp_path / "run", "--config.steps=3", "--config.log.every_steps=1")
    assert train(data, tmp_path / "run", "--config.steps=4", "--config.log.every_steps=1") == 0
    assert "has saved no step; it begins anew" in capsys.readouterr().err
    assert "another config" in refused(capsys, 4, data, tmp_path / "run", "--config.steps=3")


# Kills


def test_a_kill_while_a_folder_is_claimed_goes_on(data, tmp_path, monkeypatch, capsys):
    write = digest.write
    for count in range(3):
        run = tmp_path / f"run{count}"
        left = [count]

        def stop(path, text, left=left):
            if not left[0]:
                path.with_name(f"{path.name}.tmp").write_text(text[:9])
                raise SystemExit("killed")
            left[0] -= 1
            write(path, text)

        with monkeypatch.context() as patch:
            patch.setattr(digest, "write", stop)
            patch.setattr(digest, "remove", lambda _: None)
            patch.setattr(Lock, "release", lambda self: self.file.close())
            with pytest.raises(SystemExit):
                train(data, run)
        assert (run / lock.FILE).exists() and not (run / configs.FILE).exists()
        assert train(data, run) == 0
        assert not list(run.glob("*.tmp"))
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / folder.VOCABULARY).write_text("mine")
    assert "not empty and not a run folder" in refused(capsys, 4, data, strange)
    assert (strange / folder.VOCABULARY).read_text() == "mine"


def test_a_kill_while_a_log_is_rewritten_loses_no_line(data, tmp_path, monkeypatch):
    run, options = tmp_path / "run", ["--config.steps=6", "--config.log.every_steps=1"]
    assert train(data, run, *options) == 0
    before = (run / "metrics.jsonl").read_bytes()

    def killed(*_):
        raise SystemExit("killed")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(SystemExit):
            train(data, run, *options)
    assert (run / "metrics.jsonl").read_bytes() == before
    assert train(data, run, *options) == 0
    assert (run / "metrics.jsonl").read_bytes() == before


def test_asked_twice_to_stop_it_still_saves(data, tmp_path, monkeypatch):
    see, save = log.CollapseDetector.see, checkpoint.Checkpoints.save

    def interrupt(self, step, metrics):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        see(self, step, metrics)

    def again(self, *args):
        os.kill(os.getpid(), signal.SIGTERM)
        save(self, *args)

    monkeypatch.setattr(log.CollapseDetector, "see", interrupt)
    monkeypatch.setattr(checkpoint.Checkpoints, "save", again)
    assert train(data, tmp_path / "run", "--config.steps=12") == 75
    assert len(checkpoint.Checkpoints(tmp_path / "run", read_only=True).steps()) == 1


# Disks and folders


@pytest.mark.parametrize("place", range(4))
def test_a_full_disk_at_the_start_leaves_nothing_behind(data, tmp_path, monkeypatch, capsys, place):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "run" / "checkpoints"))

    replace, left = os.replace, [place - 1]

    def full_later(*paths):
        left[0] -= 1
        return replace(*paths) if left[0] >= 0 else full()

    with monkeypatch.context() as patch:
        if place == 0:
            make = Path.mkdir
            patch.setattr(Path, "mkdir", lambda self, **o: full() if self.name == "checkpoints" else make(self, **o))
        else:
            patch.setattr(os, "replace", full_later)
        assert "(No space left on device)" in refused(capsys, 4, data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_full_disk_while_logging_is_one_sentence(data, tmp_path, monkeypatch, capsys):
    opens = Path.open

    def full(self, mode="r", *args, **options):
        if self.name == "metrics.jsonl" and mode == "a":
            raise OSError(errno.ENOSPC, "No space left on device")
        return opens(self, mode, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        error = refused(capsys, 4, data, tmp_path / "run", "--config.log.every_steps=1")
    assert "metrics.jsonl cannot be written (No space left on device)" in error
    assert train(data, tmp_path / "run", "--config.log.every_steps=1") == 0


def test_files_where_folders_should_be_are_one_sentence(data, tmp_path, capsys):
    letter = tmp_path / "letter.txt"
    letter.write_text("hello")
    assert "is not a folder" in refused(capsys, 4, data, letter)
    assert "letter.txt" in refused(capsys, 4, data, letter / "run")
    assert "no such folder" in refused(capsys, 3, letter, tmp_path / "run")
    assert "not a run folder" in refused(capsys, 4, data, tmp_path / "run", f"--config.init.workdir={letter}")
    for option in (f"--config.data.word_vectors={tmp_path}", f"--config.data.word_vectors={letter}"):
        assert str(tmp_path) in refused(capsys, 3, data, tmp_path / "run", option)
    assert not (tmp_path / "run").exists()
    assert train(data, tmp_path / "run") == 0
    capsys.readouterr()
    for argv in (["eval", "--workdir", letter], ["show", letter], ["eval", "--workdir", tmp_path / "set"]):
        assert cli.run([str(word) for word in argv]) == 4
        assert "not a run folder" in capsys.readouterr().err
    assert cli.run(["eval", "--workdir", str(tmp_path / "run"), "--json", str(tmp_path / "no" / "x.json")]) == 2
    assert cli.run(["eval", "--workdir", str(tmp_path / "run"), "--json", str(tmp_path)]) == 2
    capsys.readouterr()
    (tmp_path / "run" / "eval").write_text("a file")
    assert cli.run(["eval", "--workdir", str(tmp_path / "run")]) == 4
    assert "eval cannot be written" in capsys.readouterr().err


# Damage


def test_damaged_lines_of_a_log_are_named_and_lose_nothing(data, tmp_path, capsys):
    options = ["--config.steps=4", "--config.log.every_steps=1"]
    assert train(data, tmp_path / "run", *options) == 0
    path = tmp_path / "run" / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")
    figure = re.search(rb'"loss": \d', lines[1])
    assert figure is not None  # one digit that flips
    flipped = bytearray(lines[1])
    flipped[figure.end() - 1] ^= 1
    for damage in (b"{", b"3", b"\xff\xfe", b'{"stop": 1}', b"[" * 99_999, bytes(flipped)):
        path.write_bytes(b"\n".join([lines[0], damage, *lines[2:]]))
        before = path.read_bytes()
        assert "metrics.jsonl is damaged in line 2" in refused(capsys, 4, data, tmp_path / "run", *options)
        assert cli.run(["show", str(tmp_path / "run")]) == 4
        assert path.read_bytes() == before
    for rest in (lines[:2], lines[:-1][:3], [lines[0], b"\0" * 90]):  # cut, and the run has ended
        path.write_bytes(b"\n".join(rest))
        assert " lines that it had when the run ended" in refused(capsys, 4, data, tmp_path / "run", *options)
        assert cli.run(["show", str(tmp_path / "run")]) == 4
    finished = tmp_path / "run" / log.FINISHED
    for damage in ("[]", '{"lines": "many"}', "["):
        finished.write_text(damage)
        with pytest.raises(CheckpointError, match=r"finished\.json is damaged"):
            log.read(path)
    finished.unlink()
    path.write_bytes(b"\n".join(lines[:2]) + b'\n{"step": 3, "lo')
    assert [line["step"] for line in log.read(path)] == [1, 2]
    path.write_text('{"step": 1, "loss": 0.5}\n')  # as earlier versions wrote
    assert log.read(path) == [{"step": 1, "loss": 0.5}]


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_damaged_records_are_one_sentence(tmp_path, capsys, damage):
    folder = planted(tmp_path / "set", train=20, other=6)
    assert train(folder, tmp_path / "run") == 0
    for split in ("train", "test"):
        (path,) = folder.glob(f"*-{split}.array_record*")
        raw = path.read_bytes()
        middle = len(raw) // 3
        path.unlink()
        if damage != "gone":
            path.write_bytes(raw[:middle] + (bytes(b ^ 85 for b in raw[middle:]) if damage == "flipped" else b""))
    words = f"xmodal data check {folder}" if damage == "flipped" else "is missing or cut short"
    assert words in refused(capsys, 3, folder, tmp_path / "new")
    assert (tmp_path / "new").exists() == (damage == "flipped")
    assert cli.run(["eval", "--workdir", str(tmp_path / "run")]) == 3
    assert words in capsys.readouterr().err


def test_data_that_moved_is_found_by_its_name(tmp_path, capsys):
    folder = planted(tmp_path / "set", train=20, other=6)
    assert train(folder, tmp_path / "run") == 0
    folder.rename(tmp_path / "moved")
    capsys.readouterr()
    assert cli.run(["eval", "--workdir", str(tmp_path / "run")]) == 3
    assert f"was trained on {folder}, which is not there; say where it is now by --data" in capsys.readouterr().err
    assert cli.run(["eval", "--workdir", str(tmp_path / "run"), "--data", str(tmp_path / "moved")]) == 0
    assert [path.name for path in (tmp_path / "run" / "eval").iterdir() if path.is_dir()] == []


def test_a_failing_evaluation_of_other_data_ends_with_its_sentence(data, tmp_path):
    assert train(data, tmp_path / "run") == 0
    other = planted(tmp_path / "other", train=4, other=600)
    (path,) = other.glob("*-test.array_record*")
    raw = bytearray(path.read_bytes())
    raw[-len(raw) // 4 :] = bytes(len(raw) // 4 + 1)
    path.write_bytes(raw)
    command = [sys.executable, "-m", "xmodal_jax", "eval", "--workdir", str(tmp_path / "run"), "--data", str(other)]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 3, done.stderr
    assert done.stderr.splitlines()[-1].startswith("xmodal: ") and "Traceback" not in done.stderr
    assert not any(noise in done.stderr for noise in ("oneDNN", "absl", "WARNING", "tensorflow"))
