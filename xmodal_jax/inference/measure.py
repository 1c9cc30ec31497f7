"""What re-ranking keeps of the full ranking, and what it costs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xmodal_jax.inference import engines
from xmodal_jax.inference.functions import Embedding, take
from xmodal_jax.inference.gallery import Side
from xmodal_jax.inference.search import PART, Searcher
from xmodal_jax.progress import Progress

MEASURED = 5_000_000  # pairs that `measure` scores in full, a direction
AT_A_TIME = 16  # queries that are scored together in full: intermediate results stay in the cache of a core
TIMED = 20  # queries that `measure` times


def measure(
    searcher: Searcher,
    depths: Sequence[int] = (50, 100, 200, 400),
    *,
    directions: Sequence[str] = ("t2i", "i2t"),
    pairs: int = MEASURED,
) -> list[dict[str, Any]]:
    """Coarse search and re-ranking against scoring everything: a row for each direction and number of candidates.

    "kept@K" is the share of the exhaustive best K that are among the re-ranked best K; "R@K" the share of queries with
    an own item among the best K, beside "all R@K" when everything is scored. "ms" and "all ms" are the median times of
    ranking for one query that is embedded already, "speed_up" their ratio. Queries are the gallery's own items, spread
    evenly over it where all would be more than ``pairs`` in a direction.
    """
    images, texts = searcher.gallery.images, searcher.gallery.texts
    out: list[dict[str, Any]] = []
    known: dict[str, np.ndarray] = {}
    for name, side, other in (("t2i", images, texts), ("i2t", texts, images)):
        if name not in directions or not (len(side) and len(other)):
            continue
        count = max(min(len(other), pairs // len(side)), 1)
        rows = np.unique(np.linspace(0, len(other) - 1, count).astype(int))
        query = searcher.stored(other, rows)
        if "t2i" in known and known["t2i"].shape == (len(side), len(rows)):  # all pairs, scored before
            known[name] = known["t2i"].T
        else:
            known[name] = _all_scores(searcher, side, query.embedding, len(rows))
        _, coarse = searcher.engine_of(side).search(query.vectors, max(depths))
        slowest = _milliseconds(searcher, side, other, rows, len(side))
        for depth, row in zip(depths, _recalls(searcher, side, rows, known[name], coarse, depths), strict=True):
            fast = slowest if depth >= len(side) else _milliseconds(searcher, side, other, rows, depth)
            row |= {"direction": name, "candidates": depth, "queries": len(rows), "items": len(side)}
            out.append(row | {"ms": fast, "all ms": slowest, "speed_up": slowest / fast})
    return out


def _recalls(
    searcher: Searcher, side: Side, queries: np.ndarray, full: np.ndarray, coarse: np.ndarray, depths: Sequence[int]
) -> list[dict[str, Any]]:
    """For each depth the recalls among the best of the first so many of ``coarse``, rows [Q, N], and among all."""
    owner = np.array([line["image"] for line in searcher.gallery.texts.lines], np.int64)
    by_text = side is searcher.gallery.images
    owners = owner[queries] if by_text else queries  # the image that a query belongs to

    def best(scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        order = np.lexsort((rows, -scores), axis=-1)[:, :10]
        return np.take_along_axis(rows, order, 1)

    def recall_at(k: int, found: np.ndarray) -> float:
        image = found[:, :k] if by_text else owner[found[:, :k]]
        return float((image == owners[:, None]).any(1).mean())

    wanted = best(full, np.broadcast_to(np.arange(len(side)), full.shape))
    out = []
    for depth in depths:
        rows = coarse[:, :depth]
        found = best(np.where(rows < 0, -np.inf, np.take_along_axis(full, rows, 1)), rows)
        row: dict[str, Any] = {}
        for k in (1, 10):
            row[f"kept@{k}"] = engines.recall(found[:, :k], wanted[:, :k])
            row[f"R@{k}"], row[f"all R@{k}"] = recall_at(k, found), recall_at(k, wanted)
        out.append(row)
    return out


def _all_scores(searcher: Searcher, side: Side, embedding: Embedding, count: int) -> np.ndarray:
    """Full scores [Q, N] of queries with every item."""
    out = np.zeros((count, len(side)), np.float32)
    with Progress(f"score all {side.name}", out.size, unit="pairs") as progress:
        for start in range(0, len(side), PART):
            some = side.take(slice(start, start + PART))
            for first in range(0, count, AT_A_TIME):
                part = take(embedding, slice(first, first + AT_A_TIME))
                pair = (some, part) if side is searcher.gallery.images else (part, some)
                block = searcher.bundle.score(*pair)
                out[first : first + AT_A_TIME, start : start + PART] = (
                    block.T if side is searcher.gallery.images else block
                )
                progress.advance(block.size)
    return out


def _milliseconds(searcher: Searcher, side: Side, other: Side, queries: np.ndarray, depth: int) -> float:
    """Median time to rank ``side`` for one query, its shapes compiled before."""
    times = []
    for row in queries[:: -(-len(queries) // TIMED)]:
        query = searcher.stored(other, np.array([row]))
        searcher.rank(side, query, 10, depth)
        began = time.perf_counter()
        searcher.rank(side, query, 10, depth)
        times.append(time.perf_counter() - began)
    return 1000 * float(np.median(times))


def print_measured(rows: Sequence[Mapping[str, Any]]) -> None:
    print("dir  candidates  kept@1  kept@10    R@1 (all)   R@10 (all)      ms (all)  speed-up")
    for row in rows:
        recalls = "  ".join(f"{100 * row[f'R@{k}']:5.1f} ({100 * row[f'all R@{k}']:.1f})" for k in (1, 10))
        print(
            f"{row['direction']}  {row['candidates']:>10}  {100 * row['kept@1']:6.2f}  {100 * row['kept@10']:7.2f}  "
            f"{recalls}  {row['ms']:.2f} ({row['all ms']:.2f})  {row['speed_up']:8.1f}"
        )
    if rows:
        asked = ", ".join(
            f"{row['direction']} {row['queries']:,} queries of {row['items']:,} items" for row in rows[::4]
        )
        print(f"{asked}; per cent; ms to rank for one query, embedding it apart")
