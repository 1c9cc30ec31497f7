"""Long short-term memory in PyTorch's form: words in context by one direction or both, and single words.

The loops are those of :mod:`xmodal_jax.layers.recurrent`: they end with the longest caption, and the projection of
the inputs is hoisted out of them on accelerators.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.errors import UsageError
from xmodal_jax.layers.recurrent import by_platform, longest, product, scanning, uniform
from xmodal_jax.similarity import AnyArray

MERGES = ("sum", "mean", "concatenation")


class LSTMState(NamedTuple):
    """What an LSTM carries from word to word, and what it gives after each: ``hidden`` is its output."""

    hidden: Any  # [C, H]
    cell: Any  # [C, H]


def lstm_gates(cell: Any, inputs: Any) -> tuple[LSTMState, Any]:
    """The next state from the cell before (0 at the beginning) and the sums [C, 4H] that the four gates read; and the
    gates [C, 4H] after their nonlinearities."""
    into, forget, new, out = jnp.split(inputs, 4, axis=-1)
    into, forget, out, new = *map(jax.nn.sigmoid, (into, forget, out)), jnp.tanh(new)
    cell = forget * cell + into * new
    return LSTMState(out * jnp.tanh(cell), cell), jnp.concatenate([into, forget, new, out], axis=-1)


def lstm_cell(state: LSTMState, inputs: Any, matrix: Any) -> tuple[LSTMState, Any]:
    """:func:`lstm_gates` after the projected word [C, 4H]."""
    return lstm_gates(state.cell, inputs + product(state.hidden, matrix))


def _cell_back(live: LSTMState, state: LSTMState, gates: Any, cell: Any, matrix: Any) -> tuple[Any, LSTMState]:
    """Gradients at the gates' inputs [C, 4H] and at the state before, from those at the state after."""
    into, forget, new, out = jnp.split(gates, 4, axis=-1)
    squashed = jnp.tanh(cell)
    d_cell = live.cell + live.hidden * out * (1.0 - jnp.square(squashed))
    parts = (
        d_cell * new * into * (1.0 - into),
        d_cell * state.cell * forget * (1.0 - forget),
        d_cell * into * (1.0 - jnp.square(new)),
        live.hidden * squashed * out * (1.0 - out),
    )
    d_in = jnp.concatenate(parts, axis=-1)
    return d_in, LSTMState(product(d_in, matrix.T), d_cell * forget)


def _choose(real: Any, yes: LSTMState, no: LSTMState) -> LSTMState:
    return jax.tree.map(lambda a, b: jnp.where(real[:, None], a, b), yes, no)


def _forward(reverse, hoist, words, mask, start, matrix_in, matrix, bias):
    """States after each word, states before it, and the gates; zeros after the longest caption."""
    last, size = longest(mask), matrix.shape[0]

    def project(x: Any) -> Any:
        return product(x, matrix_in) + bias

    projected: Any = project(words) if hoist else None

    def body(i, carry):
        state, kept = carry
        t = last - 1 - i if reverse else i
        after, gates = lstm_cell(state, projected[t] if hoist else project(words[t]), matrix)
        after = _choose(mask[t], after, state)
        return after, jax.tree.map(lambda store, value: store.at[t].set(value), kept, (after, state, gates))

    def zeros(width: int) -> Any:
        return jnp.zeros((*mask.shape, width), jnp.float32)

    stores = (LSTMState(zeros(size), zeros(size)), LSTMState(zeros(size), zeros(size)), zeros(4 * size))
    return jax.lax.fori_loop(0, last, body, (start, stores))[1]


def _backward(reverse, hoist, kept, words, mask, matrix_in, matrix, cotangent):
    after, before, gates = kept
    last = longest(mask)
    start = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), before)

    def back_cell(i, back):
        t = i if reverse else last - 1 - i
        total = LSTMState(*(a + b[t] for a, b in zip(back, cotangent, strict=True)))
        live = _choose(mask[t], total, start)
        d_in, through = _cell_back(live, LSTMState(*(x[t] for x in before)), gates[t], after.cell[t], matrix)
        return t, d_in, _choose(mask[t], through, total)

    def weights(x, state, d_in):
        def dot(rows, like):
            return jnp.dot(rows.astype(like.dtype).T, d_in.astype(like.dtype), preferred_element_type=jnp.float32)

        return dot(x, matrix_in), dot(state, matrix), jnp.sum(d_in, axis=0)

    def storing(i, carry):
        back, store = carry
        t, d_in, back = back_cell(i, back)
        return back, store.at[t].set(d_in)

    def adding(i, carry):
        back, d_words, sums = carry
        t, d_in, back = back_cell(i, back)
        sums = jax.tree.map(jnp.add, sums, weights(words[t], before.hidden[t], d_in))
        return back, d_words.at[t].set(product(d_in, matrix_in.T)), sums

    if hoist:
        d_start, d_in = jax.lax.fori_loop(0, last, storing, (start, jnp.zeros_like(gates)))
        rows = (x.reshape(-1, x.shape[-1]) for x in (words, before.hidden, d_in))
        d_words, sums = product(d_in, matrix_in.T), weights(*rows)
    else:
        shapes = (matrix_in.shape, matrix.shape, matrix.shape[1:])
        sums = tuple(jnp.zeros(shape, jnp.float32) for shape in shapes)
        carry = (start, jnp.zeros(words.shape, jnp.float32), sums)
        d_start, d_words, sums = jax.lax.fori_loop(0, last, adding, carry)
    d_in_matrix, d_matrix, d_bias = sums
    return d_words.astype(words.dtype), None, d_start, d_in_matrix, d_matrix, d_bias


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def lstm_loop(
    reverse: bool,
    words: Float[AnyArray, "w c f"],
    mask: Bool[AnyArray, "w c"],
    start: LSTMState,
    matrix_in: Float[AnyArray, "f h4"],
    matrix: Float[AnyArray, "h h4"],
    bias: Float[AnyArray, "h4"],
) -> LSTMState:
    """States [W, C, H] of an LSTM over time-major inputs; gates in the order input, forget, new, output.

    Masks, the end of the loop and the written-out backward pass are as in
    :func:`xmodal_jax.layers.recurrent.gru_loop`.
    """
    return _lstm_forward(reverse, words, mask, start, matrix_in, matrix, bias)[0]


