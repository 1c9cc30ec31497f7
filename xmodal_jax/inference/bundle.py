"""A bundle in memory: sentences, features and pictures to embeddings, embeddings to scores."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from xmodal_jax.data.pixels import Reading, transform_in
from xmodal_jax.errors import CheckpointError, CutWarning, UsageError
from xmodal_jax.inference import layout, looking, speaking
from xmodal_jax.inference.functions import Embedding, Functions
from xmodal_jax.inference.pixels import Extracted, are_pictures, extract, extractor_of
from xmodal_jax.inference.shapes import BATCH, batches, check_features, doubled, pad, real_regions
from xmodal_jax.text.generation import Decoding
from xmodal_jax.text.vocabulary import UNKNOWN, Vocabulary

AGAIN = "export it again with `xmodal export`, or fetch it again"
LARGEST = 10_000_000  # of a number in a manifest
PAIRS = 1 << 14  # scored at a time where items have parts
DEEP = 32  # pictures that go through a network at a time
GREEDY = Decoding()


def load(path: str | os.PathLike[str], *, verify: bool = True) -> Bundle:
    """Open a bundle that `xmodal export` or `xmodal convert` wrote.

    Args:
        path: its folder.
        verify: hold every file against its SHA-256 first.

    Raises:
        CheckpointError: not a bundle, or one that has changed since it was written.
    """
    return Bundle(Path(path), verify=verify)


class Bundle:
    """A trained matcher, ready for use; :func:`load` makes it.

    An embedding holds N items: an array [N, D] where the system has one vector for an item, else a dict of arrays
    whose first axis is the item. Take some items of it with :func:`xmodal_jax.inference.functions.take`.
    """

    def __init__(self, path: Path, *, verify: bool = True):
        from safetensors import SafetensorError
        from safetensors.numpy import load

        self.path, self._warned = path, False
        self.manifest = layout.read_manifest(path, layout.FORMAT, layout.VERSION, AGAIN)
        with layout.fitting(path, AGAIN):
            if verify:
                layout.check_files(path, self.manifest, AGAIN)
            self.config: dict[str, Any] = layout.read_json(path / layout.CONFIG, AGAIN)
            known = self.manifest["vocabulary"] is not None
            self.vocabulary = Vocabulary.load(path / layout.VOCABULARY) if known else None
            try:
                # Read, not mapped: a mapped file that somebody cuts short ends the process.
                parameters = jax.device_put(load((path / layout.PARAMETERS).read_bytes()))
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{path / layout.PARAMETERS} cannot be read ({error}); {AGAIN}.") from None
            self.functions = Functions(path, self.manifest, parameters)
            self.features: dict[str, list[Any]] = self.manifest["features"]
            self.lengths: list[int] = [int(length) for length in self.manifest["lengths"]]
            sizes = [*self.lengths, int(self.manifest["regions"]), int(self.manifest["tokens"])]
            missing = {"system", "text", "text_models", "extractor", "functions", "made_with"} - set(self.manifest)
            self._extractor = extractor_of(path, self.manifest) if "extractor" in self.manifest else None
            if missing or not self.lengths or not all(0 <= size <= LARGEST for size in sizes):
                raise ValueError(f"its sizes are {sizes}" if not missing else f"it lacks {', '.join(missing)}")

    def __repr__(self) -> str:
        reads = ", ".join(f"{name} {shape}" for name, shape in self.features.items())
        return f"<xmodal_jax bundle {self.path}: {self.system}, reads {reads}>"

    @property
    def system(self) -> str:
        """Name of the model."""
        return self.manifest["system"]

    @property
    def takes_pictures(self) -> bool:
        """Whether the bundle has what makes its features from pictures."""
        return self._extractor is not None

    @property
    def reading(self) -> Reading | None:
        """How the bundle reads pictures as raw pixels; None where it reads none."""
        return Reading(transform_in(self.manifest)) if self.manifest.get("pixels") else None

    @property
    def fingerprint(self) -> str:
        """What tells bundles apart: SHA-256 of the manifest, and so of everything in it."""
        return self.manifest["sha256"]

    # Encoding

    def embed_texts(self, texts: Sequence[str]) -> Embedding:
        """Embed sentences. A CutWarning says, once, that the end of one is not read.

        Raises:
            UsageError: the bundle has no vocabulary, or ``texts`` is one string.
        """
        if isinstance(texts, str):
            raise UsageError('embed_texts takes a list of sentences: embed_texts(["two dogs"]).')
        vectors = self._text_vectors(texts)
        if "token" not in self.manifest["text"]:
            return self.embed_vectors(vectors)
        return self._embed(*self.tokens(texts), vectors)

    @property
    def vectors(self) -> list[str]:
        """Names of the dense text vectors that the system reads."""
        return [name for name in self.manifest["text"] if name != "token"]

    def _text_vectors(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """The dense vectors of sentences that the system reads, by name."""
        return {name: self._text_model(name).encode(texts) for name in self.vectors}

    @functools.cache  # noqa: B019  (a bundle lives as long as its program)
    def _text_model(self, name: str) -> Any:
        if name not in self.manifest["text_models"]:
            raise UsageError(f'{self.path} has nothing that makes the vectors "{name}"; give embed_vectors the arrays.')
        from xmodal_jax.baselines.text_features import load_text_model

        return load_text_model(self.path / layout.text_model(name))

    def embed_vectors(self, vectors: Any) -> Embedding:
        """Embed captions of dense vectors, for a system that reads no tokens.

        Args:
            vectors: [C, F], or a dict of them by name.

        Raises:
            UsageError: shapes that the model does not take, or a system that reads tokens.
        """
        if "token" in self.manifest["text"]:
            raise UsageError(f"{self.system} reads tokens; give embed_texts sentences.")
        given = vectors if isinstance(vectors, Mapping) else {self.vectors[0]: vectors}
        given = {name: np.asarray(value, np.float32) for name, value in given.items()}
        want = {name: self.manifest["text"][name][0] for name in self.vectors}
        if {name: value.shape[1:] for name, value in given.items()} != {name: (size,) for name, size in want.items()}:
            shapes = ", ".join(f"{name} [captions, {size}]" for name, size in want.items())
            raise UsageError(f"This model reads the text vectors {shapes}.")
        if len({len(value) for value in given.values()}) > 1:
            raise UsageError("All text vectors need the same number of captions.")
        count = len(next(iter(given.values())))
        return self._embed(np.zeros((count, 1), np.int32), np.ones(count, np.int64), given)

    def tokens(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids [C, W] of sentences, 0 behind their ends, and their lengths [C]; long ones are cut, ``<end>`` kept.

        Raises:
            UsageError: the bundle has no vocabulary.
        """
        if self.vocabulary is None:
            raise UsageError(
                f"{self.path} has no vocabulary, so it takes token ids: embed_tokens(ids, lengths); convert the "
                "checkpoint again with --vocab to embed sentences."
            )
        most = max(self.lengths)
        rows = [self.vocabulary.encode(text) for text in texts]
        if not self._warned and any(len(row) > most for row in rows):
            self._warned = True
            warnings.warn(f"Sentences of more than {most} tokens are cut, their ends not read.", CutWarning, 3)
        rows = [row if len(row) <= most else [*row[: most - 1], row[-1]] for row in rows]
        lengths = np.array([len(row) for row in rows], np.int32)
        ids = np.zeros((len(rows), lengths.max(initial=1)), np.int32)
        for row, words in zip(ids, rows, strict=True):
            row[: len(words)] = words
        return ids, lengths

    def length(self, text: str) -> int:
        """How many tokens the system reads of a sentence; 1 where it reads a dense vector of it."""
        return min(len(self.vocabulary.encode(text)), max(self.lengths)) if self.vocabulary else 1

    def cut(self, text: str) -> int:
        """How many tokens at the end of a sentence are not read, because it has more than the system takes."""
        return max(len(self.vocabulary.encode(text)) - max(self.lengths), 0) if self.vocabulary else 0

    def split(self, text: str) -> list[str]:
        """The tokens that a sentence is cut into; none without a vocabulary."""
        return self.vocabulary.split(text) if self.vocabulary else []

    def unknown(self, text: str) -> list[str]:
        """The words of a sentence that the vocabulary does not have."""
        return self.vocabulary.unknown(text) if self.vocabulary else []

    def embed_tokens(self, ids: Any, lengths: Any = None) -> Embedding:
        """Embed captions of token ids [C, W], start and end tokens included.

        Args:
            lengths: [C] numbers of real tokens; without it those that are not 0 at the end count.

        Raises:
            UsageError: wrong shapes, an id that is not below the size of the vocabulary, or too many tokens.
        """
        ids = np.asarray(ids)
        if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
            raise UsageError(f"Token ids are integers [captions, words], not {ids.dtype} {list(ids.shape)}.")
        place = np.arange(1, ids.shape[1] + 1)
        lengths = np.max(place * (ids != 0), axis=1, initial=0) if lengths is None else np.asarray(lengths)
        if lengths.shape != ids.shape[:1] or (lengths < 0).any() or (lengths > ids.shape[1]).any():
            raise UsageError(f"lengths are {len(ids)} numbers from 0 to {ids.shape[1]}, one for each caption.")
        if ids.size and not 0 <= ids.min() <= ids.max() < self.manifest["tokens"]:
            raise UsageError(
                f"Token ids go from 0 to {self.manifest['tokens'] - 1}; these from {ids.min()} to {ids.max()}."
            )
        if lengths.max(initial=0) > max(self.lengths):
            raise UsageError(f"Captions have at most {max(self.lengths)} tokens here, one has {lengths.max()}.")
        if self.vectors:
            raise UsageError(f"{self.system} reads the text vectors {', '.join(self.vectors)} beside token ids.")
        return self._embed(ids, lengths, {})

    def embed_unknown(self, count: int, length: int) -> Embedding:
        """Embed captions of ``length`` unknown words, to compile what real ones of that size will run."""
        length = min(length, max(self.lengths))
        vectors = {name: np.zeros((count, self.manifest["text"][name][0]), np.float32) for name in self.vectors}
        return self._embed(np.full((count, length), UNKNOWN), np.full(count, length), vectors)

    def _embed(self, ids: np.ndarray, lengths: np.ndarray, vectors: Mapping[str, np.ndarray]) -> Embedding:
        """Embed captions, the longest first; ids count for nothing where the model reads no tokens."""
        order = np.argsort(-lengths, kind="stable")
        function = self.functions.call("encode_text")
        pieces = [function(*source) for _, source in self._text_batches(ids, lengths, vectors, order)]
        return self.functions.collect("encode_text", pieces, order)

    def _text_batches(
        self, ids: np.ndarray, lengths: np.ndarray, vectors: Mapping[str, np.ndarray], order: np.ndarray
    ) -> Iterator[tuple[np.ndarray, Any]]:
        """(captions, -1 for padding; what the exported functions take of them), a batch of ``order`` at a time."""
        for rows in batches(order):
            width = min(doubled(int(lengths[rows].max(initial=1))), max(self.lengths))
            real = (np.arange(width) < lengths[rows][:, None]) & (rows >= 0)[:, None]
            token = np.zeros((len(rows), width), np.int32)
            part = ids[rows, :width]
            token[:, : part.shape[1]] = part
            text = {name: value[rows] for name, value in vectors.items()}
            if "token" in self.manifest["text"]:
                text["token"] = np.where(real, token, 0)
            yield rows, (text, real)

    def embed_images(self, images: Any, mask: Any = None, *, names: Sequence[str] | None = None) -> Embedding:
        """Embed images.

        Args:
            images: features, an array [B, F] or [B, R, F] (of the model's one feature) or a dict of them by name; or,
                where the bundle has an extractor, a list of image files, `PIL` images or uint8 arrays [H, W, 3].
            mask: [B, R] bool, real regions; by default all but the rows of zeros behind an image's last other row, as
                importers take them.
            names: what to call each image in an error; its number by default.

        Raises:
            UsageError: shapes that the model does not take, or pictures where the bundle has no extractor.
            DataError: a picture that cannot be read, or a feature that is not finite.
        """
        if are_pictures(images) and len(images) > BATCH:  # their features need not fit in memory together
            parts = [self.embed_images(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
            return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        features, mask = self._images(images, mask, names)
        function = self.functions.call("encode_image")
        pieces = [function(*source) for _, source in self._image_batches(features, mask)]
        return self.functions.collect("encode_image", pieces, np.arange(len(mask)))

    def _images(self, images: Any, mask: Any, names: Sequence[str] | None) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Checked features by name and their mask, of what :meth:`embed_images` takes."""
        if isinstance(images, str | Path) or are_pictures(images):
            images, mask, _ = self.extract([images] if isinstance(images, str | Path) else images)
        given = images if isinstance(images, Mapping) else {next(iter(self.features)): images}
        features = check_features({name: np.asarray(value) for name, value in given.items()}, self.features, names)
        count = len(next(iter(features.values())))
        regions = max((value.shape[1] for value in features.values() if value.ndim == 3), default=1)
        mask = real_regions(features.values(), count, regions) if mask is None else np.asarray(mask, bool)
        if mask.shape != (count, regions):
            raise UsageError(f"The mask is [{count}, {regions}] here, not {list(mask.shape)}.")
        if self.most_regions is None:
            return features, mask
        used = int(np.max(np.arange(1, regions + 1) * mask, initial=1))  # padding is no region
        self.check_regions(used)
        return {name: value if value.ndim == 2 else value[:, :used] for name, value in features.items()}, mask[:, :used]

    @property
    def most_regions(self) -> int | None:
        """Regions of an image that the system has parameters for; None where it takes any number."""
        return self.manifest.get("most_regions")  # bundles from before it was noted do not have the key

    def check_regions(self, count: int) -> None:
        """Raise a UsageError where images of ``count`` regions are more than the system has parameters for."""
        most = self.most_regions
        if most is not None and count > most:
            raise UsageError(
                f"The system {self.system!r} takes at most {most} regions an image, not {count}; give the {most} "
                "best of each, or train it for more with --config.model.regions."
            )

    def _image_batches(self, features: Mapping[str, np.ndarray], mask: np.ndarray) -> Iterator[tuple[np.ndarray, Any]]:
        """(rows, -1 for padding; what the exported functions take of them), a batch at a time."""
        regional = any(len(shape) == 2 for shape in self.features.values())
        width = max(mask.shape[1], self.manifest["regions"]) if regional else 1
        deep = any(len(shape) == 3 for shape in self.features.values())  # a network of its own, which needs memory
        for rows in batches(np.arange(len(mask)), DEEP if deep else BATCH):
            batch = {
                name: value[rows] if value.dtype == np.uint8 else pad(value[rows].astype(np.float32), width)
                for name, value in features.items()
            }
            yield rows, (batch, pad(mask[rows] & (rows >= 0)[:, None], width))

    def extract(self, pictures: Sequence[Any]) -> Extracted:
        """What the model reads of pictures; boxes are those of the regions, in 0..1.

        Raises:
            UsageError: the bundle has no extractor.
            DataError: a picture that cannot be read.
        """
        if self._extractor is None:
            raise UsageError(
                f"{self.path} reads features ({', '.join(self.features)}) and brings nothing that makes them from "
                "pictures; give embed_images the arrays."
            )
        return extract(self._extractor, pictures, self.features, self.manifest["regions"])

    # Scoring

    def score(self, images: Embedding, texts: Embedding) -> np.ndarray:
        """Scores [B, C] float32 of embedded images and texts; higher is better. Sentences are embedded first."""
        if isinstance(texts, Sequence) and not isinstance(texts, np.ndarray):
            texts = self.embed_texts(texts)
        image, text = self.functions.leaves("image", images), self.functions.leaves("text", texts)
        out = np.zeros((len(image[0]), len(text[0])), np.float32)
        order = (
            np.argsort(-self.functions.words(text), kind="stable") if self.functions.cuts else np.arange(len(text[0]))
        )
        vectors = not self.functions.cuts and all(leaf.ndim == 2 for leaf in (image[0], *text))
        b = c = 1024 if vectors else int(PAIRS**0.5)
        for rows in batches(np.arange(len(image[0])), b):
            some = [leaf[rows] for leaf in image]
            for columns in batches(order, c):
                block = self.functions.call("score")(some, self.functions.cut(text, columns))
                real = np.ix_(rows >= 0, columns >= 0)
                out[np.ix_(rows[rows >= 0], columns[columns >= 0])] = np.asarray(block)[real]
        return out

    def attend(self, images: Embedding, texts: Embedding) -> np.ndarray:
        """How much each word looks at each region: weights [B, C, R, W], for a few pairs; ``<start>`` is column 0.

        Raises:
            UsageError: a system without attention.
        """
        texts = self.embed_texts(texts) if isinstance(texts, Sequence) else texts
        return looking.attend(self.functions, self.system, images, texts)

    def glimpses(self, images: Any, texts: Sequence[str], mask: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Where each of K steps looks in images and in sentences, for a few pairs: [B, C, K, R] and [B, C, K, W].

        Steps look at what the towers read, which no embedding keeps: ``images`` are those of :meth:`embed_images`.

        Raises:
            UsageError: a system without such steps, or what :meth:`embed_images` and :meth:`tokens` refuse.
        """
        looking.check(self.functions, self.system, "glimpses")
        tokens, vectors = self.tokens(texts), self._text_vectors(texts)
        return looking.glimpses(self.functions, self.manifest, *self._images(images, mask, None), *tokens, vectors)

    # Speaking

    def caption(self, images: Any, mask: Any = None, *, decoding: Decoding = GREEDY, seed: int = 0) -> list[str]:
        """A sentence for each image.

        Args:
            images, mask: as :meth:`embed_images` takes them.
            decoding: greedy by default; see :class:`xmodal_jax.text.generation.Decoding`.
            seed: of sampled sentences.

        Raises:
            UsageError: a system that does not speak of images, or images that :meth:`embed_images` refuses.
        """
        speaking.check(self.functions, self.system, "begin_image")
        sources = self._image_batches(*self._images(images, mask, None))
        return speaking.say(self.functions, self.vocabulary, "begin_image", sources, decoding, seed)

    def paraphrase(self, texts: Sequence[str], *, decoding: Decoding = GREEDY, seed: int = 0) -> list[str]:
        """Each sentence in other words; arguments as in :meth:`caption`.

        Raises:
            UsageError: a system that does not speak of sentences, or ``texts`` is one string.
        """
        speaking.check(self.functions, self.system, "begin_text")
        if isinstance(texts, str):
            raise UsageError('paraphrase takes a list of sentences: paraphrase(["two dogs"]).')
        ids, lengths = self.tokens(texts)
        order = np.argsort(-lengths, kind="stable")
        sources = self._text_batches(ids, lengths, self._text_vectors(texts), order)
        said = speaking.say(self.functions, self.vocabulary, "begin_text", sources, decoding, seed)
        return [said[place] for place in np.argsort(order)]
