"""CHAIN-VSE: captions read as characters by a few convolutions, images as in VSE++.

Wehrmann, Barros, "Bidirectional Retrieval Made Simple", CVPR 2018, and its released code (jwehrmann/chain-vse). The
paper's figure and the code differ in what follows the first level; both are here. configs/chain.py holds the settings.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from xmodal_jax import similarity
from xmodal_jax.errors import UsageError
from xmodal_jax.layers.image import image_vector
from xmodal_jax.layers.recurrent import uniform
from xmodal_jax.matcher import Matcher
from xmodal_jax.similarity import AnyArray
from xmodal_jax.types import Images, Inputs, Texts

Map = tuple[Float[Array, "c _ f"], Bool[Array, "c _"]]  # positions as the level has them

FIRST = (3, 5, 7)  # widths of the first level
POOLING = 0  # in place of a width
BRANCHES = {
    "code": ((3,), (3, 3), (3, 3, 3), (3, 3, 3, 3)),
    "paper": ((7, 5, 3), (7, 5), (POOLING, 7), (7,)),
}


class Maxout(nn.Module):
    """Convolutions of ``size`` channels with zeros around, of whose ``filters`` outputs the largest is kept.

    With one piece it is a ReLU of one convolution. Weights are Xavier uniform, biases PyTorch's (released code).

    Attributes:
        size: channels that come in, or V where tokens do.
        filters: channels that go out.
        width: of the convolutions, odd.
        pieces: number of convolutions, 2 in the released code.
        dtype: of the products and of what comes out.
    """

    size: int
    filters: int
    width: int
    pieces: int = 2
    dtype: jnp.dtype = jnp.dtype("float32")

    def setup(self) -> None:
        xavier = nn.initializers.xavier_uniform(in_axis=1, out_axis=3, batch_axis=2)
        self.kernel = self.param("kernel", xavier, (self.width, self.size, self.pieces, self.filters))
        self.bias = self.param("bias", uniform((self.width * self.size) ** -0.5), (self.pieces, self.filters))

    def __call__(self, x: Float[Array, "c w f"]) -> Float[Array, "c w d"]:
        kernel = self.kernel.reshape(self.width, self.size, -1).astype(self.dtype)
        layout, side = ("NWC", "WIO", "NWC"), self.width // 2
        return self._largest(
            jax.lax.conv_general_dilated(x.astype(self.dtype), kernel, (1,), [(side, side)], dimension_numbers=layout)
        )

    def of_tokens(self, token: Int[AnyArray, "c w"]) -> Float[Array, "c w d"]:
        """The same of one-hot vectors, zero for token 0: a sum of rows of the kernel, which takes less time."""
        side, words = self.width // 2, token.shape[1]
        kernel = self.kernel.reshape(self.width, self.size, -1)
        rows = jnp.where(jnp.arange(self.size)[:, None] > 0, kernel, 0.0)
        token = jnp.pad(token, ((0, 0), (side, side)))
        shifts = [jnp.take(rows[j], token[:, j : j + words], axis=0, mode="clip") for j in range(self.width)]
        return self._largest(sum(shifts[1:], start=shifts[0])).astype(self.dtype)

    def _largest(self, x: Float[Array, "c w k"]) -> Float[Array, "c w d"]:
        x = x.reshape(*x.shape[:-1], self.pieces, self.filters) + self.bias.astype(x.dtype)
        return jnp.max(x, axis=-2) if self.pieces > 1 else jax.nn.relu(x[..., 0, :])


def pool(
    x: Float[Array, "c w f"], real: Bool[Array, "c w"], kind: str
) -> tuple[Float[Array, "c v f"], Bool[Array, "c v"]]:
    """The "max" or "mean" of 5 neighbours that are real, at every second position: [C, W, F] to [C, ceil(W / 2), F]."""
    if kind == "max":
        pooled = reduce(jnp.maximum, _neighbours(jnp.where(real[..., None], x, similarity.NEVER), similarity.NEVER))
    else:
        total, count = (sum(_neighbours(part, 0.0)) for part in (x, real[..., None].astype(x.dtype)))
        pooled = total / jnp.maximum(count, 1.0)
    real = real[:, ::2]
    return jnp.where(real[..., None], pooled, 0.0), real


def _neighbours(x: Float[Array, "c w f"], fill: float) -> list[jax.Array]:
    """What stands from two places before to two places behind every second position."""
    padded = jnp.pad(x, ((0, 0), (2, 2), (0, 0)), constant_values=fill)
    return [padded[:, j : j + x.shape[1] : 2] for j in range(5)]


def largest(x: Float[Array, "c w f"], real: Bool[Array, "c w"]) -> Float[Array, "c f"]:
    """Largest activation of each channel over the real positions; zeros for a caption without any."""
    top = jnp.max(jnp.where(real[..., None], x, similarity.NEVER), axis=1)
    return jnp.where(jnp.any(real, axis=1)[:, None], top, 0.0).astype(jnp.float32)


class Branches(nn.Module):
    """Tokens [C, W] to the activations of each branch before their global pooling; padding is zero in all of them.

    The attributes are those of :class:`Model`.
    """

    vocabulary: int
    variant: str
    first_filters: int
    filters: int
    pieces: int
    pooling: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, token: Int[Array, "c w"], real: Bool[Array, "c w"]) -> list[Map]:
        def clear(x: Array, real: Array) -> Array:
            return jnp.where(real[..., None], x, jnp.zeros((), x.dtype))

        first = [
            Maxout(self.vocabulary, self.first_filters, width, self.pieces, self.dtype, name=f"first_{width}")
            for width in FIRST
        ]
        start = clear(jnp.concatenate([level.of_tokens(token) for level in first], axis=-1), real)
        maps = []
        for number, branch in enumerate(BRANCHES[self.variant]):
            x, valid = start, real
            for level, width in enumerate(branch):
                if width == POOLING:
                    x, valid = pool(x, valid, self.pooling)
                    continue
                name = f"branch_{number}_{level}"
                block = Maxout(x.shape[-1], self.filters, width, self.pieces, self.dtype, name=name)
                x = clear(block(x), valid)
            maps.append((x, valid))
        return maps


class Model(Matcher):
    """A linear map of the image and a convolutional caption encoder into one space of ``embed_dim`` (D) dimensions.

    Attributes:
        vocabulary: V, the number of symbols, 75 in the released code.
        embed_dim: D, 1024 to 8192 in the paper.
        feature: which image feature is used; regions [B, R, F] are mean-pooled first.
        variant: "code", four branches of 1 to 4 blocks of width 3 (released code); "paper", the branches 7-5-3, 7-5,
            pooling (width 5, stride 2)-7 and 7 of the paper's figure. [reconstruction] For that one the numbers of
            filters, the kind of pooling and the nonlinearity are not published: those here are the code's and a guess.
        first_filters: filters of each of the three blocks of the first level.
        filters: of each block after it.
        pieces: convolutions of which a block keeps the largest; 1 for a single one and a ReLU.
        pooling: "max" or "mean", of the paper's third branch.
        compat_padding: let padding take part as it does in the released code, where a caption's vector depends on how
            much padding follows; otherwise every caption is encoded as if it stood alone.
        measure: a function of :mod:`xmodal_jax.similarity`: "dot", "order" (paper) or "order_root" (released code).
        absolute: take absolute values of both embeddings.
        dtype: the type of the products and of the activations between them; parameters and scores stay float32.
    """

    vocabulary: int
    embed_dim: int = 1024
    feature: str = "global"
    variant: str = "code"
    first_filters: int = 64
    filters: int = 256
    pieces: int = 2
    pooling: str = "max"
    compat_padding: bool = False
    measure: str = "dot"
    absolute: bool = False
    dtype: Any = "float32"

    @property
    def inputs(self) -> Inputs:
        return Inputs(image=(self.feature,), tokens="characters")

    @property
    def padding_counts(self) -> bool:
        return self.compat_padding

    def setup(self) -> None:
        if self.variant not in BRANCHES:
            raise UsageError(f'No variant "{self.variant}" (model.variant); there are {", ".join(BRANCHES)}.')
        if self.pooling not in ("max", "mean"):
            raise UsageError(f'No pooling "{self.pooling}" (model.pooling); there are max, mean.')
        dtype = jnp.dtype(self.dtype)
        sizes = self.first_filters, self.filters, self.pieces
        self.branches = Branches(self.vocabulary, self.variant, *sizes, self.pooling, dtype)

        def dense(bias: nn.initializers.Initializer) -> nn.Dense:
            xavier = nn.initializers.xavier_uniform()
            return nn.Dense(self.embed_dim, kernel_init=xavier, bias_init=bias, dtype=dtype, param_dtype=jnp.float32)

        self.text_encoder = dense(uniform((len(BRANCHES[self.variant]) * self.filters) ** -0.5))
        self.image_encoder = dense(nn.initializers.zeros)
        self.similarity = getattr(similarity, self.measure)

    def encode_image(self, image: Images, *, train: bool) -> tuple[Float[Array, "b d"], None]:
        return self._finish(self.image_encoder(image_vector(image, self.feature))), None

    def encode_text(self, text: Texts, *, train: bool) -> tuple[Float[Array, "c d"], None]:
        real = jnp.asarray(text.mask)
        token = jnp.where(real, text.token, 0)
        maps = self.branches(token, jnp.ones_like(real) if self.compat_padding else real)
        return self._finish(self.text_encoder(jnp.concatenate([largest(*part) for part in maps], axis=-1))), None

    def _finish(self, x: jax.Array) -> jax.Array:
        embedding = similarity.l2_normalise(x.astype(jnp.float32))
        return jnp.abs(embedding) if self.absolute else embedding

    def score(self, image: Float[Array, "b d"], text: Float[Array, "c d"]) -> Float[Array, "b c"]:
        return self.similarity(image, text)
