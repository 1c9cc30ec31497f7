"""The papers' recall table from ranks, with bootstrap intervals and the row of a random ranking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

CUTS = (1, 5, 10)
RECALLS = tuple(f"{way}.r{cut}" for way in ("i2t", "t2i") for cut in CUTS)
MANY = 0.05  # share of captions that equal one of another image, from which on the table says what that does
TIES = "a tie counts against the query"


class Recall(NamedTuple):
    """One direction: recall at 1, 5 and 10 in percent, median and mean rank counted from 1.

    As in `evaluation.py` of VSE++ (Faghri et al., BMVC 2018), ``medr = floor(median) + 1`` of ranks from 0; the mean
    over folds may lie between integers.
    """

    r1: float
    r5: float
    r10: float
    medr: float
    meanr: float


class Duplicates(NamedTuple):
    """Captions that equal one of another image, and queries that tie."""

    shared: bool = False  # whether equal captions were positives of all their images, or of their own alone
    equal: int = 0  # captions whose text another image has too
    tied: tuple[int, ...] = (0, 0)  # images, captions with a wrong item that scores as high as their best right one


class Table(NamedTuple):
    """Recall both ways, and what it was measured on."""

    i2t: Recall  # image query, ranks captions
    t2i: Recall
    rsum: float  # sum of the six recalls
    mr: float  # their mean
    images: int
    captions: int
    protocol: str  # which images were ranked together, and why
    weights: str  # "raw" or "ema"
    folds: tuple[tuple[Recall, Recall], ...]
    chance: tuple[Recall, Recall]  # expected of a random ranking
    interval: Mapping[str, tuple[float, float]]  # 95 %: "i2t.r1" ... "t2i.r10", "rsum", "mr"; empty without draws
    draws: int
    duplicates: Duplicates = Duplicates()

    def __str__(self) -> str:
        return "\n".join(to_lines(self, chance=True))


def recall(ranks: Int[np.ndarray, " n"]) -> Recall:
    """Metrics of 0-based ranks [N]."""
    r1, r5, r10 = (100 * float(np.mean(ranks < cut)) for cut in CUTS)
    return Recall(r1, r5, r10, float(np.floor(np.median(ranks)) + 1), float(np.mean(ranks) + 1))


def make_table(
    results: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    positives: Sequence[tuple[np.ndarray, np.ndarray]] | None = None,
    *,
    protocol: str,
    weights: str,
    draws: int = 1000,
    seed: int = 0,
    duplicates: Duplicates = Duplicates(),  # noqa: B008  (immutable)
) -> Table:
    """The table of one or more folds; metrics are means over folds, each metric for itself.

    Args:
        results: a fold's i2t ranks [B], t2i ranks [C] and the caption's image ``row`` [C] in 0..B-1.
        positives: a fold's numbers of positives of each image [B] and each caption [C]; by default those of ``row``.
        protocol: the sentence of :func:`xmodal_jax.evaluation.protocols.choose`.
        weights: "raw" or "ema".
        draws: bootstrap draws, 0 for none; ``seed`` makes them repeatable.
    """
    folds = tuple((recall(i2t), recall(t2i)) for i2t, t2i, _ in results)
    i2t, t2i = _mean(folds)
    numbers = positives or [(np.bincount(row, minlength=len(i2t)), np.ones(len(row), int)) for i2t, _, row in results]
    rsum = sum(i2t[:3]) + sum(t2i[:3])
    return Table(
        i2t=i2t,
        t2i=t2i,
        rsum=rsum,
        mr=rsum / 6,
        images=sum(len(i2t) for i2t, _, _ in results),
        captions=sum(len(row) for _, _, row in results),
        protocol=protocol,
        weights=weights,
        folds=folds,
        chance=_mean([(_chance(ours, len(theirs)), _chance(theirs, len(ours))) for ours, theirs in numbers]),
        interval=bootstrap(results, draws, seed) if draws else {},
        draws=draws,
        duplicates=duplicates,
    )


def _mean(folds: Sequence[tuple[Recall, Recall]]) -> tuple[Recall, Recall]:
    i2t, t2i = np.mean(np.array(folds), axis=0).tolist()
    return Recall(*i2t), Recall(*t2i)


def resample(
    results: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], draws: int, seed: int
) -> Float[np.ndarray, "n 6"]:
    """The six recalls, in the order of ``RECALLS``, of each bootstrap draw.

    Images are drawn with replacement, each with its captions, within each fold; galleries stay as they are. So captions
    of one image, whose ranks hang together, are not taken for independent queries. The same images are drawn for every
    system that is scored on them.
    """
    generator = np.random.default_rng(seed)
    recalls = np.zeros((draws, 6))
    for i2t, t2i, row in results:
        number = np.bincount(row, minlength=len(i2t))
        i2t_hits = np.stack([i2t < cut for cut in CUTS], axis=1).astype(np.float64)
        t2i_hits = np.stack([np.bincount(row, t2i < cut, len(i2t)) for cut in CUTS], axis=1)
        for draw in range(draws):
            times = np.bincount(generator.integers(len(i2t), size=len(i2t)), minlength=len(i2t))
            recalls[draw, :3] += times @ i2t_hits / len(i2t)
            recalls[draw, 3:] += times @ t2i_hits / (times @ number)
    return recalls * 100 / len(results)


def bootstrap(
    results: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], draws: int, seed: int
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals of the recalls, of their sum and their mean, see :func:`resample`."""
    return intervals(resample(results, draws, seed))


