"""2WayNet: one network from image to caption vectors, read backwards with transposed matrices from captions to images.

Eisenschtat and Wolf, "Linking Image and Text with 2-Way Nets", CVPR 2017 (arXiv 1608.07973), as the released code
(aviveise/2WayNet) has it. A channel's layer is a matrix, batch normalisation, a leaky ReLU and dropout; both channels
share the matrices and, in training, which units of a layer are dropped for a pair. Items are compared by the
correlation of one layer's units. The code averages running standard deviations, this variances.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax import similarity
from xmodal_jax.errors import UsageError
from xmodal_jax.layers.image import image_vector
from xmodal_jax.layers.norm import BatchNorm
from xmodal_jax.layers.text import text_vector
from xmodal_jax.losses.modality import mean
from xmodal_jax.matcher import Matcher
from xmodal_jax.similarity import AnyArray
from xmodal_jax.types import Batch, Images, Inputs, Texts


def unit(x: Float[Array, "n f"]) -> Float[Array, "n f"]:
    """Rows of length 1."""
    return similarity.l2_normalise(x)


def standard(x: Float[Array, "n f"]) -> Float[Array, "n f"]:
    """Rows of mean 0 and variance 1."""
    x = x - jnp.mean(x, axis=1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.mean(jnp.square(x), axis=1, keepdims=True), 1e-12))


SCALES = {"none": lambda x: x, "unit": unit, "standard": standard}


def near_one(key: Array, shape: Sequence[int]) -> Array:
    """Initial factors of batch normalisation, from 0.95 to 1.05."""
    return jax.random.uniform(key, tuple(shape), minval=0.95, maxval=1.05)


class Tied(nn.Module):
    """A matrix [F, E] that is read in both directions, of ``cells`` blocks [F / cells, E / cells] on its diagonal."""

    cells: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "n _"], sizes: tuple[int, int], *, back: bool) -> Float[Array, "n _"]:
        """``x`` [N, F] times the matrix of ``sizes`` (F, E), or back from [N, E] by its transpose."""
        if any(size % self.cells for size in sizes):
            raise UsageError(
                f"The last matrix, {sizes[0]} x {sizes[1]}, does not divide into {self.cells} cells; set "
                "--config.model.cells=1, or another last width in config.model.hidden."
            )
        shape = (self.cells, *(size // self.cells for size in sizes))
        kernel = self.param("kernel", nn.initializers.xavier_uniform(batch_axis=0), shape)
        x = x.reshape(x.shape[0], self.cells, -1)
        return jnp.einsum("nce,cfe->ncf" if back else "ncf,cfe->nce", x, kernel).reshape(x.shape[0], -1)


class Unit(nn.Module):
    """What a channel does to a product [N, H] of its own: bias, batch normalisation, leaky ReLU; or the bias alone."""

    normal: bool
    leak: float
    momentum: float

    @nn.compact
    def __call__(self, x: Float[Array, "n h"], real: Bool[AnyArray, " n"], *, train: bool) -> Float[Array, "n h"]:
        size = x.shape[-1]
        x = x + self.param("bias", nn.initializers.zeros, (size,))
        if not self.normal:
            return x
        norm = BatchNorm(size, affine=False, momentum=self.momentum, unbiased=False, epsilon=1e-3, name="norm")
        x = norm(x, jnp.asarray(real)[:, None], train=train) * self.param("gamma", near_one, (size,))
        return nn.leaky_relu(x + self.param("beta", nn.initializers.zeros, (size,)), self.leak)


class Model(Matcher):
    """Two channels of tied matrices between an image's feature [F] and a caption's vector [E].

    Attributes:
        hidden: widths of the hidden layers, from the image's side to the caption's.
        layer: which of them, counted from 0, is compared and regularised.
        cells: blocks of the last matrix, each connected to its own part of both sides alone ("locally dense").
        feature: the image feature; regions [B, R, F] are mean-pooled first.
        text: name of the dense text vectors [C, E]: "fisher", "mean", "tfidf". Words are not read.
        scaling: of both inputs: "none", "unit" length, or "standard", mean 0 and variance 1 over the numbers of an
            item. The code has all three as options of a data set that is not public.
        leak: slope of the leaky ReLU below 0.
        dropout: share of hidden units left out in training, the same of a pair in both channels; the others are
            divided by the root of the share that is kept, which keeps their variance.
        momentum: share of a batch in the running statistics.
    """

    hidden: Sequence[int] = (2000, 3000, 4000)
    layer: int = 1
    cells: int = 1
    feature: str = "global"
    text: str = "fisher"
    scaling: str = "standard"
    leak: float = 0.3
    dropout: float = 0.5
    momentum: float = 0.01

    @property
    def inputs(self) -> Inputs:
        return Inputs(image=(self.feature,), text=(self.text,))

    @property
    def rank_terms(self) -> tuple[str, ...]:
        return ("rank", "hidden")

    def setup(self) -> None:
        count = len(self.hidden)
        if not 0 <= self.layer < count:
            raise UsageError(f"config.model.layer is {self.layer}; the hidden layers are 0 to {count - 1}.")
        self.matrix = [Tied(self.cells if level == count else 1) for level in range(count + 1)]
        # A channel has one more unit than hidden layers, for what it makes of the other side
        self.image_unit = [Unit(level < count, self.leak, self.momentum) for level in range(count + 1)]
        self.text_unit = [Unit(level < count, self.leak, self.momentum) for level in range(count + 1)]

    def image_channel(
        self, x: Array, real: Any, *, out: int = 0, masks: Sequence[Array] = (), train: bool = False
    ) -> list[Array]:
        """Hidden layers of [N, F], as many as ``layer`` needs; with ``out`` = E all, and the caption's vector."""
        widths = [x.shape[-1], *self.hidden, out]
        layers: list[Array] = []
        for level in range(len(widths) - 1 if out else self.layer + 1):
            x = self.matrix[level](x, (widths[level], widths[level + 1]), back=False)
            x = self.image_unit[level](x, real, train=train)
            x = x * masks[level] if level < len(masks) else x
            layers.append(x)
        return layers

    def text_channel(
        self, y: Array, real: Any, *, out: int = 0, masks: Sequence[Array] = (), train: bool = False
    ) -> list[Array]:
        """Hidden layers of [N, E], the last first, down to ``layer``; with ``out`` = F all, and the image's vector."""
        widths, count = [out, *self.hidden, y.shape[-1]], len(self.hidden)
        layers: list[Array] = []
        for step in range(count + 1 if out else count - self.layer):
            level = count - step  # of the matrix; what comes out is hidden layer level - 1
            y = self.matrix[level](y, (widths[level], widths[level + 1]), back=True)
            y = self.text_unit[step](y, real, train=train)
            y = y * masks[level - 1] if masks and level else y
            layers.append(y)
        return layers

    def encode_image(self, image: Images, *, train: bool) -> tuple[Float[Array, "b h"], Float[Array, "b f"]]:
        """Its layer in use, whatever ``train``: both channels are trained together, in :meth:`aux`."""
        x = SCALES[self.scaling](image_vector(image, self.feature))
        return unit_mean(self.image_channel(x, jnp.asarray(image.id) >= 0)[-1]), x

    def encode_text(self, text: Texts, *, train: bool) -> tuple[Float[Array, "c h"], Float[Array, "c e"]]:
        y = SCALES[self.scaling](text_vector(text, self.text))
        return unit_mean(self.text_channel(y, jnp.asarray(text.id) >= 0)[-1]), y

    def score(self, image: Float[AnyArray, "b h"], text: Float[AnyArray, "c h"]) -> Float[Array, "b c"]:
        return similarity.dot(image, text)

    def aux(self, batch: Batch, image: Any, text: Any, *, train: bool) -> dict[str, Array]:
        """The terms of the released code's loss but for weight decay, means over the pairs."""
        x, y, real = image[1][batch.text.row], text[1], jnp.asarray(batch.text.id) >= 0
        keep, masks = 1.0 - self.dropout, []
        if train and self.dropout:
            keys = jax.random.split(self.make_rng("dropout"), len(self.hidden))
            drawn = (jax.random.bernoulli(k, keep, (len(y), h)) for k, h in zip(keys, self.hidden, strict=True))
            masks = [mask / jnp.sqrt(keep) for mask in drawn]
        *from_image, y_made = self.image_channel(x, real, out=y.shape[-1], masks=masks, train=train)
        *from_text, x_made = self.text_channel(y, real, out=x.shape[-1], masks=masks, train=train)
        pair = from_image[self.layer], from_text[::-1][self.layer]
        units = [unit.variables["params"] for unit in (*self.image_unit, *self.text_unit)]
        return {
            "image_error": squared(x, x_made, real),
            "text_error": squared(y, y_made, real),
            "hidden": squared(*pair, real),
            "decorrelation": correlation_among(pair[0], real) + correlation_among(pair[1], real),
            "variance": sum((jnp.sum(1 / jnp.square(p["gamma"])) for p in units if "gamma" in p), start=jnp.zeros(())),
        }


def unit_mean(h: Float[Array, "n h"]) -> Float[Array, "n h"]:
    """Rows less their mean, of length 1: their inner product is the correlation of two items over the units."""
    return similarity.l2_normalise(h - jnp.mean(h, axis=1, keepdims=True))


def squared(a: Float[Array, "n f"], b: Float[Array, "n f"], real: Bool[AnyArray, " n"]) -> Float[Array, ""]:
    """Mean squared distance of the real rows."""
    return mean(jnp.sum(jnp.square(a - b), axis=1), real)


def correlation_among(h: Float[Array, "n h"], real: Bool[AnyArray, " n"]) -> Float[Array, ""]:
    """``||C||_F - ||diag C||`` of C = h'h / N, the units' second moments over the real rows."""
    h = jnp.where(jnp.asarray(real)[:, None], h, 0.0)
    moments = h.T @ h / jnp.maximum(jnp.sum(real), 1)
    diagonal = jnp.sum(jnp.square(jnp.diagonal(moments)))
    return similarity.safe_sqrt(jnp.sum(jnp.square(moments))) - similarity.safe_sqrt(diagonal)
