"""`xmodal bench search` and `rerank`: engines on random vectors, and what re-ranking keeps (`search --measure` too)."""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xmodal_jax.errors import UsageError
from xmodal_jax.inference import engines, index
from xmodal_jax.inference.gallery import Gallery, Side
from xmodal_jax.inference.matcher import Embedding, load, take
from xmodal_jax.inference.search import PART, Searcher
from xmodal_jax.progress import Progress

MEASURED = 5_000_000  # pairs that `measure` scores in full, a direction
RERANKED = 10_000_000  # those that `bench_rerank` scores, on its larger gallery
AT_A_TIME = 16  # queries that are scored together in full: intermediate results stay in the cache of a core
TIMED = 20  # queries that `measure` times
ITEMS, WIDTH, K = 100_000, 1024, 10
BATCH = 32


def bench_search(items: int = ITEMS, width: int = WIDTH, queries: int = 200) -> list[dict[str, Any]]:
    """Milliseconds to find 10 of ``items`` random unit vectors, one query at a time and 32 at a time.

    Random vectors have no neighbourhoods: FAISS, where installed, can leave out nothing without losing some.
    """
    random = np.random.default_rng(0)

    def unit(count: int) -> np.ndarray:
        vectors = random.standard_normal((count, width), np.float32)
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)

    vectors, asked = unit(items), unit(queries).astype(np.float32)
    made: dict[str, Callable[[], engines.Engine]] = {"exact": lambda: engines.Exact(vectors)}
    if importlib.util.find_spec("faiss"):
        made["faiss"] = lambda: engines.Faiss(vectors, None, queries=asked)
    wanted = np.zeros((0, K), np.int64)
    rows: list[dict[str, Any]] = []
    for name, make in made.items():
        began = time.perf_counter()
        engine = make()
        row: dict[str, Any] = {"name": f"search_{name}", "items": items, "width": width, "k": K}
        row["build_s"] = time.perf_counter() - began
        engine.search(asked[:1], K)
        times = [_seconds(engine, own[None]) for own in asked]
        row |= {"p50_ms": 1000 * float(np.median(times)), "p99_ms": 1000 * float(np.quantile(times, 0.99))}
        engine.search(asked[:BATCH], K)
        starts = range(0, max(len(asked) - BATCH + 1, 1), BATCH)
        batch = np.median([_seconds(engine, asked[s : s + BATCH]) for s in starts])
        row["batch_ms"] = 1000 * float(batch)
        found = engine.search(asked, K)[1]
        wanted = wanted if rows else found  # exact comes first
        row["recall@10"] = engines.recall(found, wanted)
        rows.append(row)
    return rows


def _seconds(engine: engines.Engine, query: np.ndarray) -> float:
    began = time.perf_counter()
    engine.search(query, K)
    return time.perf_counter() - began


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
    own = owner[queries] if by_text else queries  # the image that a query belongs to

    def best(scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
        order = np.lexsort((rows, -scores), axis=-1)[:, :10]
        return np.take_along_axis(rows, order, 1)

    def recall_at(k: int, found: np.ndarray) -> float:
        image = found[:, :k] if by_text else owner[found[:, :k]]
        return float((image == own[:, None]).any(1).mean())

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
                own = take(embedding, slice(first, first + AT_A_TIME))
                pair = (some, own) if side is searcher.gallery.images else (own, some)
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


def bench_rerank(bundle: Path, data: Path, items: int = ITEMS) -> list[dict[str, Any]]:
    """Re-ranking on the test images of ``data`` among made-up ones, ``items`` in all: rows of :func:`measure`.

    A made-up image has each region from one of two training images, and the mean of their global features, so that its
    numbers are as those of real ones.

    Raises:
        UsageError: the bundle needs no re-ranking, or the data has more images than ``items``.
    """
    with tempfile.TemporaryDirectory() as folder:
        whole = with_made_up(data, list(load(bundle).features), items)
        index.build(Path(folder) / "gallery", load(bundle), whole)
        searcher = Searcher(Gallery(Path(folder) / "gallery"))
        if searcher.gallery.dot is not None:
            raise UsageError(
                f"The scores of {bundle} are inner products: nothing is re-ranked. Take a system of parts."
            )
        return measure(searcher, (100, 500, 1000, 5000), directions=("t2i",), pairs=RERANKED)


def with_made_up(data: Path, features: Sequence[str], count: int) -> index.Items:
    """The test split of a data set, followed by images mixed of its training images, ``count`` in all."""
    real, train = (index.items_of(data, split, features) for split in ("test", "train"))
    own, blocks = len(real.ids), -(-count // index.BLOCK)
    if own > count:
        raise UsageError(f"{data} has {own:,} test images already; --items has to be more.")
    pool, mask, _ = (_joined(parts) for parts in zip(*train.read(0), strict=True))
    test, test_mask, _ = (_joined(parts) for parts in zip(*real.read(0), strict=True))

    def read(start: int) -> Iterator[index.Read]:
        for block in range(start, blocks):
            rows = np.arange(block * index.BLOCK, min((block + 1) * index.BLOCK, count))
            random = np.random.default_rng(block)
            one, other = random.integers(0, len(mask), (2, len(rows)))
            first = random.random(mask[one].shape) < 0.5  # [B, R]
            given = rows < own
            safe = np.minimum(rows, own - 1)
            made = {}
            for name, value in pool.items():
                mixed = np.where(first[..., None], value[one], value[other]) if value.ndim == 3 else None
                mixed = (value[one] + value[other]) / 2 if mixed is None else mixed
                made[name] = np.where(given.reshape(-1, *[1] * (value.ndim - 1)), test[name][safe], mixed)
            yield made, np.where(given[:, None], test_mask[safe], np.where(first, mask[one], mask[other])), None

    more = count - own
    return index.Items(
        {**real.about, "name": f"{real.about['name']} and {more:,} made-up images"},
        [*real.ids, *(f"made-up-{row}" for row in range(more))],
        [*real.captions, *[[]] * more],
        [None] * count,
        [*real.sizes, *[(1, 1)] * more],
        read,
    )


def _joined(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], Mapping):
        return {name: np.concatenate([own[name] for own in parts]) for name in parts[0]}
    return None if parts[0] is None else np.concatenate(parts)


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
