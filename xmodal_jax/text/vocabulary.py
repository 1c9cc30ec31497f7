"""The vocabulary: tokens and their ids, and how a caption becomes them."""

from __future__ import annotations

import collections
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from xmodal_jax import digest
from xmodal_jax.errors import CheckpointError, DataError, UsageError
from xmodal_jax.text import characters
from xmodal_jax.text.tokens import cased, words

PAD, START, END, UNKNOWN = range(4)
SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")
FORMAT = "xmodal_jax vocabulary 1"
MINIMUM = 4  # occurrences of a word that is known, where nothing else is said
LARGEST = 16 << 20  # bytes of a file: some million words
TOKENISERS = {"words": words, "cased": cased, "characters": characters.characters}


class Coverage(NamedTuple):
    """How much of some captions a vocabulary knows."""

    tokens: int  # in all
    unknown: int  # of them
    captions: int
    blank: int  # captions without any known token

    @property
    def share(self) -> float:
        """Unknown tokens of all, 0 to 1."""
        return self.unknown / max(self.tokens, 1)


class Vocabulary:
    """Tokens and their ids: 0 ``<pad>``, 1 ``<start>``, 2 ``<end>``, 3 ``<unk>``, then words by falling frequency.

    That of characters is fixed (CHAIN-VSE's 75): its 3 is the blank, which any character it does not have becomes.
    """

    def __init__(self, words: Sequence[str], tokens: str = "words"):
        """``words`` in id order, the special tokens first; ``tokens`` is a name of :data:`TOKENISERS`.

        Raises: ValueError when they are not a vocabulary.
        """
        self.words, self.tokens = list(words), tokens
        self._ids = {word: index for index, word in enumerate(self.words)}
        if tokens not in TOKENISERS:
            raise ValueError(f"captions are cut into {tokens!r}, and only {', '.join(TOKENISERS)} are known")
        if tokens == "characters":
            if self.words != list(characters.SYMBOLS):
                raise ValueError("its characters are not the 75 that there are")
            return
        if tuple(self.words[:4]) != SPECIAL:
            raise ValueError(f"its first words are {self.words[:4]}, not {list(SPECIAL)}")
        if len(self._ids) < len(self.words):
            word, count = collections.Counter(self.words).most_common(1)[0]
            raise ValueError(f"the word {word!r} stands in it {count} times")
        for index, word in enumerate(self.words):
            if word.split() != [word]:
                raise ValueError(f"word {index} is {word!r}, which is empty or has a space in it")

    @classmethod
    def build(cls, captions: Iterable[str], minimum: int = MINIMUM, tokens: str = "words") -> Vocabulary:
        """The words that occur at least ``minimum`` times in ``captions``: give those of the training split only.

        Raises:
            DataError: when no word does.
            UsageError: an unknown way to cut captions.
        """
        if tokens not in TOKENISERS:
            raise UsageError(f'No tokeniser "{tokens}"; there are {", ".join(TOKENISERS)}.')
        if tokens == "characters":
            return cls(characters.SYMBOLS, tokens)
        cut = TOKENISERS[tokens]
        counts = collections.Counter(token for caption in captions for token in cut(caption))
        kept = sorted((word for word in counts if counts[word] >= minimum), key=lambda word: (-counts[word], word))
        if not kept:
            raise DataError(
                f"No word occurs {minimum} times in the training captions ({counts.total():,} words in all): "
                "give more captions or a lower minimum count."
            )
        return cls([*SPECIAL, *kept], tokens)

    def split(self, text: str) -> list[str]:
        """The tokens of ``text``, known or not."""
        return TOKENISERS[self.tokens](text)

    def encode(self, text: str) -> list[int]:
        """Ids of ``<start>``, the tokens of ``text`` and ``<end>``; a token that is not here is ``<unk>``."""
        return [START, *(self._ids.get(token, UNKNOWN) for token in self.split(text)), END]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, up to the first ``<end>``; special tokens are left out."""
        kept: list[str] = []
        for index in ids:
            if index == END:
                break
            if index > (END if self.tokens == "characters" else UNKNOWN):
                kept.append(self.words[index])
        return ("" if self.tokens == "characters" else " ").join(kept)

    def unknown(self, text: str) -> list[str]:
        """The tokens of ``text`` that are not here."""
        if self.tokens == "characters":
            return characters.unknown(text)
        return [token for token in self.split(text) if token not in self._ids]

    def coverage(self, captions: Iterable[str], encoded: Iterable[Sequence[int]] | None = None) -> Coverage:
        """How many tokens of ``captions`` are unknown, and how many captions have none that is known.

        Args:
            encoded: what :meth:`encode` gives of each, where that is known already.
        """
        tokens = unknown = count = blank = 0
        captions = list(captions)
        for text, row in zip(captions, encoded or map(self.encode, captions), strict=True):
            total = len(row) - 2
            missing = len(self.unknown(text)) if self.tokens == "characters" else list(row).count(UNKNOWN)
            tokens, unknown, count, blank = tokens + total, unknown + missing, count + 1, blank + (missing >= total)
        return Coverage(tokens, unknown, count, blank)

    def __len__(self) -> int:
        return len(self.words)

    @functools.cached_property
    def sha256(self) -> str:
        """Fingerprint of the words in their order and how captions are cut, as hexadecimal digits."""
        content = self.words if self.tokens == "words" else [self.tokens, *self.words]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the vocabulary as JSON; a reader never sees half a file."""
        content: dict[str, Any] = {"format": FORMAT, "sha256": self.sha256, "words": self.words}
        if self.tokens != "words":
            content["tokens"] = self.tokens
        digest.write(Path(path), json.dumps(content, indent=0) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Vocabulary:
        """Read what :meth:`save` wrote.

        Raises: CheckpointError when the file is missing, changed, cut short or something else.
        """
        try:
            with Path(path).open("rb") as file:
                raw = file.read(LARGEST + 1)
            if len(raw) > LARGEST:
                raise ValueError(f"it has more than {LARGEST:,} bytes")
            content = json.loads(raw.decode("ascii"), object_pairs_hook=_only_once)
            vocabulary = cls(*_words_of(content))
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


def _words_of(content: Any) -> tuple[list[str], str]:
    if not isinstance(content, dict) or set(content) - {"tokens"} != {"format", "sha256", "words"}:
        raise ValueError('it should hold the keys "format", "sha256" and "words" and no others')
    if content["format"] != FORMAT:
        raise ValueError(f"its format is {str(content['format'])[:60]!r}, not {FORMAT!r}")
    words, tokens = content["words"], content.get("tokens", "words")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError('"words" should be a list of strings')
    if not isinstance(tokens, str):
        raise ValueError('"tokens" should be a string')
    return words, tokens
