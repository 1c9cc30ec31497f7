"""Captions to word ids: the word tokenizer, the vocabulary and pre-trained word vectors.

Published vocabularies of this field count the tokens of NLTK's Penn Treebank word tokenizer on lower-cased captions;
:func:`tokenize` gives the same tokens as ``NLTKWordTokenizer().tokenize(text.lower())`` of NLTK 3.10 with `re` alone:
no dependency, no download, linear time. The conventions are those of the Penn Treebank (Marcus et al., "Building a
Large Annotated Corpus of English", Computational Linguistics 19(2), 1993).
"""

from __future__ import annotations

import collections
import functools
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xmodal_jax.errors import CheckpointError, DataError

PAD, START, END, UNKNOWN = range(4)
SPECIAL = ("<pad>", "<start>", "<end>", "<unk>")
FORMAT = "xmodal_jax vocabulary 1"

# Unicode's White_Space. Python's \s and str.split() also take the separators 0x1C-0x1F, which end a token (the last
# step splits with str.split) but are not the space that has to follow a clitic.
_BLANK = r"[^\S\x1c-\x1f]"
_BLANKS = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
_AFTER_PERIOD = "])}>\"'»”’ "  # what may stand between the caption's final period and its end

_LETTER_CATEGORIES = frozenset(("Lu", "Ll", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "Pc"))
_LETTER_EXTRA = frozenset("\u200c\u200d").union(
    chr(code) for first, last in ("ⓐⓩ", "🄰🅉", "🅐🅩", "🅰🆉") for code in range(ord(first), ord(last) + 1)
)
_CLITIC = re.compile(r"re|ve|ll|[mtsdn]", re.IGNORECASE)  # IGNORECASE: the long s counts as an s


def _is_letter(text: str, index: int) -> bool:
    """Whether ``text[index]`` exists and belongs to a word, in Unicode's sense: marks and joiners do, ² does not."""
    if not 0 <= index < len(text):
        return False
    return unicodedata.category(text[index]) in _LETTER_CATEGORIES or text[index] in _LETTER_EXTRA


def _cut_leading_apostrophe(match: re.Match[str]) -> str:
    """Take the apostrophe off ``'em``, but neither off a clitic that stands alone (``'s``) nor inside ``o'clock``."""
    text, here = match.string, match.start()
    if _is_letter(text, here - 1) or not _is_letter(text, here + 1):
        return "'"
    clitic = _CLITIC.match(text, here + 1)
    return "'" if clitic and not _is_letter(text, clitic.end()) else "' "


# Every rule sets spaces around a token; the order matters, because each sees the spaces that the earlier ones set.
_OPENING_RULES = (
    (re.compile(r"\A\""), "``"),
    (re.compile(r"``?|[«“‘„]"), r" \g<0> "),
    (re.compile(r"(?<=[ (\[{<])(?:\"|'')"), " `` "),
    (re.compile("'"), _cut_leading_apostrophe),
)
_SYMBOL_RULES = (
    # The next character is taken along, so that ",," is cut before its first comma only; "1,000" and "3:30" stay.
    (re.compile(r"([:,])(\D|\Z)"), r" \1 \2"),
    (re.compile(r"\.{2,}|[;@#$%&?!‒–—―]"), r" \g<0> "),
    (re.compile(r"(?<=[^'])'(?= )"), " '"),
    (re.compile(r"--|[][(){}<>*»”’]"), r" \g<0> "),
    (re.compile("''|\""), " '' "),
    (re.compile(f"{_BLANK}+"), " "),
)
_CONTRACTION_RULES = (
    (re.compile(r"(?<=[^' ])'[smd]?(?= )"), r" \g<0>"),
    (re.compile(r"(?<=[^' ])(?:'(?:ll|re|ve)|n't)(?= )"), r" \g<0>"),
    (
        re.compile(
            r"\b(?:(can)(not)|(d)('ye)|(gim|lem)(me)|(gon)(na)|(got)(ta)|(more)('n)|(wan)(na)(?=\s))\b", re.IGNORECASE
        ),
        lambda match: " " + " ".join(filter(None, match.groups())) + " ",
    ),
    (re.compile(r"(?<= )('t)(is)\b", re.IGNORECASE), r"\1 \2 "),
    (re.compile(r"(?<= )('t)(was)\b", re.IGNORECASE), r"\1 \2 "),
)


def _cut_final_period(text: str) -> str:
    """Set the period apart that ends the whole caption; periods inside it (``mr. x``) stay with their word."""
    body = text.rstrip(_BLANKS)
    head = body.rstrip(_AFTER_PERIOD)
    if len(head) > 1 and head[-1] == "." and head[-2] != ".":
        return f"{head[:-1]} . {body[len(head) :]} "
    return text


