"""A gated recurrent unit in PyTorch's cell form: input projection hoisted out of the loop, padding not computed."""

from __future__ import annotations

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


def _forward(reverse, projected, mask, matrix, bias):
    words, captions, size = projected.shape[0], projected.shape[1], matrix.shape[0]
    last = _steps(mask)

    def body(i, carry):
        hidden, kept = carry
        t = last - 1 - i if reverse else i
        reset_in, update_in, new_in = jnp.split(projected[t], 3, axis=-1)
        reset_rec, update_rec, new_rec = jnp.split(_dot(hidden, matrix) + bias, 3, axis=-1)
        reset = jax.nn.sigmoid(reset_in + reset_rec)
        update = jax.nn.sigmoid(update_in + update_rec)
        new = jnp.tanh(new_in + reset * new_rec)  # reset acts after the recurrent product, as in PyTorch and Theano
        after = jnp.where(mask[t][:, None], (1.0 - update) * new + update * hidden, hidden)
        values = (after, hidden, reset, update, new, new_rec)
        return after, tuple(store.at[t].set(value) for store, value in zip(kept, values, strict=True))

    start = jnp.zeros((captions, size), jnp.float32)
    kept = tuple(jnp.zeros((words, captions, size), jnp.float32) for _ in range(6))
    states, *residual = jax.lax.fori_loop(0, last, body, (start, kept))[1]
    return states, (residual, mask, matrix)


def _backward(reverse, saved, cotangent):
    (hidden, reset, update, new, new_rec), mask, matrix = saved
    last, size = _steps(mask), matrix.shape[0]

    def body(i, carry):
        back, d_recurrent, d_new = carry
        t = i if reverse else last - 1 - i
        total = back + cotangent[t]
        live = jnp.where(mask[t][:, None], total, 0.0)
        d_n = live * (1.0 - update[t]) * (1.0 - jnp.square(new[t]))
        d_r = d_n * new_rec[t] * reset[t] * (1.0 - reset[t])
        d_z = live * (hidden[t] - new[t]) * update[t] * (1.0 - update[t])
        d_rec = jnp.concatenate([d_r, d_z, d_n * reset[t]], axis=-1)
        through = live * update[t] + _dot(d_rec, matrix.T)
        back = jnp.where(mask[t][:, None], through, total)
        return back, d_recurrent.at[t].set(d_rec), d_new.at[t].set(d_n)

    zeros = (jnp.zeros_like(hidden[0]), jnp.zeros((*hidden.shape[:2], 3 * size)), jnp.zeros_like(hidden))
    _, d_recurrent, d_new = jax.lax.fori_loop(0, last, body, zeros)
    d_matrix = jnp.einsum(
        "wch,wcg->hg",
        hidden.astype(matrix.dtype),
        d_recurrent.astype(matrix.dtype),
        preferred_element_type=jnp.float32,
    ).astype(matrix.dtype)
    d_projected = jnp.concatenate([d_recurrent[..., : 2 * size], d_new], axis=-1)
    return d_projected, None, d_matrix, jnp.sum(d_recurrent, axis=(0, 1))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def gru_loop(
    reverse: bool,
    projected: Float[Array, "w c h3"],
    mask: Bool[Array, "w c"],
    matrix: Float[Array, "h h3"],
    bias: Float[Array, "h3"],
) -> Float[Array, "w c h"]:
    """Hidden states of a GRU over time-major, already projected inputs; gates in the order reset, update, new.

    Where ``mask`` is False the state is carried over, so a reversed pass starts at each caption's last word. The
    loop ends with the longest caption (later states are zero), which automatic differentiation cannot reverse: the
    backward pass is written out, and forms the weight gradient of all steps in one matrix product.
    """
    return _forward(reverse, projected, mask, matrix, bias)[0]


gru_loop.defvjp(_forward, _backward)


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
        # Time-major before the product: transposing its input moves less than transposing its output.
        projected = _dot(jnp.swapaxes(words, 0, 1), matrix_in.astype(self.dtype)) + bias_in
        real = jnp.asarray(mask).T  # a NumPy mask cannot be indexed by a traced step
        states: Any = gru_loop(self.reverse, projected, real, matrix.astype(self.dtype), bias)
        return jnp.swapaxes(states, 0, 1)


def last_state(states: Float[Array, "c w h"], mask: Bool[Array, "c w"]) -> Float[Array, "c h"]:
    """The state at the last real word; zeros for a caption without words. Padding may only follow the words."""
    index = jnp.maximum(jnp.sum(mask, axis=1) - 1, 0)
    state = jnp.take_along_axis(states, index[:, None, None], axis=1)[:, 0]
    return jnp.where(jnp.any(mask, axis=1)[:, None], state, 0.0)
