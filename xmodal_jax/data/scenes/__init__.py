"""The built-in data set "scenes": drawn pictures of a few objects, captions, region boxes and features from pixels.

    DIR/images/*.png            128 x 128 pictures of 2 to 5 objects
    DIR/<split>.truth.jsonl     one line an image: its objects, the object each region covers, and for each caption
                                which word (index into the lower-cased tokens) speaks of which object

and the files of every prepared data set (:mod:`xmodal_jax.data.records`). Scene i of a seed is the same whatever the
number of images; the test split comes first in that order, so that a larger set has the same test images.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xmodal_jax.data import writer
from xmodal_jax.data.records import Item
from xmodal_jax.data.scenes import render, world
from xmodal_jax.data.scenes.features import global_feature, picture_features, propose_boxes, region_features
from xmodal_jax.data.scenes.language import write_captions
from xmodal_jax.errors import UsageError, require

__all__ = ["global_feature", "main", "make", "propose_boxes", "region_features", "split_ranges"]

VERSION = 1  # raise it when the same seed begins to give other bytes
FEWEST = 12


def split_ranges(images: int) -> dict[str, range]:
    """Scene indices of each split: 500 each for test and dev of 2,000 images or more, else a sixth each."""
    held = 500 if images >= 2000 else images // 6
    return {"train": range(2 * held, images), "dev": range(held, 2 * held), "test": range(held)}


def make_item(seed: int, index: int, folder: Path) -> tuple[Item, dict[str, Any]]:
    """One scene as an item, its picture saved in ``folder``, and its line of truth; pure in (seed, index)."""
    from PIL import Image

    scene = world.sample_scene(seed, index)
    picture = render.draw(scene, world.stream(seed, index, world.PICTURE))
    regions = world.sample_regions(scene, seed, index)
    captions = write_captions(scene, seed, index)
    region, whole = picture_features(picture, regions.boxes)
    name = f"scene-{seed}-{index:06d}"
    path = folder / f"{name}.png"
    Image.fromarray(picture).save(path, compress_level=1)  # three times faster than the default, a few per cent larger
    truth = {
        "id": name,
        "background": scene.background,
        "things": [thing._asdict() | {"box": thing.box} for thing in scene.things],
        "regions": regions.covers,
        "words": [caption.words for caption in captions],
    }
    texts = [caption.text for caption in captions]
    item = Item(name, texts, {"region": region, "global": whole}, regions.boxes, picture.shape[:2], path)
    return item, truth


def make(out: str | Path, images: int = 3000, seed: int = 0) -> dict[str, Any]:
    """Write the data set of ``images`` scenes to the folder ``out`` and return its manifest.

    Raises:
      UsageError: fewer than 12 images, or a negative seed.
      DataError: ``out`` holds something else.
    """
    if images < FEWEST:
        raise UsageError(f"--images {images} is too few for three splits; give at least {FEWEST}.")
    if seed < 0:
        raise UsageError(f"--seed {seed} is negative; give 0 or more.")
    require("PIL", "train")
    truth: dict[str, list[dict[str, Any]]] = {}  # each list is filled while its split is written

    with tempfile.TemporaryDirectory(prefix="scenes-") as folder:

        def items(split: str, indices: range) -> Iterator[Item]:
            for index in indices:
                item, line = make_item(seed, index, Path(folder))
                truth[f"{split}.truth.jsonl"].append(line)
                yield item
                assert item.picture is not None
                item.picture.unlink()  # the writer has copied it

        ranges = split_ranges(images)
        truth |= {f"{split}.truth.jsonl": [] for split in ranges}
        return writer.write(
            out,
            {split: items(split, indices) for split, indices in ranges.items()},
            name="scenes",
            source={"scenes": VERSION, "images": images, "seed": seed},
            totals={split: len(indices) for split, indices in ranges.items()},
            extras=truth,
        )


def main(args: argparse.Namespace) -> int:
    """``xmodal data scenes --out DIR --images N --seed S``."""
    manifest = make(args.out, args.images, args.seed)
    counts = ", ".join(f"{name} {split['images']:,}" for name, split in manifest["splits"].items())
    print(f"{args.out}: {counts} images with 5 captions each, region and global features, boxes and truth.")
    return 0
