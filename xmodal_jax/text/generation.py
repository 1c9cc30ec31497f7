"""Sentences out of a system that speaks: greedy, beam search and sampling, each one loop that jit can compile whole.

A system is two functions: ``begin(source) -> carry``, its decoder's state for N items, a pytree whose leaves have the
item axis first; and ``word(carry, token [N]) -> (carry, logits [N, V])``, one token further. They may come from a live
model or from exported functions. Ids are those of :mod:`xmodal_jax.text.vocabulary`.

Whatever the method: <pad>, <start> and <unk> are never said; <end> is not the first token, so no sentence is empty; a
sentence stops before its <end>, or after ``longest`` tokens; the loop stops as soon as all have ended. An item's
sentence does not depend on the other items. Log-probabilities are the model's own, summed over the tokens said and
<end>: what is barred keeps its share, and temperature and nucleus change the choice alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from xmodal_jax.errors import UsageError
from xmodal_jax.text.vocabulary import END, PAD, START, UNKNOWN

Begin = Callable[[Any], Any]
Word = Callable[[Any, jax.Array], tuple[Any, jax.Array]]


class Decoding(NamedTuple):
    """How to choose words; fields that a method has no use for are not read.

    Attributes:
        method: "greedy", "beam" or "sample".
        longest: the most tokens, <end> included where it is reached.
        beams: K, the sentences that beam search keeps.
        alpha: sentences of a beam compare by log-probability / tokens ** alpha, with <end> a token; 0 favours short
            ones.
        temperature: of the distribution sampled from; below 1 sharpens it.
        top_p: sample from the nucleus of this probability alone, see :func:`nucleus`.
    """

    method: str = "greedy"
    longest: int = 20
    beams: int = 5
    alpha: float = 0.7
    temperature: float = 1.0
    top_p: float = 1.0


class Sentences(NamedTuple):
    """Sentences of N items, T = ``longest``."""

    token: Any  # [N, T] int32: words without <start> and <end>, then 0
    length: Any  # [N] int32: words
    log_probability: Any  # [N] float32


GREEDY = Decoding()


def generate(
    begin: Begin, word: Word, source: Any, decoding: Decoding = GREEDY, key: jax.Array | None = None
) -> Sentences:
    """A sentence for each item of ``source``. Pure: `jax.jit` what calls it.

    Args:
        key: a PRNG key, for sampling; equal keys give equal sentences.

    Raises:
        UsageError: an option out of its range, or sampling without a key.
    """
    _check(decoding)
    if decoding.method == "greedy":
        return greedy(begin, word, source, longest=decoding.longest)
    if decoding.method == "beam":
        return beam(begin, word, source, longest=decoding.longest, beams=decoding.beams, alpha=decoding.alpha)
    if key is None:
        raise UsageError("Sampled sentences need a PRNG key; greedy and beam search do not.")
    options = {"longest": decoding.longest, "temperature": decoding.temperature, "top_p": decoding.top_p}
    return sample(begin, word, source, key, **options)


def _check(decoding: Decoding) -> None:
    rules = {
        'method to be "greedy", "beam" or "sample"': decoding.method in ("greedy", "beam", "sample"),
        "longest to be 1 or more": decoding.longest >= 1,
        "beams to be 1 or more": decoding.beams >= 1,
        "alpha to be 0 or more": decoding.alpha >= 0,
        "temperature to be above 0": decoding.temperature > 0,
        "top_p to be above 0 and at most 1": 0 < decoding.top_p <= 1,
    }
    broken = [rule for rule, holds in rules.items() if not holds]
    if broken:
        raise UsageError(f"Decoding needs {', and '.join(broken)}; got {decoding}.")


def allowed_log_probability(logits: Float[Array, "n v"], step: Int[Array, ""]) -> Float[Array, "n v"]:
    """Log-probabilities of the next token, minus infinity for what may not be said at this step."""
    count = logits.shape[-1]
    if count <= UNKNOWN + 1:
        raise UsageError(f"A vocabulary of {count} tokens has no words to say beside the special ones.")
    token = jnp.arange(count)
    barred = (token == PAD) | (token == START) | (token == UNKNOWN) | ((token == END) & (step == 0))
    return jnp.where(barred, -jnp.inf, jax.nn.log_softmax(logits.astype(jnp.float32)))


class _Said(NamedTuple):
    """The loop's state: of N items, or of N items with K beams each."""

    step: Any
    carry: Any
    last: Any  # the token that the decoder reads next
    token: Any  # [N, T] or [N, K, T]
    log_probability: Any
    ended: Any
    length: Any  # tokens said, <end> included


