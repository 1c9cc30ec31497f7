"""What networks that run over each pair of an image and a caption share: the order of the work, and an attention."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from xmodal_jax.layers.recurrent import scanning
from xmodal_jax.similarity import AnyArray
from xmodal_jax.similarity.pairwise import take
from xmodal_jax.types import Repr

PAIRS = 512  # at a time: rows enough that matrix products run at full speed, and few that what they give is small
MOST = 40.0  # where e^x is cut off: two such factors are still a float32, and the sigmoid of 40 is 1


def over_captions(pairs: nn.Module, image: Repr, text: Repr) -> Float[Array, "b c"]:
    """``pairs(image, text)``, whose leading axes broadcast, of all images and so many captions at a time that they are
    about :data:`PAIRS` pairs. Nothing is kept for the backward pass, which computes it again."""
    image = jax.tree.map(lambda leaf: leaf[:, None], image)
    if scanning():
        return pairs(image, text)

    def step(pairs: nn.Module, carry: tuple[()], image: Repr, text: Repr) -> tuple[tuple[()], jax.Array]:
        return carry, pairs(image, text)

    images, count = (jax.tree.leaves(side)[0].shape[0] for side in (image, text))
    known = isinstance(images, int) and isinstance(count, int)  # an exported function has symbols for them
    size = min(max(PAIRS // images, 1), count) if known else 1
    if size == 1:
        text = jax.tree.map(lambda leaf: leaf[:, None], text)
    else:  # the last part is filled up with the last caption
        text = take(text, np.minimum(np.arange(-(-count // size) * size), count - 1).reshape(-1, size))
    axes: Any = (nn.broadcast, 0)
    scan = nn.scan(
        nn.remat(step, prevent_cse=False),
        variable_broadcast="params",
        split_rngs={"params": False},
        in_axes=axes,
        out_axes=1,
    )
    scores = scan(pairs, (), image, text)[1]
    return scores.reshape(images, -1)[:, :count]


def factor(x: AnyArray) -> jax.Array:
    """:math:`e^{-x}`, of two of which :math:`\\sigma(x + y) = 1 / (1 + e^{-x} e^{-y})` is made."""
    return jnp.exp(-jnp.clip(x, -MOST, MOST))


def additive_logits(
    fragment: Float[AnyArray, "... t a"], past: Float[AnyArray, "... a"], weight: Float[AnyArray, "a"]
) -> Float[Array, "... t"]:
    """:math:`w \\cdot \\sigma(x + y)` of the factors of fragments x and of pairs y; leading axes broadcast.

    Of pairs [B, C] one caption is done at a time, and again in the backward pass: T times A numbers of a pair are many.
    """

    def logits(fragment: Any, past: Any) -> jax.Array:
        return (1.0 / (1.0 + fragment * past[..., None, :])) @ weight

    if past.ndim != 3 or scanning():
        return logits(fragment, past)
    step, past = jax.checkpoint(logits, prevent_cse=False), jnp.moveaxis(past, 1, 0)
    if fragment.ndim == 4:  # [B, 1, T, A]
        out = jax.lax.map(lambda past: step(fragment[:, 0], past), past)
    else:
        out = jax.lax.map(lambda pair: step(*pair), (fragment, past))
    return jnp.moveaxis(out, 0, 1)
