"""Vocabularies of the original code, and ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from xmodal_jax.errors import CheckpointError
from xmodal_jax.text.vocabulary import LARGEST, SPECIAL, Vocabulary
from xmodal_jax.torch_files import pth

MASK = "<mask>"  # the last word of some vocabularies of VSE-infinity, which ours do not count


def read_words(path: Path) -> list[str]:
    """The words of a vocabulary file in the order of their ids.

    That is our vocabulary.json, JSON with a ``word2idx`` (SCAN, VSE-infinity, ADAPT), or a pickled ``Vocabulary``
    (VSE++), which is read without running it.

    Raises:
        CheckpointError: the file is missing, damaged or none of these.
    """
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read the vocabulary ({error.strerror}).") from None
    if len(content) > LARGEST:
        raise CheckpointError(f"{path} has more than {LARGEST:,} bytes, which no vocabulary needs; give that alone.")
    if content.startswith(b"\x80"):
        tree = pth.read(path, kind="vocabulary")
    else:
        try:
            tree = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} is neither JSON nor a pickled vocabulary ({error}); give either.") from None
    if isinstance(tree, dict) and "format" in tree:
        return Vocabulary.load(path).words
    return in_order(tree.get("word2idx") if isinstance(tree, dict) else None, path)


def in_order(ids: Any, path: Path) -> list[str]:
    """The words of ``{word: id}``."""
    if not isinstance(ids, dict) or not all(
        isinstance(word, str) and type(index) is int for word, index in ids.items()
    ):
        raise CheckpointError(f'{path} has no "word2idx" from words to numbers; give the vocabulary of the checkpoint.')
    words = sorted(ids, key=lambda word: ids[word])
    if [ids[word] for word in words] != list(range(len(words))):
        raise CheckpointError(f"{path}: its {len(words):,} words do not have the ids 0 to {len(words) - 1:,}.")
    return words


def match(words: list[str], count: int, path: Path) -> tuple[Vocabulary, list[int]]:
    """Our vocabulary of an original's words, and the original's id of each of its words.

    Args:
        words: those of the original in the order of their ids.
        count: how many the checkpoint has.

    Raises:
        CheckpointError: another number of words, special words missing, or words that no tokenizer makes.
    """
    if len(words) == count + 1 and words[-1] == MASK:
        words = words[:-1]
    if len(words) != count:
        raise CheckpointError(
            f"{path} has {len(words):,} words, the checkpoint {count:,}; give the vocabulary that it was trained with."
        )
    missing = [word for word in SPECIAL if word not in words]
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(missing)}; give the vocabulary of the checkpoint.")
    special = set(SPECIAL)  # ADAPT has them in another order
    ours = [*SPECIAL, *(word for word in words if word not in special)]
    ids = {word: index for index, word in enumerate(words)}
    try:
        return Vocabulary(ours), [ids[word] for word in ours]
    except ValueError as error:
        raise CheckpointError(f"{path}: not a vocabulary ({error}).") from None


def nameless(count: int) -> Vocabulary:
    """A vocabulary of the right size, where there is none."""
    return Vocabulary([*SPECIAL, *(f"word{index}" for index in range(len(SPECIAL), count))])