def _nothing(carry: Any, shape: tuple[int, ...], longest: int) -> _Said:
    return _Said(
        step=jnp.zeros((), jnp.int32),
        carry=carry,
        last=jnp.full(shape, START, jnp.int32),
        token=jnp.full((*shape, longest), PAD, jnp.int32),
        log_probability=jnp.zeros(shape, jnp.float32),
        ended=jnp.zeros(shape, bool),
        length=jnp.zeros(shape, jnp.int32),
    )


def _items(carry: Any) -> int:
    return jax.tree.leaves(carry)[0].shape[0]


def _word_by_word(
    choose: Callable[[jax.Array, jax.Array], jax.Array], begin: Begin, word: Word, source: Any, longest: int
) -> Sentences:
    """``choose(log-probabilities [N, V], step) -> token [N]`` until all sentences have ended."""

    def going(said: _Said) -> Bool[Array, ""]:
        return (said.step < longest) & ~jnp.all(said.ended)

    def further(said: _Said) -> _Said:
        carry, logits = word(said.carry, said.last)
        log_probability = allowed_log_probability(logits, said.step)
        token = choose(log_probability, said.step).astype(jnp.int32)
        more = jnp.take_along_axis(log_probability, token[:, None], axis=1)[:, 0]
        ended = said.ended | (token == END)
        return _Said(
            said.step + 1,
            carry,
            token,
            said.token.at[:, said.step].set(jnp.where(ended, PAD, token)),
            said.log_probability + jnp.where(said.ended, 0.0, more),
            ended,
            said.length + ~said.ended,
        )

    carry = begin(source)
    said = jax.lax.while_loop(going, further, _nothing(carry, (_items(carry),), longest))
    return Sentences(said.token, said.length - said.ended, said.log_probability)


def greedy(begin: Begin, word: Word, source: Any, *, longest: int) -> Sentences:
    """The most likely token at each step."""
    return _word_by_word(lambda log_probability, _: jnp.argmax(log_probability, axis=1), begin, word, source, longest)


def nucleus(log_probability: Float[Array, "n v"], top_p: float) -> Float[Array, "n v"]:
    """Minus infinity outside the fewest most likely tokens whose probability reaches ``top_p``.

    Holtzman et al., "The Curious Case of Neural Text Degeneration", ICLR 2020.
    """
    order = jnp.argsort(-log_probability, axis=1)
    probability = jax.nn.softmax(jnp.take_along_axis(log_probability, order, axis=1), axis=1)
    within = jnp.cumsum(probability, axis=1) - probability < top_p
    within = jnp.take_along_axis(within, jnp.argsort(order, axis=1), axis=1)
    return jnp.where(within, log_probability, -jnp.inf)


