"""The LSTM: a NumPy loop of its equations, its written-out backward pass against automatic differentiation, single
steps, scans, padding, both directions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax.errors import UsageError
from xmodal_jax.layers import lstm
from xmodal_jax.layers.lstm import LSTM, BiLSTM, LSTMState, lstm_scan

C, W, F, H = 4, 6, 3, 5
LENGTH = np.array([6, 3, 1, 0])
MASK = np.arange(W) < LENGTH[:, None]
RANDOM = np.random.default_rng(0)
WORDS = RANDOM.normal(size=(C, W, F)).astype(np.float32)
PARAMS = {
    name: RANDOM.normal(scale=0.7, size=shape).astype(np.float32)
    for name, shape in (("input", (F, 4 * H)), ("recurrent", (H, 4 * H)), ("bias", (4 * H,)))
}
START = LSTMState(*RANDOM.normal(size=(2, C, H)).astype(np.float32))


def oracle(params, words, hidden, cell):
    """Hidden and cell states after each word of one caption: PyTorch's gates are input, forget, new, output."""
    states = []
    for word in words:
        i, f, g, o = np.split(word @ params["input"] + hidden @ params["recurrent"] + params["bias"], 4)
        i, f, o = (1 / (1 + np.exp(-gate)) for gate in (i, f, o))
        cell = f * cell + i * np.tanh(g)
        hidden = o * np.tanh(cell)
        states.append((hidden, cell))
    return np.array(states).reshape(-1, 2, H)


@pytest.mark.parametrize("reverse", [False, True])
def test_states_equal_the_equations(reverse):
    layer: Any = LSTM(H, reverse=reverse)
    states = layer.apply({"params": PARAMS}, WORDS, MASK, START)
    for c, length in enumerate(LENGTH):
        words = WORDS[c, :length][:: -1 if reverse else 1]
        wanted = oracle(PARAMS, words, START.hidden[c], START.cell[c])[:: -1 if reverse else 1]
        np.testing.assert_allclose(states.hidden[c, :length], wanted[:, 0], atol=1e-6)
        np.testing.assert_allclose(states.cell[c, :length], wanted[:, 1], atol=1e-6)
    at_zero, none = (layer.apply({"params": PARAMS}, WORDS, MASK, *more) for more in ((layer.begin(C),), ()))
    jax.tree.map(np.testing.assert_array_equal, at_zero, none)


@pytest.mark.parametrize("hoist", [False, True])  # what a CPU and what an accelerator runs
@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_equal_those_of_the_scan(reverse, hoist, monkeypatch):
    monkeypatch.setattr(lstm, "by_platform", lambda function, reverse, *args: function(reverse, hoist, *args))
    layer: Any = LSTM(H, reverse=reverse)
    weight = np.random.default_rng(1).normal(size=(2, C, W, H)).astype(np.float32)

    def total(states):  # states at padding are not promised
        return jnp.sum(jnp.where(MASK[..., None], weight * jnp.stack(states), 0.0))

    def ours(params, words, start):
        return total(layer.apply({"params": params}, words, MASK, start))

    def reference(params, words, start):
        args = (params["input"], params["recurrent"], params["bias"])
        states = lstm_scan(reverse, jnp.swapaxes(words, 0, 1), jnp.asarray(MASK).T, start, *args)
        return total([jnp.swapaxes(x, 0, 1) for x in states])

    got, wanted = (
        jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2)))(PARAMS, jnp.asarray(WORDS), START) for f in (ours, reference)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, wanted)


def test_single_steps_give_the_same_states():
    layer: Any = LSTM(H)
    states = layer.apply({"params": PARAMS}, WORDS, np.ones((C, W), bool), START)
    carry = START
    for t in range(W):
        carry = layer.apply({"params": PARAMS}, carry, WORDS[:, t], method="step")
        np.testing.assert_allclose(carry.hidden, states.hidden[:, t], atol=1e-6)
        np.testing.assert_allclose(carry.cell, states.cell[:, t], atol=1e-6)


@pytest.mark.parametrize("merge", lstm.MERGES)
def test_both_directions(merge):
    layer: Any = BiLSTM(H, merge=merge)
    params = {"forward": PARAMS, "backward": jax.tree.map(lambda leaf: leaf[..., ::-1], PARAMS)}
    out = layer.apply({"params": params}, WORDS, MASK)
    zero = np.zeros(H)
    for c, length in enumerate(LENGTH):
        there = oracle(PARAMS, WORDS[c, :length], zero, zero)[:, 0]
        back = oracle(params["backward"], WORDS[c, :length][::-1], zero, zero)[::-1, 0]
        wanted = {"sum": there + back, "mean": (there + back) / 2, "concatenation": np.hstack([there, back])}[merge]
        np.testing.assert_allclose(out[c, :length], wanted, atol=1e-6)
        assert not out[c, length:].any()
    wide = layer.apply(
        {"params": params}, np.pad(WORDS, ((0, 0), (0, 3), (0, 0)), constant_values=9), np.pad(MASK, ((0, 0), (0, 3)))
    )
    np.testing.assert_allclose(wide[:, :W], out, atol=1e-7)
    with pytest.raises(UsageError, match='No merge "product" of two directions; there are sum, mean'):
        BiLSTM(H, merge="product").init(jax.random.key(0), WORDS, MASK)


def test_initial_values_and_half_precision():
    half: Any = LSTM(H, dtype=jnp.dtype("bfloat16"))
    given = half.init(jax.random.key(0), WORDS, MASK)
    assert all(leaf.dtype == jnp.float32 and 0.1 < np.abs(leaf).max() <= H**-0.5 for leaf in jax.tree.leaves(given))
    out: Any = half.apply({"params": PARAMS}, WORDS, MASK)
    full: Any = LSTM(H).apply({"params": PARAMS}, WORDS, MASK)
    assert out.hidden.dtype == jnp.float32
    assert 1e-4 < np.abs(out.hidden - full.hidden).max() < 0.05
    grads = jax.grad(lambda p: half.apply(p, WORDS, MASK).hidden.sum())(given)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(grads))
