"""From pictures to what a bundle reads: raw pixels, features of an image network, those of the built-in scenes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xmodal_jax.data import pixels
from xmodal_jax.data.pictures import PIXELS, read_picture
from xmodal_jax.inference.shapes import fill

NETWORK = "backbone"  # the extractor that is an image network, and the place of its recipe in the manifest


def scenes(picture: np.ndarray) -> dict[str, np.ndarray]:
    """Features of a picture like those of the built-in data set; boxes come from a simple detector."""
    from xmodal_jax.data.scenes import features

    boxes = features.propose_boxes(picture)
    region, whole = features.picture_features(picture, boxes)
    return {"region": region, "global": whole, "boxes": boxes}


EXTRACTORS: dict[str, Callable[[np.ndarray], dict[str, np.ndarray]]] = {"scenes": scenes}


def extractor_of(folder: Path, manifest: Mapping[str, Any]) -> Callable[[Any], dict[str, np.ndarray]] | None:
    """What makes features of one picture (a file, its bytes, a PIL image, an array) for a bundle of this manifest.

    Its boxes [R, 4] come with them where it has regions. None where the bundle has no such thing.
    """
    name = manifest["extractor"]
    if name == NETWORK:
        return network(folder, manifest[NETWORK])
    if name == pixels.NAME:
        transform = pixels.transform_in(manifest)
        return lambda picture: {pixels.NAME: pixels.read(picture, transform)}
    return (lambda picture: EXTRACTORS[name](read_picture(picture))) if name in EXTRACTORS else None


def network(folder: Path, manifest: Mapping[str, Any]) -> Callable[[Any], dict[str, np.ndarray]]:
    """Features of a picture by the image network of a bundle, which is read when the first picture comes."""
    from xmodal_jax.inference import extractor  # only such bundles need Flax

    recipe = extractor.recipe_in(manifest)
    loaded = functools.cache(lambda: extractor.load(folder, manifest))

    def features(picture: Any) -> dict[str, np.ndarray]:
        views = recipe.read(picture, PIXELS)
        made = {name: array[0] for name, array in loaded()(views[None]).items()}
        return {**made, "boxes": recipe.boxes()} if "region" in made else made

    return features


class Extracted(NamedTuple):
    """Features of B pictures by name, which of R regions are real [B, R], and their boxes [B, R, 4]."""

    features: dict[str, np.ndarray]
    mask: np.ndarray
    boxes: np.ndarray


def extract(
    make: Callable[[Any], dict[str, np.ndarray]],
    pictures: Sequence[Any],
    shapes: Mapping[str, Sequence[Any]],
    most: int,
) -> Extracted:
    """What an extractor makes of pictures: the features of these ``shapes``, of at most so many regions."""
    with pixels.open_pool() as pool:
        extracted = list(pool.map(make, pictures))
    regional = {feature for feature, shape in shapes.items() if len(shape) == 2}
    mask = np.zeros((len(extracted), most if regional else 1), bool)
    boxes = np.zeros((len(extracted), mask.shape[1], 4), np.float32)
    for row, item in enumerate(extracted):
        found = item.get("boxes", boxes[row, :0])
        mask[row, : len(found) if regional else 1] = True
        boxes[row, : len(found)] = found[: mask.shape[1]]
    features = {
        feature: np.stack([fill(item[feature], most) if feature in regional else item[feature] for item in extracted])
        for feature in shapes
    }
    return Extracted(features, mask, boxes)


def are_pictures(value: Any) -> bool:
    """Whether what `embed_images` was given is a list of pictures."""
    return isinstance(value, Sequence) and not isinstance(value, str) and not _numeric(value)


def _numeric(value: Any) -> bool:
    """Whether a list holds numbers rather than pictures."""
    while isinstance(value, Sequence) and not isinstance(value, str | bytes) and len(value):
        value = value[0]
    return isinstance(value, int | float)
