"""`xmodal search`: from a sentence to ranked images, from an image to ranked captions or to images like it.

Where scores are inner products an engine ranks all items. Elsewhere it ranks coarse vectors, and the best of them are
scored in full (re-ranked).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from xmodal_jax.errors import UsageError
from xmodal_jax.inference import engines
from xmodal_jax.inference.bundle import Bundle, Embedding
from xmodal_jax.inference.functions import take
from xmodal_jax.inference.gallery import CACHE, Gallery, Side, pooled
from xmodal_jax.inference.shapes import WORDS
from xmodal_jax.text.vocabulary import UNKNOWN

CHARACTERS, MOST = 2000, 1000  # of a query; of hits
# Candidates that are re-ranked at least: pooled regions find captions less well than pooled words find images, and are
# cheaper to score with them (docs/search.md).
DEPTH = {"images": 100, "texts": 500}
SMALL = 2000  # items that are all scored in full by default: a coarse search would cost recall and save little
LISTED = 20  # unknown words that a message names
WARMED = 100_000  # captions whose lengths are looked at for shapes to compile
PARTS = (128, 512, 1024)  # candidates scored in one call: few numbers, for each is a compilation
PART = PARTS[-1]


class Hit(NamedTuple):
    """A found item: an image with all its captions, or one caption with the image that it belongs to."""

    rank: int  # from 1
    score: float
    row: int  # among the images, or among the captions
    id: str  # of the image
    captions: list[str]
    picture: str | None


class Query(NamedTuple):
    """Q items of one side: their embedding, and the vectors [Q, D] that engines take."""

    embedding: Embedding
    vectors: np.ndarray


class Searcher:
    """A gallery ready for queries in both directions; safe to use from several threads.

    Args:
        gallery: what to search.
        engine: "exact", "faiss" or "qdrant[:LOCATION]".
        rerank: how many of the engine's best are scored in full, or "all". By default all of up to 2,000, else at
            least 100 images or 500 captions, and ten times k, where scores are no inner products; else none.

    Raises:
        UsageError: no such engine, or it is not installed.
    """

    def __init__(self, gallery: Gallery, *, engine: str = "exact", rerank: int | str | None = None):
        if not (rerank is None or rerank == "all" or (isinstance(rerank, int) and rerank > 0)):
            raise UsageError(f'--rerank takes a positive number or "all", not {rerank}.')
        self.gallery, self.engine, self.rerank = gallery, engine, rerank
        self.bundle = gallery.bundle
        self._lock = threading.Lock()
        self._engines: dict[str, engines.Engine] = {}
        inputs = [
            [np.dtype(leaf["dtype"]) for leaf in self.bundle.manifest["functions"][f"encode_{side}"]["gives"]]
            for side in ("image", "text")
        ]
        score = self.bundle.functions.call("score")  # one more `jit` around it, with the types that are stored

        def full(*pair: list[jax.Array]) -> jax.Array:
            return score(
                *([x.astype(t) for x, t in zip(*arrays, strict=True)] for arrays in zip(pair, inputs, strict=True))
            )

        self._full = jax.jit(full)

    # Queries

    def by_text(self, texts: Sequence[str], k: int = 10) -> list[list[Hit]]:
        """The best k images for each sentence.

        Raises:
            UsageError: a sentence that is empty or of more than 2,000 characters, or k outside 1 to 1,000.
        """
        _check_k(k)
        if isinstance(texts, str):
            raise UsageError('by_text takes a list of sentences: by_text(["two dogs"]).')
        for text in texts:
            if not text.strip():
                raise UsageError("The query is empty; give a sentence.")
            if len(text) > CHARACTERS:
                raise UsageError(f"The query has {len(text):,} characters; at most {CHARACTERS:,} are read.")
        if not texts:
            return []
        found = self.rank(self.gallery.images, self._texts(texts), k)
        return [self._hits(self.gallery.images, *answer) for answer in zip(*found, strict=True)]

    def by_image(self, image: Any, k: int = 10) -> list[Hit]:
        """The best k captions for one image.

        Args:
            image: a row of the gallery; a picture (file, bytes, PIL image, uint8 array [H, W, 3]), where the bundle
                has an extractor; or its features, [F] or [R, F], or a dict of them by name.

        Raises:
            UsageError: no such row, features of the wrong shape, no extractor, or k outside 1 to 1,000.
            DataError: a picture that cannot be read.
        """
        _check_k(k)
        scores, rows = self.rank(self.gallery.texts, self._image(image), k)
        return self._hits(self.gallery.texts, scores[0], rows[0])

    def by_likeness(self, image: Any, k: int = 10) -> list[Hit]:
        """The best k images of the gallery for another image, by the inner product of their vectors, which is a cosine
        where these have unit length. A row of the gallery is not among its own answers.

        Args:
            image: as in :meth:`by_image`.

        Raises:
            UsageError: as :meth:`by_image`, or a system without one vector an image.
            DataError: a picture that cannot be read.
        """
        _check_k(k)
        self.check_likeness()
        side, query = self.gallery.images, self._image(image)
        ((scores,), (rows,)) = self.engine_of(side).search(query.vectors, k + 1)
        kept = rows >= 0  # approximate engines may find fewer
        if isinstance(image, int | np.integer):
            kept &= rows != image
        return self._hits(side, scores[kept][:k], rows[kept][:k])

    @property
    def likens(self) -> bool:
        """Whether images can be compared with images: scores are inner products of one vector an item."""
        return self.gallery.dot is not None

    def check_likeness(self) -> None:
        """Raise a UsageError where the system cannot compare two images."""
        if not self.likens:
            raise UsageError(
                f'The system "{self.bundle.system}" scores an image with a sentence, not two images with each other; '
                "index the data with a system whose score is the inner product of one vector an item."
            )

    def unknown(self, text: str) -> list[str]:
        """The words of a sentence that the vocabulary does not have."""
        return self.bundle.unknown(text)

    def check_known(self, text: str) -> None:
        """Raise a UsageError where none of a sentence's words is in the vocabulary, so that its ranks mean nothing."""
        vocabulary = self.bundle.vocabulary
        if vocabulary is None or any(token != UNKNOWN for token in vocabulary.encode(text)[1:-1]):
            return
        raise UsageError(
            f"No word of the query is in the vocabulary ({', '.join(self.unknown(text)[:LISTED])}), so nothing can be "
            "found by it; use other words."
        )

    def warm(self, most: int = 32, k: int = 10) -> None:
        """Compile all shapes that queries of up to ``most`` sentences at a time can have, before the first comes."""
        lengths = range(WORDS, max(self.bundle.lengths) + WORDS, WORDS)
        for size in (1 << i for i in range(max(most - 1, 0).bit_length() + 1)):
            for length in lengths:

                def embed(bundle: Bundle, size: int = size, length: int = length) -> Embedding:
                    return bundle.embed_unknown(size, length)

                self.rank(self.gallery.images, self._query(embed(self.bundle), embed), k)
        texts, image = self.gallery.texts, self.stored(self.gallery.images, np.array([0]))
        self.by_image(0, k)
        depth = min(self.depth(texts, k), len(texts))
        if not depth:
            return
        widths = self.bundle.functions.words([leaf[:WARMED] for leaf in self._leaves(texts)])
        for longest in np.unique(-(-widths // WORDS)):  # the candidates of an image are cut to their longest
            row = int(np.argmax(-(-widths // WORDS) == longest))
            self._score(texts, image.embedding, 0, np.full(depth, row))

    # Parts

    def _texts(self, texts: Sequence[str]) -> Query:
        return self._query(self.bundle.embed_texts(texts), lambda other: other.embed_texts(texts))

    def _image(self, image: Any) -> Query:
        """The query that :meth:`by_image` is given."""
        if isinstance(image, int | np.integer):
            if not 0 <= image < len(self.gallery.images):
                raise UsageError(f"Rows of images go from 0 to {len(self.gallery.images) - 1}, not {image}.")
            return self.stored(self.gallery.images, np.array([image]))
        if isinstance(image, Mapping):
            given: Any = {name: np.asarray(value)[None] for name, value in image.items()}
        else:
            array = isinstance(image, np.ndarray) and image.dtype != np.uint8
            given = image[None] if array else [image]

        def embed(bundle: Bundle) -> Embedding:
            features = (
                {name: given[name] for name in bundle.features if name in given} if isinstance(given, dict) else given
            )
            return bundle.embed_images(features)

        return self._query(embed(self.bundle), embed)

    def _query(self, embedding: Embedding, other: Callable[[Bundle], Embedding]) -> Query:
        if self.gallery.dot is not None:
            return Query(embedding, np.asarray(embedding))
        coarse = self.gallery.coarse_bundle
        return Query(embedding, pooled(embedding if coarse is None else other(coarse)))

    def stored(self, side: Side, rows: np.ndarray) -> Query:
        """Items of the gallery as queries."""
        return Query(side.take(rows), np.asarray(side.vectors[rows], np.float32))

    def depth(self, side: Side, k: int) -> int:
        """How many candidates of a side are scored in full for k hits; 0: none."""
        if self.rerank == "all":
            return max(len(self.gallery.images), len(self.gallery.texts))
        if self.rerank is None:
            if self.gallery.dot is not None:
                return 0
            return len(side) if len(side) <= SMALL else max(DEPTH[side.name], 10 * k)
        return max(int(self.rerank), k)

    def scored(self, side: Side, k: int) -> int:
        """How many items of a side are scored for k hits; fewer than there are where a coarse search comes first."""
        return min(self.depth(side, k) or len(side), len(side))

    def engine_of(self, side: Side) -> engines.Engine:
        """The engine over a side's vectors, made when first asked for."""
        with self._lock:
            if side.name not in self._engines:
                other = self.gallery.texts if side is self.gallery.images else self.gallery.images
                self._engines[side.name] = engines.open_engine(
                    self.engine, side.vectors, self.gallery.path / CACHE, side.identity, other.vectors
                )
            return self._engines[side.name]

    def rank(
        self, side: Side, query: Query, k: int, depth: int | None = None
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """For each query the scores, falling, and rows of the best k of ``side``; fewer where there are fewer.

        Args:
            depth: how many are scored in full, 0 for none; where it reaches all, no engine is asked.
        """
        depth = self.depth(side, k) if depth is None else depth
        scores: Any = []
        if depth >= max(len(side), 1):
            rows: Any = [np.arange(len(side))] * len(query.vectors)
        else:
            scores, rows = self.engine_of(side).search(query.vectors, depth or k)
            kept = [row >= 0 for row in rows]  # approximate engines may find fewer
            scores, rows = ([row[keep] for row, keep in zip(part, kept, strict=True)] for part in (scores, rows))
        if not depth:
            assert self.gallery.dot is not None
            a, b = self.gallery.dot
            return [a * row + b for row in scores], rows
        scores = [self._score(side, query.embedding, index, row) for index, row in enumerate(rows)]
        order = [np.lexsort((row, -score))[:k] for score, row in zip(scores, rows, strict=True)]
        scores, rows = ([row[o] for row, o in zip(part, order, strict=True)] for part in (scores, rows))
        return scores, rows

    def _leaves(self, side: Side) -> list[Any]:
        gives = self.bundle.manifest["functions"]["encode_image" if side is self.gallery.images else "encode_text"]
        return [side.leaves[leaf["name"]] for leaf in gives["gives"]]

    def _score(self, side: Side, embedding: Embedding, index: int, rows: np.ndarray) -> np.ndarray:
        """Full scores [len(rows)] of one query with items of ``side``, in one jitted call for each 1,024; other numbers
        are padded to few shapes."""
        by_text = side is self.gallery.images
        query = self.bundle.functions.leaves("text" if by_text else "image", take(embedding, slice(index, index + 1)))
        leaves, out = self._leaves(side), np.zeros(len(rows), np.float32)
        size = padded(len(rows))
        for start in range(0, len(rows), size):
            chunk = np.zeros(size, np.int64)
            part = rows[start : start + size]
            chunk[: len(part)] = part
            if by_text:
                pair = [leaf[chunk] for leaf in leaves], self.bundle.functions.cut(query, np.array([0]))
            else:
                pair = query, self.bundle.functions.cut(leaves, chunk)
            out[start : start + len(part)] = np.asarray(self._full(*pair)).ravel()[: len(part)]
        return out

    def _hits(self, side: Side, scores: np.ndarray, rows: np.ndarray) -> list[Hit]:
        images, texts = self.gallery.images, self.gallery.texts
        hits = []
        for rank, (score, row) in enumerate(zip(scores.tolist(), rows.tolist(), strict=True), 1):
            if side is images:
                image, captions = row, [texts.lines[c]["caption"] for c in images.lines[row]["captions"]]
            else:
                image, captions = texts.lines[row]["image"], [texts.lines[row]["caption"]]
            picture = self.gallery.picture(image)
            shown = None if picture is None else str(picture)
            hits.append(Hit(rank, score, row, images.lines[image]["id"], captions, shown))
        return hits


def padded(count: int) -> int:
    """How many candidates one call scores."""
    return next((size for size in PARTS if count <= size), PART)


def _check_k(k: int) -> None:
    if not 1 <= k <= MOST:
        raise UsageError(f"k goes from 1 to {MOST:,}, not {k}.")
