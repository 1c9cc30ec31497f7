"""Raw pixels: from the pictures of a split to uint8 [B, S, S, 3], for training and for everything after it.

One decoder, :mod:`xmodal_jax.data.pictures`, and one resampling, Pillow's bilinear with antialiasing, for all: a
bundle sees what evaluation saw. What a training crop looks like depends on (seed, step, row) alone, so that a resumed
run, and a run on more hosts, reads the same bytes. Nothing here imports TensorFlow.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8

from xmodal_jax.data import pictures
from xmodal_jax.data.order import generator
from xmodal_jax.data.records import Dataset, Split
from xmodal_jax.errors import DataError, UsageError, require
from xmodal_jax.types import Config, Feature

NAME = "pixels"  # of the image feature
TRAIN, EVAL = ("random", "centre", "squash"), ("centre", "squash")
POLICIES = ("refuse", "skip")
CROP = 3  # what random numbers are drawn for, beside the roles of xmodal_jax.data.order
TRIES = 10  # of a random crop, before the middle of the picture is taken
NAMED = 5  # skipped pictures that are printed
LONGEST = 16  # times its short side: of a longer picture only the middle is made larger, which would fill all memory
MOST = 2048  # pixels of a side
MARGIN = 2  # a JPEG is made smaller while it is decoded only where so much more than is wanted is left

Box = tuple[int, int, int, int]  # left, upper, right, lower


class Transform(NamedTuple):
    """How a picture becomes a square of pixels.

    ``centre``: the short side to ``resize``, then the middle. ``squash``: the whole picture, its aspect lost.
    ``random``: a part of the picture of a share ``area`` of it and of an ``aspect`` (width by height), both drawn,
    squashed to the square (Szegedy et al. 2015, section 6; torchvision's RandomResizedCrop). ``flip``: mirrored or not
    by a coin. Only ``random`` and ``flip`` need random numbers.
    """

    kind: str
    side: int
    resize: int
    area: tuple[float, ...] = (0.08, 1.0)
    aspect: tuple[float, ...] = (3 / 4, 4 / 3)
    flip: bool = False

    def manifest(self) -> dict[str, Any]:
        """What a bundle keeps of it."""
        return {"kind": self.kind, "side": self.side, "resize": self.resize}


class Reading(NamedTuple):
    """How the pictures of a split are read; ``seed`` and ``policy`` as in the config."""

    transform: Transform
    seed: int = 0
    policy: str = "refuse"


def transform_of(config: Config, *, train: bool = False) -> Transform:
    """The transform of ``config.data.pixels``. Raises UsageError where the middle would be larger than the picture."""
    pixels = config.data.get("pixels")
    if pixels is None:
        raise UsageError("The config has no data.pixels, which a system that reads pixels needs.")
    side, resize = int(pixels.side), int(pixels.resize)
    if resize < side:
        raise UsageError(
            f"config.data.pixels.resize {resize} is below side {side}; it is the short side before the crop."
        )
    if train:
        return Transform(pixels.train, side, resize, tuple(pixels.area), tuple(pixels.aspect), bool(pixels.flip))
    return Transform(pixels.eval, side, resize)


def transform_in(manifest: Mapping[str, Any]) -> Transform:
    """The transform that the manifest of a bundle tells. Raises ValueError, KeyError or TypeError where it is none."""
    known = manifest[NAME]
    transform = Transform(str(known["kind"]), int(known["side"]), int(known["resize"]))
    if transform.kind not in EVAL or not 0 < transform.side <= transform.resize <= MOST:
        raise ValueError(f"its pixels are {known}")
    return transform


def reading_of(config: Config, names: Sequence[str], *, train: bool = False) -> Reading | None:
    """How pictures are read for a system that reads the features ``names``; None where it reads no pixels."""
    if NAME not in names or config.data.get("pixels") is None:
        return None
    # Evaluation without some of the pictures would be another evaluation.
    return Reading(
        transform_of(config, train=train), int(config.seed), config.data.pixels.policy if train else "refuse"
    )


def feature_of(dataset: Dataset, config: Config) -> Feature:
    """The feature ``pixels`` of a data set. Raises DataError where no image has a picture."""
    if not any(counts["pictures"] for counts in dataset.manifest["splits"].values()):
        raise DataError(
            f"{dataset.directory} has no pictures, and the system reads pixels; add them with: "
            f"xmodal data attach {dataset.directory} --images FOLDER"
        )
    side = transform_of(config).side
    return Feature((side, side, 3), "uint8")


# One picture


def read(
    source: Any, transform: Transform, random: np.random.Generator | None = None, most: int = pictures.PIXELS
) -> UInt8[np.ndarray, "s s 3"]:
    """The pixels of a picture: a file, its bytes, a PIL image or an array uint8 [H, W, 3].

    Raises:
        DataError: as :func:`xmodal_jax.data.pictures.read_picture`.
    """
    with pictures.opened(_image(source), most) as picture:
        box = None
        if picture.format in ("JPEG", "MPO"):
            size = pictures.shown_size(picture)
            box = crop_box(*size, transform, random)
            _shrink(picture, box, transform)
            image = pictures.shown(picture)
            if image.size != size:
                across, down = (now / then for now, then in zip(image.size, size, strict=True))
                box = (round(box[0] * across), round(box[1] * down), round(box[2] * across), round(box[3] * down))
        else:
            image = pictures.shown(picture)
        return _fitted(image, transform, random, box)


def _image(source: Any) -> Any:
    """An array as a PIL image, anything else as it is."""
    require("PIL", "image")
    from PIL import Image

    return Image.fromarray(pictures.read_picture(source)) if isinstance(source, np.ndarray) else source


def _shrink(picture: Any, box: Box, transform: Transform) -> None:
    """Have a JPEG decoded at a half, a quarter or an eighth where its crop keeps :data:`MARGIN` times the side."""
    wanted = MARGIN * (transform.side if transform.kind != "centre" else transform.resize)
    factor = min(box[2] - box[0], box[3] - box[1]) // wanted
    if factor > 1:
        picture.draft(None, tuple(-(-size // factor) for size in picture.size))


def crop_box(width: int, height: int, transform: Transform, random: np.random.Generator | None) -> Box:
    """The part of a picture that a transform keeps before it is resized; of ``centre`` all, it crops afterwards."""
    if transform.kind != "random":
        return 0, 0, width, height
    assert random is not None
    low, high = map(math.log, transform.aspect)
    share = random.uniform(transform.area[0], transform.area[1], TRIES)
    aspect = np.exp(random.uniform(low, high, TRIES))
    place = random.random(2)
    across = np.rint(np.sqrt(width * height * share * aspect)).astype(int)
    down = np.rint(np.sqrt(width * height * share / aspect)).astype(int)
    fits = (across > 0) & (across <= width) & (down > 0) & (down <= height)
    if fits.any():
        first = int(np.argmax(fits))
        w, h = int(across[first]), int(down[first])
        left, upper = int(place[0] * (width - w + 1)), int(place[1] * (height - h + 1))
    else:  # a picture of an extreme shape: its middle, in the nearest aspect allowed
        w = min(width, max(round(height * transform.aspect[1]), 1))
        h = min(height, max(round(width / transform.aspect[0]), 1))
        left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h


def _fitted(image: Any, transform: Transform, random: np.random.Generator | None, box: Box | None) -> np.ndarray:
    """A PIL image in RGB as the square that a transform makes of it."""
    from PIL import Image

    bilinear, side = Image.Resampling.BILINEAR, transform.side
    if transform.kind == "centre":
        image = _short_side(image, transform.resize)
        left, upper = (round((size - side) / 2) for size in image.size)
        image = image.crop((left, upper, left + side, upper + side))
    else:
        # Cropped first: a resize of a box would let what lies beside it into the pixels at its edges.
        width, height = image.size
        image = image.crop(box or crop_box(width, height, transform, random)).resize((side, side), bilinear)
    if transform.flip:
        assert random is not None
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else image
    return np.asarray(image)


def _short_side(image: Any, size: int) -> Any:
    """A PIL image whose shorter side is ``size``, its aspect kept."""
    from PIL import Image

    short = min(image.size)
    if max(image.size) > LONGEST * short:
        edges = [max((length - LONGEST * short) // 2, 0) for length in image.size]
        image = image.crop((*edges, *(length - edge for length, edge in zip(image.size, edges, strict=True))))
    return image.resize(tuple(max(size * length // short, 1) for length in image.size), Image.Resampling.BILINEAR)


def ten_crops(source: Any, transform: Transform, most: int = pictures.PIXELS) -> UInt8[np.ndarray, "10 s s 3"]:
    """The four corners and the centre of a picture whose short side is ``resize``, then those of its mirror image.

    The usual ten views of which an extractor averages the features (Krizhevsky et al. 2012, section 4.1); a system
    itself has no such average.
    """
    with pictures.opened(_image(source), most) as picture:
        if picture.format in ("JPEG", "MPO"):
            _shrink(picture, (0, 0, *pictures.shown_size(picture)), transform._replace(kind="centre"))
        image = np.asarray(_short_side(pictures.shown(picture), transform.resize))
    side = transform.side
    low, right = (size - side for size in image.shape[:2])
    corners = [(0, 0), (0, right), (low, 0), (low, right), (round(low / 2), round(right / 2))]
    crops = np.stack([image[y : y + side, x : x + side] for y, x in corners])
    return np.concatenate([crops, crops[:, :, ::-1]])


# The pictures of a split


class PictureReader:
    """Reads the pictures of a split, many at a time; threads help, for Pillow decodes without Python's lock.

    With the policy "skip", ``skipped`` says by row why pictures are left out that are missing, corrupt or too large.

    Args:
        reading: how each picture is read.
        limit: only the first so many images, 0 = all.

    Raises:
        DataError: images without their picture, or, by its size, one that is not what the manifest says; with "skip"
            only where no image has one.
    """

    def __init__(self, split: Split, reading: Reading, limit: int = 0):
        require("PIL", "train")
        self.split = split
        self.transform, self.seed, self.policy = reading
        self.paths = split.pictures[: limit or None]
        self.skipped: dict[int, str] = {}
        self._lock = threading.Lock()
        self._check()

    def _check(self) -> None:
        """Hold the files against the manifest by their sizes; their bytes are looked at when they are read."""
        files, directory = self.split.dataset.manifest["files"], self.split.dataset.directory
        absent: list[int] = []
        changed: list[int] = []
        for row, path in enumerate(self.paths):
            if path is None:
                absent.append(row)
                continue
            entry = files.get(f"images/{path.name}", {})
            try:
                whole = path.stat().st_size == entry.get("bytes")
            except OSError:
                whole = False
            if not whole:
                changed.append(row)
        count = len(self.paths)
        if self.policy == "skip" and len(absent) + len(changed) < count:
            for row in sorted(absent + changed):
                self._skip(
                    row, self._named(row, "it has no picture" if self.paths[row] is None else "missing or changed")
                )
            return
        if absent:
            some = self.split.dataset.manifest["splits"].values()
            how = "import the data again with --images FOLDER"
            if not any(counts["pictures"] for counts in some):
                how = f"add them with: xmodal data attach {directory} --images FOLDER"
            raise DataError(
                f'{directory}: {len(absent):,} of {count:,} images of split "{self.split.name}" have no picture (the '
                f'first is "{self.split.ids[absent[0]]}"); {how}, or leave such images out of the training with '
                "--config.data.pixels.policy=skip."
            )
        if changed:
            raise DataError(
                f'{directory}: {len(changed):,} of {count:,} pictures of split "{self.split.name}" are missing or not '
                f"what was imported (the first is {self.paths[changed[0]]}); see: xmodal data check {directory}"
            )

    def _named(self, row: int, reason: str) -> str:
        return f'split "{self.split.name}", row {row} (image "{self.split.ids[row]}"): {reason}'

    def _skip(self, row: int, reason: str) -> None:
        with self._lock:
            if row in self.skipped:
                return
            self.skipped[row] = reason
            count = len(self.skipped)
        if count <= NAMED:
            print(f"skipped: {reason}", *["and so on"] * (count == NAMED), sep="\n", file=sys.stderr)

    def read(self, step: int, row: int) -> UInt8[np.ndarray, "s s 3"]:
        """One picture as step ``step`` sees it. Raises DataError, which names file and row."""
        random = None
        if self.transform.flip or self.transform.kind == "random":
            random = generator(self.seed, step, CROP, row)
        try:
            return read(self.paths[row], self.transform, random, pictures.LARGE)
        except DataError as error:
            raise DataError(self._named(row, str(error))) from None

    def batch(
        self, pool: ThreadPoolExecutor, step: int, rows: Int[np.ndarray, " b"]
    ) -> tuple[UInt8[np.ndarray, "b s s 3"], Bool[np.ndarray, " b"]]:
        """The pictures of ``rows`` (-1 is padding), and which could be read; zeros elsewhere.

        Raises:
            DataError: a picture that cannot be read, the first by row of the batch; with "skip" only where none can.
        """
        side = self.transform.side
        out = np.zeros((len(rows), side, side, 3), np.uint8)
        good = rows >= 0

        def fill(place: int) -> None:
            row = int(rows[place])
            if row < 0:
                return
            if row in self.skipped:
                good[place] = False
                return
            try:
                out[place] = self.read(step, row)
            except DataError as error:
                if self.policy != "skip":
                    raise
                self._skip(row, str(error))
                good[place] = False

        list(pool.map(fill, range(len(rows))))
        if (rows >= 0).any() and not good.any():
            reason = self.skipped[int(rows[rows >= 0][0])]
            raise DataError(f"No picture of a whole batch can be read ({reason}); mend them or import the data again.")
        return out, good


def open_pool() -> ThreadPoolExecutor:
    """As many threads as this process has cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ThreadPoolExecutor(cores, thread_name_prefix="pictures")
