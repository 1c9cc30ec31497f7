"""Engines: the k vectors with the largest inner products, exactly in JAX, or by FAISS or Qdrant."""

from __future__ import annotations

import importlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax.digest import sha256
from xmodal_jax.errors import NumericError, UsageError, require
from xmodal_jax.inference.stored import Stored
from xmodal_jax.progress import Progress

BLOCK = 1 << 15  # vectors looked at at a time
QUERIES = 256  # queries at a time
RESIDENT = 8 << 30  # bytes of vectors kept on the device; more are read again for each search
LEAST = 16  # candidates kept, so that small k share one compilation
FLAT = 50_000  # vectors up to which FAISS looks at all
WANTED = 0.95  # recall@10 against the exact ranks for which FAISS looks at more cells
UPSERT = 512  # vectors sent to Qdrant at a time

Ranked = tuple[np.ndarray, np.ndarray]
Vectors = np.ndarray | Stored


class Engine(Protocol):
    """Something that ranks a fixed set of vectors [N, D]; safe to call from several threads."""

    def search(self, query: np.ndarray, k: int) -> Ranked:
        """The best of each query [Q, D]: scores [Q, k] float32, falling, and rows [Q, k] int64; k is at most N."""
        ...


def _checked(query: np.ndarray, width: int) -> np.ndarray:
    query = np.asarray(query, np.float32)
    if query.ndim != 2 or query.shape[1] != width:
        raise UsageError(f"Queries are [queries, {width}] here, not {list(query.shape)}.")
    if not np.isfinite(query).all():
        raise NumericError("A query's embedding is not finite; check the features, or the bundle.")
    return query