def _lstm_forward(reverse, words, mask, start, matrix_in, matrix, bias):
    kept: Any = by_platform(_forward, reverse, words, mask, start, matrix_in, matrix, bias)
    return kept[0], (kept, words, mask, matrix_in, matrix)


def _lstm_backward(reverse, saved, cotangent):
    gradients = by_platform(_backward, reverse, *saved, cotangent)
    _, _, _, matrix_in, matrix = saved
    *others, d_in_matrix, d_matrix, d_bias = gradients
    return *others, d_in_matrix.astype(matrix_in.dtype), d_matrix.astype(matrix.dtype), d_bias


lstm_loop.defvjp(_lstm_forward, _lstm_backward)


def lstm_scan(reverse: bool, words: Any, mask: Any, start: LSTMState, matrix_in: Any, matrix: Any, bias: Any) -> Any:
    """The states of :func:`lstm_loop` by a scan forwards over all words, which other formats than XLA's know."""

    def step(state: LSTMState, item: tuple[Any, Any]) -> tuple[LSTMState, LSTMState]:
        word, real = item
        after = _choose(real, lstm_cell(state, product(word, matrix_in) + bias, matrix)[0], state)
        return after, after

    def turn(x: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.flip(leaf, 0), x) if reverse else x

    return turn(jax.lax.scan(step, start, (turn(words), turn(mask)))[1])


class LSTM(nn.Module):
    """One direction of an LSTM, words [C, W, F] to states [C, W, H]; padding may only follow the words.

    States at padding repeat the last one or are zero. All weights and biases start in U(-1/sqrt(H), 1/sqrt(H)) as
    PyTorch's do; ``input [F, 4H]`` and ``recurrent [H, 4H]`` are its ``weight_ih`` and ``weight_hh`` transposed, and of
    its two biases, which are only ever added, ``bias`` is the sum.

    Attributes:
        size: H.
        reverse: read from the last word to the first.
        dtype: the type of the matrix products.
    """

    size: int
    reverse: bool = False
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def weights(self, features: int) -> tuple[Any, Any, Any]:
        """``matrix_in``, ``matrix`` and ``bias`` of :func:`lstm_loop` for words of F = ``features``."""
        init = uniform(self.size**-0.5)
        matrix_in = self.param("input", init, (features, 4 * self.size))
        matrix = self.param("recurrent", init, (self.size, 4 * self.size))
        bias = self.param("bias", init, (4 * self.size,))
        return matrix_in.astype(self.dtype), matrix.astype(self.dtype), bias

    def begin(self, count: Any) -> LSTMState:
        """The state of ``count`` captions before their first word, zeros; an export gives a symbol for it."""
        return LSTMState(*(jnp.zeros((count, self.size), jnp.float32) for _ in range(2)))

    def __call__(
        self, words: Float[AnyArray, "c w f"], mask: Bool[AnyArray, "c w"], start: LSTMState | None = None
    ) -> LSTMState:
        """States after each word, from the state ``start`` (zeros by default)."""
        weights = self.weights(words.shape[-1])
        loop = lstm_scan if scanning() else lstm_loop
        start = self.begin(words.shape[0]) if start is None else start
        states: Any = loop(self.reverse, jnp.swapaxes(words, 0, 1), jnp.asarray(mask).T, start, *weights)
        return LSTMState(*(jnp.swapaxes(x, 0, 1) for x in states))

    def step(self, state: LSTMState, word: Float[AnyArray, "c f"]) -> LSTMState:
        """The state after one further word."""
        matrix_in, matrix, bias = self.weights(word.shape[-1])
        return lstm_cell(state, product(word, matrix_in) + bias, matrix)[0]


class BiLSTM(nn.Module):
    """Words in context: the outputs [C, W, D] of an LSTM each way; zero at padding.

    Attributes:
        size: H.
        merge: of both directions: "sum", "mean", or "concatenation", where D is 2 H and else H.
        dtype: the type of the matrix products.
    """

    size: int
    merge: str = "sum"
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, words: Float[AnyArray, "c w f"], mask: Bool[AnyArray, "c w"]) -> Float[Array, "c w d"]:
        if self.merge not in MERGES:
            raise UsageError(f'No merge "{self.merge}" of two directions; there are {", ".join(MERGES)}.')
        forward = LSTM(self.size, dtype=self.dtype, name="forward")(words, mask).hidden
        backward = LSTM(self.size, reverse=True, dtype=self.dtype, name="backward")(words, mask).hidden
        if self.merge == "concatenation":
            states = jnp.concatenate([forward, backward], axis=-1)
        else:
            states = (forward + backward) * (0.5 if self.merge == "mean" else 1.0)
        return jnp.where(jnp.asarray(mask)[..., None], states, 0.0)
