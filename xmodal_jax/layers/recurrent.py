"""A gated recurrent unit in the cell forms of PyTorch and of TensorFlow 1, alone and stacked; captions or single words.

On accelerators the input projection is hoisted out of the loop.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.errors import UsageError
from xmodal_jax.layers.dense import rows_dot
from xmodal_jax.similarity import AnyArray

CELLS = ("pytorch", "tensorflow")


def uniform(scale: float) -> nn.initializers.Initializer:
    """U(-scale, scale)."""
    return lambda key, shape, dtype=jnp.float32, **_: jax.random.uniform(key, shape, dtype, -scale, scale)


def product(x: Any, matrix: Any) -> Any:
    """``x @ matrix`` in the matrix's type, summed in float32."""
    return rows_dot(x.astype(matrix.dtype), matrix)


def longest(mask: Any) -> Any:
    """Words of the longest caption; the loops end there."""
    return jnp.max(jnp.where(mask, jnp.arange(1, mask.shape[0] + 1)[:, None], 0))


def cell(form: str, hidden: Any, inputs: Any, matrix: Any, bias: Any) -> tuple[Any, Any, Any, Any, Any]:
    """The next state [C, H] after the projected word [C, 3H]; then reset, update, new and what the way back needs more.

    In PyTorch's (and Theano's) form reset acts after the candidate's recurrent product, which comes last here; in
    TensorFlow's it acts before, on the state, and the state so reset comes last. Update keeps the old state in both.
    """
    reset_in, update_in, new_in = jnp.split(inputs, 3, axis=-1)
    if form == "pytorch":
        reset_rec, update_rec, new_rec = jnp.split(product(hidden, matrix) + bias, 3, axis=-1)
        reset, update = jax.nn.sigmoid(reset_in + reset_rec), jax.nn.sigmoid(update_in + update_rec)
        more, new = new_rec, jnp.tanh(new_in + reset * new_rec)
    else:
        gates, candidate = _halves(matrix)
        gate_bias, candidate_bias = _halves(bias)
        reset_rec, update_rec = jnp.split(product(hidden, gates) + gate_bias, 2, axis=-1)
        reset, update = jax.nn.sigmoid(reset_in + reset_rec), jax.nn.sigmoid(update_in + update_rec)
        more = reset * hidden
        new = jnp.tanh(new_in + product(more, candidate) + candidate_bias)
    return (1.0 - update) * new + update * hidden, reset, update, new, more


def cell_back(form: str, live: Any, kept: tuple[Any, ...], matrix: Any) -> tuple[Any, Any, Any]:
    """Gradients at the gates' two inputs, [C, 3H] each, and at the old state, from those at the new state.

    ``kept`` is the old state and what :func:`cell` returned beside the new one.
    """
    hidden, reset, update, new, more = kept
    d_new = live * (1.0 - update) * (1.0 - jnp.square(new))
    d_update = live * (hidden - new) * update * (1.0 - update)
    if form == "pytorch":
        d_reset = d_new * more * reset * (1.0 - reset)
        d_in = jnp.concatenate([d_reset, d_update, d_new], axis=-1)
        d_rec = jnp.concatenate([d_reset, d_update, d_new * reset], axis=-1)
        return d_in, d_rec, live * update + product(d_rec, matrix.T)
    gates, candidate = _halves(matrix)
    d_more = product(d_new, candidate.T)
    d_reset = d_more * hidden * reset * (1.0 - reset)
    d_gates = jnp.concatenate([d_reset, d_update], axis=-1)
    both = jnp.concatenate([d_gates, d_new], axis=-1)
    return both, both, live * update + d_more * reset + product(d_gates, gates.T)