class Exact:
    """Every vector is looked at, block by block, on the device.

    Equal scores are in the order of the rows. On a CPU the vectors are held as float32, elsewhere in their own type;
    products are float32 either way.

    Args:
        vectors: [N, D], may be read from disk.
        block: most vectors of one block.
        resident: bytes of vectors to keep on the device; where they are more, blocks are read for each search.
    """

    def __init__(self, vectors: Vectors, *, block: int = BLOCK, resident: int = RESIDENT):
        self.vectors = vectors
        self.count, self.width = vectors.shape
        self.block = -(-self.count // max(-(-self.count // block), 1))  # equal ones: little padding
        self.dtype = np.dtype(np.float32) if jax.default_backend() == "cpu" else vectors.dtype
        fits = vectors.size * self.dtype.itemsize <= resident
        self._held = list(self._load()) if fits else None

    def _load(self) -> Iterator[tuple[int, jax.Array]]:
        for start in range(0, self.count, max(self.block, 1)):
            rows = np.zeros((self.block, self.width), self.dtype)
            part = self.vectors[start : start + self.block]
            rows[: len(part)] = part
            yield start, jnp.asarray(rows)

    def search(self, query: np.ndarray, k: int) -> Ranked:
        query = _checked(query, self.width)
        k = min(k, self.count)
        scores, rows = np.zeros((len(query), k), np.float32), np.zeros((len(query), k), np.int64)
        if not k:
            return scores, rows
        keep = max(1 << (k - 1).bit_length(), LEAST)
        for first in range(0, len(query), QUERIES):
            chunk = query[first : first + QUERIES]
            padded = np.zeros((1 << (len(chunk) - 1).bit_length(), self.width), np.float32)
            padded[: len(chunk)] = chunk
            best = jnp.full((len(padded), keep), -jnp.inf), jnp.full((len(padded), keep), -1)
            for start, block in self._load() if self._held is None else self._held:
                best = _merge(best, block, start, self.count, padded)
            scores[first : first + len(chunk)], rows[first : first + len(chunk)] = (
                np.asarray(part)[: len(chunk), :k] for part in best
            )
        return scores, rows


@jax.jit
def _merge(best: tuple[jax.Array, jax.Array], block: jax.Array, start: Any, count: Any, query: Any) -> Any:
    """The best so far [Q, K] and those of a further block [N, D]; what was found first goes first among equals."""
    # [N, Q] and then turned: with the few queries first, XLA's product on a CPU takes half as long again
    product = jnp.einsum("nd,qd->nq", block.astype(jnp.float32), query, precision=jax.lax.Precision.HIGHEST)
    score = jax.lax.optimization_barrier(product).T
    score = jnp.where(score == 0, 0, score)  # minus zero is no smaller than zero
    score = jnp.where(start + jnp.arange(len(block)) < count, score, -jnp.inf)
    keep = best[0].shape[1]
    top, place = jax.lax.top_k(score, min(keep, len(block)))
    merged, order = jax.lax.top_k(jnp.concatenate([best[0], top], axis=1), keep)
    return merged, jnp.take_along_axis(jnp.concatenate([best[1], start + place], axis=1), order, axis=1)


def recall(found: np.ndarray, wanted: np.ndarray) -> float:
    """Share of the rows ``wanted`` [Q, k] that are in ``found`` [Q, K]."""
    if not wanted.size:
        return 1.0
    return float(np.mean([np.isin(w, f).mean() for f, w in zip(found, wanted, strict=True)]))


class Faiss:
    """An index by FAISS: all vectors up to 50,000, an inverted file above; needs the extra "ann".

    The index is a cache. Its file is loaded only if its SHA-256 is the one noted beside it and it was built from these
    vectors by this version of FAISS; otherwise it is built anew, because a crafted index file can corrupt memory. A
    gallery from somebody else should come without its cache folder.

    Args:
        vectors: [N, D].
        folder: where to keep the index; None keeps none.
        identity: SHA-256 of the vectors.
        queries: [M, D], from which 100 are drawn to measure recall and choose how many cells to look at; the
            vectors themselves by default.

    Raises:
        UsageError: FAISS is not installed.
    """

    def __init__(self, vectors: Vectors, folder: Path | None, identity: str = "", queries: Vectors | None = None):
        require("faiss", "ann")
        faiss: Any = importlib.import_module("faiss")
        self.vectors, self.folder = vectors, folder
        self.count, self.width = vectors.shape
        self._faiss: Any = faiss
        queries = vectors if queries is None or not len(queries) else queries
        self.key = {"vectors": identity, "shape": list(vectors.shape), "faiss": faiss.__version__, "kind": self._kind()}
        self._index: Any = self._cached() if identity else None
        if self._index is None:
            self._index = self._build(queries)

    def _kind(self) -> str:
        if self.count <= FLAT:
            return "Flat"
        cells = 1 << round(np.log2(4 * np.sqrt(self.count)))
        return f"IVF{cells},{'SQfp16' if self.vectors.dtype == np.float16 else 'Flat'}"

    @property
    def _paths(self) -> tuple[Path, Path]:
        assert self.folder is not None
        name = f"faiss-{self.key['vectors'][:16]}"
        return self.folder / f"{name}.index", self.folder / f"{name}.json"

    def _cached(self) -> Any:
        if self.folder is None:
            return None
        path, about = self._paths
        try:
            known = json.loads(about.read_text(encoding="utf-8"))
            sound = known["key"] == self.key and known["sha256"] == sha256(path)
            self.recall = known["recall"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        if not sound:
            return None
        index = self._faiss.read_index(str(path))
        if known["probe"]:
            index.nprobe = int(known["probe"])
        return index

    def _build(self, queries: Vectors) -> Any:
        index = self._faiss.index_factory(self.width, self.key["kind"], self._faiss.METRIC_INNER_PRODUCT)
        some = np.random.default_rng(0).permutation(self.count)[:FLAT]
        if not index.is_trained:
            index.train(np.ascontiguousarray(self.vectors[np.sort(some)], np.float32))
        with Progress("faiss", self.count, unit="vectors") as progress:
            for start in range(0, self.count, BLOCK):
                part = np.ascontiguousarray(self.vectors[start : start + BLOCK], np.float32)
                index.add(part)
                progress.advance(len(part))
            probe = self._tune(index, queries)
            looked = f", {probe} of {index.nlist} cells looked at" if probe else ""
            progress.note(f"{self.key['kind']}: recall@10 {self.recall:.3f} against exact on 100 queries{looked}")
        if self.folder is not None and self.key["vectors"]:
            self._keep(index, probe)
        return index

    def _tune(self, index: Any, queries: Vectors) -> int:
        """How many cells to look at; sets ``recall``."""
        rows = np.sort(np.random.default_rng(1).permutation(len(queries))[:100])
        some = np.ascontiguousarray(queries[rows], np.float32)
        _, wanted = Exact(self.vectors).search(some, 10)
        probe = 8 if hasattr(index, "nprobe") else 0
        while True:
            if probe:
                index.nprobe = probe
            self.recall = recall(index.search(some, 10)[1], wanted)
            if not probe or self.recall >= WANTED or probe >= index.nlist:
                return probe
            probe = min(2 * probe, index.nlist)

    def _keep(self, index: Any, probe: int) -> None:
        path, about = self._paths
        try:
            path.parent.mkdir(exist_ok=True)
            about.unlink(missing_ok=True)
            self._faiss.write_index(index, str(path))
            known = {"key": self.key, "probe": probe, "recall": self.recall, "sha256": sha256(path)}
            about.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")  # last: it makes the file count
        except (OSError, RuntimeError):
            return  # a gallery that cannot be written to is searched all the same

    def search(self, query: np.ndarray, k: int) -> Ranked:
        query = _checked(query, self.width)
        k = min(k, self.count)
        if not k or not len(query):
            return np.zeros((len(query), k), np.float32), np.zeros((len(query), k), np.int64)
        return _ordered(*self._index.search(np.ascontiguousarray(query), k))


def _ordered(score: np.ndarray, row: np.ndarray) -> Ranked:
    """Falling scores, equal ones in the order of their rows; row -1 (nothing found) last."""
    score = np.where(row < 0, -np.inf, score).astype(np.float32)
    order = np.lexsort((row, -score), axis=-1)
    return np.take_along_axis(score, order, 1), np.take_along_axis(row, order, 1).astype(np.int64)


class Qdrant:
    """A collection in Qdrant, for galleries beyond one machine; needs the extra "qdrant".

    The vectors are sent once: a collection is named after them and found again. Ids are the rows.

    Args:
        vectors: [N, D].
        location: an address (http://HOST:6333), a folder for the embedded mode, or ":memory:". The key of a
            cluster is taken from the environment variable QDRANT_API_KEY.
        name: of the collection; vectors of another name are others.

    Raises:
        UsageError: the client is not installed, or nobody answers at ``location``.
    """

    def __init__(self, vectors: Vectors, location: str, name: str):
        require("qdrant_client", "qdrant")
        qdrant_client: Any = importlib.import_module("qdrant_client")
        self.vectors, self.location, self.name = vectors, location, name
        self.count, self.width = vectors.shape
        self._models: Any = qdrant_client.models
        remote = location.startswith(("http://", "https://"))
        # The embedded mode is not made for several threads.
        self._lock = threading.Lock() if not remote else None
        if remote:
            where: dict[str, Any] = {"url": location, "api_key": os.environ.get("QDRANT_API_KEY"), "timeout": 60}
        else:
            where = {"location": location} if location == ":memory:" else {"path": location}
        try:
            # The client warns where it cannot ask a server for its version; the next call says more.
            self._client = qdrant_client.QdrantClient(**where, check_compatibility=False)
        except Exception as error:
            raise self._trouble(error) from None
        self._ask(self._fill)

    def _trouble(self, error: Exception) -> UsageError:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        return UsageError(f"Qdrant at {self.location}: {reason.rstrip('.')}; start it, or take another --engine.")

    def _ask(self, call: Any, *args: Any) -> Any:
        try:
            if self._lock is None:
                return call(*args)
            with self._lock:
                return call(*args)
        except Exception as error:  # the client passes on what its transports raise
            raise self._trouble(error) from None

    def _fill(self) -> None:
        models = self._models
        if not self._client.collection_exists(self.name):
            half = models.Datatype.FLOAT16 if self.vectors.dtype == np.float16 else models.Datatype.FLOAT32
            size = models.VectorParams(size=self.width, distance=models.Distance.DOT, datatype=half)
            self._client.create_collection(self.name, vectors_config=size)
        done = self._client.count(self.name, exact=True).count  # rows are sent in order, so these are the first
        if done >= self.count:
            return
        with Progress("qdrant", self.count, unit="vectors", start=done) as progress:
            for start in range(done, self.count, UPSERT):
                part = np.asarray(self.vectors[start : start + UPSERT], np.float32)
                ids = list(range(start, start + len(part)))
                batch = models.Batch(ids=ids, vectors=part.tolist())
                self._client.upsert(self.name, points=batch, wait=True)
                progress.advance(len(part))

    def search(self, query: np.ndarray, k: int) -> Ranked:
        query = _checked(query, self.width)
        k = min(k, self.count)
        score, row = np.full((len(query), k), -np.inf, np.float32), np.full((len(query), k), -1, np.int64)
        if not k or not len(query):
            return score, row
        requests = [self._models.QueryRequest(query=vector.tolist(), limit=k) for vector in query]
        for place, answer in enumerate(self._ask(self._client.query_batch_points, self.name, requests)):
            found = [(point.score, point.id) for point in answer.points]
            score[place, : len(found)] = [vector for vector, _ in found]
            row[place, : len(found)] = [vector for _, vector in found]
        return _ordered(score, row)


def open_engine(
    choice: str, vectors: Vectors, cache: Path, identity: str = "", queries: Vectors | None = None
) -> Engine:
    """The engine ``exact``, ``faiss`` or ``qdrant[:LOCATION]`` over vectors whose SHA-256 is ``identity``.

    Raises:
        UsageError: no such engine, or it is not installed.
    """
    kind, _, location = choice.partition(":")
    if kind == "qdrant":
        if location != ":memory:" and "://" not in location:  # the embedded mode opens a folder once
            location = str(Path(location or cache / "qdrant") / identity[:16])
        return Qdrant(vectors, location, f"xmodal-{identity[:32]}")
    builders = {"exact": lambda: Exact(vectors), "faiss": lambda: Faiss(vectors, cache, identity, queries)}
    if choice not in builders:
        raise UsageError(f'There is no engine "{choice}"; choose exact, faiss or qdrant[:LOCATION].')
    return builders[choice]()
