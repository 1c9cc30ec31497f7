"""The recall table of the papers: R@1, R@5, R@10, median and mean rank both ways, their sum and mean, intervals."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import Any, NamedTuple

import numpy as np

KS = (1, 5, 10)
TIES = "a tie counts against the model"


class Recall(NamedTuple):
    """One direction: recalls in per cent, median and mean rank counted from 1."""

    r1: float
    r5: float
    r10: float
    medr: float
    meanr: float


class Table(NamedTuple):
    """Both directions and what was ranked how. ``intervals`` maps "i2t_r1" ... "rsum" to 95 % bootstrap intervals."""

    i2t: Recall
    t2i: Recall
    n_images: int
    n_captions: int
    protocol: str
    weights: str
    intervals: dict[str, tuple[float, float]]
    chance: tuple[Recall, Recall]

    @property
    def rsum(self) -> float:
        """Sum of the six recalls."""
        return float(sum(self.i2t[:3]) + sum(self.t2i[:3]))

    @property
    def mr(self) -> float:
        """Mean of the six recalls."""
        return self.rsum / 6

    def sides(self) -> list[tuple[str, Recall]]:
        """("i2t", ...), ("t2i", ...)."""
        return [("i2t", self.i2t), ("t2i", self.t2i)]


def recall(ranks: np.ndarray) -> Recall:
    """Recall of 0-based ranks; the median is floored as in the code of VSE++ and SCAN."""
    r1, r5, r10 = (100.0 * float(np.mean(ranks < k)) for k in KS)
    return Recall(r1, r5, r10, float(np.floor(np.median(ranks)) + 1), float(np.mean(ranks) + 1))


def chance(row: np.ndarray, n_images: int) -> tuple[Recall, Recall]:
    """Expected recalls of random scores (image to text, text to image); ranks as a rule of thumb are left NaN."""
    own, total = np.bincount(row, minlength=n_images), len(row)
    miss = {(m, k): comb(total - m, k) / comb(total, k) if k <= total else 0.0 for m in set(own.tolist()) for k in KS}
    i2t = [100.0 * float(np.mean([1 - miss[int(m), k] for m in own])) for k in KS]
    t2i = [100.0 * min(1.0, k / n_images) for k in KS]
    return Recall._make([*i2t, np.nan, np.nan]), Recall._make([*t2i, np.nan, np.nan])


def _draws(i2t: np.ndarray, t2i: np.ndarray, row: np.ndarray, weight: np.ndarray) -> dict[str, np.ndarray]:
    """Recalls of resampled image sets; ``weight`` [draws, N] says how often each image was drawn."""
    captions = np.bincount(row, minlength=len(i2t))
    out = {}
    for k in KS:
        out[f"i2t_r{k}"] = 100.0 * weight @ (i2t < k) / weight.sum(axis=1)
        hits = np.bincount(row, weights=t2i < k, minlength=len(i2t))
        out[f"t2i_r{k}"] = 100.0 * (weight @ hits) / (weight @ captions)
    return out


def bootstrap(
    results: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], *, draws: int, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals over images, resampled with their captions, within each fold."""
    if not draws:
        return {}
    random = np.random.default_rng(seed)
    folds = []
    for i2t, t2i, row in results:
        weight = random.multinomial(len(i2t), np.full(len(i2t), 1 / len(i2t)), size=draws).astype(np.float64)
        folds.append(_draws(i2t, t2i, row, weight))
    mean = {key: np.mean([fold[key] for fold in folds], axis=0) for key in folds[0]}
    mean["rsum"] = np.sum(list(mean.values()), axis=0)
    return {key: (float(np.percentile(x, 2.5)), float(np.percentile(x, 97.5))) for key, x in mean.items()}


