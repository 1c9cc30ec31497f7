"""`xmodal data text-features`: a dense vector of every caption, added to a prepared data set.

Three kinds, all that is fitted being fitted to the training captions: the mean of the word vectors, tf-idf, and the
Fisher vector of the word vectors under a mixture (Klein et al., CVPR 2015), which two-branch networks take as the
sentence (Wang, Li and Lazebnik, CVPR 2016). What makes them is kept in one file beside them: :func:`load_text_model`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from xmodal_jax.baselines import fisher
from xmodal_jax.baselines.cca import Words
from xmodal_jax.data import additions
from xmodal_jax.data.records import Dataset, Split, open_dataset, text_file
from xmodal_jax.digest import sha256
from xmodal_jax.errors import DataError, UsageError
from xmodal_jax.progress import Progress, track
from xmodal_jax.text.tokens import tokenize
from xmodal_jax.text.vectors import load_word_vectors, word_vector_files
from xmodal_jax.text.vocabulary import SPECIAL, Vocabulary

BLOCK = 512  # captions computed at a time
NUMBERS = 1 << 28  # in the sample of captions that the PCA is fitted to: 1 GiB of float32
PCA_AXES = 6000  # what two-branch networks were given instead of 18,000 numbers [recalled]
OPTIONS: dict[str, dict[str, Any]] = {  # of each kind, with the defaults; None: decided by the length of the vectors
    "mean": {"whiten": "none", "pca": 0},
    "tfidf": {"pca": 0},
    "fisher": {"whiten": "none", "components": 30, "mixture": "hglmm", "fit": "words", "pca": None},
}
BROKEN = (
    RecursionError,
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
)  # what a damaged .npz raises beside the usual
Bags = Sequence[Counter[str]]


class TextModel:
    """Sentences to vectors: known words, what is known of each, and the linear map that comes last, if any."""

    def __init__(self, about: Mapping[str, Any], words: Sequence[str], arrays: Mapping[str, np.ndarray]):
        self.about, self.words, self.arrays = dict(about), list(words), dict(arrays)
        self.column = {word: index for index, word in enumerate(self.words)}
        self.kind: str = about["kind"]
        if self.kind == "tfidf":
            self.tfidf = Words.known(self.words, arrays["idf"])
            self.width = len(self.words)
        elif self.kind == "mean":
            self.width = arrays["vectors"].shape[1]
        else:
            self.mixture = fisher.Mixture(*(arrays[f"mixture.{part}"] for part in fisher.Mixture._fields))
            self.width = 2 * self.mixture.mean.size
        self.pca = None
        if "pca.axes" in arrays:
            self.pca = fisher.PCA(arrays["pca.mean"], arrays["pca.axes"], float(arrays["pca.kept"]))
            self.width = len(self.pca.axes)

    def bags(self, sentences: Sequence[str]) -> tuple[Bags, Bool[np.ndarray, " n"]]:
        """The words of each sentence, and whether any of them is known.

        Raises:
            DataError: none is, and the option ``missing`` says that this is an error.
        """
        bags = [Counter(tokenize(sentence)) for sentence in sentences]
        known = np.array([not self.column.keys().isdisjoint(bag) for bag in bags], bool)
        if self.about["options"]["missing"] == "error" and not known.all():
            raise DataError(
                f'No word of the sentence "{sentences[int(np.argmin(known))]}" is known; mend it or give other word '
                "vectors, or take zeros for such sentences with --missing zeros."
            )
        return bags, known

    def vectors(self, bags: Bags, known: Bool[np.ndarray, " n"]) -> Float[np.ndarray, "n f"]:
        """Of the sentences that :meth:`bags` took apart, float32; zeros where no word is known."""
        if self.kind == "tfidf":
            whole = fisher.unit(self.tfidf(bags).toarray())
        else:
            counts, vectors = fisher.count_words(bags, self.column), self.arrays["vectors"]
            if self.kind == "mean":
                whole = fisher.mean_vectors(counts, vectors)
            else:
                whole = fisher.power_normalise(fisher.fisher_vectors(counts, vectors, self.mixture))
        whole = whole.astype(np.float32)
        return whole if self.pca is None else self.pca(whole) * known[:, None]

    def encode(self, sentences: Sequence[str]) -> Float[np.ndarray, "n f"]:
        """Vectors of any sentences; those of no known word are zero, or an error if the model was made so."""
        starts = range(0, max(len(sentences), 1), BLOCK)
        return np.concatenate([self.vectors(*self.bags(sentences[start : start + BLOCK])) for start in starts])

    def save(self, path: Path) -> None:
        """Write it; a reader never sees half a file."""
        about = json.dumps({**self.about, "words": self.words}).encode()
        arrays: dict[str, Any] = {"about": np.frombuffer(about, np.uint8), **self.arrays}
        unfinished = path.with_name(f"{path.name}.tmp")
        with unfinished.open("wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)


def load_text_model(path: str | os.PathLike[str]) -> TextModel:
    """Read `text.NAME.npz` of a data set; needs no other file.

    Raises:
        DataError: the file is missing, damaged or something else.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # `np.savez` compresses nothing: a small file stays small
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("its arrays are compressed")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        about = json.loads(arrays.pop("about").tobytes())
        return TextModel(about, about.pop("words"), arrays)
    except (
        OSError,
        EOFError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        MemoryError,
        RecursionError,
        *BROKEN,
    ) as error:
        raise DataError(f"{path} is no text model or is damaged ({error}); add the text features again.") from None