def tokenize(text: str) -> list[str]:
    """Word tokens of ``text``, lower-cased: clitics (``'s``, ``n't``), quotes and punctuation are tokens of their own.

    >>> tokenize('"Don\\'t run," she said.')
    ['``', 'do', "n't", 'run', ',', "''", 'she', 'said', '.']
    """
    text = text.lower()
    for pattern, replacement in _OPENING_RULES:
        text = pattern.sub(replacement, text)
    text = _cut_final_period(text)
    for pattern, replacement in _SYMBOL_RULES:
        text = pattern.sub(replacement, text)
    text = f" {text} "
    for pattern, replacement in _CONTRACTION_RULES:
        text = pattern.sub(replacement, text)
    return text.split()


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


def load_word_vectors(path: str | os.PathLike[str], vocabulary: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """Pre-trained word vectors in the vocabulary's order, for an embedding's first values.

    Args:
      path: either ``NAME`` of the pair ``NAME.npy`` ([N, F]) and ``NAME_words.txt`` (N lines), any of the two files'
        own names, or a text file with lines ``word v1 v2 ...`` as GloVe publishes them (Pennington et al., 2014).
      vocabulary: the words to look up; special tokens are never found.

    Returns:
      vectors [V, F] float32, zero where not found, and found [V] bool. Of a word listed twice the first one counts.

    Raises: DataError when the files are missing or broken, or hold none of the words.
    """
    path = Path(path)
    prefix = path.with_name(path.name.removesuffix(".npy").removesuffix("_words.txt"))
    pair = prefix.with_name(f"{prefix.name}.npy"), prefix.with_name(f"{prefix.name}_words.txt")
    rows = {word: index for index, word in enumerate(vocabulary.words) if index >= len(SPECIAL)}
    try:
        found = _pair_vectors(*pair, rows) if all(map(Path.is_file, pair)) else _text_vectors(path, rows)
    except OSError as error:
        raise DataError(
            f"{path}: cannot read word vectors ({error.strerror or error}); give a text file or NAME of "
            "NAME.npy and NAME_words.txt."
        ) from error
    if not found:
        raise DataError(f"{path}: none of the vocabulary's {len(rows):,} words has a vector here; give another file.")
    width = next(iter(found.values())).shape[0]
    vectors, mask = np.zeros((len(vocabulary), width), np.float32), np.zeros(len(vocabulary), bool)
    for row, vector in found.items():
        vectors[row], mask[row] = vector, True
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if broken.size:
        word = vocabulary.words[broken[0]]
        raise DataError(
            f"{path}: the vector of {word!r} is not finite ({broken.size} such words); mend or remove them."
        )
    return vectors, mask


def _pair_vectors(array_path: Path, words_path: Path, rows: dict[str, int]) -> dict[int, np.ndarray]:
    try:
        array = np.load(array_path, mmap_mode="r", allow_pickle=False)
        words = words_path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (ValueError, EOFError) as error:
        raise DataError(f"{array_path}: cannot read the word vectors ({error}).") from error
    if not isinstance(array, np.ndarray) or array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
        raise DataError(f"{array_path}: word vectors should be one floating-point array [words, features].")
    if len(words) != len(array):
        raise DataError(f"{words_path}: {len(words):,} words, but {array_path.name} has {len(array):,} vectors.")
    found: dict[int, np.ndarray] = {}
    for word, vector in zip(words, array, strict=True):
        if word in rows:
            found.setdefault(rows[word], vector)
    return found


def _text_vectors(path: Path, rows: dict[str, int]) -> dict[int, np.ndarray]:
    """Bytes all the way: only lines of wanted words are parsed, and published files hold words that are not UTF-8."""
    wanted = {word.encode("utf-8", "surrogatepass"): row for word, row in rows.items()}
    found: dict[int, np.ndarray] = {}
    width = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            width = width or len(line.split()) - 1
            row = wanted.get(line.partition(b" ")[0].rstrip())
            values = line.split()[1:] if row is not None else []
            # More values than the first line has: an entry of several words (". . ."), which no token equals.
            if row is None or row in found or len(values) > width:
                continue
            try:
                found[row] = np.array([float(value) for value in values], np.float32)
            except ValueError as error:
                raise DataError(f"{path}: line {number:,} holds something that is not a number ({error}).") from error
            if len(values) != width or not width:
                raise DataError(f"{path}: line {number:,} has {len(values)} values, the first line {width}.")
    return found