def make_table(
    results: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], *, protocol: str, weights: str, draws: int = 1000
) -> Table:
    """The table of one or more galleries; figures are means over them.

    Args:
        results: for each gallery its ranks (i2t [B], t2i [C]) and the image of each caption, row [C].
        protocol: the sentence of :func:`xmodal_jax.retrieval.protocols.choose`.
        weights: "raw" or "ema", which parameters were scored ("linear" for a baseline).
    """
    sides = [[recall(result[side]) for result in results] for side in (0, 1)]
    i2t, t2i = (Recall(*np.mean(one, axis=0).tolist()) for one in sides)
    by_chance = [chance(row, len(i2t)) for i2t, _, row in results]
    expected = tuple(Recall(*np.mean([c[side] for c in by_chance], axis=0).tolist()) for side in (0, 1))
    images, captions = (sum(len(result[side]) for result in results) for side in (0, 1))
    intervals = bootstrap(results, draws=draws)
    return Table(i2t, t2i, images, captions, protocol, weights, intervals, (expected[0], expected[1]))


def _cells(one: Recall) -> list[str]:
    ranks = ["" if np.isnan(x) else f"{x:.{digits}f}" for x, digits in ((one.medr, 0), (one.meanr, 1))]
    return [f"{x:.1f}" for x in one[:3]] + ranks


def rows(table: Table) -> list[tuple[str, list[str]]]:
    """(name, 12 cells): i2t R@1 R@5 R@10 Med Mean, t2i the same, rsum, mR; the result, its interval, chance."""
    out = [("recall", [*_cells(table.i2t), *_cells(table.t2i), f"{table.rsum:.1f}", f"{table.mr:.1f}"])]
    if table.intervals:
        bounds = {key: f"{low:.1f}-{high:.1f}" for key, (low, high) in table.intervals.items()}
        sides = [[*(bounds[f"{way}_r{k}"] for k in KS), "", ""] for way in ("i2t", "t2i")]
        out.append(("95 % interval", [*sides[0], *sides[1], bounds["rsum"], ""]))
    expected = sum(table.chance[0][:3]) + sum(table.chance[1][:3])
    chance_cells = [*_cells(table.chance[0]), *_cells(table.chance[1]), f"{expected:.1f}", f"{expected / 6:.1f}"]
    out.append(("chance", chance_cells))
    return out


def notes(table: Table) -> str:
    """One line: sizes, protocol, weights, how ties count."""
    interval = "; intervals: bootstrap over images, 1,000 draws" if table.intervals else ""
    return (
        f"{table.n_images:,} images, {table.n_captions:,} captions; {table.protocol}; {table.weights} weights; "
        f"{TIES}{interval}"
    )


HEAD = ["R@1", "R@5", "R@10", "Med r", "Mean r"]


def to_screen(table: Table, *, title: str) -> None:
    """Print the table with rich, one block a direction so that it fits a narrow terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Grid

    console = Console()
    grid = Grid(
        title=title,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        title_style="bold",
        padding=(0, 0, 0, 1),
        show_edge=False,
        pad_edge=False,
    )
    for name in ("", *HEAD, "rsum", "mR"):
        grid.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for label, side, tail in (("image to text", slice(0, 5), False), ("text to image", slice(5, 10), True)):
        for name, cells in rows(table):
            own = label if name == "recall" else f"  {name}"
            style = "bold" if name == "recall" else "dim"
            grid.add_row(own, *cells[side], *(cells[10:] if tail else ("", "")), style=style)
    console.print(grid)
    console.print(notes(table), style="dim", soft_wrap=True)


def to_markdown(table: Table, *, title: str) -> str:
    """The table as Markdown, one line a row."""
    head = ["", *(f"i2t {name}" for name in HEAD), *(f"t2i {name}" for name in HEAD), "rsum", "mR"]
    lines = [f"**{title}**", "", "| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows(table)]
    return "\n".join([*lines, "", notes(table), ""])


def to_json(table: Table) -> dict[str, Any]:
    """Plain values for strict JSON."""
    return {
        "i2t": table.i2t._asdict(),
        "t2i": table.t2i._asdict(),
        "rsum": table.rsum,
        "mR": table.mr,
        "intervals_95": {key: list(bounds) for key, bounds in table.intervals.items()},
        "chance": {way: list(one[:3]) for way, one in zip(("i2t", "t2i"), table.chance, strict=True)},
        "images": table.n_images,
        "captions": table.n_captions,
        "protocol": table.protocol,
        "weights": table.weights,
        "ties": TIES,
    }
