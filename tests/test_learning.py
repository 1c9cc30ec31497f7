"""Every system learns: dev recall on the built-in scenes is far above chance after some 150 steps of its config.

Nothing else would see a config whose rate kills its model: the other tests train for a few steps.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from test_configs import specs

from xmodal_jax import cli
from xmodal_jax import config as configs
from xmodal_jax.evaluation.table import chance

IMAGES, DEV = 1500, 250
STEPS = {"sgraf.py": 80, "chain.py": 80, "scan.py": 80, "stt.py": 100, "dual_path.py": 130}  # 150 elsewhere
STEPS["dual_path_pixels.py"] = 200  # before an image network that nothing has trained
BATCH = {"sgraf.py": 32}  # 64 elsewhere; its scores take half a minute to compile
TIMES = 2.0  # of chance


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "data"
    assert cli.run(["data", "scenes", "--out", str(folder), "--images", str(IMAGES)]) == 0
    assert cli.run(["data", "text-features", "tfidf", str(folder)]) == 0
    assert cli.run(["data", "concepts", str(folder), "--count", "48"]) == 0
    return folder


def learners():
    """Of each config file the variants that differ in loss or optimiser: what a rate can kill."""
    kinds = {}
    for spec in specs():
        config = configs.load(f"{spec},scenes")
        key = (spec.partition(":")[0], config.loss.name, config.loss.hardness, config.optim.lr, config.optim.name)
        kinds.setdefault(key, spec)
    return list(kinds.values())


@pytest.mark.slow
@pytest.mark.parametrize("spec", learners())
def test_it_learns(spec, scenes, tmp_path):
    argv = ["train", "--config", f"{spec},scenes", "--data", str(scenes), "--workdir", str(tmp_path / "run")]
    file = spec.partition(":")[0]
    steps, batch = STEPS.get(file, 150), BATCH.get(file, 64)
    argv += [f"--config.steps={steps}", f"--config.eval.every_steps={steps}", f"--config.data.batch_size={batch}"]
    argv.append("--config.log.tensorboard=False")
    if configs.load(f"{spec},scenes").data.lengths == (64,):
        argv.append("--config.data.lengths=(24,)")  # hardly a caption is longer; few widths of scores are compiled
    # Of its own: this process compiles quickly and computes slowly
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "xmodal_jax", *argv]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    *_, rsum = [line["dev_rsum"] for line in map(json.loads, lines) if "dev_rsum" in line]
    by_chance = sum(sum(side[:3]) for side in chance(np.full(DEV, 5)))
    print(f"{spec}: dev rsum {rsum:.0f}, {rsum / by_chance:.1f} times chance")
    assert rsum > TIMES * by_chance
