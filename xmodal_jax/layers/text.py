"""Text encoders: word embedding, recurrent sentence encoder, bag of words; where words stand."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from xmodal_jax.layers.dense import xavier
from xmodal_jax.layers.lstm import LSTM
from xmodal_jax.layers.recurrent import GRU, last_state, uniform
from xmodal_jax.similarity import AnyArray
from xmodal_jax.text.vocabulary import END, UNKNOWN
from xmodal_jax.types import Texts


def text_vector(text: Texts, name: str) -> Float[Array, "c f"]:
    """The dense vector ``name`` of every caption."""
    assert text.feature is not None, f'the batch has no text vectors "{name}"'
    return jnp.asarray(text.feature[name], jnp.float32)


class WordEmbedding(nn.Module):
    """Word vectors [C, W, F] of tokens [C, W], or [C, F] of [C], initialised in U(-0.1, 0.1) (VSE++, released code)."""

    vocabulary: int
    size: int

    @nn.compact
    def __call__(self, token: Int[AnyArray, "c *w"]) -> Float[Array, "c *w f"]:
        table = self.param("embedding", uniform(0.1), (self.vocabulary, self.size))
        return jnp.take(table, token, axis=0, mode="clip")


class GRUText(nn.Module):
    """Caption vector [C, D]: the final state of a GRU; two directions are averaged."""

    vocabulary: int
    word_dim: int
    size: int
    bidirectional: bool = False
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, token: Int[AnyArray, "c w"], mask: Bool[AnyArray, "c w"]) -> Float[Array, "c d"]:
        words = WordEmbedding(self.vocabulary, self.word_dim, name="embed")(token)
        states = GRU(self.size, dtype=self.dtype, name="forward")(words, mask)
        sentence = last_state(states, mask)
        if self.bidirectional:
            backward = GRU(self.size, reverse=True, dtype=self.dtype, name="backward")(words, mask)
            sentence = (sentence + backward[:, 0]) / 2  # the backward pass ends at the first word
        return sentence


class ProjectedGRU(nn.Module):
    """Caption vector [C, D] of words [C, W, F]: the last state of a GRU of ``hidden`` units, or of one each way side by
    side, through a linear map."""

    hidden: int
    size: int
    bidirectional: bool = False
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, words: Float[AnyArray, "c w f"], mask: Bool[AnyArray, "c w"]) -> Float[Array, "c d"]:
        state = last_state(GRU(self.hidden, dtype=self.dtype, name="forward")(words, mask), mask)
        if self.bidirectional:  # the backward pass ends at the first word
            backward = GRU(self.hidden, reverse=True, dtype=self.dtype, name="backward")(words, mask)
            state = jnp.concatenate([state, backward[:, 0]], axis=1)
        return xavier(self.size, self.dtype)(state).astype(jnp.float32)


class LSTMText(nn.Module):
    """Caption vector [C, D]: the final output of an LSTM; a decoder may share ``embed`` and ``forward``."""

    vocabulary: int
    word_dim: int
    size: int
    dtype: jnp.dtype = jnp.dtype("float32")

    def setup(self) -> None:
        self.embed = WordEmbedding(self.vocabulary, self.word_dim)
        self.forward = LSTM(self.size, dtype=self.dtype)

    def __call__(self, token: Int[AnyArray, "c w"], mask: Bool[AnyArray, "c w"]) -> Float[Array, "c d"]:
        return last_state(self.forward(self.embed(token), mask).hidden, mask)


class BagOfWords(nn.Module):
    """Caption vector [C, D]: the sum of its word vectors (UVS's ``bow`` encoder), so words and joint space share D."""

    vocabulary: int
    word_dim: int
    size: int
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, token: Int[AnyArray, "c w"], mask: Bool[AnyArray, "c w"]) -> Float[Array, "c d"]:
        if self.word_dim != self.size:
            raise ValueError(f"a bag of words needs word_dim = embed_dim, not {self.word_dim} and {self.size}")
        words = WordEmbedding(self.vocabulary, self.word_dim, name="embed")(token)
        return jnp.sum(jnp.where(mask[..., None], words, 0.0), axis=1)


def words_of(
    token: Int[AnyArray, "c w"], mask: Bool[AnyArray, "c w"], positions: int, *, drop_unknown: bool
) -> tuple[Int[Array, "c p"], Int[Array, " c"]]:
    """The first ``positions`` words of each caption, from the left without a gap (then 0), and how many those are.

    ``<start>`` and ``<end>`` are no words, nor is ``<unk>`` under ``drop_unknown``.
    """
    word = jnp.asarray(mask) & (token > (UNKNOWN if drop_unknown else END))
    order = jnp.arange(token.shape[1])
    # Counted, not `cumsum`: of a length that is only known when an exported function is called, that is a custom call.
    before = jnp.sum(word[:, None, :] & (order < order[:, None]), axis=2)
    place = jnp.where(word, before, -1)
    at = place[:, :, None] == jnp.arange(positions)
    left = jnp.sum(jnp.where(at, jnp.asarray(token)[:, :, None], 0), axis=1)
    return left, jnp.minimum(jnp.sum(word, axis=1), positions)


def placed(left: Int[Array, "c p"], offset: Int[Array, " c"]) -> Int[Array, "c p"]:
    """The words ``offset`` positions further to the right; it must leave room for them."""
    source = jnp.arange(left.shape[1]) - offset[:, None]
    return jnp.where(source >= 0, jnp.take_along_axis(left, jnp.maximum(source, 0), axis=1), 0)
