"""From pictures to the features that a bundle reads; the built-in scenes have such an extractor."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xmodal_jax.errors import DataError, require
from xmodal_jax.inference.shapes import fill

PIXELS = 20_000_000  # of a picture, by its header
FORMATS = ("JPEG", "PNG", "WEBP")


def read_picture(source: Any, side: int | None = None) -> np.ndarray:
    """Pixels [H, W, 3] uint8 of a file, its bytes, a PIL image or an array; made smaller where a side exceeds ``side``.

    The number of pixels is read from the header: a few kilobytes may unfold to gigabytes.

    Raises:
        DataError: not a picture of a known format, a broken one, or more than 20 million pixels.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3:
            raise DataError(f"A picture is uint8 [height, width, 3], not {source.dtype} {list(source.shape)}.")
        return source
    require("PIL", "image")
    from PIL import Image

    name = source if isinstance(source, str | os.PathLike) else "the picture"
    if isinstance(source, Image.Image):
        return np.asarray(source.convert("RGB"))
    try:
        file: Any = io.BytesIO(source) if isinstance(source, bytes) else Path(source)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes that are looked at here
            with Image.open(file, formats=FORMATS) as picture:
                width, height = picture.size
                if width * height > PIXELS:
                    raise DataError(f"{name} has {width:,} x {height:,} pixels; at most {PIXELS:,} are read.")
                if side is not None:
                    picture.thumbnail((side, side))
                return np.asarray(picture.convert("RGB"))
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{name}: no such picture.") from None
    except Exception as error:  # decoders raise of everything on broken files
        # What decoders say of bytes speaks of Python's objects.
        reason = f" ({error})".splitlines()[0] if str(error) and not isinstance(source, bytes) else ""
        raise DataError(f"{name} is not a readable {', '.join(FORMATS)} picture{reason}.") from None


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
