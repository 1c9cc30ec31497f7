"""Each attack of launch/reliability.sh, a few tries of it; early among the files, as this one takes long."""

import os
import subprocess
import sys

import pytest
from trials import figures
from trials.attempts import ATTACKS


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_survived(name):
    tries = {"service": 180, "strangers": 20}.get(name, 3)
    command = [sys.executable, "-m", "trials", "--only", name, "--tries", str(tries), "--seed", "7"]
    path = f"{figures.ROOT / 'tests'}{os.pathsep}{figures.ROOT}"
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
