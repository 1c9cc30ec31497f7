"""tf.data: from the order of an epoch to padded batches, read ahead in the background.

NumPy decides what a batch holds (:mod:`xmodal_jax.data.order`), array_record fetches the records, TensorFlow parses
them and prefetches. TensorFlow is imported when a pipeline starts, never with this module.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from xmodal_jax.data import pixels
from xmodal_jax.data.order import Epoch, Sampler
from xmodal_jax.data.pixels import PictureReader, Reading
from xmodal_jax.data.records import Split
from xmodal_jax.errors import DataError, UsageError, require
from xmodal_jax.text.same import numbered, plain
from xmodal_jax.text.vocabulary import Coverage, Vocabulary
from xmodal_jax.types import Batch, Images, Texts


def text_ids(split: Split) -> np.ndarray:
    """[C] for the captions of a split: equal where they are the same to a reader, as ``Captions.text_id``."""
    return numbered(plain(text) for texts in split.captions for text in texts)


class Captions:
    """The captions of a split as a model reads them: tokens in one flat array, dense vectors row by row.

    Captions of more than ``max(lengths)`` tokens are cut, ``<end>`` kept; ``cut`` counts them. ``coverage`` tells how
    much of them the vocabulary knows.

    Args:
        captions: of each image.
        vocabulary: None where the model reads no tokens.
        lengths: the static W that a batch may have.
        features: dense text vectors by name, [captions, F] each.
    """

    def __init__(
        self,
        captions: Sequence[Sequence[str]],
        vocabulary: Vocabulary | None,
        lengths: Sequence[int],
        features: Mapping[str, np.ndarray] | None = None,
    ):
        self.static = np.sort(np.asarray(lengths if vocabulary else [1], np.int64))
        self.features = dict(features or {})
        self.counts = np.array([len(texts) for texts in captions], np.int64)
        self.image = np.repeat(np.arange(len(captions)), self.counts)
        self.sentences = [text for texts in captions for text in texts]
        self.mark = False  # whether batches tell which of their captions are equal
        self.cut = 0
        self.flat: np.ndarray | None = None
        self.coverage: Coverage | None = None
        self.lengths = np.ones(len(self.image), np.int64)
        if vocabulary:
            whole = [vocabulary.encode(text) for text in self.sentences]
            self.coverage = vocabulary.coverage(self.sentences, whole)
            tokens = [self._fit(row) for row in whole]
            self.lengths = np.array([len(caption) for caption in tokens], np.int64)
            self.first = np.concatenate([[0], np.cumsum(self.lengths)])
            self.flat = np.fromiter((t for caption in tokens for t in caption), np.int32, self.first[-1])

    def _fit(self, tokens: list[int]) -> list[int]:
        longest = int(self.static[-1])
        if len(tokens) <= longest:
            return tokens
        self.cut += 1
        return tokens[: longest - 1] + tokens[-1:]

    def __len__(self) -> int:
        return len(self.lengths)

    @functools.cached_property
    def text_id(self) -> np.ndarray:
        """[C]: equal where captions are the same to a reader, see :func:`xmodal_jax.text.same.plain`."""
        return numbered(map(plain, self.sentences))

    @functools.cached_property
    def read_id(self) -> np.ndarray:
        """[C]: equal where the model reads the same."""
        if self.flat is None:
            return numbered(self.sentences)  # equal texts have equal vectors
        tokens = [
            self.flat[start : start + size].tobytes() for start, size in zip(self.first, self.lengths, strict=False)
        ]
        return numbered(zip(tokens, self.sentences, strict=True) if self.features else tokens)

    def texts(self, caption: np.ndarray, row: np.ndarray, width: int | None = None) -> Texts:
        """Captions [C] (-1 is padding), padded to the smallest static length that holds them all."""
        real = caption >= 0
        length = np.where(real, self.lengths[caption], 0)
        width = width or int(self.static[np.searchsorted(self.static, max(int(length.max()), 1))])
        place = np.arange(width)
        mask = place < length[:, None]
        token = None
        if self.flat is not None:
            start = self.first[caption][:, None] + place
            token = np.where(mask, self.flat[np.minimum(start, len(self.flat) - 1)], 0).astype(np.int32)
        image = np.where(real, self.image[caption], -1)
        row, image, number = (x.astype(np.int32) for x in (row, image, np.where(real, caption, -1)))
        rows = np.maximum(caption, 0)
        feature = {name: np.asarray(array[rows], np.float32) for name, array in self.features.items()}
        same = np.where(real, self.text_id[caption], -1).astype(np.int32) if self.mark else None
        return Texts(token, mask, row, image, number, feature or None, same)


class FeatureReader:
    """Reads rows of a split as dense arrays: features in their own dtype, region masks, boxes; pixels of pictures.

    Args:
        names: the features a model asks for.
        boxes: also deliver the boxes.
        limit: only the first so many images, 0 = all; ``count`` says how many those are.
        reading: how pictures are read, where ``names`` has "pixels" and the data set no feature of that name.

    Raises:
        UsageError: a feature that the data set does not have.
        DataError: pictures that are missing, as :class:`xmodal_jax.data.pixels.PictureReader` says.
    """

    def __init__(
        self,
        split: Split,
        names: Sequence[str],
        *,
        boxes: bool = False,
        limit: int = 0,
        reading: Reading | None = None,
    ):
        stored = [name for name in names if name in split.feature_names]
        pictured = reading is not None and pixels.NAME in names and pixels.NAME not in stored
        missing = [name for name in names if name not in stored and not (pictured and name == pixels.NAME)]
        if missing:
            raise UsageError(
                f'{split.dataset.directory} has no feature "{missing[0]}", only '
                f"{', '.join(split.feature_names) or 'none'}; choose --config.model.feature, import it, or add it with "
                "`xmodal data attach` or `xmodal data concepts`."
            )
        require("tensorflow", "train")
        self.split, self.names, self.boxes = split, list(names), boxes
        self.count = min(limit or len(split), len(split))
        records = split.dataset.manifest["features"]
        self.spec: dict[str, Mapping[str, Any]] = {name: records[name] for name in names if name in records}
        self.added = {name: split.image_features[name] for name in stored if name not in records}
        self.pictures = PictureReader(split, reading, self.count) if pictured and reading is not None else None
        self._readers: list[Any] | None = None

    @property
    def skipped(self) -> Mapping[int, str]:
        """Why pictures were left out, by row."""
        return self.pictures.skipped if self.pictures else {}

    def _open(self) -> None:
        from array_record.python.array_record_module import ArrayRecordReader

        self.split.check_files()
        # Rows are wanted at random: reading ahead would fetch neighbours that nobody asked for.
        options = "readahead_buffer_size:0"
        readers = [ArrayRecordReader(str(path), options) for path in self.split.paths]
        counts = [reader.num_records() for reader in readers]
        if sum(counts) != len(self.split):
            raise DataError(
                f'{self.split.dataset.directory}: split "{self.split.name}" holds {sum(counts):,} records, the '
                f"manifest says {len(self.split):,}; run: xmodal data check {self.split.dataset.directory}"
            )
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self._readers = readers  # last: two threads may be here at once

    def raw(self, rows: np.ndarray) -> np.ndarray:
        """Serialised records of ``rows`` [n]; any order, repeats allowed."""
        if self._readers is None:
            self._open()
        assert self._readers is not None
        shard = np.searchsorted(self._starts, rows, side="right") - 1
        records = np.empty(len(rows), object)
        for index in np.unique(shard):
            places = np.flatnonzero(shard == index)
            records[places] = self._readers[index].read([int(r) for r in rows[places] - self._starts[index]])
        return records

    def parse(self, records: Any) -> dict[str, Any]:
        """A string tensor [B] to arrays: each feature [B, F] or [B, R, F], ``mask`` [B, R], ``boxes`` [B, R, 4]."""
        import tensorflow as tf

        keys = {f"features/{name}": tf.io.FixedLenFeature([], tf.string) for name in self.spec}
        if self.boxes:
            keys["boxes"] = tf.io.FixedLenFeature([], tf.string)
        parsed = tf.io.parse_example(records, keys) if keys else {}
        out: dict[str, Any] = {"mask": tf.ones([tf.shape(records)[0], 1], tf.bool)}
        for name, spec in self.spec.items():
            size = {"float16": 2, "bfloat16": 2, "float32": 4}[spec["dtype"]]
            (fewest, regions), width = spec.get("regions", [1, 1]), spec["shape"][-1]
            bytes_ = parsed[f"features/{name}"]
            # Only ragged regions are padded: a fixed length clears every batch before it is written.
            length = None if fewest == regions else regions * width * size
            flat = tf.io.decode_raw(bytes_, tf.uint16 if size == 2 else tf.float32, fixed_length=length)
            if size == 2:
                flat = tf.bitcast(flat, tf.dtypes.as_dtype(spec["dtype"]))
            if "regions" in spec:
                out[name] = tf.reshape(flat, [-1, regions, width])
                out["mask"] = tf.sequence_mask(tf.strings.length(bytes_) // (width * size), regions)
            else:
                out[name] = tf.reshape(flat, [-1, width])
        if self.boxes:
            regions = max(spec.get("regions", [1, 1])[1] for spec in self.spec.values())
            out["boxes"] = tf.reshape(
                tf.io.decode_raw(parsed["boxes"], tf.float32, fixed_length=regions * 16), [-1, regions, 4]
            )
        return out

    def stream(self, start: int, stop: int, rows: Callable[[int], np.ndarray]) -> Iterator[dict[str, Any]]:
        """Arrays of ``rows(step)`` [B] (-1 reads row 0) for each step, those of :meth:`parse` and added features.

        Records are read ahead in the background; features that were added to the set lie in arrays of their own.

        Where pictures are read, ``pixels`` is [B, S, S, 3] and ``read`` [B] tells which rows have any.

        Raises:
            DataError: records or pictures that are missing or damaged.
        """
        if not self.spec and not self.boxes and not self.pictures:
            records = ({"mask": np.ones((len(rows(step)), 1), bool)} for step in range(start, stop))
        else:
            records = self._records(start, stop, rows)
        if not self.added:
            return records
        return (
            arrays | {name: np.asarray(array[np.maximum(rows(step), 0)]) for name, array in self.added.items()}
            for step, arrays in zip(range(start, stop), records, strict=True)
        )

    def _records(self, start: int, stop: int, rows: Callable[[int], np.ndarray]) -> Iterator[dict[str, Any]]:
        import tensorflow as tf

        failed: list[Exception] = []  # what ended reading; TensorFlow would hide it in an error of its own

        def told(work):
            def run(step):
                try:
                    return work(int(step))
                except Exception as error:  # array_record raises what it likes on damaged bytes
                    failed.append(error)
                    raise

            return run

        pictures = self.pictures
        pool = pixels.open_pool() if pictures else None
        records_of = told(lambda step: self.raw(np.maximum(rows(step), 0)))
        pixels_of = told(lambda step: pictures.batch(pool, step, rows(step)) if pictures and pool else None)

        def fetch(step):
            arrays: dict[str, Any] = {}
            if pictures:
                square, real = tf.numpy_function(pixels_of, [step], [tf.uint8, tf.bool], stateful=False)
                arrays = {pixels.NAME: square, "read": real, "mask": tf.ones([tf.shape(real)[0], 1], tf.bool)}
            if self.spec or self.boxes:
                records = tf.numpy_function(records_of, [step], tf.string, stateful=False)
                arrays |= self.parse(tf.ensure_shape(records, [None]))
            return arrays

        options = tf.data.Options()
        options.deterministic = True
        options.autotune.enabled = (
            False  # nothing is left to it, and its thread delays the iterator's end for up to 60 s
        )
        # Not from_generator: its first use makes TensorFlow give every freed buffer back to the system, which then
        # clears it page by page (three times slower). More than two batches ahead fall out of the cache.
        steps = tf.data.Dataset.range(start, stop).map(fetch, num_parallel_calls=2).prefetch(2)
        return self._sound(steps.with_options(options).as_numpy_iterator(), failed, pool)

    def _sound(self, batches: Any, failed: list[Exception], pool: Any) -> Iterator[dict[str, Any]]:
        """``batches``, whose threads end with this iterator, with errors in our words."""
        try:
            yield from batches
        except Exception as error:  # TensorFlow's, about records or what they hold
            if failed and isinstance(failed[0], DataError):
                raise failed[0] from None
            reason = str(failed[0] if failed else error).strip().splitlines()[0]
            directory, name = self.split.dataset.directory, self.split.name
            raise DataError(
                f'{directory}: records of split "{name}" cannot be read ({reason}); run: xmodal data check {directory}'
            ) from error
        finally:
            del batches
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)

    def images(self, arrays: Mapping[str, Any], rows: np.ndarray) -> Images:
        features = {name: arrays[name] for name in self.names}
        return Images(features, arrays["mask"], rows.astype(np.int32), arrays.get("boxes"))


class TrainPipeline:
    """Batches of a training split by step; each host reads its own rows of the global batch.

    Step ``first_step`` begins epoch ``first_epoch`` of the sampler. ``waited`` is the time in seconds the consumer
    spent waiting for input.
    """

    def __init__(
        self,
        reader: FeatureReader,
        captions: Captions,
        sampler: Sampler,
        *,
        first_step: int = 0,
        first_epoch: int = 0,
        process_index: int = 0,
        process_count: int = 1,
    ):
        for name, size in (("data.batch_size", sampler.batch_size), ("candidates", sampler.roles.get("candidate", 0))):
            if size % process_count:
                raise UsageError(
                    f"{name} {size} does not divide over {process_count} hosts; use a multiple of {process_count}."
                )
        self.reader, self.captions, self.sampler = reader, captions, sampler
        self.first_step, self.first_epoch = first_step, first_epoch
        self.process_index, self.process_count = process_index, process_count
        self.waited = 0.0

    @property
    def steps_per_epoch(self) -> int:
        return self.sampler.steps_per_epoch

    def plan(self, step: int) -> Epoch:
        """What a step holds: global image rows [B], captions [C], their images' rows [C], and further captions."""
        epoch, index = divmod(step - self.first_step, self.steps_per_epoch)
        order = self.sampler.epoch(self.first_epoch + epoch)
        rows = [None if items is None else items[index] for items in (order.target, order.candidate)]
        return Epoch(order.image[index], order.caption[index], order.row, *rows)

    def host_rows(self, items: np.ndarray) -> np.ndarray:
        share = len(items) // self.process_count
        return items[self.process_index * share : (self.process_index + 1) * share]

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The host's part of each global batch; caption rows stay global, so do the static lengths."""
        stream = self.reader.stream(start, stop, lambda step: self.host_rows(self.plan(step).image))
        for step in range(start, stop):
            plan = self.plan(step)
            texts = self.texts(plan.caption, plan.row)
            target = candidate = None
            if plan.target is not None:
                target = self.texts(plan.target, np.repeat(plan.row, len(plan.target) // len(plan.row)))
            if plan.candidate is not None:
                candidate = self.texts(plan.candidate, np.zeros(len(plan.candidate), np.int64))
            began = time.perf_counter()
            arrays = next(stream)
            self.waited += time.perf_counter() - began
            rows = self.host_rows(plan.image)
            gone = (rows >= 0) & ~arrays.get("read", rows >= 0)  # pictures that are skipped, and so their captions
            if gone.any():
                rows = np.where(gone, -1, rows)
                first = self.process_index * len(rows)
                texts = without(texts, gone[texts.row - first])
                target = target and without(target, gone[target.row - first])
            yield Batch(self.reader.images(arrays, rows), texts, target, candidate)

    def texts(self, caption: np.ndarray, row: np.ndarray) -> Texts:
        """The host's rows of the captions of a global batch."""
        return jax.tree.map(self.host_rows, self.captions.texts(caption, row))


def without(texts: Texts, gone: np.ndarray) -> Texts:
    """Captions of which those that are ``gone`` [C] are padding."""
    token = None if texts.token is None else np.where(gone[:, None], 0, texts.token)
    image, number = (np.where(gone, np.int32(-1), ids) for ids in (texts.image_id, texts.id))
    same = None if texts.same is None else np.where(gone, np.int32(-1), texts.same)
    mask = texts.mask & ~gone[:, None]
    return texts._replace(token=token, mask=mask, image_id=image, id=number, same=same)


def image_batches(reader: FeatureReader, size: int) -> Iterator[Images]:
    """All images of a split in order, ``size`` at a time; the last batch is padded (id -1)."""
    rows = np.full(-(-reader.count // size) * size, -1, np.int64)
    rows[: reader.count] = np.arange(reader.count)
    batches = rows.reshape(-1, size)
    for block, arrays in zip(batches, reader.stream(0, len(batches), batches.__getitem__), strict=True):
        yield reader.images(arrays, block)


def text_batches(captions: Captions, size: int) -> Iterator[Texts]:
    """All captions of a split, longest first so that little padding is computed; the last batch is padded (id -1)."""
    order = np.argsort(-captions.lengths, kind="stable")
    rows = np.full(-(-len(order) // size) * size, -1, np.int64)
    rows[: len(order)] = order
    for block in rows.reshape(-1, size):
        yield captions.texts(block, np.maximum(captions.image[block], 0))