def _halves(x: Any) -> tuple[Any, Any]:
    """The columns of reset and update, and those of the candidate."""
    return x[..., : x.shape[-1] // 3 * 2], x[..., x.shape[-1] // 3 * 2 :]


def _forward(form, reverse, hoist, words, mask, start, matrix_in, bias_in, matrix, bias):
    shape = (*mask.shape, matrix.shape[0])
    last = longest(mask)

    def project(x: Any) -> Any:
        return product(x, matrix_in) + bias_in

    projected: Any = project(words) if hoist else None

    def body(i, carry):
        hidden, kept = carry
        t = last - 1 - i if reverse else i
        after, *gates = cell(form, hidden, projected[t] if hoist else project(words[t]), matrix, bias)
        after = jnp.where(mask[t][:, None], after, hidden)
        values = (after, hidden, *gates)
        return after, tuple(store.at[t].set(value) for store, value in zip(kept, values, strict=True))

    return jax.lax.fori_loop(0, last, body, (start, tuple(jnp.zeros(shape, jnp.float32) for _ in range(6))))[1]


def _backward(form, reverse, hoist, kept, words, mask, matrix_in, matrix, cotangent):
    last = longest(mask)

    def back_cell(t, back):
        """Gradients at the gates' two inputs, [C, 3H] each, and at the state before word t."""
        total = back + cotangent[t]
        live = jnp.where(mask[t][:, None], total, 0.0)
        d_in, d_rec, through = cell_back(form, live, tuple(value[t] for value in kept), matrix)
        return d_in, d_rec, jnp.where(mask[t][:, None], through, total)

    def weights(x, state, more, d_in, d_rec):
        """Gradients of both matrices and biases from rows of inputs, of what :func:`cell` kept, of gate gradients."""

        def dot(rows, gradient, like):
            return jnp.dot(rows.astype(like.dtype).T, gradient.astype(like.dtype), preferred_element_type=jnp.float32)

        if form == "pytorch":
            d_matrix = dot(state, d_rec, matrix)
        else:
            pairs = zip((state, more), _halves(d_rec), strict=True)
            d_matrix = jnp.concatenate([dot(rows, part, matrix) for rows, part in pairs], axis=-1)
        return dot(x, d_in, matrix_in), jnp.sum(d_in, axis=0), d_matrix, jnp.sum(d_rec, axis=0)

    def storing(i, carry):
        back, stores = carry
        t = i if reverse else last - 1 - i
        *values, back = back_cell(t, back)
        return back, tuple(store.at[t].set(value) for store, value in zip(stores, values, strict=True))

    def adding(i, carry):
        back, d_words, sums = carry
        t = i if reverse else last - 1 - i
        d_in, d_rec, back = back_cell(t, back)
        sums = jax.tree.map(jnp.add, sums, weights(words[t], hidden[t], more[t], d_in, d_rec))
        return back, d_words.at[t].set(product(d_in, matrix_in.T)), sums

    def zeros(*shape: int) -> Any:
        return jnp.zeros(shape, jnp.float32)

    hidden, *_, more = kept
    gates = matrix.shape[1]
    if hoist:
        stores = (zeros(*mask.shape, gates), zeros(*mask.shape, gates))
        d_start, (d_in, d_rec) = jax.lax.fori_loop(0, last, storing, (jnp.zeros_like(hidden[0]), stores))
        rows = (x.reshape(-1, x.shape[-1]) for x in (words, hidden, more, d_in, d_rec))
        d_words, sums = product(d_in, matrix_in.T), weights(*rows)
    else:
        sums = (zeros(*matrix_in.shape), zeros(gates), zeros(*matrix.shape), zeros(gates))
        start = (jnp.zeros_like(hidden[0]), zeros(*words.shape), sums)
        d_start, d_words, sums = jax.lax.fori_loop(0, last, adding, start)
    d_matrix_in, d_bias_in, d_matrix, d_bias = sums
    return (
        d_words.astype(words.dtype),
        None,
        d_start,
        d_matrix_in.astype(matrix_in.dtype),
        d_bias_in,
        d_matrix.astype(matrix.dtype),
        d_bias,
    )


def by_platform(function: Any, reverse: bool, *args: Any) -> Any:
    """On an accelerator one large product before the loop is cheapest. On a CPU it is not: the array it fills does
    not stay in the cache, and padding is multiplied too; project word by word there."""
    return jax.lax.platform_dependent(
        *args, cpu=partial(function, reverse, False), default=partial(function, reverse, True)
    )


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def gru_loop(
    form: str,
    reverse: bool,
    words: Float[AnyArray, "w c f"],
    mask: Bool[AnyArray, "w c"],
    start: Float[AnyArray, "c h"],
    matrix_in: Float[AnyArray, "f h3"],
    bias_in: Float[AnyArray, "h3"],
    matrix: Float[AnyArray, "h h3"],
    bias: Float[AnyArray, "h3"],
) -> Float[Array, "w c h"]:
    """Hidden states of a GRU over time-major inputs; gates in the order reset, update, new.

    Where ``mask`` is False the state is carried over, so a reversed pass starts at each caption's last word. The
    loop ends with the longest caption (later states are zero), which automatic differentiation cannot reverse: the
    backward pass is written out.
    """
    return _gru_forward(form, reverse, words, mask, start, matrix_in, bias_in, matrix, bias)[0]


def _gru_forward(form, reverse, words, mask, start, matrix_in, bias_in, matrix, bias):
    forward = partial(_forward, form)
    states, *kept = by_platform(forward, reverse, words, mask, start, matrix_in, bias_in, matrix, bias)
    return states, (tuple(kept), words, mask, matrix_in, matrix)


def _gru_backward(form, reverse, saved, cotangent):
    return by_platform(partial(_backward, form), reverse, *saved, cotangent)


gru_loop.defvjp(_gru_forward, _gru_backward)


def gru_scan(
    form: str, reverse: bool, words: Any, mask: Any, start: Any, matrix_in: Any, bias_in: Any, matrix: Any, bias: Any
) -> Any:
    """The states of :func:`gru_loop` by a scan forwards over all words, which other formats than XLA's know."""

    def step(hidden: Any, item: tuple[Any, Any]) -> tuple[Any, Any]:
        word, real = item
        after = jnp.where(
            real[:, None], cell(form, hidden, product(word, matrix_in) + bias_in, matrix, bias)[0], hidden
        )
        return after, after

    def turn(x: Any) -> Any:
        return jnp.flip(x, 0) if reverse else x

    return turn(jax.lax.scan(step, start, (turn(words), turn(mask)))[1])


_scans = contextvars.ContextVar("scans", default=False)


@contextlib.contextmanager
def scanned() -> Iterator[None]:
    """Recurrent layers that are traced inside run through scans over all words, :func:`gru_scan` and its like."""
    token = _scans.set(True)
    try:
        yield
    finally:
        _scans.reset(token)


def scanning() -> bool:
    """Whether this is traced inside :func:`scanned`."""
    return _scans.get()


class GRU(nn.Module):
    """One direction of a GRU, words [C, W, F] to states [C, W, H]; padding may only follow the words.

    States at padding repeat the last one or are zero. In PyTorch's form all weights and biases start in
    U(-1/sqrt(H), 1/sqrt(H)) as PyTorch's do; ``input [F, 3H]``, ``recurrent [H, 3H]`` and their biases are PyTorch's
    ``weight_ih``, ``weight_hh`` transposed. In TensorFlow's form the parameters are those of its GRUCell, rows
    [word; state], so that each is clipped and initialised as there: orthogonal kernels, gate biases of 1, others 0.

    Attributes:
        size: H.
        reverse: read from the last word to the first.
        dtype: the type of the matrix products.
        cell: "pytorch" or "tensorflow", see :func:`cell`.
    """

    size: int
    reverse: bool = False
    dtype: jnp.dtype = jnp.dtype("float32")
    cell: str = "pytorch"

    @nn.compact
    def weights(self, features: int) -> tuple[Any, Any, Any, Any]:
        """``matrix_in``, ``bias_in``, ``matrix`` and ``bias`` of :func:`gru_loop` for words of F = ``features``."""
        size = self.size
        if self.cell == "pytorch":
            init = uniform(size**-0.5)
            matrix_in = self.param("input", init, (features, 3 * size))
            bias_in = self.param("input_bias", init, (3 * size,))
            matrix = self.param("recurrent", init, (size, 3 * size))
            bias = self.param("recurrent_bias", init, (3 * size,))
        elif self.cell == "tensorflow":
            init = nn.initializers.orthogonal()
            gates = self.param("gates_kernel", init, (features + size, 2 * size))
            gate_bias = self.param("gates_bias", nn.initializers.ones, (2 * size,))
            candidate = self.param("candidate_kernel", init, (features + size, size))
            candidate_bias = self.param("candidate_bias", nn.initializers.zeros, (size,))
            kernel, bias_in = (
                jnp.concatenate(pair, axis=-1) for pair in ((gates, candidate), (gate_bias, candidate_bias))
            )
            matrix_in, matrix, bias = kernel[:features], kernel[features:], jnp.zeros(3 * size)
        else:
            raise UsageError(f'No GRU cell "{self.cell}"; there are {", ".join(CELLS)}.')
        return matrix_in.astype(self.dtype), bias_in, matrix.astype(self.dtype), bias

    def __call__(
        self, words: Float[AnyArray, "c w f"], mask: Bool[AnyArray, "c w"], start: Float[AnyArray, "c h"] | None = None
    ) -> Float[Array, "c w h"]:
        """States after each word, from the states ``start`` (zeros by default)."""
        weights = self.weights(words.shape[-1])
        real = jnp.asarray(mask).T  # a NumPy mask cannot be indexed by a traced step
        if start is None:
            start = jnp.zeros((words.shape[0], self.size), jnp.float32)
        loop = gru_scan if scanning() else gru_loop
        states: Any = loop(self.cell, self.reverse, jnp.swapaxes(words, 0, 1), real, start, *weights)
        return jnp.swapaxes(states, 0, 1)

    def step(self, state: Float[AnyArray, "c h"], word: Float[AnyArray, "c f"]) -> Float[Array, "c h"]:
        """The state after one further word."""
        matrix_in, bias_in, matrix, bias = self.weights(word.shape[-1])
        return cell(self.cell, state, product(word, matrix_in) + bias_in, matrix, bias)[0]


class StackedGRU(nn.Module):
    """``layers`` GRUs, each of which reads the states of the one below; see :class:`GRU`."""

    size: int
    layers: int = 1
    dtype: jnp.dtype = jnp.dtype("float32")
    cell: str = "pytorch"

    def setup(self) -> None:
        self.layer = [GRU(self.size, dtype=self.dtype, cell=self.cell) for _ in range(self.layers)]

    def __call__(
        self,
        words: Float[AnyArray, "c w f"],
        mask: Bool[AnyArray, "c w"],
        start: Sequence[Float[AnyArray, "c h"]] | None = None,
    ) -> list[Float[Array, "c w h"]]:
        """States of every layer, from the bottom up."""
        states = []
        for index, layer in enumerate(self.layer):
            words = layer(words, mask, start[index] if start is not None else None)
            states.append(words)
        return states

    def step(
        self, states: Sequence[Float[AnyArray, "c h"]], word: Float[AnyArray, "c f"]
    ) -> tuple[Float[Array, "c h"], ...]:
        """The states of every layer after one further word."""
        after = []
        for layer, state in zip(self.layer, states, strict=True):
            word = layer.step(state, word)
            after.append(word)
        return tuple(after)


class BiGRU(nn.Module):
    """Words in context: the states [C, W, D] of a GRU each way, averaged (SCAN, released code); zero at padding."""

    size: int
    bidirectional: bool = True
    dtype: jnp.dtype = jnp.dtype("float32")
    cell: str = "pytorch"

    @nn.compact
    def directions(self, words: Float[AnyArray, "c w f"], mask: Bool[AnyArray, "c w"]) -> list[Float[Array, "c w d"]]:
        """The states of each direction, forward first."""
        names = ("forward", "backward") if self.bidirectional else ("forward",)
        return [
            GRU(self.size, reverse=name == "backward", dtype=self.dtype, cell=self.cell, name=name)(words, mask)
            for name in names
        ]

    def __call__(self, words: Float[AnyArray, "c w f"], mask: Bool[AnyArray, "c w"]) -> Float[Array, "c w d"]:
        states = self.directions(words, mask)
        return jnp.where(jnp.asarray(mask)[..., None], sum(states[1:], start=states[0]) / len(states), 0.0)


def last_state(states: Float[AnyArray, "c w h"], mask: Bool[AnyArray, "c w"]) -> Float[Array, "c h"]:
    """The state at the last real word; zeros for a caption without words. Padding may only follow the words."""
    index = jnp.maximum(jnp.sum(mask, axis=1) - 1, 0)
    state = jnp.take_along_axis(states, index[:, None, None], axis=1)[:, 0]
    return jnp.where(jnp.any(mask, axis=1)[:, None], state, 0.0)
