"""One page of plots on an evaluation: ranks, recall at every K, scores of pairs, errors by length of the caption."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from xmodal_jax.evaluation.table import CUTS
from xmodal_jax.evaluation.vote import Member, Ranking
from xmodal_jax.report.curves import BLUE, INK, ORANGE, figure_of, finish
from xmodal_jax.text.tokens import tokenize

SCORED = 1000  # images whose pairs are scored for the histogram
GROUPS = 6  # of captions by length
SIDES = (("i2t", "image to text", BLUE), ("t2i", "text to image", ORANGE))


def rank_bins(last: int) -> list[int]:
    """Bounds of ranks from 1 to ``last``: each to itself up to 3, then 4 to 5, 6 to 10, 11 to 20, 21 to 50 and on."""
    bounds, decade = [1, 2, 3], 1
    while bounds[-1] < last:
        bounds += [step * decade for step in (5, 10, 20)]
        decade *= 10
    return [bound for bound in bounds if bound < last] + [last]


def rank_shares(ranks: Int[np.ndarray, " n"], bounds: Sequence[int]) -> Float[np.ndarray, " g"]:
    """Per cent of 0-based ranks in each bin, whose last rank from 1 is the bound."""
    return 100 * np.bincount(np.searchsorted(bounds, ranks + 1), minlength=len(bounds)) / len(ranks)


def recall_curve(ranks: Int[np.ndarray, " n"], gallery: int) -> Float[np.ndarray, " k"]:
    """R@K in per cent for K = 1 to the size of the gallery."""
    return 100 * np.cumsum(np.bincount(ranks, minlength=gallery)[:gallery]) / len(ranks)


def chance_curve(positives: Int[np.ndarray, " n"], gallery: int) -> Float[np.ndarray, " k"]:
    """R@K in per cent of a random ranking, for queries with so many positives each: 1 - C(G-k, K) / C(G, K)."""
    place, missed = np.arange(gallery), np.zeros(gallery)
    for k, queries in zip(*np.unique(positives, return_counts=True), strict=True):
        missed += queries / len(positives) * np.cumprod(np.maximum(gallery - k - place, 0) / (gallery - place))
    return 100 * (1 - missed)


def pair_scores(member: Member, image: Int[np.ndarray, " c"], n_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each caption of the first images, the score with its image and the best score with another."""
    count = min(n_images, SCORED)
    inside = np.flatnonzero(image < count)
    owner, matched, hardest = image[inside], [], []
    for start in range(0, len(inside), SCORED):
        rows = slice(start, start + SCORED)
        scores = np.asarray(member.pick(slice(count), inside[rows]).scores(), np.float32)
        place = owner[rows], np.arange(scores.shape[1])
        matched.append(scores[place])
        scores = scores.copy()
        scores[place] = -np.inf
        hardest.append(scores.max(axis=0))
    return np.concatenate(matched), np.concatenate(hardest)


def length_groups(lengths: Int[np.ndarray, " c"], groups: int = GROUPS) -> list[tuple[int, int]]:
    """Ranges of lengths with about as many captions each."""
    lasts = np.unique(np.quantile(lengths, np.arange(1, groups + 1) / groups, method="higher")).astype(int).tolist()
    return list(zip([int(lengths.min()), *(last + 1 for last in lasts)], lasts, strict=False))


def draw(ranking: Ranking, member: Member, captions: Sequence[Sequence[str]], path: Path) -> None:
    """The page, as PNG."""
    figure, ((ranks, recall), (scores, errors)) = figure_of(2, 2, 7)
    _draw_ranks(ranks, recall, ranking)
    matched, hardest = pair_scores(member, ranking.image, len(ranking.i2t))
    finite = np.isfinite(hardest)  # one image alone has no other
    both = np.concatenate([matched, hardest[finite]])
    bins = np.linspace(both.min(), both.max() + 1e-6, 51)
    label = f"its image (mean {matched.mean():.3f})"
    scores.hist(matched, bins, color=BLUE, alpha=0.6, label=label)
    if finite.any():
        label = f"the best other image (mean {hardest[finite].mean():.3f})"
        scores.hist(hardest[finite], bins, color=ORANGE, alpha=0.6, label=label)
    scores.set(xlabel="score of a caption with", ylabel="captions", title="matching pairs and hardest negatives")
    _draw_lengths(errors, ranking, captions)
    finish(figure, path)


def _draw_ranks(histogram: Any, recall: Any, ranking: Ranking) -> None:
    folds = ranking.folds()
    sizes = {"i2t": max(len(row) for _, _, row in folds), "t2i": max(len(i2t) for i2t, _, _ in folds)}
    bounds = rank_bins(1 + int(max(ranking.i2t.max(), ranking.t2i.max())))
    names = [f"{a}" if a == b else f"{a}-{b}" for a, b in zip([1, *(b + 1 for b in bounds)], bounds, strict=False)]
    for number, (way, name, colour) in enumerate(SIDES):
        found, size = getattr(ranking, way), sizes[way]
        places = np.arange(len(bounds)) + (number - 0.5) * 0.4
        histogram.bar(places, rank_shares(found, bounds), 0.4, color=colour, label=name)
        positives = np.bincount(ranking.image) if way == "i2t" else np.ones(1, int)
        place = np.arange(1, size + 1)
        recall.plot(place, recall_curve(found, size), color=colour, label=name)
        recall.plot(place, chance_curve(positives, size), ":", color=colour, linewidth=1, label=f"{name}, by chance")
    histogram.set_xticks(np.arange(len(bounds)), names, rotation=30, fontsize=8)
    histogram.set(xlabel="rank of the best match", ylabel="queries, %", title="ranks")
    recall.set(xlabel="K", ylabel="R@K, %", title="recall at K", xscale="log", ylim=(0, 102))
    recall.xaxis.set_major_formatter("{x:,.0f}")
    for k in CUTS:
        recall.axvline(k, color=INK, alpha=0.25, linewidth=0.8)


def _draw_lengths(axes: Any, ranking: Ranking, captions: Sequence[Sequence[str]]) -> None:
    lengths = np.array([len(tokenize(text)) for texts in captions for text in texts])
    groups = length_groups(lengths)
    for number, (first, last) in enumerate(groups):
        found = ranking.t2i[(lengths >= first) & (lengths <= last)]
        for cut, colour, shift in ((1, ORANGE, -0.2), (10, "#e0a887", 0.2)):
            label = f"not within the first {cut}" if cut > 1 else "not first"
            share = 100 * float(np.mean(found >= cut)) if len(found) else 0.0
            axes.bar(number + shift, share, 0.4, color=colour, label=label if number == 0 else None)
        axes.annotate(f"{len(found):,}", (number, 1), ha="center", fontsize=7, color="#ffffff")
    axes.set_xticks(range(len(groups)), [f"{a}" if a == b else f"{a}-{b}" for a, b in groups])
    axes.set(
        xlabel="words of the caption",
        ylabel="captions, %",
        title="errors by length of the caption: its picture is",
        ylim=(0, 100),
    )
