"""`xmodal show`: the resolved config of a run and how far it is."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from xmodal_jax import config as configs
from xmodal_jax import log


def main(args: argparse.Namespace) -> int:
    """Print the config as `key = value` lines, then the last logged step and the best dev rsum."""
    workdir = Path(args.workdir)
    config = configs.read(workdir)
    for key, value in sorted(configs.flatten(config).items()):
        print(f"{key} = {json.dumps(value)}")
    lines = log.read(workdir / "metrics.jsonl")
    rated = [(line["dev_rsum"], line["step"]) for line in lines if "dev_rsum" in line]
    state = "finished" if (workdir / "finished.json").is_file() else "not finished"
    print(f"# {state}; last logged step {lines[-1]['step']:,}" if lines else "# nothing logged yet")
    if rated:
        print("# best dev rsum {:.1f} at step {:,}".format(*max(rated)))
    return 0
