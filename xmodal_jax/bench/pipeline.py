"""`xmodal bench pipeline`: the input pipeline alone, without a model."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from xmodal_jax.data.order import Sampler
from xmodal_jax.data.pipeline import Captions, FeatureReader, TrainPipeline
from xmodal_jax.data.records import Item, open_dataset
from xmodal_jax.data.writer import write
from xmodal_jax.text.vocabulary import Vocabulary

REGIONS, FEATURES = 36, 2048


def region_items(images: int) -> Iterator[Item]:
    """Random float16 regions of the size that bottom-up attention gives, five short captions each."""
    random = np.random.default_rng(0)
    region = random.standard_normal((REGIONS, FEATURES)).astype(np.float16)
    for i in range(images):
        yield Item(str(i), [f"word word word {k}" for k in range(5)], {"region": np.roll(region, i, axis=0)})


def bench_pipeline(images: int, seconds: float) -> dict[str, float | str]:
    """MB/s of region features that shuffled training batches of 128 deliver, records read from a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "set"
        write(data, {"train": region_items(images)}, name="bench", source={"kind": "bench"}, totals={"train": images})
        split = open_dataset(data).split("train")
        vocabulary = Vocabulary.build((text for group in split.captions for text in group), 1)
        captions = Captions(split.captions, vocabulary, (8,))
        sampler = Sampler(captions.counts, captions.lengths, sampler="captions", batch_size=128, seed=0)
        pipeline = TrainPipeline(FeatureReader(split, ["region"]), captions, sampler)
        batches = pipeline.batches(0, 10**9)
        next(batches)
        began, cpu, count = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - began < seconds:
            next(batches)
            count += 1
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    megabytes = count * 128 * REGIONS * FEATURES * 2 / 1e6
    return {
        "name": "pipeline",
        "megabytes_per_s": round(megabytes / wall, 1),
        "megabytes_per_cpu_s": round(megabytes / cpu, 1),
        "batches": count,
        "wall_s": round(wall, 2),
    }
