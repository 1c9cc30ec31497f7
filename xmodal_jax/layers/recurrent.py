"""A gated recurrent unit in PyTorch's cell form; on accelerators the input projection is hoisted out of the loop."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def uniform(scale: float) -> nn.initializers.Initializer:
    """U(-scale, scale)."""
    return lambda key, shape, dtype=jnp.float32, **_: jax.random.uniform(key, shape, dtype, -scale, scale)


def _dot(x: Any, matrix: Any) -> Any:
    return jnp.dot(x.astype(matrix.dtype), matrix, preferred_element_type=jnp.float32)


def _steps(mask: Any) -> Any:
    """Words of the longest caption; the loops end there."""
    return jnp.max(jnp.where(mask, jnp.arange(1, mask.shape[0] + 1)[:, None], 0))


def cell(hidden: Any, inputs: Any, matrix: Any, bias: Any) -> tuple[Any, Any, Any, Any, Any]:
    """The next state [C, H] after the projected word [C, 3H]; then reset, update, new and the recurrent part of new."""
    reset_in, update_in, new_in = jnp.split(inputs, 3, axis=-1)
    reset_rec, update_rec, new_rec = jnp.split(_dot(hidden, matrix) + bias, 3, axis=-1)
    reset = jax.nn.sigmoid(reset_in + reset_rec)
    update = jax.nn.sigmoid(update_in + update_rec)
    new = jnp.tanh(new_in + reset * new_rec)  # reset acts after the recurrent product, as in PyTorch and Theano
    return (1.0 - update) * new + update * hidden, reset, update, new, new_rec


def _forward(reverse, hoist, words, mask, matrix_in, bias_in, matrix, bias):
    shape = (*mask.shape, matrix.shape[0])
    last = _steps(mask)

    def project(x: Any) -> Any:
        return _dot(x, matrix_in) + bias_in

    projected: Any = project(words) if hoist else None

    def body(i, carry):
        hidden, kept = carry
        t = last - 1 - i if reverse else i
        after, *gates = cell(hidden, projected[t] if hoist else project(words[t]), matrix, bias)
        after = jnp.where(mask[t][:, None], after, hidden)
        values = (after, hidden, *gates)
        return after, tuple(store.at[t].set(value) for store, value in zip(kept, values, strict=True))

    start = jnp.zeros(shape[1:], jnp.float32)
    return jax.lax.fori_loop(0, last, body, (start, tuple(jnp.zeros(shape, jnp.float32) for _ in range(6))))[1]


def _backward(reverse, hoist, kept, words, mask, matrix_in, matrix, cotangent):
    hidden, reset, update, new, new_rec = kept
    last = _steps(mask)

    def back_cell(t, back):
        """Gradients at the gates' two inputs, [C, 3H] each, and at the state before word t."""
        total = back + cotangent[t]
        live = jnp.where(mask[t][:, None], total, 0.0)
        d_new = live * (1.0 - update[t]) * (1.0 - jnp.square(new[t]))
        d_reset = d_new * new_rec[t] * reset[t] * (1.0 - reset[t])
        d_update = live * (hidden[t] - new[t]) * update[t] * (1.0 - update[t])
        d_in = jnp.concatenate([d_reset, d_update, d_new], axis=-1)
        d_rec = jnp.concatenate([d_reset, d_update, d_new * reset[t]], axis=-1)
        through = live * update[t] + _dot(d_rec, matrix.T)
        return d_in, d_rec, jnp.where(mask[t][:, None], through, total)

    def weights(x, state, d_in, d_rec):
        """Gradients of both matrices and biases from rows of inputs, states and gate gradients."""
        dot = partial(jnp.dot, preferred_element_type=jnp.float32)
        d_matrix_in = dot(x.astype(matrix_in.dtype).T, d_in.astype(matrix_in.dtype))
        d_matrix = dot(state.astype(matrix.dtype).T, d_rec.astype(matrix.dtype))
        return d_matrix_in, jnp.sum(d_in, axis=0), d_matrix, jnp.sum(d_rec, axis=0)

    def storing(i, carry):
        back, stores = carry
        t = i if reverse else last - 1 - i
        *values, back = back_cell(t, back)
        return back, tuple(store.at[t].set(value) for store, value in zip(stores, values, strict=True))

    def adding(i, carry):
        back, d_words, sums = carry
        t = i if reverse else last - 1 - i
        d_in, d_rec, back = back_cell(t, back)
        sums = jax.tree.map(jnp.add, sums, weights(words[t], hidden[t], d_in, d_rec))
        return back, d_words.at[t].set(_dot(d_in, matrix_in.T)), sums

    def zeros(*shape: int) -> Any:
        return jnp.zeros(shape, jnp.float32)

    gates = matrix.shape[1]
    if hoist:
        stores = (zeros(*mask.shape, gates), zeros(*mask.shape, gates))
        d_in, d_rec = jax.lax.fori_loop(0, last, storing, (jnp.zeros_like(hidden[0]), stores))[1]
        rows = (x.reshape(-1, x.shape[-1]) for x in (words, hidden, d_in, d_rec))
        d_words, sums = _dot(d_in, matrix_in.T), weights(*rows)
    else:
        start = (zeros(*matrix_in.shape), zeros(gates), zeros(*matrix.shape), zeros(gates))
        _, d_words, sums = jax.lax.fori_loop(0, last, adding, (jnp.zeros_like(hidden[0]), zeros(*words.shape), start))
    d_matrix_in, d_bias_in, d_matrix, d_bias = sums
    return (
        d_words.astype(words.dtype),
        None,
        d_matrix_in.astype(matrix_in.dtype),
        d_bias_in,
        d_matrix.astype(matrix.dtype),
        d_bias,
    )


