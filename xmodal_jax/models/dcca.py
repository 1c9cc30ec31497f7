"""Deep CCA: a perceptron of each side whose outputs correlate as much as they can, and linear CCA on top of them.

Andrew, Arora, Bilmes, Livescu, "Deep Canonical Correlation Analysis", ICML 2013; for images and sentences Yan and
Mikolajczyk, "Deep Correlation for Matching Images and Text", CVPR 2015. Widths, dropout and batch normalisation are a
[reconstruction]; the loss is the paper's, :func:`xmodal_jax.losses.correlation.total_correlation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax import similarity
from xmodal_jax.layers.dense import xavier
from xmodal_jax.layers.image import image_vector
from xmodal_jax.layers.norm import BatchNorm
from xmodal_jax.layers.text import text_vector
from xmodal_jax.losses import correlation
from xmodal_jax.losses.correlation import Directions, Moments
from xmodal_jax.matcher import Matcher
from xmodal_jax.similarity import AnyArray
from xmodal_jax.types import Batch, Images, Inputs, Texts

ACTIVATIONS = {"relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid}


class Tower(nn.Module):
    """Vectors [N, F] to [N, D]: hidden layers of batch normalisation, activation and dropout, then a linear one."""

    hidden: tuple[int, ...]
    size: int
    activation: str
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[AnyArray, "n f"], real: Bool[AnyArray, " n"], *, train: bool) -> Float[Array, "n d"]:
        for number, width in enumerate(self.hidden):
            x = xavier(width, self.dtype, name=f"hidden_{number}")(x).astype(jnp.float32)
            x = BatchNorm(width, name=f"norm_{number}")(x, real[:, None], train=train)
            x = nn.Dropout(self.dropout, deterministic=not train)(ACTIVATIONS[self.activation](x))
        return xavier(self.size, self.dtype, name="out")(x).astype(jnp.float32)


class Model(Matcher):
    """Two towers and the canonical directions of their outputs; items are compared by the cosine of their variates.

    The directions are of the covariances of the training batches, averaged with a ``momentum`` as batch normalisation
    averages its own: what the training knows of its whole set without another pass over it.

    Attributes:
        embed_dim: D, the width of both towers' outputs.
        directions: how many canonical directions are kept and count in the loss, at most D.
        hidden: widths of the hidden layers of both towers.
        feature: the image feature; regions [B, R, F] are mean-pooled first.
        text: name of the dense text vectors [C, F]: "fisher", "mean", "tfidf". Words are not read.
        activation: "relu" or "sigmoid".
        dropout: share of hidden units left out in training.
        ridge: r, added to the diagonals of the covariances.
        power: of its correlation, which each direction is multiplied by (normalised CCA); 0 for plain CCA.
        momentum: share of a batch in the averaged covariances.
    """

    embed_dim: int = 128
    directions: int = 128
    hidden: Sequence[int] = (1024,)
    feature: str = "global"
    text: str = "fisher"
    activation: str = "relu"
    dropout: float = 0.5
    ridge: float = 1e-4
    power: float = 0.0
    momentum: float = 0.1
    dtype: Any = "float32"

    @property
    def inputs(self) -> Inputs:
        return Inputs(image=(self.feature,), text=(self.text,))

    @property
    def rank_terms(self) -> tuple[str, ...]:
        return ("rank", "correlation")

    def setup(self) -> None:
        dtype = jnp.dtype(self.dtype)
        tower = partial(Tower, tuple(self.hidden), self.embed_dim, self.activation, self.dropout, dtype)
        self.image_tower, self.text_tower = tower(), tower()
        size, count = self.embed_dim, min(self.directions, self.embed_dim)
        self.seen = self.variable("canonical", "seen", jnp.zeros, ())
        self.running = self.variable(
            "canonical", "moments", lambda: Moments(*map(jnp.zeros, (size, size, *[(size, size)] * 3)))._asdict()
        )
        self.found = self.variable(
            "canonical",
            "directions",
            lambda: Directions(jnp.eye(size, count), jnp.eye(size, count), jnp.ones(count))._asdict(),
        )

    def variates(self, side: str, x: Float[Array, "n d"]) -> Float[Array, "n k"]:
        """Unit vectors of canonical variates."""
        found, mean = self.found.value, self.running.value[f"{side}_mean"] / jnp.maximum(self.seen.value, 1e-6)
        return similarity.l2_normalise((x - mean) @ found[side] * found["correlation"] ** self.power)

    def encode_image(self, image: Images, *, train: bool) -> tuple[Float[Array, "b k"], Float[Array, "b d"]]:
        x = self.image_tower(image_vector(image, self.feature), jnp.asarray(image.id) >= 0, train=train)
        return self.variates("image", x), x

    def encode_text(self, text: Texts, *, train: bool) -> tuple[Float[Array, "c k"], Float[Array, "c d"]]:
        vector = text_vector(text, self.text)
        x = self.text_tower(vector, jnp.asarray(text.id) >= 0, train=train)
        return self.variates("text", x), x

    def score(self, image: Float[AnyArray, "b k"], text: Float[AnyArray, "c k"]) -> Float[Array, "b c"]:
        return similarity.dot(image, text)

    def aux(self, batch: Batch, image: Any, text: Any, *, train: bool) -> dict[str, Array]:
        """Minus the correlation of the batch's pairs; in training the averages and their directions move on.

        The directions are those of the averages before this batch, which are the same on every device.
        """
        given = correlation.moments(image[1][batch.text.row], text[1], jnp.asarray(batch.text.id) >= 0)
        count = min(self.directions, self.embed_dim)
        if train:
            average = jax.tree.map(lambda x: x / jnp.maximum(self.seen.value, 1e-6), self.running.value)
            self.found.value = correlation.directions(Moments(**average), self.ridge, count)._asdict()

            def move(old: Array, new: Array) -> Array:
                return old + self.momentum * (jax.lax.stop_gradient(new) - old)

            self.running.value = jax.tree.map(move, self.running.value, given._asdict())
            self.seen.value = move(self.seen.value, jnp.ones(()))
        return {"correlation": -correlation.total_correlation(given, self.ridge, count)}
