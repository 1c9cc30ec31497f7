"""A GRU or an LSTM that speaks: from one vector an item to the logits of its next words."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.errors import UsageError
from xmodal_jax.layers.dense import xavier
from xmodal_jax.layers.lstm import LSTM, LSTMState
from xmodal_jax.layers.recurrent import StackedGRU
from xmodal_jax.similarity import AnyArray

STARTS = ("state", "input")


class Decoder(nn.Module):
    """Stacked GRUs and a projection without bias to the vocabulary (STT, released code: peri044/STT).

    An item's vector [D] is cut into L equal parts, the initial states of the layers from the bottom up, so that each
    has H = D / L units. Words come and go as vectors: whoever owns the embedding table looks them up.

    Attributes:
        vocabulary: V.
        size: D.
        layers: L.
        cell: form of the GRU, see :func:`xmodal_jax.layers.recurrent.cell`.
        dtype: the type of the matrix products; states and logits stay float32.
    """

    vocabulary: int
    size: int
    layers: int = 1
    cell: str = "tensorflow"
    dtype: jnp.dtype = jnp.dtype("float32")

    def setup(self) -> None:
        if self.layers < 1 or self.size % self.layers:
            raise UsageError(
                f"A decoder cuts a vector of {self.size} numbers into the states of its {self.layers} layers: "
                "give sizes that divide."
            )
        self.gru = StackedGRU(self.size // self.layers, self.layers, self.dtype, self.cell)
        self.project = nn.Dense(
            self.vocabulary,
            use_bias=False,
            kernel_init=nn.initializers.xavier_uniform(),
            dtype=self.dtype,
            dot_general=partial(jax.lax.dot_general, preferred_element_type=jnp.float32),
        )

    def begin(self, vector: Float[AnyArray, "n d"]) -> tuple[Float[Array, "n h"], ...]:
        """The states of the layers before the first word."""
        return tuple(jnp.split(jnp.asarray(vector, jnp.float32), self.layers, axis=-1))

    def __call__(
        self, vector: Float[AnyArray, "n d"], words: Float[AnyArray, "n t f"], mask: Bool[AnyArray, "n t"]
    ) -> Float[Array, "n t v"]:
        """Logits after each of the words (teacher forcing); those at padding, which may only follow, mean nothing."""
        return self.project(self.gru(words, mask, self.begin(vector))[-1])

    def step(
        self, states: Sequence[Float[AnyArray, "n h"]], word: Float[AnyArray, "n f"]
    ) -> tuple[tuple[Float[Array, "n h"], ...], Float[Array, "n v"]]:
        """(states, logits) after one word further."""
        after = self.gru.step(states, word)
        return after, self.project(after[-1])


class LSTMDecoder(nn.Module):
    """An LSTM of H units and a projection with a bias to the vocabulary; words are vectors, as in :class:`Decoder`.

    Attributes:
        vocabulary: V.
        word_dim: F, the size of a word's vector.
        lstm: the layer; that of a sentence encoder shares its parameters. Its type of matrix products is the decoder's.
        start: how an item's vector [D] enters. "state": it is the hidden state before the first word, D = H, over a
            cell of zeros. "input": mapped to F numbers, it is read as a word before the first (Vinyals, Toshev, Bengio,
            Erhan, "Show and Tell", CVPR 2015).
    """

    vocabulary: int
    word_dim: int
    lstm: LSTM
    start: str = "state"

    def setup(self) -> None:
        if self.start not in STARTS:
            raise UsageError(f'No start "{self.start}" of a decoder; there are {", ".join(STARTS)}.')
        dtype = self.lstm.dtype
        self.project = nn.Dense(
            self.vocabulary,
            kernel_init=nn.initializers.xavier_uniform(),
            dtype=dtype,
            dot_general=partial(jax.lax.dot_general, preferred_element_type=jnp.float32),
        )
        if self.start == "input":
            self.enter = xavier(self.word_dim, dtype)

    def begin(self, vector: Float[AnyArray, "n d"]) -> LSTMState:
        """The state before the first word."""
        state = self.lstm.begin(vector.shape[0])
        if self.start == "input":
            return self.lstm.step(state, self.enter(vector))
        return state._replace(hidden=jnp.asarray(vector, jnp.float32))

    def __call__(
        self, vector: Float[AnyArray, "n d"], words: Float[AnyArray, "n t f"], mask: Bool[AnyArray, "n t"]
    ) -> Float[Array, "n t v"]:
        """Logits after each of the words (teacher forcing); those at padding, which may only follow, mean nothing."""
        return self.project(self.lstm(words, mask, self.begin(vector)).hidden)

    def step(self, state: LSTMState, word: Float[AnyArray, "n f"]) -> tuple[LSTMState, Float[Array, "n v"]]:
        """(state, logits) after one word further."""
        after = self.lstm.step(state, word)
        return after, self.project(after.hidden)
