"""Pages that show what the words of a caption look at in an image, or what a system's steps look at in both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from xmodal_jax.data.pictures import LARGE, read_picture
from xmodal_jax.errors import UsageError, require

INK, FAINT, STRANGE, PAPER, BOX = "#1c2733", "#5b6875", "#b3541e", "#ffffff", "#0b6bcb"
COLUMNS, CELL = 7, 1.7  # of the page: pictures side by side, and their width in inches
SIDE = 480  # pixels of a picture, more than a cell has
SHOWN, FAINTEST = 3, 0.02  # regions of a word that are outlined, and how strongly at least


class Pair(NamedTuple):
    """An image and a caption with what there is to draw of them."""

    id: str
    caption: str
    score: float
    words: list[str]
    known: list[bool]  # whether the vocabulary has the word
    weight: np.ndarray  # [R, words], or [R, K] of a system whose steps look
    boxes: np.ndarray  # [R, 4]
    picture: Path | None
    size: tuple[int, int]  # height, width; (0, 0) = unknown
    steps: np.ndarray | None = None  # [K, words]: how much each step looks at each word; None where words look

    @property
    def titles(self) -> list[str]:
        """What is drawn beside the picture, each with a column of ``weight``: the words, or the steps."""
        return self.words if self.steps is None else [f"step {k}" for k in range(1, 1 + len(self.steps))]


def _canvas(pair: Pair) -> np.ndarray:
    """The picture [H, W, 3] in 0..1, or a tinted sheet of its shape (a square, where that is unknown)."""
    if pair.picture is not None:
        return read_picture(pair.picture, SIDE, LARGE) / 255.0
    height, width = pair.size if min(pair.size) > 0 else (1, 1)
    scale = 240 / max(height, width)
    return np.broadcast_to([0.45, 0.67, 0.93], (max(round(height * scale), 1), max(round(width * scale), 1), 3))


def _pixels(box: np.ndarray, canvas: np.ndarray) -> tuple[float, float, float, float]:
    """Left, top, right and bottom edge of a box in pixels of the canvas, at least one pixel apart."""
    height, width = canvas.shape[:2]
    left, top, right, bottom = (float(edge) for edge in box * [width, height, width, height])
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _lit(canvas: np.ndarray, boxes: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """The canvas faded to white but for the boxes, each as clear as its strength in 0..1; the strongest one counts."""
    clear = np.zeros(canvas.shape[:2])
    for box, level in zip(boxes, strength, strict=True):
        left, top, right, bottom = map(round, _pixels(box, canvas))
        clear[top:bottom, left:right] = np.maximum(clear[top:bottom, left:right], level)
    clear = (0.15 + 0.85 * clear)[..., None]
    return canvas * clear + (1 - clear)


def shorten(word: str, most: int = 15) -> str:
    """What fits over a picture."""
    return word if len(word) <= most else f"{word[: most - 1]}\u2026"


def _outline(axes: Any, box: np.ndarray, canvas: np.ndarray, strength: float) -> None:
    from matplotlib.patches import Rectangle

    left, top, right, bottom = _pixels(box, canvas)
    line: Any = {"fill": False, "edgecolor": BOX, "linewidth": 0.4 + 2 * strength, "alpha": 0.3 + 0.7 * strength}
    axes.add_patch(Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, **line))


def _draw_whole(axes: Any, pair: Pair, canvas: np.ndarray) -> None:
    """The picture, or all regions where there is none."""
    axes.imshow(canvas if pair.picture else np.ones_like(canvas))
    if pair.picture is None:
        axes.set_title("all regions (no picture)", fontsize=8, color=FAINT, pad=3)
        for box in pair.boxes:
            _outline(axes, box, canvas, 0.2)


def strength_of(weight: Float[np.ndarray, "r"]) -> Float[np.ndarray, "r"]:
    """How strongly the regions of a word are drawn: 1 where it looks at one alone, 0 at an even share 1/R or less.

    The scale is that of the service's page and the same for every word, so that one that looks nowhere in particular
    is drawn so.
    """
    if not weight.sum() > 0:
        return np.zeros_like(weight)
    if len(weight) == 1:
        return np.ones_like(weight)
    return np.maximum(0.0, 1 + np.log(np.maximum(weight / weight.sum(), 1e-9)) / np.log(len(weight)))


def _draw_column(axes: Any, pair: Pair, column: int, canvas: np.ndarray) -> None:
    """What a word looks at, or a step, which has the words that it looks at below it."""
    weight, known = pair.weight[:, column], pair.steps is not None or pair.known[column]
    total, top = weight.sum(), weight.max(initial=0.0)
    strength = strength_of(weight)
    axes.imshow(_lit(canvas, pair.boxes, strength))
    order = [int(region) for region in np.argsort(-weight, kind="stable")[:SHOWN] if strength[region] >= FAINTEST]
    for region in reversed(order):
        _outline(axes, pair.boxes[region], canvas, strength[region])
    title = shorten(pair.titles[column]) if known else f"{shorten(pair.titles[column])} ?"
    axes.set_title(title, fontsize=10, color=INK if known else STRANGE, weight="bold", parse_math=False, pad=3)
    axes.set_xlabel(f"{top / total:.0%}" if total > 0 else "no region", fontsize=8, color=FAINT, labelpad=2)


def _draw_words(axes: Any, pair: Pair, step: int) -> None:
    """The words of the caption one below another, each with a bar as long as the step's weight on it."""
    assert pair.steps is not None
    weight = pair.steps[step]
    axes.barh(range(len(weight)), weight, color=BOX, alpha=0.45, height=0.8)
    axes.set(xlim=(0, 1), ylim=(len(weight) - 0.4, -0.6))
    size = max(4.0, min(9.0, 120 / max(len(weight), 1)))
    for place, (word, known, share) in enumerate(zip(pair.words, pair.known, weight, strict=True)):
        text = f"{shorten(word)}{'' if known else ' ?'} {share:.0%}"
        axes.text(
            0.02,
            place,
            text,
            transform=axes.get_yaxis_transform(),
            fontsize=size,
            va="center",
            parse_math=False,
            color=INK if known else STRANGE,
            weight="bold" if share == weight.max() else "normal",
        )


