"""Pre-trained word vectors."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from xmodal_jax.errors import DataError
from xmodal_jax.text.vocabulary import SPECIAL, Vocabulary


def word_vector_files(path: str | os.PathLike[str]) -> tuple[Path, ...]:
    """The files that :func:`load_word_vectors` reads for ``path``: array and words of a pair, or one text file."""
    path = Path(path)
    prefix = path.with_name(path.name.removesuffix(".npy").removesuffix("_words.txt"))
    pair = prefix.with_name(f"{prefix.name}.npy"), prefix.with_name(f"{prefix.name}_words.txt")
    return pair if all(map(Path.is_file, pair)) else (path,)


def load_word_vectors(
    path: str | os.PathLike[str], vocabulary: Vocabulary
) -> tuple[Float[np.ndarray, "v f"], Bool[np.ndarray, " v"]]:
    """Pre-trained word vectors in the vocabulary's order, for an embedding's first values.

    Args:
      path: either ``NAME`` of the pair ``NAME.npy`` ([N, F]) and ``NAME_words.txt`` (N lines), any of the two files'
        own names, or a text file with lines ``word v1 v2 ...`` as GloVe publishes them (Pennington et al., 2014).
      vocabulary: the words to look up; special tokens are never found.

    Returns:
      vectors [V, F] float32, zero where not found, and found [V] bool. Of a word listed twice the first one counts.

    Raises: DataError when the files are missing or broken, or hold none of the words.
    """
    files = word_vector_files(path)
    rows = {word: index for index, word in enumerate(vocabulary.words) if index >= len(SPECIAL)}
    try:
        found = _pair_vectors(*files, rows) if len(files) == 2 else _text_vectors(files[0], rows)
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
    except (ValueError, OverflowError, EOFError) as error:
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
