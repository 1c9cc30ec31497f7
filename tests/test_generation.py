"""Decoding: greedy, beam search and sampling of a small recurrent speaker, against brute force and one another."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from xmodal_jax.errors import UsageError
from xmodal_jax.text.generation import Decoding, generate, nucleus
from xmodal_jax.text.vocabulary import END, START

WORDS = (4, 5, 6)
VOCABULARY, UNITS, LONGEST = 7, 6, 4


def speaker(seed=0, sharpness=2.0):
    """``begin``, ``word`` with random weights; a source is the decoder's first state [N, H]."""
    random = np.random.default_rng(seed)
    recurrent, table, out = (
        jnp.asarray(random.normal(size=size), jnp.float32)
        for size in ((UNITS, UNITS), (VOCABULARY, UNITS), (UNITS, VOCABULARY))
    )
    unlikely = jnp.array([3.0, 3.0, 0.0, 3.0, 0.0, 0.0, 0.0])

    def word(carry, token):
        state = jnp.tanh(carry["state"] @ recurrent + table[token])
        return {"state": state, "step": carry["step"] + 1}, sharpness * state @ out - unlikely

    return lambda source: {"state": source, "step": jnp.zeros(source.shape[0], jnp.int32)}, word


def sources(count=24, seed=1):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(count, UNITS)), jnp.float32)


def constant(row, steps=()):
    """A speaker whose logits are ``row``, but ``steps[t]`` at step t where there is one."""
    rows = jnp.asarray([*steps, row], jnp.float32)

    def word(carry, token):
        return carry + 1, rows[jnp.minimum(carry, len(rows) - 1)]

    return lambda source: jnp.zeros(len(source), jnp.int32), word


def run(decoding, source, begin, word, key=None):
    return jax.tree.map(np.asarray, jax.jit(lambda source: generate(begin, word, source, decoding, key))(source))


def probability_of(begin, word, source, sentences):
    """Log-probability of each sentence [S, T] (words, then 0) spoken from one source; END is said where it fits."""
    carry = begin(jnp.repeat(source[None], len(sentences), axis=0))
    token, total = jnp.full(len(sentences), START), np.zeros(len(sentences))
    for step in range(sentences.shape[1]):
        carry, logits = word(carry, token)
        before = sentences[:, step - 1] != 0 if step else True
        token = np.where(sentences[:, step] == 0, END, sentences[:, step])
        total += np.where(before, np.asarray(jax.nn.log_softmax(logits))[np.arange(len(token)), token], 0.0)
    return total


def all_sentences():
    rows = [words for count in range(1, LONGEST + 1) for words in itertools.product(WORDS, repeat=count)]
    return np.array([[*words, *[0] * (LONGEST - len(words))] for words in rows])


@pytest.mark.parametrize("alpha", [0.0, 0.7, 2.0])
def test_a_beam_of_full_width_finds_the_best_of_all_sentences(alpha):
    begin, word = speaker()
    source, sentences = sources(6), all_sentences()
    found = run(Decoding("beam", LONGEST, len(sentences), alpha), source, begin, word)
    length = (sentences != 0).sum(1)
    said = np.minimum(length + 1, LONGEST)  # with <end>, where the longest have no room for it
    for n in range(len(source)):
        total = probability_of(begin, word, source[n], sentences)
        best = np.argmax(total / said**alpha)
        np.testing.assert_array_equal(found.token[n], sentences[best])
        assert found.length[n] == length[best]
        assert found.log_probability[n] == pytest.approx(total[best], abs=1e-5)
    assert len(set(found.length)) > (alpha == 0)


def plain_search(begin, word, source, beams, alpha, longest):
    """The best (words, log-probability) of a beam search by lists, and its rank; no early end."""
    word = jax.jit(word)

    def rank(hypothesis):
        words, total, ended = hypothesis
        return total / max(len(words) + ended, 1) ** alpha

    def further(hypothesis, row):
        words, total, ended = hypothesis
        if ended:
            return [hypothesis]
        after = [((*words, w), total + row[w], False) for w in WORDS]
        return [*after, (words, total + row[END], True)] if words else after

    beam = [((), 0.0, False)]
    for _ in range(longest):
        candidates = []
        for hypothesis in beam:
            carry, logits = word(begin(source[None]), jnp.array([START]))
            for token in hypothesis[0]:
                carry, logits = word(carry, jnp.array([token]))
            candidates += further(hypothesis, np.asarray(jax.nn.log_softmax(logits[0])))
        beam = sorted(candidates, key=rank, reverse=True)[:beams]
    return beam[0]


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_a_narrow_beam_is_that_of_a_plain_search(alpha):
    begin, word = speaker()
    source, longest = sources(12), 7
    found = run(Decoding("beam", longest, 3, alpha), source, begin, word)
    for n in range(len(source)):
        words, total, _ = plain_search(begin, word, source[n], 3, alpha, longest)
        assert tuple(found.token[n, : found.length[n]].tolist()) == words
        assert found.log_probability[n] == pytest.approx(total, abs=1e-4)
    assert len(set(found.length)) > 1


