"""m-DAN, dual attention for matching: glimpses of the image's regions and of the caption's words, each side by itself.

Nam, Ha, Kim, "Dual Attention Networks for Multimodal Reasoning and Matching", CVPR 2017 (arXiv 1611.00471). There is no
released code. Neither side sees the other, so that all glimpses of an item are one vector and the score, the sum of the
inner products of the steps, is one inner product.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax import similarity
from xmodal_jax.layers.dense import masked_softmax, xavier
from xmodal_jax.layers.image import as_regions, mean_pool
from xmodal_jax.layers.lstm import BiLSTM
from xmodal_jax.layers.text import WordEmbedding
from xmodal_jax.matcher import Matcher
from xmodal_jax.similarity import AnyArray
from xmodal_jax.types import Images, Inputs, Texts


class Glimpses(nn.Module):
    """Fragments [N, T, F] to K + 1 vectors [N, K + 1, D] and the attention [N, K, T] that made all but the first.

    Section 3 of the paper. With ``P`` the projection, or none, and m the memory:

    .. math::
        v_0 &= P_0(\\text{mean}_t\\, x_t), \\quad m_0 = v_0, \\\\
        h_t &= \\tanh(W x_t) \\odot \\tanh(W_m m_{k-1}), \\quad a = \\text{softmax}_t(w_h h_t), \\\\
        v_k &= P_k(\\textstyle\\sum_t a_t x_t), \\quad m_k = m_{k-1} + v_k

    Every step has weights of its own.

    Attributes:
        size: D.
        hidden_dim: size of h.
        steps: K.
        project: whether P is a linear map and tanh (images) or nothing (words, whose F is D).
        dropout: share of the numbers of h left out in training.
    """

    size: int
    hidden_dim: int
    steps: int = 2
    project: bool = True
    dropout: float = 0.5
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(
        self, x: Float[AnyArray, "n t f"], mask: Bool[AnyArray, "n t"], *, train: bool
    ) -> tuple[Float[Array, "n k1 d"], Float[Array, "n k t"]]:
        def squashed(x: AnyArray, size: int, name: str) -> jax.Array:
            return jnp.tanh(xavier(size, self.dtype, name=name)(x).astype(jnp.float32))

        def projected(x: jax.Array, step: int) -> jax.Array:
            return squashed(x, self.size, f"project_{step}") if self.project else x

        memory = projected(mean_pool(x, mask), 0)
        vectors, weights = [memory], []
        for step in range(1, self.steps + 1):
            hidden = squashed(x, self.hidden_dim, f"fragment_{step}")
            hidden *= squashed(memory, self.hidden_dim, f"memory_{step}")[:, None]
            hidden = nn.Dropout(self.dropout, deterministic=not train)(hidden)
            logit = xavier(1, self.dtype, use_bias=False, name=f"attend_{step}")(hidden)[..., 0]
            weight = masked_softmax(logit.astype(jnp.float32), mask)
            vectors.append(projected(jnp.einsum("nt,ntf->nf", weight, jnp.where(mask[..., None], x, 0.0)), step))
            weights.append(weight)
            memory = memory + vectors[-1]
        attention = jnp.stack(weights, axis=1) if weights else jnp.zeros((x.shape[0], 0, x.shape[1]))
        return jnp.stack(vectors, axis=1), attention


class Model(Matcher):
    """Two towers of glimpses, each item a vector of (K + 1) D numbers that is not scaled to unit length.

    Attributes:
        vocabulary: V, the number of tokens.
        embed_dim: D, of a glimpse and of a word's states, which are the sum of those of an LSTM each way [recalled].
        hidden_dim: size of the hidden layer of the attention.
        word_dim: size of a word vector.
        feature: the image feature: regions or the cells of a grid [B, R, F]; a global one is a single region.
        steps: K; 0 leaves the attention out.
        dropout: share of the word vectors' numbers and of the attention's hidden layer left out in training. The rate
            is [recalled], its places are a [reconstruction].
    """

    vocabulary: int
    embed_dim: int = 512
    hidden_dim: int = 512
    word_dim: int = 512
    feature: str = "region"
    steps: int = 2
    dropout: float = 0.5
    dtype: Any = "float32"

    @property
    def inputs(self) -> Inputs:
        return Inputs((self.feature,))

    @property
    def word_tables(self) -> str:
        return "embed/embedding"

    def setup(self) -> None:
        dtype = jnp.dtype(self.dtype)
        sizes = (self.embed_dim, self.hidden_dim, self.steps)
        self.image_glimpses = Glimpses(*sizes, project=True, dropout=self.dropout, dtype=dtype)
        self.text_glimpses = Glimpses(*sizes, project=False, dropout=self.dropout, dtype=dtype)
        self.embed = WordEmbedding(self.vocabulary, self.word_dim)
        self.context = BiLSTM(self.embed_dim, merge="sum", dtype=dtype)
        self.drop = nn.Dropout(self.dropout)

    def _look(self, image: Images, train: bool) -> tuple[Float[Array, "b k1 d"], Float[Array, "b k r"]]:
        return self.image_glimpses(as_regions(image.feature[self.feature]), jnp.asarray(image.mask), train=train)

    def _read(self, text: Texts, train: bool) -> tuple[Float[Array, "c k1 d"], Float[Array, "c k w"]]:
        words = self.drop(self.embed(text.token), deterministic=not train)
        return self.text_glimpses(self.context(words, text.mask), jnp.asarray(text.mask), train=train)

    def encode_image(self, image: Images, *, train: bool) -> tuple[Float[Array, "b z"], None]:
        vectors, _ = self._look(image, train)
        return vectors.reshape(vectors.shape[0], -1), None

    def encode_text(self, text: Texts, *, train: bool) -> tuple[Float[Array, "c z"], None]:
        vectors, _ = self._read(text, train)
        return vectors.reshape(vectors.shape[0], -1), None

    def score(self, image: Float[AnyArray, "b z"], text: Float[AnyArray, "c z"]) -> Float[Array, "b c"]:
        return similarity.dot(image, text)

    def glimpses(self, image: Images, text: Texts) -> tuple[Float[Array, "b c k r"], Float[Array, "b c k w"]]:
        regions, words = self._look(image, False)[1], self._read(text, False)[1]
        b, c = regions.shape[0], words.shape[0]
        return jnp.broadcast_to(regions[:, None], (b, c, *regions.shape[1:])), jnp.broadcast_to(
            words[None], (b, c, *words.shape[1:])
        )
