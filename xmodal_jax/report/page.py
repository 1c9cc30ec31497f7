"""The report of a run: Markdown with the recall table, learning curves and a page of retrieved examples, as PNG."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from xmodal_jax.data.pictures import LARGE, read_picture
from xmodal_jax.data.pipeline import Captions
from xmodal_jax.data.records import Split
from xmodal_jax.errors import require
from xmodal_jax.evaluation import table
from xmodal_jax.evaluation.encode import Evaluator
from xmodal_jax.evaluation.run import Run
from xmodal_jax.evaluation.vote import Member, Ranking
from xmodal_jax.report import curves, diagnosis, imagined
from xmodal_jax.types import Repr

INK, OWN, OTHER, PAPER = "#1c2733", "#1a7f4b", "#b3541e", "#ffffff"


class Example(NamedTuple):
    """A query and the indices of its best answers, best first."""

    query: int
    answers: np.ndarray  # [k]
    right: np.ndarray  # [k] bool: whether each answer is right
    best: int  # the right answer that scores highest
    rank: int  # its rank, from 1; a tie counts against it


def example(query: int, scores: np.ndarray, right: np.ndarray, k: int) -> Example:
    """The example of a query whose scores with a gallery are ``scores`` [N] and whose right answers ``right`` [N]."""
    answers = np.argsort(-scores, kind="stable")[:k]
    best = int(np.argmax(np.where(right, scores, -np.inf)))
    rank = 1 + int(np.sum((scores >= scores[best]) & ~right))
    return Example(query, answers, right[answers], best, rank)


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
    scores = np.asarray(evaluator.score(variables, images, pick(texts, chosen))).T  # [count, B]
    rows = np.arange(n_images)
    to_image = [example(int(c), s, rows == captions.image[c], k) for c, s in zip(chosen, scores, strict=True)]
    chosen = np.sort(random.choice(n_images, count, replace=False))
    scores = np.asarray(evaluator.score(variables, pick(images, chosen), texts))  # [count, C]
    to_text = [example(int(b), s, captions.image == b, k) for b, s in zip(chosen, scores, strict=True)]
    return to_image, to_text


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
    """A page of examples: a caption with its best pictures, a picture with its best captions; right ones in green.

    Where none of the shown answers is right, the best right one stands behind them with its rank.
    """
    require("matplotlib", "train")
    from textwrap import fill

    from matplotlib.figure import Figure

    texts = [text for group in split.captions for text in group]
    k = len(to_image[0].answers)
    rows = len(to_image) + len(to_text)
    figure = Figure(figsize=(2.6 + 1.5 * (k + 1), 1.75 * rows + 0.8), layout="constrained", facecolor=PAPER)
    grid = figure.add_gridspec(rows, k + 3)
    for i, example in enumerate(to_image):
        label = figure.add_subplot(grid[i, :2])
        label.axis("off")
        label.text(0, 0.5, fill(texts[example.query], 28), va="center", fontsize=9, color=INK, parse_math=False)
        for j, (row, group) in enumerate(zip(example.answers, example.right, strict=True)):
            axes = figure.add_subplot(grid[i, 2 + j])
            _picture(axes, split, int(row), OWN if group else "#cccccc", 3.5 if group else 0.8)
        if not example.right.any():
            axes = figure.add_subplot(grid[i, 2 + k])
            axes.set_title(f"right: rank {example.rank:,}", fontsize=8, color=OWN)
            _picture(axes, split, example.best, OWN, 3.5)
    for i, example in enumerate(to_text, len(to_image)):
        _picture(figure.add_subplot(grid[i, 0]), split, example.query, INK, 0.8)
        label = figure.add_subplot(grid[i, 1:])
        label.axis("off")
        answers = [(j + 1, int(c), bool(group)) for j, (c, group) in enumerate(zip(*example[1:3], strict=True))]
        if not example.right.any():
            answers.append((example.rank, example.best, True))
        for j, (rank, caption, group) in enumerate(answers):
            text = f"{rank:,}. {texts[caption]}"
            label.text(
                0.02,
                1 - (j + 0.5) / len(answers),
                text if len(text) < 105 else text[:102] + " ...",
                va="center",
                fontsize=9,
                color=OWN if group else OTHER,
                weight="bold" if group else "normal",
                parse_math=False,
            )
    figure.suptitle(f"retrieved from {len(split):,} {split.name} images; the right answer is green", color=INK)
    figure.savefig(path, dpi=100)


def make(
    run: Run,
    step: int,
    member: Member,
    ranking: Ranking,
    split: Split,
    root: Path,
    *,
    title: str,
    seed: int = 0,
    facts: Mapping[str, str] = MappingProxyType({}),
    pictures: Mapping[str, Path] = MappingProxyType({}),
    further: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write ``root/report.md`` on an evaluation, with ``facts``, ``pictures`` and ``further`` sections of the caller's
    last."""
    captions = run.captions(split.name)
    places = [root / f"{name}.png" for name in ("curves", "ranks", "retrieved")]
    examples = retrieve(
        run.evaluator, member.variables, member.images, member.texts, captions, k=5, count=min(4, len(split)), seed=seed
    )
    curves.draw(run.workdir, places[0])
    diagnosis.draw(ranking, member, split.captions, places[1])
    draw_retrieved(split, captions, *examples, places[2])
    reached = run.checkpoints.reached(step)
    known = {
        "config": f"`{run.workdir / 'config.json'}`",
        "data": f"`{run.dataset.directory}`, manifest {run.dataset.manifest['sha256'][:12]}",
        "vocabulary": f"{run.facts.vocabulary:,} words" if run.facts.vocabulary else "none",
        "step": f"{step:,}" + (f", {reached}" if reached else ""),
        "python": sys.version.split()[0],
    }
    names = ("Learning curves", "Ranks, scores and errors", "Retrieved examples")
    markdown = table.to_markdown(ranking.table(), title="Recall, and that of a random ranking:", chance=True)
    drawn = {**dict(zip(names, places, strict=True)), **pictures}
    if run.model.has("imagine"):
        drawn["Pictures made of captions"] = root / "imagined.png"
        imagined.draw(run, step, split.name, root / "imagined.png", seed=seed)
    facts = {**known, **facts}
    write_report(root / "report.md", title=title, table=markdown, facts=facts, pictures=drawn, further=further)


def write_report(
    path: Path,
    *,
    title: str,
    table: str,
    facts: Mapping[str, str],
    pictures: Mapping[str, Path],
    further: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """The Markdown page; picture links are relative to it, ``further`` sections are Markdown."""
    parts = [f"# {title}", table, "| | |\n|---|---|\n" + "\n".join(f"| {k} | {v} |" for k, v in facts.items())]
    parts += [f"## {name}\n\n![{name}]({file.relative_to(path.parent)})" for name, file in pictures.items()]
    parts += [f"## {name}\n\n{section}" for name, section in further.items()]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
