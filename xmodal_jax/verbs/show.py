"""`xmodal show`: the resolved config of a run and how far it is; learning curves of one run or several."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from xmodal_jax import config as configs
from xmodal_jax.training import log


def describe(workdir: Path) -> None:
    """Print the config as `key = value` lines, then the last logged step and the best dev rsum."""
    config = configs.read(workdir)
    for key, value in sorted(configs.flatten(config).items()):
        print(f"{key} = {json.dumps(value)}")
    lines = log.read(workdir / "metrics.jsonl")
    rated = [(line["dev_rsum"], line["step"], line.get("dev_images")) for line in lines if "dev_rsum" in line]
    state = "finished" if (workdir / "finished.json").is_file() else "not finished"
    print(f"# {state}; last logged step {lines[-1]['step']:,}" if lines else "# nothing logged yet")
    if rated:
        rsum, step, images = max(rated, key=lambda line: line[:2])
        print(f"# best dev rsum {rsum:.1f} at step {step:,}" + (f" on {images:,.0f} images" if images else ""))


def main(args: argparse.Namespace) -> int:
    """Describe each run folder; draw their curves where asked."""
    for workdir in args.workdir:
        if len(args.workdir) > 1:
            print(f"# {workdir}")
        describe(workdir)
    if args.curves:
        from xmodal_jax.verbs import curves

        if len(args.workdir) == 1:
            curves.draw(args.workdir[0], args.curves)
        else:
            curves.draw_comparison(args.workdir, args.curves)
        print(f"# curves: {args.curves}")
    return 0
