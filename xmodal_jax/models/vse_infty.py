"""VSE-infinity with a bi-GRU on the text side (Chen et al., "Learning the Best Pooling Strategy for Visual Semantic
Embedding", CVPR 2021, arXiv 2011.04305; released code, branch bigru): two towers that end in a generalised pooling
operator, one inner product, and size augmentation in training.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from xmodal_jax import similarity
from xmodal_jax.layers.dense import xavier
from xmodal_jax.layers.gpo import GPO
from xmodal_jax.layers.image import as_regions, survivors
from xmodal_jax.layers.norm import BatchNorm
from xmodal_jax.layers.recurrent import BiGRU, uniform
from xmodal_jax.layers.text import WordEmbedding
from xmodal_jax.matcher import Matcher
from xmodal_jax.similarity import AnyArray
from xmodal_jax.text.vocabulary import END, START
from xmodal_jax.types import Images, Inputs, Texts

# Of the words that are touched; the rest is replaced by <mask>. The comment of the released code says otherwise.
DELETED, RANDOM = 0.4, 0.1


def touch_words(
    key: AnyArray,
    token: Int[AnyArray, "c w"],
    mask: Bool[AnyArray, "c w"],
    *,
    rate: float,
    ends: bool,
    vocabulary: int,
) -> tuple[Int[Array, "c w"], Bool[Array, "c w"]]:
    """Touch each word with probability ``rate``: 50 % become <mask> (id V), 10 % any of the V + 1 tokens, 40 % go.

    Later words move up, so that padding still follows the words. ``ends`` says whether <start> and <end> are words.
    """
    draw_key, random_key = jax.random.split(key)
    draw = jax.random.uniform(draw_key, token.shape)
    if not ends:
        draw = jnp.where((token == START) | (token == END), 1.0, draw)
    other = jax.random.randint(random_key, token.shape, 0, vocabulary + 1)
    kept = survivors(draw, mask, rate * DELETED)
    cases = [draw < rate * DELETED, draw < rate * (DELETED + RANDOM), draw < rate]
    token = jnp.select(cases, [token, other, jnp.full_like(token, vocabulary)], token)
    order = jnp.argsort(~kept, axis=1, stable=True)
    return jnp.take_along_axis(token, order, axis=1), jnp.take_along_axis(kept, order, axis=1)


def with_zero_rows(mask: Bool[AnyArray, "b r"]) -> Bool[Array, "b r"]:
    """``mask`` and as many rows of padding as bring each image to the region count of the batch's largest."""
    count = jnp.sum(mask, axis=1, keepdims=True)
    return (jnp.asarray(mask) | (jnp.cumsum(~mask, axis=1) <= jnp.max(count) - count)) & (count > 0)


class RegionMLP(nn.Module):
    """Linear, batch normalisation, ReLU, Linear on regions [B, R, F] to [B, R, D]; PyTorch's default initialisers."""

    hidden_dim: int
    size: int
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(
        self, region: Float[AnyArray, "b r f"], counted: Bool[AnyArray, "b r"], *, train: bool
    ) -> Float[Array, "b r d"]:
        def linear(x: Any, size: int, name: str) -> Any:
            init = uniform(x.shape[-1] ** -0.5)
            return nn.Dense(size, kernel_init=init, bias_init=init, dtype=self.dtype, name=name)(x).astype(jnp.float32)

        hidden = BatchNorm(self.hidden_dim, name="norm")(
            linear(region, self.hidden_dim, "hidden"), counted[..., None], train=train
        )
        return linear(jax.nn.relu(hidden), self.size, "out")


class Model(Matcher):
    """Two towers to one joint space of ``embed_dim`` (D) dimensions.

    Attributes:
        vocabulary: V, the number of tokens; the embedding table has one more row, <mask>.
        embed_dim: D; the image MLP is half as wide inside.
        word_dim: size of a word vector.
        feature: which image feature is used; a global one [B, F] is a set of one region.
        drop_region: probability that training drops a region.
        touch_word: probability that training touches a word, see :func:`touch_words`.
        touch_ends: whether that may be <start> or <end>. Recalled of the bigru branch, whose loader was not at hand;
            the BERT branch never touches [CLS] and [SEP].
        compat_padding: batch statistics count the zero rows that pad images to the batch's largest, as in the
            released code; otherwise real regions alone.
    """

    vocabulary: int
    embed_dim: int = 1024
    word_dim: int = 300
    feature: str = "region"
    drop_region: float = 0.2
    touch_word: float = 0.2
    touch_ends: bool = True
    compat_padding: bool = False
    dtype: Any = "float32"

    @property
    def inputs(self) -> Inputs:
        return Inputs((self.feature,))

    @property
    def word_tables(self) -> str:
        return r"(.*/)?embed/embedding"

    def setup(self) -> None:
        dtype = jnp.dtype(self.dtype)
        self.image_linear = xavier(self.embed_dim, dtype)
        self.image_mlp = RegionMLP(self.embed_dim // 2, self.embed_dim, dtype)
        self.image_pool = GPO()
        self.embed = WordEmbedding(self.vocabulary + 1, self.word_dim)
        self.text_gru = BiGRU(self.embed_dim, dtype=dtype)
        self.text_pool = GPO()
        self.counted = with_zero_rows if self.compat_padding else lambda mask: mask

    def encode_image(self, image: Images, *, train: bool) -> tuple[Float[Array, "b d"], None]:
        feature = as_regions(image.feature[self.feature])
        mask = jnp.asarray(image.mask)
        if train and self.drop_region:
            mask = survivors(jax.random.uniform(self.make_rng("dropout"), mask.shape), mask, self.drop_region)
        feature = jnp.where(mask[..., None], feature, 0.0)
        counted = self.counted(mask & (jnp.asarray(image.id) >= 0)[:, None])  # padding images repeat a real one
        region = self.image_linear(feature).astype(jnp.float32) + self.image_mlp(feature, counted, train=train)
        return similarity.l2_normalise(self.image_pool(region, mask)), None

    def encode_text(self, text: Texts, *, train: bool) -> tuple[Float[Array, "c d"], None]:
        token, mask = jnp.asarray(text.token), jnp.asarray(text.mask)
        if train and self.touch_word:
            token, mask = touch_words(
                self.make_rng("dropout"),
                token,
                mask,
                rate=self.touch_word,
                ends=self.touch_ends,
                vocabulary=self.vocabulary,
            )
        states = self.text_gru(self.embed(token), mask)
        return similarity.l2_normalise(self.text_pool(states, mask)), None

    def score(self, image: Float[AnyArray, "b d"], text: Float[AnyArray, "c d"]) -> Float[Array, "b c"]:
        return similarity.dot(image, text)