def _note(pairs: Sequence[Pair]) -> str:
    """How to read the page."""
    whole = all(np.allclose(pair.weight.sum(axis=0), 1.0, atol=1e-2) for pair in pairs)
    even = sorted({1 / max(len(pair.boxes), 1) for pair in pairs})
    shares = " to ".join(f"{share:.1%}" for share in dict.fromkeys((even[0], even[-1])))
    steps = any(pair.steps is not None for pair in pairs)
    who = "step" if steps else "word"
    note = (
        f"Clearer: the {who} looks there more; faded where it gives no more than an even share ({shares}), "
        f"clear where it looks nowhere else. Outlined: of its first {SHOWN} regions those above that share. Per cent: "
        "the share of the first."
    )
    if steps:
        note += " Bars: the step's share of each word; <start> and <end> have the rest."
    elif not whole:
        note += " Regions look at words here; each word's weights are divided by their sum."
    if not all(known for pair in pairs for known in pair.known):
        note += ' "?": not in the vocabulary.'
    return note


def draw(pairs: Sequence[Pair], path: Path) -> None:
    """A page of pairs: the picture, then for each word what it looks at, or for each step, with the words beside it.

    Raises:
        UsageError: ``path`` cannot be written.
    """
    for module in ("matplotlib", "PIL"):
        require(module, "train")
    from textwrap import fill

    from matplotlib.figure import Figure

    canvases = [_canvas(pair) for pair in pairs]
    cells_of = [1 + len(pair.titles) * (1 if pair.steps is None else 2) for pair in pairs]
    columns = min(COLUMNS, max(4, *cells_of))
    rows = [-(-count // columns) for count in cells_of]
    tall = [min(max(canvas.shape[0] / canvas.shape[1], 0.5), 1.5) * CELL + 0.4 for canvas in canvases]
    titles = [fill(pair.caption, 15 * columns) for pair in pairs]
    heads = [0.25 * (title.count("\n") + 1) + 0.3 for title in titles]
    heights = [head + count * height for head, count, height in zip(heads, rows, tall, strict=True)]
    note = fill(_note(pairs), 20 * columns)
    heights.append(0.1 + 0.14 * (note.count("\n") + 1))
    figure = Figure(figsize=(columns * CELL, sum(heights)), layout="constrained", facecolor=PAPER)
    blocks: Any = figure.subfigures(len(heights), 1, height_ratios=heights)
    for pair, canvas, title, count, block in zip(pairs, canvases, titles, rows, blocks, strict=False):
        block.suptitle(
            f"{title}\nscore {pair.score:.3f}, image {pair.id}",
            x=0.01,
            ha="left",
            fontsize=10,
            color=INK,
            parse_math=False,
        )
        cells = block.subplots(count, columns, squeeze=False).ravel()
        for axes in cells:
            axes.set(xticks=[], yticks=[])
            for side in axes.spines.values():
                side.set(color="#c5ccd3", linewidth=0.8)
        _draw_whole(cells[0], pair, canvas)
        rest = iter(cells[1:])
        for column in range(len(pair.titles)):
            _draw_column(next(rest), pair, column, canvas)
            if pair.steps is not None:
                _draw_words(next(rest), pair, column)
        for axes in rest:
            axes.axis("off")
    blocks[-1].text(0.01, 0.5, note, ha="left", va="center", fontsize=8, color=FAINT)
    try:
        figure.savefig(path, dpi=100)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be written ({error}); give another --out, such as attention.png.") from None