def sample(
    begin: Begin,
    word: Word,
    source: Any,
    key: jax.Array,
    *,
    longest: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> Sentences:
    """Tokens drawn from the model's distribution, sharpened by ``temperature`` and cut to its nucleus.

    An item's draws depend on the key and its place, not on how many items there are.
    """

    def choose(log_probability: Float[Array, "n v"], step: Int[Array, ""]) -> Int[Array, " n"]:
        shaped = log_probability / temperature
        if top_p < 1:
            shaped = nucleus(shaped, top_p)
        keys = jax.random.split(jax.random.fold_in(key, step), len(shaped))
        return jax.vmap(jax.random.categorical)(keys, shaped)

    return _word_by_word(choose, begin, word, source, longest)


def beam(begin: Begin, word: Word, source: Any, *, longest: int, beams: int, alpha: float) -> Sentences:
    """The best of K sentences an item that are kept side by side; one that has ended keeps its place in the beam.

    Sentences compare by log-probability / tokens ** alpha, in the beam and at the end, and so do those that reach
    ``longest`` without <end>. Beside the beam runs :func:`greedy`'s sentence, which a beam can lose to beginnings that
    look better: the result never compares below it, and with K = 1 is the same. An item is settled once no unfinished
    sentence can overtake its best ended one.
    """
    lanes = beams + 1  # the last is greedy's

    def rank(log_probability: jax.Array, length: Any) -> jax.Array:
        return log_probability / jnp.maximum(length, 1) ** alpha

    def going(said: _Said) -> Bool[Array, ""]:
        best = jnp.max(jnp.where(said.ended, rank(said.log_probability, said.length), -jnp.inf), axis=1)
        # Log-probabilities only fall, and the longest sentence is divided by the most.
        hope = jnp.max(jnp.where(said.ended, -jnp.inf, rank(said.log_probability, longest)), axis=1)
        return (said.step < longest) & jnp.any(best < hope)

    def further(said: _Said) -> _Said:
        carry, logits = word(said.carry, said.last.reshape(-1))
        more = allowed_log_probability(logits, said.step).reshape(*said.last.shape, -1)
        vocabulary = more.shape[-1]
        silence = jnp.where(jnp.arange(vocabulary) == PAD, 0.0, -jnp.inf)  # all that an ended sentence goes on with
        total = said.log_probability[..., None] + jnp.where(said.ended[..., None], silence, more)
        length = said.length + ~said.ended
        scores = rank(total, length[..., None]).reshape(len(total), -1)
        _, kept = jax.lax.top_k(scores[:, : beams * vocabulary], beams)
        straight = beams * vocabulary + jnp.argmax(total[:, beams], axis=1)
        place = jnp.concatenate([kept, straight[:, None]], axis=1)
        parent, token = place // vocabulary, (place % vocabulary).astype(jnp.int32)
        ended = _beams(said.ended, parent) | (token == END)
        return _Said(
            said.step + 1,
            jax.tree.map(partial(_reorder, parent), carry),
            token,
            _beams(said.token, parent).at[:, :, said.step].set(jnp.where(ended, PAD, token)),
            jnp.take_along_axis(total.reshape(len(total), -1), place, axis=1),
            ended,
            _beams(length, parent),
        )

    carry = jax.tree.map(lambda leaf: jnp.repeat(leaf, lanes, axis=0), begin(source))
    said = _nothing(carry, (_items(carry) // lanes, lanes), longest)
    first = jnp.where(jnp.arange(lanes) % beams == 0, 0.0, -jnp.inf)  # K equal beams would stay equal
    said = said._replace(log_probability=said.log_probability + first)
    said = jax.lax.while_loop(going, further, said)
    best = jnp.argmax(rank(said.log_probability, said.length), axis=1)[:, None]
    token, length, log_probability = (
        _beams(x, best)[:, 0] for x in (said.token, said.length - said.ended, said.log_probability)
    )
    return Sentences(token, length, log_probability)


def _beams(values: Shaped[Array, "n k *t"], parent: Int[Array, "n j"]) -> Shaped[Array, "n j *t"]:
    """The values of each beam's parent."""
    return values[jnp.arange(len(parent))[:, None], parent]


def _reorder(parent: Int[Array, "n k"], leaf: Shaped[Array, "nk *d"]) -> Shaped[Array, "nk *d"]:
    """The decoder's state of each beam's parent."""
    return _beams(leaf.reshape(*parent.shape, *leaf.shape[1:]), parent).reshape(leaf.shape)
