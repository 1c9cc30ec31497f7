"""The GRU: its hand-written backward pass against automatic differentiation of a plain loop, masks, directions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.layers import recurrent
from xmodal_jax.layers.recurrent import GRU, last_state
from xmodal_jax.layers.text import GRUText


def plain(params, words, mask):
    """A loop over words from the equations of PyTorch's GRU; states [C, W, H]."""
    state = jnp.zeros((words.shape[0], params["recurrent"].shape[0]))
    states = []
    for t in range(words.shape[1]):
        r_in, z_in, n_in = jnp.split(words[:, t] @ params["input"] + params["input_bias"], 3, axis=-1)
        r_rec, z_rec, n_rec = jnp.split(state @ params["recurrent"] + params["recurrent_bias"], 3, axis=-1)
        reset, update = jax.nn.sigmoid(r_in + r_rec), jax.nn.sigmoid(z_in + z_rec)
        new = (1 - update) * jnp.tanh(n_in + reset * n_rec) + update * state
        state = jnp.where(mask[:, t, None], new, state)
        states.append(state)
    return jnp.stack(states, axis=1)


@pytest.fixture
def inputs():
    random = np.random.default_rng(0)
    words = jnp.asarray(random.normal(size=(4, 6, 3)), jnp.float32)
    mask = jnp.arange(6) < jnp.array([6, 3, 1, 0])[:, None]
    return words, mask


@pytest.mark.parametrize("hoist", [False, True])  # what a CPU and what an accelerator runs
@pytest.mark.parametrize("reverse", [False, True])
def test_states_and_gradients_equal_the_plain_loop(inputs, reverse, hoist, monkeypatch):
    monkeypatch.setattr(recurrent, "_by_platform", lambda function, reverse, *args: function(reverse, hoist, *args))
    words, mask = inputs
    gru: Any = GRU(5, reverse=reverse)
    params = gru.init(jax.random.key(0), words, mask)["params"]
    weight = jnp.asarray(np.random.default_rng(1).normal(size=(4, 6, 5)), jnp.float32)

    def flip(x):
        return jnp.flip(x, axis=1) if reverse else x

    def ours(params, words):  # states at padding are not promised
        return jnp.sum(jnp.where(mask[..., None], weight * gru.apply({"params": params}, words, mask), 0))

    def reference(params, words):
        return jnp.sum(jnp.where(mask[..., None], weight * flip(plain(params, flip(words), flip(mask))), 0))

    one, grads = jax.value_and_grad(ours, argnums=(0, 1))(params, words)
    two, expected = jax.value_and_grad(reference, argnums=(0, 1))(params, words)
    assert float(one) == pytest.approx(float(two), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), grads, expected)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_more_padding_changes_nothing(inputs, bidirectional):
    _, mask = inputs
    token = jnp.where(mask, 7, 0)
    encoder: Any = GRUText(9, 4, 5, bidirectional=bidirectional)
    variables = encoder.init(jax.random.key(0), token, mask)
    narrow = encoder.apply(variables, token, mask)
    wide = encoder.apply(variables, jnp.pad(token, ((0, 0), (0, 5))), jnp.pad(mask, ((0, 0), (0, 5))))
    np.testing.assert_allclose(narrow, wide, atol=1e-7)


def test_last_state_of_an_empty_caption_is_zero(inputs):
    _, mask = inputs
    states = jnp.ones((4, 6, 2))
    np.testing.assert_array_equal(last_state(states, mask), [[1, 1], [1, 1], [1, 1], [0, 0]])


def test_bfloat16_stays_close_and_keeps_float32_parameters(inputs):
    words, mask = inputs
    full: Any = GRU(5)
    half: Any = GRU(5, dtype=jnp.dtype("bfloat16"))
    variables = half.init(jax.random.key(0), words, mask)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    out = half.apply(variables, words, mask)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, full.apply(variables, words, mask), atol=0.02)
    grads = jax.grad(lambda p: half.apply(p, words, mask).sum())(variables)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(grads))
