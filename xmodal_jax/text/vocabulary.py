"""The vocabulary: words and their ids."""

from __future__ import annotations

import collections
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from xmodal_jax.errors import CheckpointError, DataError
from xmodal_jax.text.tokens import tokenize

PAD, START, END, UNKNOWN = range(4)
SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")
FORMAT = "xmodal_jax vocabulary 1"


class Vocabulary:
    """Words and their ids: 0 ``<pad>``, 1 ``<start>``, 2 ``<end>``, 3 ``<unk>``, then words by falling frequency."""

    def __init__(self, words: Sequence[str]):
        """``words`` in id order, the four special tokens first.

        Raises: ValueError when they are not a vocabulary.
        """
        self.words = list(words)
        self._ids = {word: index for index, word in enumerate(self.words)}
        if tuple(self.words[:4]) != SPECIAL:
            raise ValueError(f"its first words are {self.words[:4]}, not {list(SPECIAL)}")
        if len(self._ids) < len(self.words):
            word, count = collections.Counter(self.words).most_common(1)[0]
            raise ValueError(f"the word {word!r} stands in it {count} times")
        for index, word in enumerate(self.words):
            if word.split() != [word]:
                raise ValueError(f"word {index} is {word!r}, which is empty or has a space in it")

    @classmethod
    def build(cls, captions: Iterable[str], minimum: int = 4) -> Vocabulary:
        """The words that occur at least ``minimum`` times in ``captions``: give those of the training split only.

        Raises: DataError when no word does.
        """
        counts = collections.Counter(token for caption in captions for token in tokenize(caption))
        kept = sorted((word for word in counts if counts[word] >= minimum), key=lambda word: (-counts[word], word))
        if not kept:
            raise DataError(
                f"No word occurs {minimum} times in the training captions ({counts.total():,} words in all): "
                "give more captions or a lower minimum count."
            )
        return cls([*SPECIAL, *kept])

    def encode(self, text: str) -> list[int]:
        """Ids of ``<start>``, the words of ``text`` and ``<end>``; a word that is not here is ``<unk>``."""
        return [START, *(self._ids.get(token, UNKNOWN) for token in tokenize(text)), END]

    def __len__(self) -> int:
        return len(self.words)

    @functools.cached_property
    def sha256(self) -> str:
        """Fingerprint of the words in their order, as hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.words).encode()).hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the vocabulary as JSON; a reader never sees half a file."""
        path = Path(path)
        content = {"format": FORMAT, "sha256": self.sha256, "words": self.words}
        unfinished = path.with_name(f"{path.name}.tmp")
        unfinished.write_text(json.dumps(content, indent=0) + "\n", encoding="ascii")
        os.replace(unfinished, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Vocabulary:
        """Read what :meth:`save` wrote.

        Raises: CheckpointError when the file is missing, changed, cut short or something else.
        """
        try:
            content = json.loads(Path(path).read_bytes().decode("ascii"), object_pairs_hook=_only_once)
            vocabulary = cls(_words_of(content))
            if vocabulary.sha256 != content["sha256"]:
                raise ValueError("its words do not have the SHA-256 written in it")
        except OSError as error:
            raise CheckpointError(f"{path}: cannot read the vocabulary ({error.strerror or error}).") from error
        except (ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{path}: not a sound vocabulary file ({error}); take it from the run's folder again."
            ) from error
        return vocabulary


def _only_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON object of ``pairs``; plain ``json.loads`` would silently keep the last of two equal keys."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key stands in it twice")
    return content


def _words_of(content: Any) -> list[str]:
    if not isinstance(content, dict) or set(content) != {"format", "sha256", "words"}:
        raise ValueError('it should hold the keys "format", "sha256" and "words" and no others')
    if content["format"] != FORMAT:
        raise ValueError(f"its format is {str(content['format'])[:60]!r}, not {FORMAT!r}")
    words = content["words"]
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError('"words" should be a list of strings')
    return words
