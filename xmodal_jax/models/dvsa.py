"""Deep visual-semantic alignments: linear image fragments, words from a bidirectional ReLU network, sum-max score.

Karpathy and Fei-Fei, "Deep Visual-Semantic Alignments for Generating Image Descriptions", CVPR 2015 (arXiv
1412.2306), the alignment model of its section 3.1. No code was published: the recurrence is the paper's as recalled,
dropout rate and initial values are guesses, all of them fields or config entries.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.errors import UsageError
from xmodal_jax.layers.dense import xavier
from xmodal_jax.layers.image import mean_pool
from xmodal_jax.layers.recurrent import uniform
from xmodal_jax.layers.text import WordEmbedding
from xmodal_jax.matcher import Matcher
from xmodal_jax.similarity import AnyArray, match_weights, sum_max
from xmodal_jax.types import Fragments, Images, Inputs, Texts


def defrag(
    region: Float[AnyArray, "b r d"],
    region_mask: Bool[AnyArray, "b r"],
    word: Float[AnyArray, "c w d"],
    word_mask: Bool[AnyArray, "c w"],
) -> Float[Array, "b c"]:
    """Scores [B, C]: the positive inner products of real regions and words, summed (DeFrag; an ablation)."""
    product = jnp.einsum("brd,qcd->brqc", region, jnp.swapaxes(word, 0, 1), preferred_element_type=jnp.float32)
    real = jnp.asarray(region_mask)[:, :, None, None] & jnp.asarray(word_mask).T
    return jnp.sum(jnp.where(real, jax.nn.relu(product), 0.0), axis=(1, 2))


SCORES = {"sum_max": partial(sum_max, pool="sum"), "defrag": defrag}


class Recurrence(nn.Module):
    """``h_t = relu(e_t + W h_(t-1) + b)`` over inputs [C, W, H], states [C, W, H]; padding carries the state on."""

    reverse: bool = False
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, inputs: Float[AnyArray, "c w h"], mask: Bool[AnyArray, "c w"]) -> Float[Array, "c w h"]:
        size = inputs.shape[-1]
        matrix = self.param("kernel", uniform(size**-0.5), (size, size)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (size,))

        def step(hidden: AnyArray, now: tuple[Array, Array]) -> tuple[Array, Array]:
            entry, real = now
            product = jnp.dot(hidden.astype(self.dtype), matrix, preferred_element_type=jnp.float32)
            after = jnp.where(real[:, None], jax.nn.relu(entry + product + bias), hidden)
            return after, after

        def turn(x: Array) -> Array:
            return jnp.flip(x, 0) if self.reverse else x

        by_word = turn(jnp.swapaxes(inputs, 0, 1)), turn(jnp.asarray(mask).T)
        states = turn(jax.lax.scan(step, jnp.zeros_like(inputs[:, 0]), by_word)[1])
        return jnp.swapaxes(states, 0, 1)


class BRNN(nn.Module):
    r"""Words in context [C, W, D] from word vectors x [C, W, F], with f = ReLU; zero at padding.

    .. math::
        e_t = f(W_e x_t + b_e), \quad h^f_t = f(e_t + W_f h^f_{t-1} + b_f), \quad h^b_t = f(e_t + W_b h^b_{t+1} + b_b),
        \quad s_t = f(W_d (h^f_t + h^b_t) + b_d)

    Dropout acts on what the matrices :math:`W_e` and :math:`W_d` read, never inside a recurrence.
    """

    hidden: int
    size: int
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(
        self, words: Float[AnyArray, "c w f"], mask: Bool[AnyArray, "c w"], *, train: bool
    ) -> Float[Array, "c w d"]:
        def layer(size: int, name: str, x: Array) -> Array:
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
            dense = nn.Dense(
                size, kernel_init=uniform(x.shape[-1] ** -0.5), dtype=self.dtype, param_dtype=jnp.float32, name=name
            )
            return jax.nn.relu(dense(x).astype(jnp.float32))

        entry = layer(self.hidden, "input", jnp.asarray(words))
        ahead = Recurrence(dtype=self.dtype, name="forward")(entry, mask)
        back = Recurrence(reverse=True, dtype=self.dtype, name="backward")(entry, mask)
        return jnp.where(mask[..., None], layer(self.size, "output", ahead + back), 0.0)


class Model(Matcher):
    """Image and word fragments of ``embed_dim`` (D) dimensions, neither they nor the score normalised.

    Attributes:
        vocabulary: V, the number of tokens.
        embed_dim: D, 1000 to 1600 in the paper.
        hidden_dim: size of the recurrent states, 300 to 600 in the paper.
        word_dim: size of a word vector.
        feature: the region feature [B, R, F].
        whole_image: add the mean of the regions as one more fragment; the paper has the CNN's vector of the image.
        relation: "sum_max", or "defrag", the score without the maximum.
        dropout: rate at the inputs of all matrices but the recurrent ones; the paper gives no rate.
    """

    vocabulary: int
    embed_dim: int = 1000
    hidden_dim: int = 512
    word_dim: int = 300
    feature: str = "region"
    whole_image: bool = True
    relation: str = "sum_max"
    dropout: float = 0.2
    dtype: Any = "float32"

    @property
    def inputs(self) -> Inputs:
        return Inputs((self.feature,))

    @property
    def word_tables(self) -> str:
        return r"(.*/)?embed/embedding"

    def setup(self) -> None:
        dtype = jnp.dtype(self.dtype)
        self.image_dropout = nn.Dropout(self.dropout)
        self.project = xavier(self.embed_dim, dtype)
        self.embed = WordEmbedding(self.vocabulary, self.word_dim)
        self.brnn = BRNN(self.hidden_dim, self.embed_dim, self.dropout, dtype)
        self.relevance = SCORES[self.relation]

    def encode_image(self, image: Images, *, train: bool) -> tuple[Fragments, None]:
        feature, mask = jnp.asarray(image.feature[self.feature], jnp.float32), jnp.asarray(image.mask)
        if self.whole_image:
            feature = jnp.concatenate([mean_pool(feature, mask)[:, None], feature], axis=1)
            mask = jnp.concatenate([jnp.any(mask, axis=1, keepdims=True), mask], axis=1)
        region = self.project(self.image_dropout(feature, deterministic=not train)).astype(jnp.float32)
        return Fragments(jnp.where(mask[..., None], region, 0.0), mask), None

    def encode_text(self, text: Texts, *, train: bool) -> tuple[Fragments, None]:
        mask = jnp.asarray(text.mask)
        return Fragments(self.brnn(self.embed(text.token), mask, train=train), mask), None

    def score(self, image: Fragments, text: Fragments) -> Float[Array, "b c"]:
        return self.relevance(*image, *text)

    def attention(self, image: Fragments, text: Fragments) -> Float[Array, "b c r w"]:
        """Of the regions alone: the whole image, their mean, is never nearer to a word than the best of them."""
        if self.relation != "sum_max":
            raise UsageError(f'The score "{self.relation}" matches no word with a region; it has no attention.')
        first = int(self.whole_image)
        return match_weights(image.feature[:, first:], image.mask[:, first:], *text)
