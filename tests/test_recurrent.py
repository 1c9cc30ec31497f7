"""The GRU: its hand-written backward pass against automatic differentiation of a plain loop, both cell forms, initial
states, single steps, stacks, masks, directions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.layers import recurrent
from xmodal_jax.layers.recurrent import CELLS, GRU, StackedGRU, gru_scan, last_state
from xmodal_jax.layers.text import GRUText


def pytorch(params, word, state):
    """From the equations of PyTorch's GRU: reset acts after the recurrent product."""
    r_in, z_in, n_in = jnp.split(word @ params["input"] + params["input_bias"], 3, axis=-1)
    r_rec, z_rec, n_rec = jnp.split(state @ params["recurrent"] + params["recurrent_bias"], 3, axis=-1)
    reset, update = jax.nn.sigmoid(r_in + r_rec), jax.nn.sigmoid(z_in + z_rec)
    return (1 - update) * jnp.tanh(n_in + reset * n_rec) + update * state


def tensorflow(params, word, state):
    """From the equations of TensorFlow's GRUCell: reset acts on the state."""
    both = jnp.concatenate([word, state], axis=-1)
    gates = jax.nn.sigmoid(both @ params["gates_kernel"] + params["gates_bias"])
    reset, update = jnp.split(gates, 2, axis=-1)
    both = jnp.concatenate([word, reset * state], axis=-1)
    candidate = jnp.tanh(both @ params["candidate_kernel"] + params["candidate_bias"])
    return update * state + (1 - update) * candidate


PLAIN = {"pytorch": pytorch, "tensorflow": tensorflow}


def plain(cell, params, words, mask, state):
    """A loop over words; states [C, W, H]."""
    states = []
    for t in range(words.shape[1]):
        state = jnp.where(mask[:, t, None], PLAIN[cell](params, words[:, t], state), state)
        states.append(state)
    return jnp.stack(states, axis=1)


def parameters(gru, *args):
    """Random ones, biases too."""
    leaves, tree = jax.tree.flatten(gru.init(jax.random.key(0), *args)["params"])
    random = np.random.default_rng(2)
    noise = [0.3 * random.normal(size=leaf.shape) for leaf in leaves]
    return jax.tree.unflatten(tree, [leaf + jnp.asarray(n, jnp.float32) for leaf, n in zip(leaves, noise, strict=True)])


@pytest.fixture
def inputs():
    random = np.random.default_rng(0)
    words = jnp.asarray(random.normal(size=(4, 6, 3)), jnp.float32)
    mask = jnp.arange(6) < jnp.array([6, 3, 1, 0])[:, None]
    return words, mask


@pytest.mark.parametrize("hoist", [False, True])  # what a CPU and what an accelerator runs
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_states_and_gradients_equal_the_plain_loop(inputs, cell, reverse, hoist, monkeypatch):
    monkeypatch.setattr(recurrent, "by_platform", lambda function, reverse, *args: function(reverse, hoist, *args))
    words, mask = inputs
    gru: Any = GRU(5, reverse=reverse, cell=cell)
    params = parameters(gru, words, mask)
    random = np.random.default_rng(1)
    start, weight = (jnp.asarray(random.normal(size=size), jnp.float32) for size in ((4, 5), (4, 6, 5)))

    def flip(x):
        return jnp.flip(x, axis=1) if reverse else x

    def ours(params, words, start):  # states at padding are not promised
        return jnp.sum(jnp.where(mask[..., None], weight * gru.apply({"params": params}, words, mask, start), 0))

    def reference(params, words, start):
        states = flip(plain(cell, params, flip(words), flip(mask), start))
        return jnp.sum(jnp.where(mask[..., None], weight * states, 0))

    value, grads = jax.jit(jax.value_and_grad(ours, argnums=(0, 1, 2)))(params, words, start)
    two, expected = jax.jit(jax.value_and_grad(reference, argnums=(0, 1, 2)))(params, words, start)
    assert float(value) == pytest.approx(float(two), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), grads, expected)
    at_zero, none = (gru.apply({"params": params}, words, mask, *more) for more in ((jnp.zeros((4, 5)),), ()))
    np.testing.assert_array_equal(at_zero, none)


@pytest.mark.parametrize("cell", CELLS)
def test_single_steps_scans_and_stacks_give_the_same_states(inputs, cell):
    words, _ = inputs
    mask, start = jnp.ones((4, 6), bool), [jnp.full((4, 5), value) for value in (0.5, -0.5)]
    stack: Any = StackedGRU(5, 2, cell=cell)
    params = parameters(stack, words, mask)
    assert set(params) == {"layer_0", "layer_1"}
    states = stack.apply({"params": params}, words, mask, start)
    below = plain(cell, params["layer_0"], words, mask, start[0])
    np.testing.assert_allclose(states[0], below, atol=1e-5)
    np.testing.assert_allclose(states[1], plain(cell, params["layer_1"], below, mask, start[1]), atol=1e-5)
    carry = tuple(start)
    for t in range(6):
        carry = stack.apply({"params": params}, carry, words[:, t], method="step")
        for layer in range(2):
            np.testing.assert_allclose(carry[layer], states[layer][:, t], atol=1e-5)
    gru: Any = GRU(5, cell=cell)
    weights = gru.apply({"params": params["layer_0"]}, 3, method="weights")
    scanned = gru_scan(cell, False, jnp.swapaxes(words, 0, 1), mask.T, start[0], *weights)
    np.testing.assert_allclose(jnp.swapaxes(scanned, 0, 1), states[0], atol=1e-5)


def test_initial_values_of_the_tensorflow_form():
    gru: Any = GRU(8, cell="tensorflow")
    params: Any = gru.init(jax.random.key(0), jnp.zeros((1, 2, 3)), jnp.ones((1, 2), bool))["params"]
    np.testing.assert_array_equal(params["gates_bias"], np.ones(16))
    np.testing.assert_array_equal(params["candidate_bias"], np.zeros(8))
    gates, candidate = params["gates_kernel"], params["candidate_kernel"]
    np.testing.assert_allclose(gates @ gates.T, np.eye(11), atol=1e-5)
    np.testing.assert_allclose(candidate.T @ candidate, np.eye(8), atol=1e-5)


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
