"""What a bundle looks at: words at regions, or its steps at both."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from xmodal_jax.errors import UsageError
from xmodal_jax.inference.functions import Embedding, Functions

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
    features: Mapping[str, np.ndarray],
    mask: np.ndarray,
    ids: np.ndarray,
    lengths: np.ndarray,
    vectors: Mapping[str, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Weights [B, C, K, R] and [B, C, K, W] of the steps on checked features and their mask, and on captions of ids
    and lengths."""
    given = {name: x if x.dtype == np.uint8 else x.astype(np.float32) for name, x in features.items()}
    real = np.arange(ids.shape[1]) < lengths[:, None]
    regions, words = functions.call("glimpses")(given, mask, {**vectors, "token": ids}, real)
    return np.asarray(regions), np.asarray(words)
