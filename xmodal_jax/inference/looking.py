"""What a bundle looks at: words at regions, or its steps at both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from xmodal_jax.errors import UsageError
from xmodal_jax.inference.functions import Embedding, Functions
from xmodal_jax.inference.shapes import doubled, pad

NAMES = {"attention": "attention between words and regions", "glimpses": "steps that look at regions and words"}


def check(functions: Functions, system: str, function: str) -> None:
    """Raise a UsageError unless the bundle of ``system`` has ``function``, "attention" or "glimpses"."""
    if function not in functions:
        raise UsageError(f'The system "{system}" has no {NAMES[function]}.')


def attend(functions: Functions, system: str, images: Embedding, texts: Embedding) -> np.ndarray:
    """Weights [B, C, R, W] between embedded images and sentences."""
    check(functions, system, "attention")
    sides = functions.leaves("image", images), functions.leaves("text", texts)
    return np.asarray(functions.call("attention")(*sides))


def glimpses(
    functions: Functions,
    manifest: Mapping[str, Any],
    features: Mapping[str, np.ndarray],
    mask: np.ndarray,
    ids: np.ndarray,
    lengths: np.ndarray,
    vectors: Mapping[str, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Weights [B, C, K, R] and [B, C, K, W] of the steps on checked features and their mask, and on captions of ids
    and lengths; padded meanwhile to the sizes that are encoded, so that few are compiled."""
    (r, w), most = (mask.shape[1], ids.shape[1]), max(int(length) for length in manifest["lengths"])
    width = max(r, int(manifest["regions"])) if any(x.ndim == 3 for x in features.values()) else r
    given = {name: x if x.dtype == np.uint8 else pad(x.astype(np.float32), width) for name, x in features.items()}
    token = np.zeros((len(ids), min(doubled(w), most)), np.int32)
    token[:, :w] = ids
    real = np.arange(token.shape[1]) < lengths[:, None]
    regions, words = functions.call("glimpses")(given, pad(mask, width), {**vectors, "token": token}, real)
    return np.asarray(regions)[..., :r], np.asarray(words)[..., :w]