def intervals(recalls: Float[np.ndarray, "n 6"]) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals of draws of the recalls, of their sum and their mean."""
    rsum = recalls.sum(axis=1)
    columns = dict(zip(RECALLS, recalls.T, strict=True)) | {"rsum": rsum, "mr": rsum / 6}
    return {name: tuple(np.percentile(column, [2.5, 97.5]).tolist()) for name, column in columns.items()}


def chance(number: Int[np.ndarray, " b"]) -> tuple[Recall, Recall]:
    """Expected metrics of a random ranking, exactly; ``number`` [B] is the number of captions of each image.

    An image with k of C captions has none among the first n with probability C(C-k, n) / C(C, n), and on average
    (C-k) / (k+1) captions before its first. ``medr`` is that of all queries' ranks together.
    """
    captions, images = int(number.sum()), len(number)
    single = np.ones(1, int)
    return _chance(number, captions), _chance(single, images)


def _chance(positives: np.ndarray, gallery: int) -> Recall:
    after = np.zeros(gallery)  # after[n]: share of queries with no positive among the first n + 1
    mean = 0.0
    place = np.arange(gallery)
    for k, queries in zip(*np.unique(positives, return_counts=True), strict=True):
        share = queries / len(positives)
        after += share * np.cumprod(np.maximum(gallery - k - place, 0) / (gallery - place))
        mean += share * (gallery - k) / (k + 1)
    r1, r5, r10 = (100 * float(1 - after[min(cut, gallery) - 1]) for cut in CUTS)
    return Recall(r1, r5, r10, float(np.argmax(after <= 0.5 + 1e-12) + 1), mean + 1)


# Output

HEAD = ("R@1", "R@5", "R@10", "Med r", "Mean r") * 2 + ("rsum", "mR")
WIDTHS = (7, 6, 6, 7, 8, 9, 6, 6, 7, 8, 8, 6)


def _lines(table: Table, show_chance: bool) -> list[tuple[str, list[str]]]:
    """Label and cells of each row: folds, the result, its interval, chance."""

    def cells(i2t: Recall, t2i: Recall) -> list[str]:
        rsum = sum(i2t[:3]) + sum(t2i[:3])
        sides = (
            [*(f"{x:.1f}" for x in s[:3]), f"{s.medr:.1f}".removesuffix(".0"), f"{s.meanr:.1f}"] for s in (i2t, t2i)
        )
        return [cell for side in sides for cell in side] + [f"{rsum:.1f}", f"{rsum / 6:.1f}"]

    many = len(table.folds) > 1
    lines = [(f"fold {i}", cells(*fold)) for i, fold in enumerate(table.folds, 1)] if many else []
    lines.append(("mean" if many else "recall", cells(table.i2t, table.t2i)))
    if table.interval:
        for end, label in enumerate(("95 % from", "95 % to")):
            ends = {name: f"{pair[end]:.1f}" for name, pair in table.interval.items()}
            i2t, t2i = ([ends[f"{way}.r{cut}"] for cut in CUTS] for way in ("i2t", "t2i"))
            lines.append((label, [*i2t, "", "", *t2i, "", "", ends["rsum"], ends["mr"]]))
    if show_chance:
        lines.append(("chance", cells(*table.chance)))
    return lines


def _notes(table: Table) -> list[str]:
    """What a reader has to know to compare the table."""
    notes = [
        f"{table.images:,} images, {table.captions:,} captions; {table.protocol}",
        f"{table.weights} weights; {TIES}",
    ]
    shared, equal, tied = table.duplicates
    if any(tied):
        notes[1] += f" ({tied[0]:,} images and {tied[1]:,} captions have one)"
    if table.interval:
        notes[1] += f"; 95 % intervals by {table.draws:,} bootstrap draws of images"
    if equal or shared:
        count = "all their images" if shared else "their own image alone"
        notes.append(f"{equal:,} captions equal one of another image; right for {count}")
        notes[-1] += f" (duplicates: {_kind(table)})"
    if equal >= MANY * table.captions and not shared:
        notes.append(
            "so even a perfect system misses; xmodal eval --duplicates shared counts all their images as right"
        )
    return notes


def _kind(table: Table) -> str:
    return "shared" if table.duplicates.shared else "separate"


def to_lines(table: Table, *, chance: bool = False) -> list[str]:
    """Notes and the table in the papers' layout; ``chance`` adds the row of a random ranking."""
    half = sum(WIDTHS[:5])
    lines = [*_notes(table), f"{'':9}{'image to text':^{half}}{'text to image':^{half + 2}}".rstrip()]
    for label, cells in [("", HEAD), *_lines(table, chance)]:
        row = "".join(f"{cell:>{width}}" for cell, width in zip(cells, WIDTHS, strict=True))
        lines.append(f"{label:9}{row}".rstrip())
    return lines


