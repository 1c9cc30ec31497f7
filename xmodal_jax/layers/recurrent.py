"""A gated recurrent unit in PyTorch's cell form, with the input projection hoisted out of the scan."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def uniform(scale: float) -> nn.initializers.Initializer:
    """U(-scale, scale)."""
    return lambda key, shape, dtype=jnp.float32, **_: jax.random.uniform(key, shape, dtype, -scale, scale)


def _cell(hidden, projected, matrix, bias):
    """One step; also the intermediate values that the backward pass needs. ``projected`` [C, 3H]."""
    recurrent = jnp.dot(hidden.astype(matrix.dtype), matrix, preferred_element_type=jnp.float32) + bias
    reset_in, update_in, new_in = jnp.split(projected, 3, axis=-1)
    reset_rec, update_rec, new_rec = jnp.split(recurrent, 3, axis=-1)
    reset = jax.nn.sigmoid(reset_in + reset_rec)
    update = jax.nn.sigmoid(update_in + update_rec)
    new = jnp.tanh(new_in + reset * new_rec)  # reset acts after the recurrent product, as in PyTorch and Theano
    return (1.0 - update) * new + update * hidden, (hidden, reset, update, new, new_rec)


def _scan(projected, mask, matrix, bias):
    def step(hidden, inputs):
        x, real = inputs
        proposed, residual = _cell(hidden, x, matrix, bias)
        hidden = jnp.where(real[:, None], proposed, hidden)
        return hidden, (hidden, residual)

    start = jnp.zeros((projected.shape[1], matrix.shape[0]), jnp.float32)
    return jax.lax.scan(step, start, (projected, mask))[1]


@jax.custom_vjp
def gru_scan(
    projected: Float[Array, "w c h3"],
    mask: Bool[Array, "w c"],
    matrix: Float[Array, "h h3"],
    bias: Float[Array, "h3"],
) -> Float[Array, "w c h"]:
    """Hidden states of a GRU over time-major, already projected inputs; gates in the order reset, update, new.

    Where ``mask`` is False the state is carried over unchanged, so the last state is that of the last real word
    and a reversed scan starts at it. The backward pass is written out: it gathers the gate gradients of all
    steps and forms the weight gradient in one matrix product instead of one for each step.
    """
    return _scan(projected, mask, matrix, bias)[0]


def _forward(projected, mask, matrix, bias):
    states, residual = _scan(projected, mask, matrix, bias)
    return states, (residual, mask, matrix)


def _backward(saved, cotangent):
    (hidden, reset, update, new, new_rec), mask, matrix = saved

    def step(carry, inputs):
        incoming, real, h, r, z, n, n_rec = inputs
        total = carry + incoming
        live = jnp.where(real[:, None], total, 0.0)
        d_new = live * (1.0 - z) * (1.0 - n * n)
        d_reset = d_new * n_rec * r * (1.0 - r)
        d_update = live * (h - n) * z * (1.0 - z)
        d_recurrent = jnp.concatenate([d_reset, d_update, d_new * r], axis=-1)
        back = jnp.dot(d_recurrent.astype(matrix.dtype), matrix.T, preferred_element_type=jnp.float32)
        carry = jnp.where(real[:, None], live * z + back, total)
        return carry, (d_recurrent, d_new)

    sequence = (cotangent, mask, hidden, reset, update, new, new_rec)
    _, (d_recurrent, d_new) = jax.lax.scan(step, jnp.zeros_like(hidden[0]), sequence, reverse=True)
    size = matrix.shape[0]
    d_matrix = jnp.einsum(
        "wch,wcg->hg",
        hidden.astype(matrix.dtype),
        d_recurrent.astype(matrix.dtype),
        preferred_element_type=jnp.float32,
    ).astype(matrix.dtype)
    d_projected = jnp.concatenate([d_recurrent[..., : 2 * size], d_new], axis=-1)
    return d_projected, None, d_matrix, jnp.sum(d_recurrent, axis=(0, 1))


gru_scan.defvjp(_forward, _backward)


class GRU(nn.Module):
    """One direction of a GRU, words [C, W, F] to states [C, W, H].

    All weights and biases start in U(-1/sqrt(H), 1/sqrt(H)) as PyTorch's do. Parameters ``input [F, 3H]``,
    ``recurrent [H, 3H]`` and their biases are PyTorch's ``weight_ih``, ``weight_hh`` transposed.
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
        projected = jnp.einsum(
            "cwf,fg->wcg",
            words.astype(self.dtype),
            matrix_in.astype(self.dtype),
            preferred_element_type=jnp.float32,
        )
        flip = (lambda x: jnp.flip(x, axis=0)) if self.reverse else (lambda x: x)
        states = gru_scan(flip(projected + bias_in), flip(mask.T), matrix.astype(self.dtype), bias)
        return jnp.swapaxes(flip(states), 0, 1)


def last_state(states: Float[Array, "c w h"], mask: Bool[Array, "c w"]) -> Float[Array, "c h"]:
    """The state at the last real word; zeros for a caption without words. Padding may only follow the words."""
    index = jnp.maximum(jnp.sum(mask, axis=1) - 1, 0)
    state = jnp.take_along_axis(states, index[:, None, None], axis=1)[:, 0]
    return jnp.where(jnp.any(mask, axis=1)[:, None], state, 0.0)
