"""The built-in data set "scenes": rendered pictures of a few objects, captions, detector-like regions, features.

Everything about scene ``index`` is a pure function of (seed, index), so a larger set begins with the smaller one.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xmodal_jax.data.records import Item, write
from xmodal_jax.errors import UsageError, require

MINIMUM = 12


def split_sizes(images: int) -> dict[str, int]:
    """500 images each for dev and test of a set of 2,000 or more, a sixth of a smaller one; the rest trains."""
    held_out = 500 if images >= 2000 else images // 6
    return {"train": images - 2 * held_out, "dev": held_out, "test": held_out}


def make(out: str | Path, images: int = 3000, seed: int = 0) -> dict[str, Any]:
    """Render and prepare ``images`` scenes in the folder ``out``; returns the manifest.

    ``{split}.truth.jsonl`` beside the records holds, for each image, its objects, which object each region covers (-1
    for none), and for each caption the pairs of a token's index and the index of the object it speaks of.

    Raises:
        UsageError: fewer than 12 images.
    """
    require("PIL", "train")
    if images < MINIMUM:
        raise UsageError(f"--images {images} is too few to split; use at least {MINIMUM}.")
    sizes = split_sizes(images)
    truth: dict[str, list[dict[str, Any]]] = {f"{split}.truth.jsonl": [] for split in sizes}
    with tempfile.TemporaryDirectory() as folder:
        splits, first = {}, 0
        for split, count in sizes.items():
            lines = truth[f"{split}.truth.jsonl"]
            splits[split] = items(range(first, first + count), seed, Path(folder), lines)
            first += count
        source = {"kind": "scenes", "images": images, "seed": seed}
        return write(out, splits, name="scenes", source=source, totals=sizes, extras=truth)


def items(indices: range, seed: int, folder: Path, truth: list[dict[str, Any]]) -> Iterator[Item]:
    """The scenes of a split; appends to ``truth`` as it goes."""
    from PIL import Image

    from xmodal_jax.data.scenes.features import picture_features
    from xmodal_jax.data.scenes.language import write_captions
    from xmodal_jax.data.scenes.render import draw
    from xmodal_jax.data.scenes.world import sample_regions, sample_scene, stream

    for index in indices:
        scene = sample_scene(seed, index)
        picture = draw(scene, stream(seed, index, 1))
        regions = sample_regions(scene, seed, index)
        captions = write_captions(scene, seed, index)
        name = f"scene_{seed}_{index:06d}"
        path = folder / f"{name}.png"
        Image.fromarray(picture).save(path, compress_level=1)
        region, whole = picture_features(picture, regions.boxes)
        features = {"region": region, "global": whole}
        truth.append(
            {
                "id": name,
                "background": scene.background,
                "objects": [thing._asdict() for thing in scene.things],
                "regions": regions.covers,
                "words": [caption.words for caption in captions],
            }
        )
        yield Item(name, [c.text for c in captions], features, regions.boxes, picture.shape[:2], path)
        path.unlink()


def main(args: argparse.Namespace) -> int:
    """`xmodal data scenes`."""
    manifest = make(args.out, args.images, args.seed)
    counts = ", ".join(f"{name} {split['images']:,}" for name, split in manifest["splits"].items())
    print(f"{args.out}: {counts} images with 5 captions each; see: xmodal data check {args.out}")
    return 0
