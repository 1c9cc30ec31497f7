"""The report of a run: Markdown with the recall table, learning curves and a page of retrieved examples, as PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from xmodal_jax import config as configs
from xmodal_jax.data.pictures import LARGE, read_picture
from xmodal_jax.data.pipeline import Captions
from xmodal_jax.data.records import Split
from xmodal_jax.errors import require
from xmodal_jax.evaluation.encode import Evaluator
from xmodal_jax.training import log
from xmodal_jax.types import Repr

INK, OWN, OTHER, PAPER = "#1c2733", "#1a7f4b", "#b3541e", "#ffffff"


class Example(NamedTuple):
    """A query and the indices of its best answers, best first."""

    query: int
    answers: np.ndarray  # [k]
    right: np.ndarray  # [k] bool: whether each answer is right


def retrieve(
    evaluator: Evaluator,
    variables: Any,
    images: Repr,
    texts: Repr,
    captions: Captions,
    *,
    k: int,
    count: int,
    seed: int,
) -> tuple[list[Example], list[Example]]:
    """Examples (text to image, image to text): ``count`` random queries each with their ``k`` best answers."""
    random = np.random.default_rng(seed)
    n_images = jax.tree.leaves(images)[0].shape[0]

    def pick(tree: Repr, rows: np.ndarray) -> Repr:
        return jax.tree.map(lambda leaf: leaf[rows], tree)

    chosen = np.sort(random.choice(len(captions), count, replace=False))
    scores = np.asarray(evaluator.score(variables, images, pick(texts, chosen)))  # [B, count]
    best = np.argsort(-scores, axis=0, kind="stable")[:k].T
    to_image = [Example(int(c), rows, rows == captions.image[c]) for c, rows in zip(chosen, best, strict=True)]
    chosen = np.sort(random.choice(n_images, count, replace=False))
    scores = np.asarray(evaluator.score(variables, pick(images, chosen), texts))  # [count, C]
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    to_text = [Example(int(b), cols, captions.image[cols] == b) for b, cols in zip(chosen, best, strict=True)]
    return to_image, to_text


def _two_plots() -> tuple[Any, Any, Any]:
    require("matplotlib", "train")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained", facecolor=PAPER)
    return figure, *figure.subplots(1, 2)


def _finish(figure: Any, path: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def _series(lines: Sequence[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    found = [line for line in lines if name in line]
    return [line["step"] for line in found], [line[name] for line in found]


def draw_curves(workdir: Path, path: Path) -> None:
    """Training loss a pair and dev recall against steps, from ``metrics.jsonl``."""
    figure, left, right = _two_plots()
    lines = log.read(workdir / "metrics.jsonl")
    left.plot(*_series(lines, "loss_per_pair"), color="#2b6cb0", linewidth=1.2)
    left.set(xlabel="step", ylabel="loss a pair", title="training loss", yscale="log")
    for way, colour, name in (("i2t", "#2b6cb0", "image to text"), ("t2i", "#b3541e", "text to image")):
        for k, style in ((1, "-"), (10, ":")):
            steps, recall = _series(lines, f"dev_{way}_r{k}")
            if steps:
                right.plot(steps, recall, style, color=colour, label=f"{name} R@{k}", marker=".")
    right.set(xlabel="step", ylabel="recall, %", title="dev recall", ylim=(0, 100))
    _finish(figure, path)


def draw_comparison(workdirs: Sequence[Path], path: Path) -> None:
    """Training loss a pair and dev rsum of several runs; a dotted line marks the loss of a collapsed model."""
    figure, left, right = _two_plots()
    for workdir in workdirs:
        lines = log.read(workdir / "metrics.jsonl")
        left.plot(*_series(lines, "loss_per_pair"), linewidth=1.2, label=workdir.name)
        right.plot(*_series(lines, "dev_rsum"), marker=".", label=workdir.name)
    for margin in sorted({configs.read(workdir).loss.margin for workdir in workdirs}):
        left.axhline(2 * margin, color=INK, linestyle=":", linewidth=1)
    left.set(xlabel="step", ylabel="loss a pair", title="training loss (dotted: 2 x margin, collapsed)", yscale="log")
    right.set(xlabel="step", ylabel="rsum", title="dev rsum")
    _finish(figure, path)


def _picture(axes: Any, split: Split, row: int, colour: str, width: float) -> None:
    path = split.pictures[row]
    axes.set(xticks=[], yticks=[])
    if path is None:
        axes.text(0.5, 0.5, split.ids[row], ha="center", va="center", fontsize=7, wrap=True)
    else:
        axes.imshow(read_picture(path, side=480, most=LARGE))
    for side in axes.spines.values():
        side.set(color=colour, linewidth=width)


def draw_retrieved(
    split: Split, captions: Captions, to_image: Sequence[Example], to_text: Sequence[Example], path: Path
) -> None:
    """A page of examples: a caption with its best pictures, a picture with its best captions; right ones in green."""
    require("matplotlib", "train")
    from textwrap import fill

    from matplotlib.figure import Figure

    texts = [text for group in split.captions for text in group]
    k = len(to_image[0].answers)
    rows = len(to_image) + len(to_text)
    figure = Figure(figsize=(2.6 + 1.5 * k, 1.62 * rows + 0.8), layout="constrained", facecolor=PAPER)
    grid = figure.add_gridspec(rows, k + 2)
    for i, example in enumerate(to_image):
        label = figure.add_subplot(grid[i, :2])
        label.axis("off")
        label.text(0, 0.5, fill(texts[example.query], 28), va="center", fontsize=9, color=INK, parse_math=False)
        for j, (row, group) in enumerate(zip(example.answers, example.right, strict=True)):
            axes = figure.add_subplot(grid[i, 2 + j])
            _picture(axes, split, int(row), OWN if group else "#cccccc", 3.5 if group else 0.8)
    for i, example in enumerate(to_text, len(to_image)):
        _picture(figure.add_subplot(grid[i, 0]), split, example.query, INK, 0.8)
        label = figure.add_subplot(grid[i, 1:])
        label.axis("off")
        for j, (caption, group) in enumerate(zip(example.answers, example.right, strict=True)):
            text = f"{j + 1}. {texts[caption]}"
            label.text(
                0.02,
                1 - (j + 0.5) / k,
                text if len(text) < 105 else text[:102] + " ...",
                va="center",
                fontsize=9,
                color=OWN if group else OTHER,
                weight="bold" if group else "normal",
                parse_math=False,
            )
    figure.suptitle(f"retrieved from {len(split):,} {split.name} images; the right answer is green", color=INK)
    figure.savefig(path, dpi=100)


def write_report(path: Path, *, title: str, table: str, facts: dict[str, str], pictures: dict[str, Path]) -> None:
    """The Markdown page; picture links are relative to it."""
    parts = [f"# {title}", table, "| | |\n|---|---|\n" + "\n".join(f"| {k} | {v} |" for k, v in facts.items())]
    parts += [f"## {name}\n\n![{name}]({file.relative_to(path.parent)})" for name, file in pictures.items()]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