def test_a_beam_of_one_is_greedy():
    speak, source = speaker(), sources()
    single = run(Decoding("greedy", 12), source, *speak)
    for alpha in (0.0, 1.0):
        jax.tree.map(
            partial(np.testing.assert_allclose, atol=1e-5), single, run(Decoding("beam", 12, 1, alpha), source, *speak)
        )
    assert len(set(single.length)) > 1


@pytest.mark.parametrize("seed", range(3))
def test_a_beam_is_at_least_as_likely_as_greedy(seed):
    """Also where a beam alone would lose greedy's sentence: an item or two of the last seed."""
    speak, source = speaker(seed), sources(64)
    single = run(Decoding("greedy", 12), source, *speak)
    wide = run(Decoding("beam", 12, 2, 0.0), source, *speak)
    assert (wide.log_probability >= single.log_probability - 1e-5).all()
    assert (wide.log_probability > single.log_probability + 1e-2).any()


@pytest.mark.parametrize("method", ["greedy", "beam", "sample"])
def test_log_probability_and_length_are_those_of_the_words(method):
    begin, word = speaker()
    source = sources()
    said = run(Decoding(method, LONGEST, 3), source, begin, word, jax.random.key(0))
    for n in range(len(source)):
        words = said.token[n]
        assert said.length[n] == (words != 0).sum() > 0
        assert not words[said.length[n] :].any()
        assert set(words[: said.length[n]]) <= set(WORDS)
        expected = probability_of(begin, word, source[n], words[None])[0]
        assert said.log_probability[n] == pytest.approx(expected, abs=1e-5)
    assert said.token.dtype == np.int32
    assert said.token.shape == (len(source), LONGEST)


@pytest.mark.parametrize("method", ["greedy", "beam", "sample"])
@pytest.mark.parametrize("favourite", [0, 1, 2, 3])
def test_special_tokens_are_never_said_and_no_sentence_is_empty(method, favourite):
    row = np.array([0.0, 0.0, 0.0, 0.0, 1.0, 0.5, 0.5])
    row[favourite] = 9.0
    said = run(Decoding(method, 5, 3), sources(4), *constant(row), jax.random.key(0))
    assert (said.length >= 1).all()
    assert set(said.token.flat) <= {0, *WORDS}
    if favourite == END and method == "greedy":
        np.testing.assert_array_equal(said.token[:, :2], [[4, 0]] * 4)


def counted(begin, word):
    """The speaker and a list that grows with each call of ``word``."""
    calls = []

    def counting(carry, token):
        jax.debug.callback(lambda: calls.append(1))
        return word(carry, token)

    return begin, counting, calls


@pytest.mark.parametrize("method", ["greedy", "beam", "sample"])
def test_the_loop_stops_when_all_have_ended(method):
    begin, word, calls = counted(*constant([0, 0, 99, 0, 0, 0, 0], steps=[[0, 0, 0, 0, 99, 0, 0]] * 2))
    said = run(Decoding(method, 15, 2), sources(3), begin, word, jax.random.key(0))
    jax.effects_barrier()
    np.testing.assert_array_equal(said.token[:, :3], [[4, 4, 0]] * 3)
    assert len(calls) == 3


@pytest.mark.parametrize(("alpha", "words", "steps"), [(0.0, 1, 2), (3.0, 2, 3)])
def test_a_beam_goes_on_only_while_an_unfinished_sentence_may_win(alpha, words, steps):
    """One word and <end> have 0.6, two words and <end> 0.4: by length the latter win, though not before they end."""
    probability = np.full((3, VOCABULARY), 1e-9)
    probability[[0, 1, 1, 2], [4, END, 4, END]] = 1.0, 0.6, 0.4, 1.0
    logits = np.log(probability).tolist()
    begin, word, calls = counted(*constant(logits[2], logits[:2]))
    said = run(Decoding("beam", 9, 2, alpha), sources(1), begin, word)
    jax.effects_barrier()
    assert said.length == [words]
    assert len(calls) == steps


def test_sentences_do_not_depend_on_the_other_items():
    speak, source = speaker(), sources()
    for decoding in (Decoding("greedy", 9), Decoding("beam", 9, 4), Decoding("sample", 9)):
        whole = run(decoding, source, *speak, jax.random.key(3))
        part = run(decoding, source[:5], *speak, jax.random.key(3))
        np.testing.assert_array_equal(whole.token[:5], part.token)
        np.testing.assert_allclose(whole.log_probability[:5], part.log_probability, atol=1e-5)


