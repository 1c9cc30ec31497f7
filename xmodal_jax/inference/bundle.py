"""A bundle in memory: sentences, features and pictures to embeddings, embeddings to scores."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from xmodal_jax.errors import CheckpointError, DataError, UsageError
from xmodal_jax.inference import layout
from xmodal_jax.inference.pixels import EXTRACTORS, read_picture
from xmodal_jax.text.tokens import tokenize
from xmodal_jax.text.vocabulary import Vocabulary

Embedding = Any  # an array [N, D], or {name: array [N, ...]} where an item has several parts
AGAIN = "export it again with `xmodal export`, or fetch it again"
SIZES = (1, 4, 16, 32, 64, 128, 256)  # numbers of items that are encoded: few shapes, each is a compilation
BATCH = SIZES[-1]
PAIRS = 1 << 14  # scored at a time where items have parts
WORDS = 8  # captions are scored at widths that are multiples of it, and encoded at it times 1, 2, 4 ...: few shapes


class Extracted(NamedTuple):
    """Features of B pictures by name, which of R regions are real [B, R], and their boxes [B, R, 4]."""

    features: dict[str, np.ndarray]
    mask: np.ndarray
    boxes: np.ndarray


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
    whose first axis is the item. Take some items of it with :func:`take`.
    """

    def __init__(self, path: Path, *, verify: bool = True):
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        self.path = path
        self.manifest = layout.read_manifest(path, layout.FORMAT, layout.VERSION, AGAIN)
        if verify:
            layout.check_files(path, self.manifest, AGAIN)
        self.config: dict[str, Any] = json.loads((path / layout.CONFIG).read_text(encoding="utf-8"))
        known = self.manifest["vocabulary"] is not None
        self.vocabulary = Vocabulary.load(path / layout.VOCABULARY) if known else None
        try:
            self._parameters = jax.device_put(load_file(path / layout.PARAMETERS))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path / layout.PARAMETERS} cannot be read ({error}); {AGAIN}.") from None
        self.features: dict[str, list[Any]] = self.manifest["features"]
        self.lengths: list[int] = self.manifest["lengths"]

    def __repr__(self) -> str:
        reads = ", ".join(f"{name} {shape}" for name, shape in self.features.items())
        return f"<xmodal_jax bundle {self.path}: {self.system}, reads {reads}>"

    @property
    def system(self) -> str:
        """Name of the model."""
        return self.manifest["system"]

    @property
    def fingerprint(self) -> str:
        """What tells bundles apart: SHA-256 of the manifest, and so of everything in it."""
        return self.manifest["sha256"]

    # Encoding

    def embed_texts(self, texts: Sequence[str]) -> Embedding:
        """Embed sentences.

        Raises:
            UsageError: the bundle has no vocabulary, or ``texts`` is one string.
        """
        if isinstance(texts, str):
            raise UsageError('embed_texts takes a list of sentences: embed_texts(["two dogs"]).')
        return self.embed_tokens(*self.tokens(texts))

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
        rows = [row if len(row) <= most else [*row[: most - 1], row[-1]] for row in rows]
        lengths = np.array([len(row) for row in rows], np.int32)
        ids = np.zeros((len(rows), lengths.max(initial=1)), np.int32)
        for row, own in zip(ids, rows, strict=True):
            row[: len(own)] = own
        return ids, lengths

    def unknown(self, text: str) -> list[str]:
        """The words of a sentence that the vocabulary does not have."""
        words = self.vocabulary.encode(text)[1:-1] if self.vocabulary else []
        return [word for word, token in zip(tokenize(text), words, strict=False) if token == 3]

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
        order = np.argsort(-lengths, kind="stable")
        function = self.function("encode_text")
        pieces = []
        for own in _batches(order):
            width = min(_doubled(int(lengths[own].max(initial=1))), max(self.lengths))
            real = (np.arange(width) < lengths[own][:, None]) & (own >= 0)[:, None]
            token = np.zeros((len(own), width), np.int32)
            part = ids[own, :width]
            token[:, : part.shape[1]] = part
            pieces.append(function(np.where(real, token, 0), real))
        return self._collect("encode_text", pieces, order)

    def embed_images(self, images: Any, mask: Any = None, *, names: Sequence[str] | None = None) -> Embedding:
        """Embed images.

        Args:
            images: features, an array [B, F] or [B, R, F] (of the model's one feature) or a dict of them by name; or,
                where the bundle has an extractor, a list of image files, `PIL` images or uint8 arrays [H, W, 3].
            mask: [B, R] bool, real regions; all by default.
            names: what to call each image in an error; its number by default.

        Raises:
            UsageError: shapes that the model does not take, or pictures where the bundle has no extractor.
            DataError: a picture that cannot be read, or a feature that is not finite.
        """
        if isinstance(images, str | Path) or (isinstance(images, Sequence) and not _numeric(images)):
            images, mask, _ = self.extract([images] if isinstance(images, str | Path) else images)
        given = images if isinstance(images, Mapping) else {next(iter(self.features)): images}
        features = self._check({name: np.asarray(value) for name, value in given.items()}, names)
        count = len(next(iter(features.values())))
        regions = max((value.shape[1] for value in features.values() if value.ndim == 3), default=1)
        mask = np.ones((count, regions), bool) if mask is None else np.asarray(mask, bool)
        if mask.shape != (count, regions):
            raise UsageError(f"The mask is [{count}, {regions}] here, not {list(mask.shape)}.")
        regional = any(len(shape) == 2 for shape in self.features.values())
        width = max(regions, self.manifest["regions"]) if regional else 1
        function = self.function("encode_image")
        pieces = []
        for own in _batches(np.arange(count)):
            batch = {name: _pad(value[own].astype(np.float32), width) for name, value in features.items()}
            pieces.append(function(batch, _pad(mask[own] & (own >= 0)[:, None], width)))
        return self._collect("encode_image", pieces, np.arange(count))

    def extract(self, pictures: Sequence[Any]) -> Extracted:
        """What the model reads of pictures; boxes are those of the regions, in 0..1.

        Raises:
            UsageError: the bundle has no extractor.
            DataError: a picture that cannot be read.
        """
        name = self.manifest["extractor"]
        if name not in EXTRACTORS:
            raise UsageError(
                f"{self.path} reads features ({', '.join(self.features)}) and brings nothing that makes them from "
                "pixels; give embed_images the arrays."
            )
        most = self.manifest["regions"]
        made = [EXTRACTORS[name](read_picture(picture)) for picture in pictures]
        regional = {feature for feature, shape in self.features.items() if len(shape) == 2}
        mask = np.zeros((len(made), most if regional else 1), bool)
        boxes = np.zeros((len(made), mask.shape[1], 4), np.float32)
        for row, own in enumerate(made):
            mask[row, : len(own["boxes"]) if regional else 1] = True
            boxes[row, : len(own["boxes"])] = own["boxes"][: mask.shape[1]]
        features = {
            feature: np.stack([_fill(own[feature], most) if feature in regional else own[feature] for own in made])
            for feature in self.features
        }
        return Extracted(features, mask, boxes)

    def _check(self, features: dict[str, np.ndarray], names: Sequence[str] | None) -> dict[str, np.ndarray]:
        if set(features) != set(self.features):
            raise UsageError(f"This model reads {', '.join(self.features)}, not {', '.join(features)}.")
        for name, value in features.items():
            shape = self.features[name]
            if value.ndim != len(shape) + 1 or value.shape[-1] != shape[-1] or 0 in value.shape[1:]:
                want = ", ".join(map(str, ("images", *shape)))
                raise UsageError(f'The feature "{name}" is [{want}], not {list(value.shape)}.')
            bad = ~np.isfinite(value.astype(np.float32)).all(axis=tuple(range(1, value.ndim)))
            if bad.any():
                first = int(np.argmax(bad))
                which = f'"{names[first]}"' if names else str(first)
                raise DataError(f'Feature "{name}" of image {which} is not finite ({bad.sum()} such images).')
        if len({len(value) for value in features.values()}) > 1:
            raise UsageError("All features need the same number of images.")
        return {name: features[name] for name in self.features}

    # Scoring

    def score(self, images: Embedding, texts: Embedding) -> np.ndarray:
        """Scores [B, C] float32 of embedded images and texts; higher is better. Sentences are embedded first."""
        if isinstance(texts, Sequence) and not isinstance(texts, np.ndarray):
            texts = self.embed_texts(texts)
        image, text = self.leaves("image", images), self.leaves("text", texts)
        out = np.zeros((len(image[0]), len(text[0])), np.float32)
        order = np.argsort(-self.words(text), kind="stable") if self._cuts else np.arange(len(text[0]))
        b = c = 1024 if not self._cuts and image[0].ndim == 2 else int(PAIRS**0.5)
        for rows in _batches(np.arange(len(image[0])), b):
            some = [leaf[rows] for leaf in image]
            for columns in _batches(order, c):
                block = self.function("score")(some, self.cut(text, columns))
                real = np.ix_(rows >= 0, columns >= 0)
                out[np.ix_(rows[rows >= 0], columns[columns >= 0])] = np.asarray(block)[real]
        return out

    def attend(self, images: Embedding, texts: Embedding) -> np.ndarray:
        """How much each word looks at each region: weights [B, C, R, W], for a few pairs; ``<start>`` is column 0.

        Raises:
            UsageError: a system without attention.
        """
        if "attention" not in self.manifest["functions"]:
            raise UsageError(f'The system "{self.system}" has no attention between words and regions.')
        if isinstance(texts, Sequence):
            texts = self.embed_texts(texts)
        return np.asarray(self.function("attention")(self.leaves("image", images), self.leaves("text", texts)))

    def caption(self, images: Any) -> list[str]:
        """A sentence for each image.

        Raises:
            UsageError: a system without a caption decoder; none of this version has one.
        """
        raise UsageError(f'The system "{self.system}" has no caption decoder; it ranks captions that exist.')

    # Parts

    def leaves(self, side: str, embedding: Embedding) -> list[np.ndarray]:
        """The arrays of an embedding in the order of the exported functions; ``side`` is "image" or "text".

        Raises:
            UsageError: it is not an embedding of this side.
        """
        gives = self.manifest["functions"][f"encode_{side}"]["gives"]
        parts = embedding if isinstance(embedding, Mapping) else {"embedding": embedding}
        if set(parts) != {own["name"] for own in gives}:
            raise UsageError(f"This is no {side} embedding of {self.path}; make it with embed_{side}s.")
        leaves = [np.asarray(parts[own["name"]]) for own in gives]
        if len({len(leaf) for leaf in leaves}) > 1 or any(
            leaf.ndim != len(own["shape"]) for leaf, own in zip(leaves, gives, strict=True)
        ):
            raise UsageError(f"This is no {side} embedding of {self.path}; make it with embed_{side}s.")
        return [leaf.astype(own["dtype"], copy=False) for leaf, own in zip(leaves, gives, strict=True)]

    @functools.cached_property
    def _cuts(self) -> list[int]:
        """Which arrays of a text have a word axis (always their second)."""
        gives = self.manifest["functions"]["encode_text"]["gives"]
        return [i for i, own in enumerate(gives) if len(own["shape"]) > 1 and own["shape"][1] == "w"]

    def words(self, text: list[np.ndarray]) -> np.ndarray:
        """[C] number of tokens of each caption, from the masks among its arrays; 1 without."""
        masks = [text[i] for i in self._cuts if text[i].dtype == bool]
        if not masks:
            return np.full(len(text[0]), max((text[i].shape[1] for i in self._cuts), default=1))
        return np.max(np.arange(1, masks[0].shape[1] + 1) * masks[0], axis=1)

    def cut(self, text: list[np.ndarray], rows: np.ndarray) -> list[np.ndarray]:
        """The captions ``rows`` (-1 repeats some caption), cut to their longest."""
        own = [leaf[rows] for leaf in text]
        if not self._cuts:
            return own
        most = own[self._cuts[0]].shape[1]
        width = _round(int(self.words(own).max(initial=1)), max(most, 1))
        return [leaf[:, :width] if i in self._cuts else leaf for i, leaf in enumerate(own)]

    @functools.cache  # noqa: B019  (a bundle lives as long as its program)
    def function(self, name: str) -> Callable[..., Any]:
        """An exported function with its parameters in place, compiled once for each shape."""
        about = self.manifest["functions"][name]
        path = self.path / layout.file_of(name)
        try:
            exported = jax.export.deserialize(bytearray(path.read_bytes()))
        except Exception as error:  # whatever the deserialiser says, the user can do one thing
            raise CheckpointError(
                f"{path} cannot be read by JAX {jax.__version__} ({str(error).splitlines()[0]}); it was made with "
                f"{self.manifest['made_with']['jax']}: export the run again."
            ) from None
        parameters = [self._parameters[own] for own in about["parameters"]]
        call = jax.jit(exported.call)
        return functools.partial(call, parameters)

    def _collect(self, name: str, pieces: list[Any], order: np.ndarray) -> Embedding:
        """One embedding of batches that hold the items ``order``, its parts padded to the widest."""
        gives = self.manifest["functions"][name]["gives"]
        leaves = []
        for index, own in enumerate(gives):
            parts = [np.asarray(piece[index]) for piece in pieces]
            widest = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
            if not parts:
                widest = [int(size) if size.isdigit() else 1 for size in own["shape"][1:]]
            whole = np.zeros((len(order), *widest), own["dtype"])
            done = 0
            for part in parts:
                rows = order[done : done + len(part)]
                whole[(rows, *(slice(size) for size in part.shape[1:]))] = part[: len(rows)]
                done += len(rows)
            leaves.append(whole)
        named = {own["name"]: leaf for own, leaf in zip(gives, leaves, strict=True)}
        return named["embedding"] if list(named) == ["embedding"] else named


