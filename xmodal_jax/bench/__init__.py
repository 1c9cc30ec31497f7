"""`xmodal bench`: measurements of this machine, each row in a process of its own."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from xmodal_jax.errors import PICTURES, UsageError, check_output, require
from xmodal_jax.progress import Progress

COLUMNS = {
    "row": ("name", "{}"),
    "ours": ("ours_s", "{:.3g} s"),
    "loop": ("loop_s", "{:.3g} s"),
    "ratio": ("ratio", "{:.1f}"),
    "GFLOP/s": ("gflops", "{:.1f}"),
    "of GEMM": ("gemm_share", "{:.2f}"),
    "MiB": ("memory_mb", "{:.0f}"),
    "loop MiB": ("loop_memory_mb", "{:.0f}"),
    "": ("note", "{}"),
}


def fresh(name: str, side: str) -> dict[str, Any]:
    """Run one side of a row in a fresh process."""
    command = [sys.executable, "-m", "xmodal_jax.bench.measure", name, side]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"killed by signal {-done.returncode}, out of memory perhaps"]
        raise UsageError(f"The benchmark {name} ({side}) ended with code {done.returncode}: {lines[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def chosen(what: str, only: str | None) -> list[str]:
    """Names of the rows to measure.

    Raises:
        UsageError: a name in ``only`` that no row of the group has.
    """
    from xmodal_jax.bench.cases import GROUPS

    groups = [group for name, group in GROUPS.items() if name == what or (what == "all" and name != "scaling")]
    known = [name for group in groups for name in group]
    wanted = [name for name in only.split(",") if name] if only is not None else known
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        raise UsageError(f'--only: no row "{", ".join(unknown)}"; there are {", ".join(known)}.')
    return wanted


def to_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as an aligned table."""
    cells = [list(COLUMNS)]
    for row in rows:
        cells.append(["-" if row.get(key) is None else form.format(row[key]) for key, form in COLUMNS.values()])
    widths = [max(len(line[i]) for line in cells) for i in range(len(COLUMNS))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def run(what: str, only: str | None) -> list[dict[str, Any]]:
    """Measure the rows one after another."""
    from xmodal_jax.bench.cases import LOOP_MEMORY
    from xmodal_jax.bench.measure import has_torch

    names, rows = chosen(what, only), []
    if not has_torch():
        print('torch is not installed, so there is nothing to compare with: pip install "xmodal_jax[bench]"')
    with Progress("bench", len(names), unit="rows") as progress:
        for name in names:
            row = fresh(name, "ours")
            if has_torch() and name in LOOP_MEMORY:
                row |= fresh(name, "loop")
            rows.append(row)
            progress.advance()
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Time and memory against batch and gallery, of the rows that have one, both axes logarithmic."""
    require("matplotlib", "train")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained", facecolor="white")
    panels = [
        ("batch", "s", "CPU seconds"),
        ("batch", "memory_mb", "MiB above the start"),
        ("gallery", "s", "CPU seconds"),
    ]
    for axes, (size, kind, label) in zip(figure.subplots(1, 3), panels, strict=True):
        sides = {"ours": "ours_s", "loop": "loop_s"} if kind == "s" else {"ours": kind, "loop": f"loop_{kind}"}
        for (name, key), colour in zip(sides.items(), ("#1a7f4b", "#b3541e"), strict=True):
            points = sorted((row[size], row[key]) for row in rows if row.get(size) and row.get(key))
            if points:
                axes.loglog(*zip(*points, strict=True), "o-", color=colour, label=name)
        axes.set(xlabel=f"{size} size", ylabel=label)
        axes.grid(alpha=0.25, which="both")
        axes.spines[["top", "right"]].set_visible(False)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False)
    figure.suptitle(
        "SCAN t2i on one core: hardest-negative loss with gradients (left, middle), scores of 16 captions (right)"
    )
    figure.savefig(path, dpi=110)


def main(args: argparse.Namespace) -> int:
    """Run the benchmarks, print the rows and write them as JSON."""
    check_output("--json", args.json)
    check_output("--plot", args.plot, PICTURES)
    if args.plot:
        require("matplotlib", "train")  # now, not after minutes of measuring
    if args.what == "search":
        from xmodal_jax.bench.search import bench_search

        rows = bench_search()
        for row in rows:
            print(
                "  ".join(
                    f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
                )
            )
    elif args.what == "rerank":
        from xmodal_jax.bench.search import bench_rerank
        from xmodal_jax.inference.measure import print_measured

        if args.bundle is None or args.data is None:
            raise UsageError("bench rerank needs --bundle, of a system that re-ranks, and --data, prepared for it.")
        rows = bench_rerank(args.bundle, args.data, args.items)
        print_measured(rows)
    elif args.what == "load":
        from xmodal_jax.bench.load import bench_load

        rows = bench_load(args.seconds)
        print("\n".join("  ".join(f"{key} {value}" for key, value in row.items()) for row in rows))
    elif args.what == "pipeline":
        from xmodal_jax.bench.pipeline import bench_pipeline

        rows = [bench_pipeline(args.images, args.seconds)]
        print("\n".join("  ".join(f"{key} {value}" for key, value in row.items()) for row in rows))
    elif args.what == "pixels":
        from xmodal_jax.bench.pixels import bench_pixels

        rows = bench_pixels(args.seconds, args.data)
        print("\n".join("  ".join(f"{key} {value}" for key, value in row.items()) for row in rows))
    else:
        rows = run(args.what, args.only)
        print("\n".join(to_lines(rows)))
        rate = rows[0]["gemm_gflops"]
        print(f"one core; GEMM is XLA's own rate at {rows[0]['gemm_shape']}, {rate:.1f} GFLOP/s beside the first row")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    if args.plot:
        plot(rows, args.plot)
    return 0
