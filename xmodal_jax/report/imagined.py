"""What a run imagines: pictures that its system makes of captions, beside those which the captions are of."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill
from typing import Any

import jax
import numpy as np

from xmodal_jax.data.pictures import LARGE, read_picture
from xmodal_jax.errors import UsageError, require
from xmodal_jax.evaluation.run import Run

INK, PAPER = "#1c2733", "#ffffff"
SHOWN, DRAWS = 8, 4  # captions of a page, pictures of each


def imagine(run: Run, variables: Any, split: str, caption: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """``draws`` pictures [N, K, S, S, 3] in 0..1 of each of the captions [N] of a split, by different noise."""
    captions = run.captions(split)
    texts = captions.texts(caption, np.zeros(len(caption), np.int64))
    draw = jax.jit(lambda variables, texts, key: run.model.apply(variables, texts, key, method="imagine"))
    keys = jax.random.split(jax.random.key(seed), draws)
    return np.stack([np.asarray(draw(variables, texts, key)) for key in keys], axis=1)


def draw(run: Run, step: int, split: str, path: Path, *, seed: int = 0) -> int:
    """Write a page of random captions of a split, their real pictures and generated ones. Returns how many captions.

    Raises:
        UsageError: a system that makes no pictures, or Matplotlib is not installed.
    """
    if not run.model.has("imagine"):
        raise UsageError(
            f'The system "{run.config.model.name}" of {run.workdir} makes no pictures of captions; GXN with '
            '"t2i" in config.model.paths does.'
        )
    require("matplotlib", "train")
    from matplotlib.figure import Figure

    rows, captions = run.dataset.split(split), run.captions(split)
    chosen = np.sort(np.random.default_rng(seed).choice(len(captions), min(SHOWN, len(captions)), replace=False))
    made = imagine(run, run.variables(step)[0], split, chosen, DRAWS, seed)
    figure = Figure(figsize=(2.6 + 1.35 * (DRAWS + 1), 1.4 * len(chosen) + 0.7), layout="constrained", facecolor=PAPER)
    grid = figure.add_gridspec(len(chosen), DRAWS + 3)
    for i, caption in enumerate(chosen):
        label = figure.add_subplot(grid[i, :2])
        label.axis("off")
        text = fill(captions.sentences[caption], 28)
        label.text(0, 0.5, text, va="center", fontsize=9, color=INK, parse_math=False)
        for j in range(DRAWS + 1):
            axes = figure.add_subplot(grid[i, 2 + j])
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_color(INK if j == 0 else "#cccccc")
            picture = rows.pictures[captions.image[caption]]
            if j:
                axes.imshow(made[i, j - 1], interpolation="nearest")
            elif picture is None:
                axes.text(0.5, 0.5, rows.ids[captions.image[caption]], ha="center", va="center", fontsize=7, wrap=True)
            else:
                axes.imshow(read_picture(picture, side=480, most=LARGE))
            if i == 0:
                axes.set_title("real" if j == 0 else f"made {j}", fontsize=9, color=INK)
    title = f"{run.workdir.name}, step {step:,}: pictures made of captions of {split}, {made.shape[2]} pixels a side"
    figure.suptitle(title, fontsize=11, color=INK)
    figure.savefig(path, dpi=110)
    return len(chosen)