# Fitting


def captions_of(split: Split) -> list[str]:
    """Every caption of the split, through all images."""
    return [text for texts in split.captions for text in texts]


def fit(dataset: Dataset, job: Mapping[str, Any], vectors: Path | None) -> TextModel:
    """The model of a job, fitted to the training captions.

    Raises:
        DataError: no word of them has a vector, or there are too few.
        NumericError: the mixture broke down.
        UsageError: scikit-learn is not installed where it is needed, or more axes than there can be.
    """
    options, captions = job["options"], captions_of(dataset.split("train"))
    if job["kind"] == "tfidf":
        words = Words([Counter(tokenize(text)) for text in track(captions, "words", len(captions), unit="captions")])
        model = TextModel(job, list(words.column), {"idf": words.idf})
    else:
        assert vectors is not None
        model = TextModel(job, *fit_words(dataset, options, vectors))
    axes = options["pca"]
    if axes is None:
        axes = PCA_AXES if model.width > PCA_AXES else 0
    if axes > min(model.width, len(captions)):
        raise UsageError(
            f"{axes:,} axes are more than {len(captions):,} training captions of {model.width:,} numbers have; give a "
            "smaller --pca, or 0 for none."
        )
    if not axes:
        return model
    random = np.random.default_rng(options["seed"])
    size = min(len(captions), max(2 * axes, NUMBERS // model.width))
    sample = np.sort(random.choice(len(captions), size, replace=False))
    rows = np.empty((size, model.width), np.float32)
    with Progress("sample", size, unit="captions") as progress:
        for start in range(0, size, BLOCK):
            part = rows[start : start + BLOCK]
            part[:] = model.encode([captions[index] for index in sample[start : start + BLOCK]])
            progress.advance(len(part))
    pca = fisher.fit_pca(rows, axes, options["seed"])
    print(f"PCA: {axes:,} of {model.width:,} axes hold {100 * pca.kept:.1f} % of the variance of {size:,} captions.")
    arrays = {f"pca.{part}": np.asarray(value) for part, value in pca._asdict().items()}
    return TextModel(job, model.words, {**model.arrays, **arrays})


def fit_words(dataset: Dataset, options: Mapping[str, Any], path: Path) -> tuple[list[str], dict[str, np.ndarray]]:
    """Words and their vectors as they enter the sum, and the mixture where one is asked for.

    The words are those of all captions that have a vector, the file's vectors being no part of the data; what is fitted
    is fitted to the words of the training captions.
    """
    counts: dict[str, Counter[str]] = {}
    for name in dataset.splits:
        captions = captions_of(dataset.split(name))
        counts[name] = Counter()
        for text in track(captions, f"words {name}", len(captions), unit="captions"):
            counts[name].update(tokenize(text))
    vocabulary = Vocabulary([*SPECIAL, *sorted(set().union(*counts.values()))])
    vectors, found = load_word_vectors(path, vocabulary)
    words = [word for word, has in zip(vocabulary.words, found, strict=True) if has]
    table = fisher.unit(vectors[found].astype(np.float64))
    often = np.array([counts["train"][word] for word in words])
    if not often.any():
        raise DataError(f"{path}: none of the words of the training captions has a vector here; give another file.")
    rows = np.flatnonzero(often)
    print(f"word vectors: {len(words):,} of {len(vocabulary) - len(SPECIAL):,} words, {table.shape[1]} numbers each")
    if options["whiten"] != "none":
        table = fisher.unit(table @ fisher.fit_rotation(table[rows], options["whiten"], options["seed"]).T)
    if "mixture" not in options:
        return words, {"vectors": table}
    table *= fisher.FACTOR[options["mixture"]]
    fitting = {"hglmm": fisher.fit_hglmm, "gmm": fisher.fit_gmm}[options["mixture"]]
    count = often[rows] if options["fit"] == "tokens" else None
    mixture = fitting(table[rows], options["components"], options["seed"], count)
    share = 100 * mixture.laplacian.mean()
    print(f"{options['mixture']}: {len(mixture.prior)} components on {len(rows):,} vectors, {share:.0f} % Laplacian")
    return words, {"vectors": table, **{f"mixture.{part}": value for part, value in mixture._asdict().items()}}


# Writing


def write_split(model: TextModel, split: Split, path: Path) -> int:
    """Write the vectors of the captions to ``path``, or go on behind the blocks that are there.

    Returns:
        how many captions have no known word.
    """
    captions = captions_of(split)
    missing, row = 0, 4 * model.width
    form = {"descr": "<f4", "fortran_order": False, "shape": (len(captions), model.width)}
    with path.open("r+b" if path.exists() else "w+b") as file:
        np.lib.format.write_array_header_1_0(file, form)
        first = file.tell()
        done = min((file.seek(0, os.SEEK_END) - first) // row, len(captions))
        done -= done % BLOCK if done < len(captions) else 0
        file.truncate(first + done * row)
        file.seek(0, os.SEEK_END)
        with Progress(f"write {split.name}", len(captions), unit="captions", start=done) as progress:
            for start in range(0, len(captions), BLOCK):
                bags, known = model.bags(captions[start : start + BLOCK])
                missing += int((~known).sum())
                if start >= done:
                    file.write(model.vectors(bags, known).astype("<f4").tobytes())
                    file.flush()
                    os.fsync(file.fileno())
                    progress.advance(len(bags))
    return missing


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from the same work while this one is at it."""
    with path.open("w") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # a system without such locks
            pass
        except OSError:
            raise DataError(f"Another process is at work on {path}; wait for it to end.") from None
        yield
        path.unlink(missing_ok=True)


def add(dataset: Dataset, name: str, job: Mapping[str, Any], vectors: Path | None) -> dict[str, Any]:
    """Fit, write and enter the text features ``name``, or go on where an earlier call stopped; returns the entry.

    Unfinished files are hidden ones, which belong to no data set: it can be used all the while.

    Raises:
        DataError: the work was begun with other options, or cannot be done.
    """
    folder = dataset.directory
    final = {split: folder / text_file(name, split) for split in (*dataset.splits, "")}
    # What was renamed already before the last call was killed is complete.
    paths = {split: path if path.exists() else path.with_name(f".{path.name}.partial") for split, path in final.items()}
    if paths[""].exists():
        model = load_text_model(paths[""])
        other = [key for key in job if model.about.get(key) != job[key]]
        if other:
            raise DataError(
                f"{paths['']} was begun with another {' and '.join(other)}; give the same again, or remove the file."
            )
        print(f"{folder}: going on with the model that is fitted already.", file=sys.stderr)
    else:
        for path in paths.values():
            path.unlink(missing_ok=True)
        paths = {split: path.with_name(f".{path.name}.partial") for split, path in final.items()}
        model = fit(dataset, job, vectors)
        if job["options"]["missing"] == "error":
            model.bags([text for split in dataset.splits for text in captions_of(dataset.split(split))])
        model.save(paths[""])
    missing = {split: write_split(model, dataset.split(split), paths[split]) for split in dataset.splits}
    entry = {"shape": [model.width], "dtype": "float32", **{key: job[key] for key in ("kind", "options", "sha256")}}
    entry |= {"fitted_on": "train", "words": len(model.words), "missing": missing}
    if model.pca is not None:
        entry["pca_kept"] = round(model.pca.kept, 4)
    moves = {paths[split]: final[split] for split in final}  # the model last: it tells what the others are
    additions.add_text_features(folder, name, entry, moves)
    return entry


def read_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of the kind, defaults filled in; UsageError for one that means nothing or cannot be."""
    defaults = OPTIONS[args.kind]
    for key in ("whiten", "components", "mixture", "fit"):
        if getattr(args, key) is not None and key not in defaults:
            raise UsageError(f"--{key} means nothing to {args.kind}; leave it out.")
    if (args.vectors is None) != (args.kind == "tfidf"):
        which = "takes no word vectors; leave out --vectors" if args.vectors else "needs word vectors; give --vectors"
        raise UsageError(f"{args.kind} {which}.")
    for key, least in (("components", 1), ("pca", 0), ("seed", 0)):
        value = getattr(args, key)
        if value is not None and value < least:
            raise UsageError(f"--{key} must be at least {least}, not {value}.")
    if args.name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", args.name):
        raise UsageError(f'--name "{args.name}" cannot name text features; use letters, digits, _ and -.')
    given = {key: getattr(args, key) for key in defaults}
    options = {key: defaults[key] if value is None else value for key, value in given.items()}
    return {**options, "missing": args.missing, "seed": args.seed}


def main(args: argparse.Namespace) -> int:
    """`xmodal data text-features mean|tfidf|fisher DIR`."""
    options, name = read_options(args), args.name or args.kind
    dataset = open_dataset(args.directory)
    dataset.split("train")
    try:
        hashes = {path.name: sha256(path) for path in word_vector_files(args.vectors)} if args.vectors else {}
    except OSError as error:
        raise DataError(f"{args.vectors}: cannot read word vectors ({error.strerror or error}).") from None
    job = {"kind": args.kind, "options": options, "sha256": hashes, "data": dataset.identity}
    known = dataset.manifest.get("text_features", {}).get(name)
    if known is not None:
        other = [key for key in ("kind", "options", "sha256") if known[key] != job[key]]
        if other:
            raise DataError(
                f'{args.directory} has text features "{name}" of another {" and ".join(other)}; choose another --name.'
            )
        print(f'{args.directory}: text features "{name}" are there already, nothing to do.', file=sys.stderr)
        return 0
    try:
        with locked(dataset.directory / f".text.{name}.lock"):
            entry = add(dataset, name, job, args.vectors)
    except OSError as error:
        raise DataError(
            f"{args.directory}: cannot write text features there ({error.strerror or error}); the same command goes on."
        ) from None
    for split, missing in entry["missing"].items():
        count = dataset.manifest["splits"][split]["captions"]
        print(f"{split}: {count:,} captions, {missing:,} of them without a known word (zeros)")
    print(f'{args.directory}: text features "{name}", {entry["shape"][0]:,} numbers a caption, fitted to train')
    print(f"next: xmodal data check {args.directory}")
    return 0