def _by_platform(function: Any, reverse: bool, *args: Any) -> Any:
    """On an accelerator one large product before the loop is cheapest. On a CPU it is not: the array it fills does
    not stay in the cache, and padding is multiplied too; project word by word there."""
    return jax.lax.platform_dependent(
        *args, cpu=partial(function, reverse, False), default=partial(function, reverse, True)
    )


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def gru_loop(
    reverse: bool,
    words: Float[Array, "w c f"],
    mask: Bool[Array, "w c"],
    matrix_in: Float[Array, "f h3"],
    bias_in: Float[Array, "h3"],
    matrix: Float[Array, "h h3"],
    bias: Float[Array, "h3"],
) -> Float[Array, "w c h"]:
    """Hidden states of a GRU over time-major inputs; gates in the order reset, update, new.

    Where ``mask`` is False the state is carried over, so a reversed pass starts at each caption's last word. The
    loop ends with the longest caption (later states are zero), which automatic differentiation cannot reverse: the
    backward pass is written out.
    """
    return _by_platform(_forward, reverse, words, mask, matrix_in, bias_in, matrix, bias)[0]


def _gru_forward(reverse, words, mask, matrix_in, bias_in, matrix, bias):
    states, *kept = _by_platform(_forward, reverse, words, mask, matrix_in, bias_in, matrix, bias)
    return states, (tuple(kept), words, mask, matrix_in, matrix)


def _gru_backward(reverse, saved, cotangent):
    return _by_platform(_backward, reverse, *saved, cotangent)


gru_loop.defvjp(_gru_forward, _gru_backward)


def gru_scan(reverse: bool, words: Any, mask: Any, matrix_in: Any, bias_in: Any, matrix: Any, bias: Any) -> Any:
    """The states of :func:`gru_loop` by a scan forwards over all words, which other formats than XLA's know."""

    def step(hidden: Any, own: tuple[Any, Any]) -> tuple[Any, Any]:
        word, real = own
        after = jnp.where(real[:, None], cell(hidden, _dot(word, matrix_in) + bias_in, matrix, bias)[0], hidden)
        return after, after

    def turn(x: Any) -> Any:
        return jnp.flip(x, 0) if reverse else x

    start = jnp.zeros((mask.shape[1], matrix.shape[0]), jnp.float32)
    return turn(jax.lax.scan(step, start, (turn(words), turn(mask)))[1])


_scans = contextvars.ContextVar("scans", default=False)


@contextlib.contextmanager
def scanned() -> Iterator[None]:
    """GRUs that are traced inside run through :func:`gru_scan`."""
    token = _scans.set(True)
    try:
        yield
    finally:
        _scans.reset(token)


class GRU(nn.Module):
    """One direction of a GRU, words [C, W, F] to states [C, W, H]; padding may only follow the words.

    States at padding repeat the last one or are zero. All weights and biases start in U(-1/sqrt(H), 1/sqrt(H)) as
    PyTorch's do. Parameters ``input [F, 3H]``, ``recurrent [H, 3H]`` and their biases are PyTorch's ``weight_ih``,
    ``weight_hh`` transposed.
    """

    size: int
    reverse: bool = False
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, words: Float[Array, "c w f"], mask: Bool[Array, "c w"]) -> Float[Array, "c w h"]:
        init = uniform(self.size**-0.5)
        matrix_in = self.param("input", init, (words.shape[-1], 3 * self.size))
        bias_in = self.param("input_bias", init, (3 * self.size,))
        matrix = self.param("recurrent", init, (self.size, 3 * self.size))
        bias = self.param("recurrent_bias", init, (3 * self.size,))
        real = jnp.asarray(mask).T  # a NumPy mask cannot be indexed by a traced step
        weights = (matrix_in.astype(self.dtype), bias_in, matrix.astype(self.dtype), bias)
        loop = gru_scan if _scans.get() else gru_loop
        states: Any = loop(self.reverse, jnp.swapaxes(words, 0, 1), real, *weights)
        return jnp.swapaxes(states, 0, 1)


class BiGRU(nn.Module):
    """Words in context: the states [C, W, D] of a GRU each way, averaged (SCAN, released code); zero at padding."""

    size: int
    bidirectional: bool = True
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, words: Float[Array, "c w f"], mask: Bool[Array, "c w"]) -> Float[Array, "c w d"]:
        states = GRU(self.size, dtype=self.dtype, name="forward")(words, mask)
        if self.bidirectional:
            states = (states + GRU(self.size, reverse=True, dtype=self.dtype, name="backward")(words, mask)) / 2
        return jnp.where(jnp.asarray(mask)[..., None], states, 0.0)


def last_state(states: Float[Array, "c w h"], mask: Bool[Array, "c w"]) -> Float[Array, "c h"]:
    """The state at the last real word; zeros for a caption without words. Padding may only follow the words."""
    index = jnp.maximum(jnp.sum(mask, axis=1) - 1, 0)
    state = jnp.take_along_axis(states, index[:, None, None], axis=1)[:, 0]
    return jnp.where(jnp.any(mask, axis=1)[:, None], state, 0.0)