def test_cold_samples_and_the_smallest_nucleus_are_greedy():
    speak, source, key = speaker(), sources(), jax.random.key(0)
    single = run(Decoding("greedy", 9), source, *speak)
    cold = run(Decoding("sample", 9, temperature=1e-4), source, *speak, key)
    narrow = run(Decoding("sample", 9, top_p=1e-6), source, *speak, key)
    hot = run(Decoding("sample", 9, temperature=3.0), source, *speak, key)
    np.testing.assert_array_equal(cold.token, single.token)
    np.testing.assert_array_equal(narrow.token, single.token)
    np.testing.assert_allclose(
        cold.log_probability, single.log_probability, atol=1e-5
    )  # the model's, not the cold one's
    assert (hot.token != single.token).any()


def test_equal_keys_give_equal_sentences():
    speak, source, decoding = speaker(), sources(), Decoding("sample", 9)
    first, again, other = (run(decoding, source, *speak, jax.random.key(seed)).token for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_samples_follow_the_distribution():
    row = np.log([0.1, 0.1, 0.1, 0.1, 0.3, 0.2, 0.1])
    said = run(Decoding("sample", 1), sources(4000), *constant(row), jax.random.key(0))
    shares = [(said.token == word).mean() for word in WORDS]
    np.testing.assert_allclose(shares, [0.5, 1 / 3, 1 / 6], atol=0.03)
    said = run(Decoding("sample", 2), sources(4000), *constant([0, 0, -99, 0, 1, 1, 1]), jax.random.key(0))
    assert np.mean(said.token[:, 0] == said.token[:, 1]) == pytest.approx(1 / 3, abs=0.03)  # a step's draws are its own
    said = run(Decoding("sample", 1, temperature=0.5, top_p=0.9), sources(4000), *constant(row), jax.random.key(0))
    shares = [(said.token == word).mean() for word in WORDS]
    np.testing.assert_allclose(shares, [9 / 13, 4 / 13, 0], atol=0.03)


def test_nucleus_is_the_fewest_tokens_that_reach_the_probability():
    probability = np.array([[0.1, 0.5, 0.15, 0.25], [0.25, 0.25, 0.25, 0.25], [0.0, 0.0, 1.0, 0.0]])
    with np.errstate(divide="ignore"):
        logits = jnp.asarray(np.log(probability), jnp.float32)
    for top_p, expected in {0.4: [1, 2, 1], 0.51: [2, 3, 1], 0.8: [3, 4, 1], 1.0: [4, 4, 1]}.items():
        kept = np.asarray(nucleus(logits, top_p))
        assert np.isfinite(kept).sum(1).tolist() == expected
        np.testing.assert_array_equal(kept[np.isfinite(kept)], np.asarray(logits)[np.isfinite(kept)])
        assert np.isfinite(kept[0, 1])


def test_exported_functions_speak_as_the_live_ones_do():
    begin, word = speaker()
    n = export.symbolic_shape("n")[0]
    source = jax.ShapeDtypeStruct((n, UNITS), jnp.float32)
    carry = jax.eval_shape(begin, sources(3))
    carry = jax.tree.map(lambda x: jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype), carry)
    saved = [
        export.deserialize(export.export(jax.jit(function))(*arguments).serialize()).call
        for function, arguments in ((begin, [source]), (word, [carry, jax.ShapeDtypeStruct((n,), jnp.int32)]))
    ]
    for decoding in (Decoding("greedy", 9), Decoding("beam", 9, 3), Decoding("sample", 9, top_p=0.9)):
        live = run(decoding, sources(4), begin, word, jax.random.key(0))
        jax.tree.map(
            np.testing.assert_array_equal, live, run(decoding, sources(4), saved[0], saved[1], jax.random.key(0))
        )


@pytest.mark.parametrize(
    ("decoding", "message"),
    [
        (Decoding("best"), '"greedy", "beam" or "sample"'),
        (Decoding(longest=0), "longest"),
        (Decoding("beam", beams=0), "beams"),
        (Decoding("beam", alpha=-1.0), "alpha"),
        (Decoding("sample", temperature=0.0), "temperature"),
        (Decoding("sample", temperature=float("nan")), "temperature"),
        (Decoding("sample", top_p=0.0), "top_p"),
        (Decoding("sample", top_p=1.5), "top_p"),
        (Decoding("sample"), "key"),
    ],
)
def test_options_out_of_range_are_refused(decoding, message):
    with pytest.raises(UsageError, match=message):
        generate(*speaker(), sources(1), decoding)


def test_a_vocabulary_without_words_is_refused():
    with pytest.raises(UsageError, match="no words"):
        generate(*constant([0.0, 0, 0, 0]), sources(1))
