"""`xmodal bench pixels`: pictures a second from files to training crops, beside a plain loop of Pillow."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xmodal_jax.data.order import generator
from xmodal_jax.data.pipeline import FeatureReader
from xmodal_jax.data.pixels import Reading, Transform
from xmodal_jax.data.records import Item, Split, open_dataset
from xmodal_jax.data.writer import write
from xmodal_jax.errors import DataError, require

SIDES, BATCH, SIZES = (224, 128), 32, ((640, 480), (2048, 1536))
RENDERED = 16  # pictures, read over and over


def photographs(folder: Path, width: int, height: int, count: int) -> Iterator[Item]:
    """JPEGs of about the bytes of photographs of their size: noise of several scales, quality 90."""
    from PIL import Image

    random = np.random.default_rng(0)
    for row in range(count):
        pixels = np.full((height, width, 3), 128, np.int16)
        for scale, weight in ((64, 70), (16, 30), (4, 12), (1, 5)):
            coarse = random.integers(-weight, weight, (-(-height // scale), -(-width // scale), 3), np.int16)
            pixels += coarse.repeat(scale, 0).repeat(scale, 1)[:height, :width]
        path = folder / f"{row}.jpg"
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, quality=90)
        yield Item(str(row), ["a picture"], {}, None, (height, width), path)


def loop(paths: Sequence[Path], side: int) -> Callable[[int], None]:
    """A batch as one would write it: open, convert, crop, resize, stack; parts of the middle size of a random crop."""
    from PIL import Image

    def run(step: int) -> None:
        squares = []
        for path in (paths[i % len(paths)] for i in range(step * BATCH, (step + 1) * BATCH)):
            with Image.open(path) as file:
                picture = file.convert("RGB")
            w, h = (int(0.75 * size) for size in picture.size)
            picture = picture.crop((0, 0, w, h)).resize((side, side), Image.Resampling.BILINEAR)
            squares.append(np.asarray(picture))
        np.stack(squares)

    return run


def rate(run: Callable[[int], Any], seconds: float) -> tuple[float, float]:
    """Pictures a second of the clock and of CPU time; one batch before the first counts."""
    run(0)
    began, cpu, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - began < seconds:
        count += 1
        run(count)
    return BATCH * count / (time.perf_counter() - began), BATCH * count / (time.process_time() - cpu)


def measure(split: Split, side: int, seconds: float) -> dict[str, Any]:
    """One row: training crops of random pictures of a split."""
    reader = FeatureReader(split, ["pixels"], reading=Reading(Transform("random", side, side, flip=True)))
    rows = lambda step: generator(0, step).integers(0, len(split), BATCH)  # noqa: E731
    stream = reader.stream(0, 1 << 40, rows)
    ours, ours_cpu = rate(lambda _: next(stream), seconds)
    plain, plain_cpu = rate(loop([path for path in split.pictures if path], side), seconds)
    height, width = np.median(split.sizes, axis=0).astype(int).tolist()
    return {
        "name": f"pixels_{width}x{height}_{side}",
        "images_per_s": round(ours, 1),
        "images_per_cpu_s": round(ours_cpu, 1),
        "loop_images_per_s": round(plain, 1),
        "loop_images_per_cpu_s": round(plain_cpu, 1),
        "ratio": round(ours / plain, 2),
    }


def bench_pixels(seconds: float, data: Path | None = None) -> list[dict[str, Any]]:
    """Rows of rendered JPEGs of two sizes, or of the training pictures of a prepared data set.

    Raises:
        DataError: a data set without pictures.
    """
    require("PIL", "train")
    if data is not None:
        split = open_dataset(data).split("train")
        if not any(split.pictures):
            raise DataError(f"{data} has no pictures; name a data set that has.")
        return [measure(split, side, seconds) for side in SIDES]
    rows = []
    for width, height in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            items = photographs(Path(folder), width, height, RENDERED)
            write(Path(folder) / "set", {"train": items}, name="bench", source={"kind": "bench"})
            rows.append(measure(open_dataset(Path(folder) / "set").split("train"), SIDES[0], seconds))
    return rows
