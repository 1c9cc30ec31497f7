"""The attacks of launch/reliability.sh: their judges see what they should, and the page shows the figures kept."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from helpers import child_environment, planted
from PIL import Image
from trials import figures
from trials.attempts import ATTACKS
from trials.damage import judged
from trials.harness import Outcome

from xmodal_jax import cli, digest
from xmodal_jax.data import records
from xmodal_jax.errors import CheckpointError, DataError
from xmodal_jax.inference.layout import fresh_folder

FULL = OSError(28, "No space left on device")


def test_the_page_shows_the_figures_that_are_kept():
    kept = json.loads(figures.FIGURES.read_text(encoding="utf-8"))
    page = figures.PAGE.read_text(encoding="utf-8")
    assert list(kept) == list(ATTACKS)
    assert figures.fill(page, kept) == page
    for name, row in kept.items():
        assert row["survived"] == row["tries"] > 0, name
        assert "+" not in row["commit"], name
        assert f"--only {name}`" in page


@pytest.mark.parametrize(
    ("code", "out", "err", "wrong"),
    [
        (0, "R@1 12.5", "", ""),
        (0, "R@1 13.5", "", "another answer in silence"),
        (4, "", "xmodal: a is damaged; restore it.\n", ""),
        (3, "", "one note\nxmodal: a is damaged; restore it.\n", ""),
        (1, "", "xmodal: a\n", "exit code 1"),
        (-11, "", "", "exit code -11"),
        (4, "", "Traceback (most recent call last):\nxmodal: a\n", "not one sentence"),
        (4, "", "xmodal: a\nxmodal: b\n", "not one sentence"),
        (4, "", "", "not one sentence"),
    ],
)
def test_the_judge_knows_an_answer_from_a_refusal_and_from_silence(code, out, err, wrong):
    said = judged(Outcome(code, out, err, None, 0.0), "R@1 12.5")
    assert said.startswith(wrong) if wrong else not said


def test_a_child_is_killed_before_the_change_that_is_named(tmp_path):
    """In a Python of its own: this one has threads, which a fork would lose."""
    script = f"""
import os, sys
from pathlib import Path
sys.path[:0] = [{str(figures.ROOT / "tests")!r}]
from trials.harness import forked
from trials.kills import watched
root = Path({str(tmp_path)!r})
def work():
    for name in "abc":
        (root / name).write_text(name)
        os.replace(root / name, root / (name + "2"))
    return 0
assert forked(watched(root, -1, work)).value == 6
for path in root.iterdir():
    path.unlink()
assert forked(watched(root, 3, work)).code == -9
assert sorted(path.name for path in root.iterdir()) == ["a2", "b"], list(root.iterdir())
"""
    done = subprocess.run([sys.executable, "-c", script], env=child_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


# A full disk, whoever says so


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FULL, "No space left on device"),
        (OSError(27, "File too large"), "File too large"),
        (RuntimeError("write() failed: No space left on device; writing a"), "No space left on device"),
        (ValueError("RESOURCE_EXHAUSTED: a [Disk quota exceeded]"), "Disk quota exceeded"),
        (OSError(2, "No such file or directory"), None),
        (ValueError("12"), None),
    ],
)
def test_a_full_disk_is_known_whoever_says_so(error, reason, tmp_path):
    assert digest.full(error) == reason
    with pytest.raises(DataError if reason else type(error), match=reason), digest.writing(tmp_path / "out", DataError):
        raise error
    with pytest.raises(CheckpointError if reason else type(error)), fresh_folder(tmp_path / "new"):
        raise error
    assert not list(tmp_path.iterdir())


def test_a_full_disk_in_any_verb_is_one_sentence(monkeypatch, capsys):
    def full(_):
        raise RuntimeError("write() failed: No space left on device")

    monkeypatch.setattr("xmodal_jax.verbs.show.main", full)
    assert cli.run(["show", "run"]) == 4
    assert capsys.readouterr().err == (
        "xmodal: a file cannot be written (No space left on device); free some space, or choose a folder that can be.\n"
    )
    with pytest.raises(RuntimeError):
        cli.run(["--debug", "show", "run"])


def test_a_disk_that_is_full_at_the_manifest_leaves_the_data_as_they_were(tmp_path, monkeypatch, capsys):
    data, pictures = planted(tmp_path / "data", train=4, other=4), tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (4, 4)).save(pictures / "train-0.png")
    opens = Path.open

    def full(self, *args, **options):
        if self.name == ".manifest.json.partial":
            raise FULL
        return opens(self, *args, **options)

    lines = (["data", "text-features", "tfidf", str(data)], ["data", "attach", str(data), "--images", str(pictures)])
    for argv in lines:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", full)
            assert cli.run(argv) in (3, 4)
        assert "No space left on device" in capsys.readouterr().err
        assert records.verify(data) == []
        assert cli.run(argv) == 0
        assert records.verify(data) == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_errors_of_other_threads_are_left_to_the_sentence(monkeypatch, capsys):
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)

    class Lost:
        def __del__(self):
            raise ValueError("Event loop is closed")

    assert cli.run(["show", "no run"]) == 4
    capsys.readouterr()
    thread = threading.Thread(target=Lost)
    thread.start()
    thread.join()
    assert capsys.readouterr().err == ""
    Lost()
    assert "Event loop is closed" in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no device that is always full")
def test_an_output_that_is_full_is_one_sentence(monkeypatch, capsys):
    def leave(code):
        raise SystemExit(code)

    monkeypatch.setattr("os._exit", leave)
    monkeypatch.setattr(sys, "argv", ["xmodal", "show", "run"])
    monkeypatch.setattr("xmodal_jax.verbs.show.main", lambda _: print("much") or 0)
    with contextlib.suppress(OSError), open("/dev/full", "w", buffering=1 << 16) as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(SystemExit) as ended:
            cli.entry()
        assert ended.value.code == 4
    assert capsys.readouterr().err.startswith("xmodal: a file cannot be written (No space left on device)")


# The attacks themselves, once each
