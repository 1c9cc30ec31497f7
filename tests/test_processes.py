"""Two processes train one model: equal to one process with all devices, stopped, killed, resumed; refusals."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import child_environment, planted

from xmodal_jax.errors import UsageError
from xmodal_jax.training import log, processes
from xmodal_jax.training.checkpoint import Checkpoints

LOCAL = Path(__file__).resolve().parent.parent / "launch" / "local.py"
PATIENCE = 280  # seconds for a launch


@contextlib.contextmanager
def launched(output, count, argv):
    """`xmodal ...` with four devices in all, as ``count`` processes."""
    command = [sys.executable, "-m", "xmodal_jax", *argv]
    if count > 1:
        command = [sys.executable, str(LOCAL), str(count), *command]
    with output.open("w") as file:
        process = subprocess.Popen(command, env=child_environment(4 // count), stdout=file, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        if process.poll() is None:
            for number in (*ids(output), process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)


def ids(output):
    return [int(number) for number in re.findall(r"launch: process \d+ has id (\d+)", output.read_text())]


def launch(output, count, argv, *, send=None, metrics=Path(), lines=0):
    """Exit code and output; process 1 is sent a signal once the metrics have so many lines."""
    with launched(output, count, argv) as process:
        until = time.monotonic() + PATIENCE
        while send and process.poll() is None and len(log.read(metrics)) < lines:
            assert time.monotonic() < until, output.read_text()[-3000:]
            time.sleep(0.01)
        if send and process.poll() is None:
            os.kill(ids(output)[1], send)
        return process.wait(timeout=PATIENCE), output.read_text()


def final(workdir):
    checkpoints = Checkpoints(workdir, read_only=True)
    step = checkpoints.steps()[-1]
    state = {item: checkpoints.restore_plain(step, item) for item in ("model", "training")}
    return step, checkpoints.best(), state


@pytest.mark.slow
def test_two_processes_train_what_one_would(tmp_path):
    data, single, double, output = (tmp_path / name for name in ("data", "one", "two", "output"))
    planted(data)
    options = ["batch_size=16", "minimum_count=1", f"dir={data}"]
    argv = ["train", "--config", "vse.py:vsepp,tiny", "--config.model.feature=region", "--config.steps=14"]
    argv += [f"--config.data.{option}" for option in options]
    argv += ["--config.eval.every_steps=7", "--config.checkpoint.every_steps=2", "--config.log.every_steps=1"]
    argv += ["--config.ema=0.9", "--workdir"]
    code, said = launch(output, 1, [*argv, str(single)])
    assert code == 0, said[-3000:]

    argv.append(str(double))
    metrics = double / "metrics.jsonl"
    code, said = launch(output, 2, argv, send=signal.SIGTERM, metrics=metrics, lines=2)
    assert code == 75, said[-3000:]
    assert said.count("asked to stop: saved step") == 1
    assert said.count("parameters in") == 1
    saved = len(log.read(metrics))
    assert saved < 8
    code, said = launch(output, 2, argv, send=signal.SIGKILL, metrics=metrics, lines=saved + 2)
    assert code == 128 + signal.SIGKILL, said[-3000:]
    assert said.count("resumed step") == 1
    code, said = launch(output, 2, [*argv, "--config.parallel=pmap"])
    assert code == 0, said[-3000:]
    assert said.count("resumed step") == said.count("finished step") == 1

    (step, best, state), (other_step, other_best, other) = final(single), final(double)
    assert step == other_step == 14
    assert best == other_best
    for item in state:
        top = max(np.abs(leaf).max() for leaf in jax.tree.leaves(state[item]) if leaf.dtype.kind == "f")
        jax.tree.map(
            lambda a, b, top=top: np.testing.assert_allclose(b, a, rtol=0, atol=1e-6 * top), state[item], other[item]
        )
    lines, others = (log.read(folder / "metrics.jsonl") for folder in (single, double))
    times = {"wall_s", "step_s", "waited_s"}
    assert len(lines) == len(others) == 14 + 2
    for line, other in zip(lines, others, strict=True):
        assert line.keys() - times == other.keys() - times
        assert {k: other[k] for k in line.keys() - times} == pytest.approx(
            {k: line[k] for k in line.keys() - times}, rel=1e-5
        )


JOIN = "from xmodal_jax.training import processes; processes.join(timeout=3)"


@pytest.mark.parametrize("index", [0, 1])
def test_a_process_that_nobody_joins_says_so(index):
    with socket.socket() as probe:
        probe.bind(("", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    env = {**os.environ, **dict(zip(processes.VARIABLES, (address, "2", str(index)), strict=True))}
    done = subprocess.run(
        [sys.executable, "-c", JOIN], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert f"xmodal: process {index} of 2 at {address} has waited 3 s in vain" in done.stderr


def test_variables_that_do_not_fit_are_refused(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        cases = [
            ((None, "2", "0"), "JAX_COORDINATOR_ADDRESS is not"),
            (("host:1", None, None), "JAX_NUM_PROCESSES, JAX_PROCESS_ID is not"),
            (("host", "2", "0"), "has no port"),
            (("host:1", "two", "0"), "JAX_NUM_PROCESSES=two is not a number"),
            (("host:1", "2", "2"), "must be below"),
            (("host:99999", "2", "0"), "cannot be used"),
            ((f"host:{taken.getsockname()[1]}", "2", "0"), "cannot be used"),
        ]
        for values, words in cases:
            for name, value in zip(processes.VARIABLES, values, strict=True):
                monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
            with pytest.raises(UsageError, match=words):
                processes.join()


def test_alone_nothing_happens():
    processes.join()
    assert processes.first()
    assert processes.anyone(True) is True
    np.testing.assert_array_equal(processes.agree([1.1, 2.0]), [1.1, 2.0])


def test_the_launcher_gives_the_first_exit_code_and_stops_the_rest():
    wait = "import os, sys, time; time.sleep(60) if os.environ['JAX_PROCESS_ID'] == '0' else sys.exit(7)"
    code = f"import sys; sys.path.insert(0, {str(LOCAL.parent)!r}); import local; local.GRACE = 0.5; "
    code += f"sys.exit(local.main(2, [sys.executable, '-c', {wait!r}]))"
    began = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code], timeout=50, check=False).returncode == 7
    assert time.monotonic() - began < 40
