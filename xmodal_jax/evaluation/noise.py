"""The picture of a noise test: recall of one or several systems against the share of wrong characters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xmodal_jax.errors import UsageError, require

COLOURS = ("#2b6cb0", "#b3541e", "#1a7f4b", "#7b3fa0", "#8a6d00", "#1c2733")


def draw(curves: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """R@1 (solid) and R@10 (dotted) against noise as a PNG, image to text on the left, text to image on the right.

    Args:
        curves: for each system by name, its evaluations in any order: the content of ``xmodal eval --json`` with the
            share of replaced characters as ``char_noise``.
        path: the picture to write.

    Raises:
        UsageError: a system without an evaluation, or an evaluation without ``char_noise``.
    """
    for name, results in curves.items():
        if not results or any("char_noise" not in result for result in results):
            raise UsageError(f"{name}: no noise curve in its evaluations; run xmodal eval --char-noise at some shares.")
    require("matplotlib", "train")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.8), layout="constrained", facecolor="#ffffff")
    sides = zip(figure.subplots(1, 2, sharey=True), ("i2t", "t2i"), ("image to text", "text to image"), strict=True)
    for axes, way, title in sides:
        for number, (name, results) in enumerate(curves.items()):
            results = sorted(results, key=lambda result: result["char_noise"])
            share = [100 * result["char_noise"] for result in results]
            for cut, style in (("r1", "-"), ("r10", ":")):
                recall = [result[way][cut] for result in results]
                label = f"{name} R@{cut[1:]}"
                axes.plot(share, recall, style, color=COLOURS[number % len(COLOURS)], marker=".", label=label)
        axes.set(xlabel="characters replaced, %", title=title, ylim=(0, 100))
        axes.set_xlim(left=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.axes[0].set_ylabel("recall, %")
    figure.axes[1].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
