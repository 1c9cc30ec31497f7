"""`xmodal show`: the resolved config of a run and how far it is; of several, what differs; learning curves; and of one
run a map of both modalities, a page of what it says, or pictures that it makes of captions."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from xmodal_jax import config as configs
from xmodal_jax.errors import PICTURES, UsageError, check_output
from xmodal_jax.report.curves import chosen
from xmodal_jax.training import log


def state(workdir: Path) -> list[str]:
    """Whether the run is finished, its last logged step, and the best dev rsum."""
    lines = log.read(workdir / "metrics.jsonl")
    ended = "finished" if (workdir / "finished.json").is_file() else "not finished"
    said = [f"{ended}; last logged step {lines[-1]['step']:,}" if lines else "nothing logged yet"]
    if best := chosen(lines):
        images = next((line.get("dev_images") for line in lines if line["step"] == best.step and "dev_rsum" in line), 0)
        where = f" on {images:,.0f} images" if images else ""
        said.append(f"best dev rsum {best.rsum:.1f} at step {best.step:,}{where}")
    return said


def describe(workdir: Path) -> None:
    """Print the config as `key = value` lines, then the last logged step and the best dev rsum."""
    for key, value in sorted(configs.flatten(configs.read(workdir)).items()):
        print(f"{key} = {json.dumps(value)}")
    print(*(f"# {line}" for line in state(workdir)), sep="\n")


def describe_all(workdirs: Sequence[Path]) -> None:
    """Print how far each of several runs is, the keys in which they differ, a column a run, and then the others."""
    leaves = [configs.flatten(configs.read(workdir)) for workdir in workdirs]
    for number, workdir in enumerate(workdirs, 1):
        print(f"# {number}: {workdir}: {'; '.join(state(workdir))}")
    values = {key: [json.dumps(each[key]) if key in each else "-" for each in leaves] for key in set().union(*leaves)}
    differing = {key: value for key, value in sorted(values.items()) if len(set(value)) > 1}
    print("# what differs" if differing else "# the configs are the same")
    rows = [["", *map(str, range(1, len(workdirs) + 1))], *([key, *value] for key, value in differing.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows if differing else ():
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print("# what is the same")
    for key in sorted(set(values) - set(differing)):
        print(f"{key} = {values[key][0]}")


def main(args: argparse.Namespace) -> int:
    """Describe the run folders; draw their curves, or the map of the one run and what it imagines, where asked."""
    check_output("--curves", args.curves, PICTURES)
    check_output("--modalities", args.modalities, PICTURES)
    check_output("--samples", args.samples, (".html", ".htm"))
    check_output("--imagined", args.imagined, PICTURES)
    if args.samples and args.count < 1:
        raise UsageError(f"--count {args.count}: give how many pictures --samples shall show, 1 or more.")
    workdirs = list({workdir.resolve(): workdir for workdir in args.workdir}.values())
    for option in ("modalities", "samples", "imagined"):
        if getattr(args, option) and len(workdirs) > 1:
            raise UsageError(f"--{option} draws one run; give one run folder, or call it once for each.")
    if len(workdirs) == 1:
        describe(workdirs[0])
    else:
        describe_all(workdirs)
    if args.curves:
        from xmodal_jax.report import curves

        if len(workdirs) == 1:
            curves.draw(workdirs[0], args.curves)
        else:
            curves.draw_comparison(workdirs, args.curves)
        print(f"# curves: {args.curves}")
    if not (args.modalities or args.samples or args.imagined):
        return 0
    from xmodal_jax.evaluation.run import Run

    run = Run(workdirs[0], args.data)
    step, split = run.step(None), args.split or "dev"
    if args.modalities:
        from xmodal_jax.report import modalities

        found = modalities.draw(run, step, split, args.modalities, seed=args.seed)
        numbers = f"gap {found.gap:.3f}, MMD {found.mmd:.4f}, linear probe {100 * found.probe:.1f} %"
        print(f"# modalities: {args.modalities} and {args.modalities.with_suffix('.json').name} ({numbers})")
    if args.imagined:
        from xmodal_jax.report import imagined

        count = imagined.draw(run, step, split, args.imagined, seed=args.seed)
        print(f"# imagined: {args.imagined} ({count} captions of {split})")
    if args.samples:
        from xmodal_jax.text.generation import Decoding
        from xmodal_jax.verbs import samples

        decoding = Decoding("beam" if args.beams > 1 else "greedy", beams=args.beams)
        options = {"count": args.count, "seed": args.seed}
        found = samples.make(run, step, args.split or "test", args.samples, decoding, **options)
        print(*samples.to_text(found), f"# samples: {args.samples}", sep="\n")
    return 0
