"""A small prepared data set whose images and captions belong together in a learnable way; damage to files."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from xmodal_jax import cli
from xmodal_jax.data import records, writer
from xmodal_jax.inference import layout

WORDS = [f"{kind}{i}" for kind in ("red", "big", "dog", "sea") for i in range(4)]


def child_environment(devices: int = 1) -> dict[str, str]:
    """That of a child process with so many devices which compiles to the same machine code as this process."""
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    return {**os.environ, "XLA_FLAGS": " ".join([*flags, f"--xla_force_host_platform_device_count={devices}"])}


@contextlib.contextmanager
def nothing_compiles(caplog) -> Iterator[None]:
    """What is done inside compiles nothing."""
    with jax.log_compiles():
        jax.jit(lambda x: x - 3)(1)
        assert "Compiling" in caplog.text  # as it says where something does
        caplog.clear()
        yield
        assert "Compiling" not in caplog.text


def planted(folder, *, train=48, other=16, captions=(2, 3), regions=(3, 5), features=8, seed=0, pictures=False):
    """Every image has 4 hidden words; its features are their noisy vectors, its captions name them in any order; its
    picture, on demand, shows each as a stripe of the word's colour."""
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(len(WORDS), features))

    def items(split, count):
        for i in range(count):
            hidden = random.choice(len(WORDS), 4, replace=False)
            texts = [
                " ".join(WORDS[w] for w in random.permutation(hidden)) for _ in range(random.integers(*captions) + 1)
            ]
            r = int(random.integers(regions[0], regions[1] + 1))
            region = vectors[hidden[np.arange(r) % 4]] + 0.1 * random.normal(size=(r, features))
            glob = vectors[hidden].mean(0) + 0.05 * random.normal(size=features)
            boxes = np.sort(random.random((r, 2, 2)), axis=1).reshape(r, 4).astype(np.float32)
            arrays = {"region": region.astype(np.float16), "global": glob.astype(np.float32)}
            picture = None
            if pictures:
                colours = np.random.default_rng(1).integers(0, 256, (len(WORDS), 3), np.uint8)
                picture = folder.with_name(f"{folder.name}-{split}-{i}.png")
                Image.fromarray(np.repeat(np.tile(colours[hidden], (10, 1, 1)), 5, axis=1)).save(picture)
            yield records.Item(f"{split}-{i}", texts, arrays, boxes, (10, 20), picture)

    splits = {"train": items("train", train), "dev": items("dev", other), "test": items("test", other)}
    writer.write(folder, splits, name="planted", source={"kind": "planted", "seed": seed})
    return folder


def with_mean_vectors(folder):
    """The planted set with a dense vector of every caption, "mean", from 5 numbers a word."""
    random = np.random.default_rng(0)
    path = folder.with_name(f"{folder.name}-vectors.txt")
    lines = [f"{word} {' '.join(f'{x:.4f}' for x in random.normal(size=5))}\n" for word in WORDS]
    path.write_text("".join(lines))
    assert cli.run(["data", "text-features", "mean", str(folder), "--vectors", str(path)]) == 0
    return folder


def damages(folder: Path, flips: int, cuts: int) -> Iterator[str]:
    """Damage one file under ``folder`` at a time and mend it again: bits flipped, then ends cut off, at random places.

    Yields the name of the file that is damaged now.
    """
    rng = np.random.default_rng(0)
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    names = sorted(name for name, raw in files.items() if raw)
    for number in range(flips + cuts):
        name = names[rng.integers(len(names))]
        raw = bytearray(files[name])
        place = int(rng.integers(len(raw)))
        if number < flips:
            raw[place] ^= 1 << int(rng.integers(8))
        (folder / name).write_bytes(raw if number < flips else raw[:place])
        yield f"{name}, {'bit flipped in byte' if number < flips else 'cut to'} {place}"
        (folder / name).write_bytes(files[name])


def resealed(gallery, copy, change):
    """The gallery again as ``copy``, sealed after ``change(manifest, lines of images)``."""
    shutil.copytree(gallery, copy)
    lines = [json.loads(line) for line in (copy / "images.jsonl").read_text().splitlines()]
    manifest = json.loads((copy / "manifest.json").read_text())
    change(manifest, lines)
    (copy / "images.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    layout.seal(copy, manifest)
    return copy
