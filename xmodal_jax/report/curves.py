"""Learning curves of one run or several as PNG: loss and dev recall against steps and against wall time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xmodal_jax import config as configs
from xmodal_jax.errors import require
from xmodal_jax.training import log

INK, PAPER, BLUE, ORANGE = "#1c2733", "#ffffff", "#2b6cb0", "#b3541e"
COLOURS = (BLUE, ORANGE, "#1a7f4b", "#7b3fa0", "#8a6d00", INK)
UNITS = ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))


class Chosen(NamedTuple):
    """The step that evaluation and export take."""

    step: int
    minutes: float
    rsum: float


def wall_minutes(lines: Sequence[dict[str, Any]]) -> np.ndarray:
    """The wall time of training at each line; a clock that began anew with a resumed run goes on from before."""
    clock = np.array([line.get("wall_s", 0.0) for line in lines], float)
    before = np.concatenate([[0.0], clock[:-1]])
    return np.cumsum(np.where(clock < before, clock, clock - before)) / 60


def chosen(lines: Sequence[dict[str, Any]]) -> Chosen | None:
    """The best step by dev rsum, the later of equals; None where nothing was evaluated."""
    rated = [
        (line["dev_rsum"], line["step"], minutes)
        for line, minutes in zip(lines, wall_minutes(lines), strict=True)
        if "dev_rsum" in line
    ]
    if not rated:
        return None
    rsum, step, minutes = max(rated)
    return Chosen(step, float(minutes), rsum)


def unit_of(minutes: float) -> tuple[float, str]:
    """What one minute is of the unit that suits a time, and the unit's name."""
    seconds, name = next(unit for unit in UNITS if 60 * minutes >= 2 * unit[0] or unit[0] == 1)
    return 60 / seconds, name


class Axis(NamedTuple):
    """What the curves are drawn against."""

    label: str
    per_minute: float | None  # None for steps

    def values(self, lines: Sequence[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
        """Places and values of the lines that have ``name``."""
        minutes = wall_minutes(lines)
        found = [
            (line["step"] if self.per_minute is None else float(time * self.per_minute), line[name])
            for line, time in zip(lines, minutes, strict=True)
            if name in line
        ]
        return [place for place, _ in found], [value for _, value in found]

    def place(self, best: Chosen) -> float:
        return best.step if self.per_minute is None else best.minutes * self.per_minute


def axes_of(runs: Sequence[Sequence[dict[str, Any]]]) -> list[Axis]:
    """Steps and wall time."""
    longest = max((float(wall_minutes(lines)[-1]) for lines in runs if lines), default=0.0)
    per_minute, name = unit_of(longest)
    return [Axis("step", None), Axis(f"wall time, {name}", per_minute)]


def figure_of(rows: int, columns: int, height: float) -> tuple[Any, Any]:
    """A figure with its axes [rows, columns]."""
    require("matplotlib", "train")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, height), layout="constrained", facecolor=PAPER)
    return figure, figure.subplots(rows, columns, squeeze=False)


def finish(figure: Any, path: Path) -> None:
    """Write the picture."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def draw(workdir: Path, path: Path) -> None:
    """Training loss a pair and dev recall of one run; a line marks the step that is chosen by dev rsum."""
    lines = log.read(workdir / "metrics.jsonl")
    figure, grid = figure_of(2, 2, 6.4)
    best = chosen(lines)
    for column, axis in enumerate(axes_of([lines])):
        loss, recall = grid[:, column]
        loss.plot(*axis.values(lines, "loss_per_pair"), color=BLUE, linewidth=1.2)
        loss.set(xlabel=axis.label, ylabel="loss a pair", title="training loss", yscale="log")
        for way, colour, name in (("i2t", BLUE, "image to text"), ("t2i", ORANGE, "text to image")):
            for k, style in ((1, "-"), (10, ":")):
                places, values = axis.values(lines, f"dev_{way}_r{k}")
                if places:
                    recall.plot(places, values, style, color=colour, label=f"{name} R@{k}", marker=".")
        recall.set(xlabel=axis.label, ylabel="recall, %", title="dev recall", ylim=(0, 100))
        for axes in (loss, recall):
            axes.set_xlim(left=0)
        if best:
            for axes in (loss, recall):
                label = f"chosen: step {best.step:,}, dev rsum {best.rsum:.1f}" if axes is loss else None
                axes.axvline(axis.place(best), color=INK, linestyle="--", linewidth=1, label=label)
    finish(figure, path)


def draw_comparison(workdirs: Sequence[Path], path: Path) -> None:
    """Training loss a pair and dev rsum of several runs, the chosen step of each as a star; dotted lines mark the loss
    of a collapsed model."""
    runs = [log.read(workdir / "metrics.jsonl") for workdir in workdirs]
    names = [workdir.name for workdir in workdirs]
    labels = names if len(set(names)) == len(names) else list(map(str, workdirs))
    plateaus = {log.plateau(configs.read(workdir).loss) for workdir in workdirs}
    figure, grid = figure_of(2, 2, 6.4)
    for column, axis in enumerate(axes_of(runs)):
        loss, rsum = grid[:, column]
        for number, (lines, label) in enumerate(zip(runs, labels, strict=True)):
            colour = COLOURS[number % len(COLOURS)]
            loss.plot(*axis.values(lines, "loss_per_pair"), color=colour, linewidth=1.2, label=label)
            rsum.plot(*axis.values(lines, "dev_rsum"), color=colour, marker=".", label=label)
            if best := chosen(lines):
                rsum.plot(axis.place(best), best.rsum, "*", color=colour, markersize=13, markeredgecolor=INK)
        for plateau in plateaus:
            loss.axhline(plateau, color=INK, linestyle=":", linewidth=1)
        loss.set(xlabel=axis.label, ylabel="loss a pair", title="training loss (dotted: collapsed)", yscale="log")
        rsum.set(xlabel=axis.label, ylabel="rsum", title="dev rsum (star: the chosen step)")
        for axes in (loss, rsum):
            axes.set_xlim(left=0)
    finish(figure, path)
