"""The recall table of arrays: of embeddings that any program has made, or of their scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xmodal_jax.errors import DataError
from xmodal_jax.evaluation import table
from xmodal_jax.evaluation.vote import Member, rank_table
from xmodal_jax.text.same import numbered, plain


def recall(
    image: Any,
    text: Any,
    image_of_caption: Any,
    *,
    captions: Sequence[str] | None = None,
    shared: bool = False,
    protocol: str = "auto",
    draws: int = 1000,
) -> table.Table:
    """Recall at 1, 5 and 10 in both directions, of embeddings that are scored by their inner products.

    Print it for the papers' table; ``i2t.r1`` ... ``t2i.r10``, ``rsum`` and ``interval`` are its numbers. Ranks are
    counted as :func:`ranks` does: a tie counts against the query. Normalise vectors first where cosines are meant.

    >>> image = np.eye(3)
    >>> recall(image, image[[0, 1, 2, 2]], [0, 1, 2, 2]).rsum
    600.0

    Args:
        image: embeddings of the images [B, D]; or the scores [B, C] of all pairs, higher is better, with ``text`` None.
        text: embeddings of the captions [C, D]; None where ``image`` holds scores.
        image_of_caption: [C] the row of the image that each caption belongs to; every image has one or more.
        captions: the C texts, which tell the captions that are equal; without them all count as different.
        shared: equal captions are positives of all their images, not of their own alone.
        protocol: "full", "fold5" (mean over five folds of 1,000 images) or "auto", which takes that for 5,000 images.
        draws: bootstrap draws for the intervals, 0 for none.

    Raises:
        DataError: shapes that do not go together, a caption of an image that is not there, an image without a caption.
        NumericError: a score that is not finite.
    """
    image, owner = _matrix(image, "scores" if text is None else "image embeddings"), np.asarray(image_of_caption)
    text = None if text is None else _matrix(text, "text embeddings")
    count = image.shape[1] if text is None else len(text)
    if text is not None and image.shape[1] != text.shape[1]:
        raise DataError(f"Image embeddings are {_shape(image)}, text embeddings {_shape(text)}: their widths differ.")
    if owner.shape != (count,) or not np.issubdtype(owner.dtype, np.integer):
        raise DataError(
            f"The map gives the image of each of the {count:,} captions as a whole number, [{count}]; it is "
            f"{_shape(owner)} {owner.dtype}."
        )
    if captions is not None and len(captions) != count:
        raise DataError(f"There are {len(captions):,} caption texts for {count:,} captions.")
    if not len(image) or not count:
        raise DataError(f"Nothing can be ranked among {len(image):,} images and {count:,} captions.")
    if shared and captions is None:
        raise DataError("Which captions are equal is told by their texts; give them as captions.")
    if bad := np.flatnonzero((owner < 0) | (owner >= len(image))).tolist():
        raise DataError(
            f"Caption {bad[0]} belongs to image {owner[bad[0]]}, but there are images 0 to {len(image) - 1} only."
        )
    text_id = None if captions is None else numbered(map(plain, captions))
    places = np.arange(count)
    if text is None:
        member = Member(lambda scores, i, c: scores[i[:, None], c], image, np.arange(len(image)), places)
    else:
        alike = numbered(row.tobytes() for row in text)  # equal vectors get the bits of one product
        member = Member(lambda _, i, t: _wide(i) @ _wide(t).T, None, image, text, alike)
    options = {"protocol": protocol, "weights": "given", "draws": draws, "text_id": text_id, "shared": shared}
    return rank_table([member], owner, len(image), **options)


def _matrix(value: Any, name: str) -> np.ndarray:
    array = np.asarray(value)
    if array.ndim != 2 or not (array.dtype.kind in "fiu" or array.dtype.name == "bfloat16"):
        raise DataError(
            f"The {name} are a matrix of numbers, [items, numbers]; these are {_shape(array)} {array.dtype}."
        )
    return array


def _shape(array: np.ndarray) -> str:
    return str(list(array.shape))


def _wide(array: np.ndarray) -> np.ndarray:
    """In a type that NumPy multiplies well."""
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)


def load_array(path: Path) -> np.ndarray:
    """An array from a .npy file, memory-mapped. Raises DataError where it is none."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, OverflowError, EOFError) as error:
        raise DataError(f"{path} cannot be read as a .npy array ({error}).") from None
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path} holds several arrays; give one as .npy.")
    return array


def load_map(path: Path) -> Any:
    """The image of each caption, a list of whole numbers in JSON. Raises DataError where it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as JSON ({error}).") from None
    if not isinstance(content, list) or not all(type(row) is int for row in content):
        raise DataError(f"{path} is no list of whole numbers: the row of the image of each caption, [0, 0, 1, ...].")
    return np.array(content, np.int64)