def to_screen(table: Table, *, title: str, chance: bool = False) -> None:
    """Print :func:`to_lines` below a title."""
    print(title, *to_lines(table, chance=chance), sep="\n")


def to_markdown(table: Table, *, title: str, chance: bool = False) -> str:
    """The same as a Markdown table."""
    head = [f"{way} {name}" for way, name in zip(["i2t"] * 5 + ["t2i"] * 5, HEAD, strict=False)] + list(HEAD[10:])
    rows = [["", *head], ["---", *["---:"] * len(head)]] + [[label, *cells] for label, cells in _lines(table, chance)]
    lines = [title, "", *("| " + " | ".join(row) + " |" for row in rows), "", "; ".join(_notes(table)) + "."]
    return "\n".join(lines) + "\n"


LATEX = {  # what LaTeX would not print as it is
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}


def to_latex(table: Table, *, name: str) -> list[str]:
    """The papers' row for a ``tabular`` of eight columns: name, R@1, R@5, R@10 both ways, rsum; a comment says what it
    is."""
    figures = [*table.i2t[:3], *table.t2i[:3], table.rsum]
    cells = ["".join(LATEX.get(letter, letter) for letter in name), *(f"{figure:.1f}" for figure in figures)]
    notes = " ".join("; ".join(_notes(table)).split())
    return [f"% image to text R@1, R@5, R@10, text to image R@1, R@5, R@10, rsum: {notes}", " & ".join(cells) + r" \\"]


def to_json(table: Table) -> dict[str, Any]:
    """The table as plain JSON values."""

    def both(pair: tuple[Recall, Recall]) -> dict[str, Any]:
        return {"i2t": pair[0]._asdict(), "t2i": pair[1]._asdict()}

    return {
        **both((table.i2t, table.t2i)),
        "rsum": table.rsum,
        "mr": table.mr,
        "interval_95": {name: list(pair) for name, pair in table.interval.items()},
        "bootstrap_draws": table.draws,
        "images": table.images,
        "captions": table.captions,
        "protocol": table.protocol,
        "weights": table.weights,
        "ties": TIES,
        "tied": dict(zip(("i2t", "t2i"), table.duplicates.tied, strict=True)),
        "duplicates": _kind(table),
        "equal_captions": table.duplicates.equal,
        "folds": [both(fold) for fold in table.folds],
        "chance": both(table.chance),
    }