def take(embedding: Embedding, rows: Any) -> Embedding:
    """The items ``rows`` of an embedding."""
    if isinstance(embedding, Mapping):
        return {name: leaf[rows] for name, leaf in embedding.items()}
    return embedding[rows]


def _numeric(value: Any) -> bool:
    """Whether a list holds numbers rather than pictures."""
    while isinstance(value, Sequence) and not isinstance(value, str | bytes) and len(value):
        value = value[0]
    return isinstance(value, int | float)


def _round(size: int, most: int) -> int:
    return max(min(-(-size // WORDS) * WORDS, most), 1)


def _doubled(least: int) -> int:
    """The first of 8, 16, 32 ... that is not below ``least``."""
    return WORDS << max(-(-least // WORDS) - 1, 0).bit_length()


def _batches(order: np.ndarray, size: int = BATCH) -> Iterator[np.ndarray]:
    """Parts of ``order``, padded with -1 to ``size``, or to one of :data:`SIZES` where one part is enough."""
    size = min(size, next((own for own in SIZES if len(order) <= own), size))
    for start in range(0, len(order), size):
        own = order[start : start + size]
        yield np.concatenate([own, np.full(size - len(own), -1, own.dtype)])


def _fill(rows: np.ndarray, count: int) -> np.ndarray:
    """The first ``count`` rows, zeros where there are fewer."""
    out = np.zeros((count, *rows.shape[1:]), rows.dtype)
    out[: len(rows)] = rows[:count]
    return out


def _pad(array: np.ndarray, width: int) -> np.ndarray:
    """The second axis of region features and masks padded with zeros."""
    if array.ndim == 2 and array.dtype != bool:
        return array
    out = np.zeros((len(array), width, *array.shape[2:]), array.dtype)
    out[:, : array.shape[1]] = array
    return out
