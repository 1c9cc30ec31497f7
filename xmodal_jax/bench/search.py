"""`xmodal bench search` and `rerank`: engines on random vectors, and what re-ranking keeps."""

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
from xmodal_jax.inference.bundle import load
from xmodal_jax.inference.gallery import Gallery
from xmodal_jax.inference.measure import measure
from xmodal_jax.inference.search import Searcher

RERANKED = 10_000_000  # those that `bench_rerank` scores, on its larger gallery
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
    builders: dict[str, Callable[[], engines.Engine]] = {"exact": lambda: engines.Exact(vectors)}
    if importlib.util.find_spec("faiss"):
        builders["faiss"] = lambda: engines.Faiss(vectors, None, queries=asked)
    wanted = np.zeros((0, K), np.int64)
    rows: list[dict[str, Any]] = []
    for name, make in builders.items():
        began = time.perf_counter()
        engine = make()
        row: dict[str, Any] = {"name": f"search_{name}", "items": items, "width": width, "k": K}
        row["build_s"] = time.perf_counter() - began
        engine.search(asked[:1], K)
        times = [_seconds(engine, query[None]) for query in asked]
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
    count_real, blocks = len(real.ids), -(-count // index.BLOCK)
    if count_real > count:
        raise UsageError(f"{data} has {count_real:,} test images already; --items has to be more.")
    pool, mask, _ = (_joined(parts) for parts in zip(*train.read(0), strict=True))
    test, test_mask, _ = (_joined(parts) for parts in zip(*real.read(0), strict=True))

    def read(start: int) -> Iterator[index.Read]:
        for block in range(start, blocks):
            rows = np.arange(block * index.BLOCK, min((block + 1) * index.BLOCK, count))
            random = np.random.default_rng(block)
            left, right = random.integers(0, len(mask), (2, len(rows)))
            first = random.random(mask[left].shape) < 0.5  # [B, R]
            given = rows < count_real
            safe = np.minimum(rows, count_real - 1)
            mixture = {}
            for name, value in pool.items():
                mixed = np.where(first[..., None], value[left], value[right]) if value.ndim == 3 else None
                mixed = (value[left] + value[right]) / 2 if mixed is None else mixed
                mixture[name] = np.where(given.reshape(-1, *[1] * (value.ndim - 1)), test[name][safe], mixed)
            yield mixture, np.where(given[:, None], test_mask[safe], np.where(first, mask[left], mask[right])), None

    more = count - count_real
    return index.Items(
        {**real.about, "name": f"{real.about['name']} and {more:,} made-up images"},
        [*real.ids, *(f"made-up-{row}" for row in range(more))],
        [*real.captions, *[[]] * more],
        [None] * count,
        [*real.sizes, *[(1, 1)] * more],
        read,
        max(real.regions, train.regions),
    )


def _joined(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], Mapping):
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return None if parts[0] is None else np.concatenate(parts)
