"""From pictures to the features that a bundle reads; the built-in scenes have such an extractor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from xmodal_jax.data.pictures import read_picture
from xmodal_jax.inference.shapes import fill


def scenes(picture: np.ndarray) -> dict[str, np.ndarray]:
    """Features of a picture like those of the built-in data set; boxes come from a simple detector."""
    from xmodal_jax.data.scenes import features

    boxes = features.propose_boxes(picture)
    region, whole = features.picture_features(picture, boxes)
    return {"region": region, "global": whole, "boxes": boxes}


EXTRACTORS: dict[str, Callable[[np.ndarray], dict[str, np.ndarray]]] = {"scenes": scenes}


class Extracted(NamedTuple):
    """Features of B pictures by name, which of R regions are real [B, R], and their boxes [B, R, 4]."""

    features: dict[str, np.ndarray]
    mask: np.ndarray
    boxes: np.ndarray


def extract(name: str, pictures: Sequence[Any], shapes: Mapping[str, Sequence[Any]], most: int) -> Extracted:
    """What the extractor ``name`` makes of pictures: the features of these ``shapes``, of at most so many regions."""
    extracted = [EXTRACTORS[name](read_picture(picture)) for picture in pictures]
    regional = {feature for feature, shape in shapes.items() if len(shape) == 2}
    mask = np.zeros((len(extracted), most if regional else 1), bool)
    boxes = np.zeros((len(extracted), mask.shape[1], 4), np.float32)
    for row, item in enumerate(extracted):
        mask[row, : len(item["boxes"]) if regional else 1] = True
        boxes[row, : len(item["boxes"])] = item["boxes"][: mask.shape[1]]
    features = {
        feature: np.stack([fill(item[feature], most) if feature in regional else item[feature] for item in extracted])
        for feature in shapes
    }
    return Extracted(features, mask, boxes)
