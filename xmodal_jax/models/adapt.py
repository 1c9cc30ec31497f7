"""ADAPT: one side's whole filters the other side's fragments (Wehrmann, Kolling, Barros, AAAI 2020).

The released code (jwehrmann/retrieval.pytorch) has two models, trained separately: captions filter regions ("t2i") or
images filter words ("i2t"). Their ensemble is the mean of the two score matrices.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax.layers.dense import xavier
from xmodal_jax.layers.image import as_regions, mean_pool
from xmodal_jax.layers.norm import BatchNorm
from xmodal_jax.layers.recurrent import BiGRU, uniform
from xmodal_jax.layers.text import WordEmbedding
from xmodal_jax.matcher import Matcher
from xmodal_jax.similarity import AnyArray, fovea, l2_normalise
from xmodal_jax.types import Fragments, Images, Inputs, Texts

WORDS = 34  # positions of a caption that the released i2t model reads


class Filter(NamedTuple):
    """What the side that filters does to fragments, and the unit vector they are then compared with; [N, D] each."""

    scale: Any
    shift: Any
    query: Any


class Conditioner(nn.Module):
    """The mean of an item's real fragments to its :class:`Filter`; the linear layers start as PyTorch's do."""

    size: int
    dtype: Any

    @nn.compact
    def __call__(self, feature: AnyArray, mask: AnyArray, item: AnyArray, *, train: bool) -> Filter:
        whole = mean_pool(feature, mask)
        init = uniform(self.size**-0.5)
        gamma, beta = (
            nn.Dense(self.size, kernel_init=init, bias_init=init, dtype=self.dtype, name=name)(whole)
            for name in ("gamma", "beta")
        )
        # The poster omits the 1 of the released code.
        return Filter(1.0 + gamma.astype(jnp.float32), beta.astype(jnp.float32), l2_normalise(whole))


class Filtered(nn.Module):
    """Fragments, normalised by batch statistics of each feature.

    Attributes:
        size: D.
        padding: treat padding as fragments.
        limit: fragments that are read, all where None.
    """

    size: int
    padding: bool = False
    limit: int | None = None

    @nn.compact
    def __call__(self, feature: AnyArray, mask: AnyArray, item: AnyArray, *, train: bool) -> Fragments:
        feature, mask = feature[:, : self.limit], mask[:, : self.limit]
        mask = jnp.ones_like(mask) if self.padding else mask
        real = mask & item[:, None]  # rows that only fill up the batch never count
        return Fragments(BatchNorm(self.size, affine=False, name="norm")(feature, real[..., None], train=train), mask)


class Model(Matcher):
    """Region vectors [B, R, D] and word vectors [C, W, D]; one side becomes a filter, the other is filtered.

    Attributes:
        vocabulary: V, the number of tokens.
        embed_dim: D; also the size of the GRU in each direction.
        word_dim: size of each half of a word vector: ``embed_fixed``, meant for GloVe and frozen by the config's
            rules, and ``embed``, which is learned.
        feature: which image feature holds the regions [B, R, F].
        direction: "t2i", captions filter regions, or "i2t", images filter words.
        smooth, pool: see :func:`xmodal_jax.similarity.fovea`.
        compat_padding: treat padding as the released code does. The GRU reads it, and the filtered side takes it into
            its statistics, its softmax and its pooling, of words up to position 34; a caption's score then depends on
            the length that it is padded to.
    """

    vocabulary: int
    embed_dim: int = 1024
    word_dim: int = 300
    feature: str = "region"
    direction: str = "t2i"
    smooth: float = 10.0
    pool: str = "mean"
    compat_padding: bool = False
    dtype: Any = "float32"

    @property
    def inputs(self) -> Inputs:
        return Inputs((self.feature,), most_words=self.limit)

    @property
    def limit(self) -> int | None:
        """Words that are filtered, all where None."""
        return WORDS if self.compat_padding and self.direction == "i2t" else None

    @property
    def word_tables(self) -> str:
        return r"embed_fixed/embedding"

    @property
    def padding_counts(self) -> bool:
        return self.compat_padding

    def setup(self) -> None:
        dtype = jnp.dtype(self.dtype)
        self.image_encoder = xavier(self.embed_dim, dtype)
        self.embed_fixed = WordEmbedding(self.vocabulary, self.word_dim)
        self.embed = WordEmbedding(self.vocabulary, self.word_dim)
        self.text_encoder = BiGRU(self.embed_dim, dtype=dtype)
        self.filtered = Filtered(self.embed_dim, self.compat_padding, self.limit)
        self.conditioner = Conditioner(self.embed_dim, dtype)

    def roles(self) -> tuple[nn.Module, nn.Module]:
        """What images and captions become."""
        return {"t2i": (self.filtered, self.conditioner), "i2t": (self.conditioner, self.filtered)}[self.direction]

    def regions(self, image: Images) -> jax.Array:
        """Unit region vectors [B, R, D]."""
        region = self.image_encoder(as_regions(image.feature[self.feature])).astype(jnp.float32)
        return l2_normalise(nn.leaky_relu(region, negative_slope=0.1))

    def words(self, text: Texts) -> jax.Array:
        """Unit word vectors [C, W, D]."""
        mask = jnp.asarray(text.mask)
        word = jnp.concatenate([self.embed_fixed(text.token), self.embed(text.token)], axis=-1)
        return l2_normalise(self.text_encoder(word, jnp.ones_like(mask) if self.compat_padding else mask))

    def encode_image(self, image: Images, *, train: bool) -> tuple[Any, None]:
        real = jnp.asarray(image.mask), jnp.asarray(image.id) >= 0
        return self.roles()[0](self.regions(image), *real, train=train), None

    def encode_text(self, text: Texts, *, train: bool) -> tuple[Any, None]:
        real = jnp.asarray(text.mask), jnp.asarray(text.id) >= 0
        return self.roles()[1](self.words(text), *real, train=train), None

    def score(self, image: Any, text: Any) -> Float[Array, "b c"]:
        sides = (*image, *text) if self.direction == "t2i" else (*text, *image)
        scores = fovea(*sides, smooth=self.smooth, pool=self.pool)
        return scores if self.direction == "t2i" else scores.T
