"""Whether two systems differ on the same queries: paired bootstrap, McNemar's exact test, the ranks that changed most.

All differences are B minus A.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.stats
from jaxtyping import Bool, Float, Int

from xmodal_jax.evaluation import table
from xmodal_jax.evaluation.vote import Ranking


class Difference(NamedTuple):
    """Of one metric: B minus A, its 95 % interval, and how easily chance alone would give it."""

    value: float
    low: float
    high: float
    p: float


class McNemar(NamedTuple):
    """The queries by which of two systems ranks a match first, and the exact p of an equal share."""

    both: int
    only_a: int
    only_b: int
    neither: int
    p: float


def paired_bootstrap(a: Ranking, b: Ranking, *, draws: int, seed: int = 0) -> dict[str, Difference]:
    """The difference in each recall ("i2t.r1" ... "t2i.r10") and in rsum.

    The same images are drawn for both, each with its captions. Intervals are percentiles; p is two-sided, twice the
    share of draws on the rarer side of 0 with one draw more on it, so never 0 (Efron and Tibshirani, An Introduction to
    the Bootstrap, 1993, chapters 13 and 15).
    """
    drawn = [table.resample(side.folds(), draws, seed) for side in (a, b)]
    whole = [side.table(draws=0) for side in (a, b)]
    recalls = [np.array([*side.i2t[:3], *side.t2i[:3]]) for side in whole]
    values, changes = (np.append(each, each.sum(axis=-1, keepdims=True), axis=-1) for each in _minus(recalls, drawn))
    found = {}
    for name, value, change in zip((*table.RECALLS, "rsum"), values, changes.T, strict=True):
        low, high = np.percentile(change, [2.5, 97.5])
        found[name] = Difference(float(value), float(low), float(high), p_of(change))
    return found


def _minus(*pairs: list[np.ndarray]) -> list[np.ndarray]:
    # Sums of the same percentages in another order differ in their last bits; a tie must stay one.
    return [np.round(b - a, 9) for a, b in pairs]


def p_of(change: Float[np.ndarray, " n"]) -> float:
    """The two-sided p of bootstrap draws of a difference."""
    rarer = min(int(np.sum(change <= 0)), int(np.sum(change >= 0)))
    return min(1.0, 2 * (rarer + 1) / (len(change) + 1))


def mcnemar(a: Bool[np.ndarray, " n"], b: Bool[np.ndarray, " n"]) -> McNemar:
    """McNemar's exact test of paired hits (McNemar, Psychometrika 12, 1947, with binomial tails): of the queries that
    one system alone has right, each is A's or B's with probability 1/2. Queries are taken for independent."""
    only_a, only_b = int(np.sum(a & ~b)), int(np.sum(b & ~a))
    p = float(scipy.stats.binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return McNemar(int(np.sum(a & b)), only_a, only_b, int(np.sum(~a & ~b)), p)


def changes(
    a: Int[np.ndarray, " n"], b: Int[np.ndarray, " n"], k: int
) -> tuple[Int[np.ndarray, " g"], Int[np.ndarray, " l"]]:
    """The queries, at most k, whose rank is smaller in B by most, and those whose rank is larger by most."""
    change = b - a
    order = np.argsort(change, kind="stable")
    worse = np.argsort(-change, kind="stable")
    return order[:k][change[order[:k]] < 0], worse[:k][change[worse[:k]] > 0]
