"""Sentences that a bundle says of images, or of other sentences."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from xmodal_jax.errors import UsageError
from xmodal_jax.inference.functions import Functions
from xmodal_jax.text.generation import Decoding, generate
from xmodal_jax.text.vocabulary import Vocabulary


def check(functions: Functions, system: str, function: str) -> None:
    """Raise a UsageError unless the bundle of ``system`` has ``function``, "begin_image" or "begin_text"."""
    if function not in functions:
        other = "begin_text" if function == "begin_image" else "begin_image"
        what = "of images" if function == "begin_image" else "of sentences"
        speaks = f", it does of the other kind of item ({other})" if other in functions else ""
        raise UsageError(
            f'The system "{system}" does not speak {what}{speaks}: it ranks captions that exist. STT and SCO speak.'
        )


def say(
    functions: Functions, words: Vocabulary | None, begin: str, sources: Iterator[Any], decoding: Decoding, seed: int
) -> list[str]:
    """The sentences of all of ``sources``: pairs of rows, -1 for padding, and arguments of the function ``begin``."""
    assert words is not None  # what speaks has words
    start, program, sentences = functions.call(begin), _program(functions, decoding), []
    for number, (rows, source) in enumerate(sources):
        token = np.asarray(program(list(start(*source)), jax.random.key(seed + number)).token)
        sentences += [words.decode(row) for row in token[rows >= 0].tolist()]
    return sentences


@functools.lru_cache(maxsize=16)
def _program(functions: Functions, decoding: Decoding) -> Callable[..., Any]:
    """All words from the first state on as one program, the same for images and sentences of all lengths."""
    further = functions.call("word")

    def word(carry: list[jax.Array], token: jax.Array) -> tuple[list[jax.Array], jax.Array]:
        *carry, logits = further(carry, token)
        return carry, logits

    return jax.jit(lambda carry, key: generate(lambda state: state, word, carry, decoding, key))
