"""What the rows of `xmodal bench` are made of: sizes, fragments of a batch, and the loss of a score."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xmodal_jax import losses, similarity

B, R, D, W = 128, 36, 1024, 20
MARGIN = 0.2


class Case(NamedTuple):
    """Ours: a function, compiled here, and its arguments. The loop is a thunk, made only where torch is installed."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    flop: float | None = None  # that the task needs, whoever does it
    loop: Callable[[], Callable[[], Any]] | None = None
    scale: float = 1.0  # time of the whole task over that of what `function` does
    loop_scale: float = 1.0  # likewise of the loop
    repeat: int = 3
    note: str = ""
    compiled: bool = True  # by the benchmark; else the function does that itself
    facts: Mapping[str, Any] = MappingProxyType({})


def unit(random: np.random.Generator, *shape: int) -> np.ndarray:
    x = random.standard_normal(shape, np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def word_counts(random: np.random.Generator, count: int) -> np.ndarray:
    """[C] words of captions as long as those of COCO."""
    return np.clip(np.round(np.exp(random.normal(np.log(12.8), 0.28, count))), 7, W).astype(int)


def fragments(images: int, captions: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit regions [B, R, D], unit words [C, W, D] and numbers of words [C], long captions first."""
    random = np.random.default_rng(0)
    length = -np.sort(-word_counts(random, captions))
    word = unit(random, captions, W, D) * (np.arange(W) < length[:, None])[..., None]
    return unit(random, images, R, D), word, length


def loss_of(score: Callable[..., jax.Array], hardness: float, margin: float = MARGIN) -> Callable[..., jax.Array]:
    def loss(*args: jax.Array) -> jax.Array:
        scores = score(*args)
        positive = similarity.correspondence(jnp.arange(scores.shape[1]), scores.shape[0])
        return losses.triplet(scores, positive, margin=margin, hardness=hardness)

    return loss
