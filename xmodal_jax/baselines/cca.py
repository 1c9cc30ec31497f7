"""Baselines without a network: linear CCA and normalised CCA between bags of words and image features.

Regularised canonical correlation analysis (Hotelling 1936; for retrieval Hodosh, Young and Hockenmaier, JAIR 47, 2013)
finds the directions of images x and captions y that correlate most over all training pairs, with ridges on both
covariances. Items are compared by the cosine of their projections; normalised CCA (Gong, Ke, Isard and Lazebnik, IJCV
2014) first multiplies each direction by a power of its correlation. All settings are chosen on the dev split.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
import scipy.sparse
from jaxtyping import Float, Int

from xmodal_jax import digest
from xmodal_jax.data.pipeline import text_ids
from xmodal_jax.data.records import Dataset, Split, open_dataset
from xmodal_jax.errors import CheckpointError, DataError, NumericError, UsageError
from xmodal_jax.evaluation import ranks_file, table
from xmodal_jax.evaluation.rank import blocked_ranks
from xmodal_jax.evaluation.vote import Member, rank_split
from xmodal_jax.progress import Progress
from xmodal_jax.text.tokens import tokenize

FILE = "baseline.npz"
# Found on the dev split of Flickr8k. A signed power evens out the few large activations of a CNN.
POWER = {"global": 0.5, "region": 0.7}
WEIGHT = {"global": 1.0, "region": 0.5}  # length of each feature's vector where several are used
MINIMUM, MAXIMUM = 2, 5000  # least count of a word, most words
# What is tried: ridges relative to the mean variance, kept directions, powers of the correlations
IMAGE_RIDGES = (0.5, 1.0, 2.0, 4.0)
TEXT_RIDGES = (0.5, 1.0, 2.0)
DIMENSIONS = (32, 48, 64, 80, 96, 112, 128, 160, 192, 256)
POWERS = {"cca": (0.0,), "ncca": (1.0, 0.5, 0.75, 1.25, 1.5)}  # the ridges are chosen with the first


class Setting(NamedTuple):
    """One choice of everything that is tuned."""

    image_ridge: float
    text_ridge: float
    dimension: int
    power: float


class Projection(NamedTuple):
    """Canonical directions, best first."""

    correlation: np.ndarray  # [K]
    image: np.ndarray  # [F, K]
    image_mean: np.ndarray  # [F]
    text: np.ndarray  # [V, K]
    text_mean: np.ndarray  # [V]


Pair = tuple[Float[np.ndarray, "b k"], Float[np.ndarray, "c k"]]
Ranks = tuple[Int[np.ndarray, " b"], Int[np.ndarray, " c"]]


class Items(NamedTuple):
    """One split: images [B, F], bags of words [C, V] sparse, and the image of each caption [C]."""

    image: np.ndarray
    text: scipy.sparse.csr_array
    row: np.ndarray


def read_images(split: Split, names: Sequence[str]) -> Float[np.ndarray, "b f"]:
    """[B, F] float32: each feature to a signed power and unit length; regions by their mean and their maximum."""
    for name in names:
        if name not in POWER:
            raise UsageError(f'No feature "{name}" for the baseline; choose from global and region.')
        if name not in split.feature_names:
            raise DataError(
                f'{split.dataset.directory} has no feature "{name}", only {", ".join(split.feature_names)}.'
            )
    rows = []
    with Progress(f"read {split.name}", len(split), unit="images") as progress:
        for start in range(0, len(split), 100):
            items = split.read(range(start, min(start + 100, len(split))))
            for item in items:
                parts = [_describe(name, np.asarray(item.features[name], np.float32)) for name in names]
                rows.append(np.concatenate(parts))
            progress.advance(len(items))
    return np.stack(rows)


def _describe(name: str, feature: np.ndarray) -> np.ndarray:
    parts = [feature] if name == "global" else [feature.mean(axis=0), feature.max(axis=0)]
    vector = np.concatenate([_unit(np.sign(part) * np.abs(part) ** POWER[name]) for part in parts])
    return WEIGHT[name] * _unit(vector)


def _unit(array: np.ndarray) -> np.ndarray:
    return array / np.maximum(np.linalg.norm(array, axis=-1, keepdims=True), 1e-12)


class Words:
    """Term frequency (1 + log count) times log inverse document frequency over the words of the training captions."""

    def __init__(self, captions: Sequence[Counter[str]]):
        total: Counter[str] = Counter()
        document: Counter[str] = Counter()
        for counts in captions:
            total.update(counts)
            document.update(counts.keys())
        known = [word for word, count in total.most_common(MAXIMUM) if count >= MINIMUM]
        if not known:
            raise DataError(f"No word occurs {MINIMUM} times in the {len(captions):,} training captions.")
        self.column = {word: index for index, word in enumerate(known)}
        self.idf = np.log(len(captions) / np.array([document[word] for word in known]))

    @classmethod
    def known(cls, words: Sequence[str], idf: Float[np.ndarray, " v"]) -> Words:
        """Words in the order of their columns, with what each counts for."""
        table = cls.__new__(cls)
        table.column, table.idf = {str(word): index for index, word in enumerate(words)}, idf
        return table

    def __call__(self, captions: Sequence[Counter[str]]) -> scipy.sparse.csr_array:
        """[C, V]; words that are not known are left out."""
        entries = [
            (caption, self.column[word], 1 + np.log(count))
            for caption, counts in enumerate(captions)
            for word, count in counts.items()
            if word in self.column
        ]
        rows, columns, values = np.array(entries).reshape(-1, 3).T
        rows, columns = rows.astype(int), columns.astype(int)
        shape = (len(captions), len(self.column))
        return scipy.sparse.csr_array((values * self.idf[columns], (rows, columns)), shape=shape)


class Correlator:
    """Regularised CCA for several ridges: the covariances are computed once.

    With C_xx + a I = L_x L_x^T and C_yy + b I = L_y L_y^T (Cholesky) the correlations and directions are the singular
    values and, mapped back by L^-T, the singular vectors of T = L_x^-1 C_xy L_y^-T. Each caption is one pair with its
    image. T is only used through T T^T, the size of the image features, whose upper eigenvectors are cheap.
    """

    def __init__(self, items: Items):
        image, pairs = items.image.astype(np.float64), len(items.row)
        number = np.bincount(items.row, minlength=len(image))[:, None]
        self.image_mean = (number * image).sum(axis=0) / pairs
        self.text_mean = np.asarray(items.text.mean(axis=0)).ravel()
        image -= self.image_mean
        owner = scipy.sparse.csr_array((np.ones(pairs), (items.row, np.arange(pairs))), shape=(len(image), pairs))
        self.image_covariance = image.T @ (number * image) / pairs
        self.text_covariance = (items.text.T @ items.text).toarray() / pairs
        self.text_covariance -= np.outer(self.text_mean, self.text_mean)
        self.cross = (owner @ items.text).T @ image / pairs  # [V, F]; the images are centred, so the texts need not be

    def solve(
        self, image_ridges: Sequence[float], text_ridge: float, dimension: int
    ) -> Iterator[tuple[float, Projection]]:
        """The first ``dimension`` directions for each image ridge in turn; ridges are relative to the mean variance."""
        text_factor = _factor(self.text_covariance, text_ridge)
        half = scipy.linalg.solve_triangular(text_factor, self.cross, lower=True)  # [V, F]
        gram = half.T @ half
        for image_ridge in image_ridges:
            factor = _factor(self.image_covariance, image_ridge)
            whitened = scipy.linalg.solve_triangular(factor, gram, lower=True)
            whitened = scipy.linalg.solve_triangular(factor, whitened.T, lower=True)
            last = len(whitened) - 1
            square, vector = scipy.linalg.eigh(
                (whitened + whitened.T) / 2, subset_by_index=[max(0, last + 1 - dimension), last]
            )
            square, vector = square[::-1], vector[:, ::-1]
            keep = square > 1e-10 * square[0]
            correlation = np.sqrt(square[keep])
            image = scipy.linalg.solve_triangular(factor, vector[:, keep], lower=True, trans=1)
            text = scipy.linalg.solve_triangular(text_factor, half @ image / correlation, lower=True, trans=1)
            yield image_ridge, Projection(correlation, image, self.image_mean, text, self.text_mean)


def _factor(covariance: np.ndarray, ridge: float) -> np.ndarray:
    """Cholesky factor of the covariance with ``ridge`` times the mean variance on its diagonal."""
    covariance = covariance.copy()
    covariance[np.diag_indices_from(covariance)] += ridge * np.trace(covariance) / len(covariance)
    try:
        return scipy.linalg.cholesky(covariance, lower=True, overwrite_a=True)
    except (ValueError, np.linalg.LinAlgError) as error:
        raise NumericError(
            f"The covariance of the training items cannot be factored ({error}); "
            "check the data for values that are not finite or are all equal."
        ) from None


def project(projection: Projection, items: Items) -> Pair:
    """Canonical variates of the images [B, K] and the captions [C, K]."""
    image = (items.image - projection.image_mean) @ projection.image
    return image, items.text @ projection.text - projection.text_mean @ projection.text


def embeddings(
    variates: Pair,
    correlation: Float[np.ndarray, " k"],
    setting: Setting,
) -> tuple[Float[np.ndarray, "b d"], Float[np.ndarray, "c d"]]:
    """Unit vectors [B, K], [C, K] float32: the first variates, each times a power of its correlation."""
    weight = correlation[: setting.dimension] ** setting.power
    image, text = (_unit(side[:, : setting.dimension] * weight).astype(np.float32) for side in variates)
    return image, text


def rank(
    variates: Pair,
    correlation: Float[np.ndarray, " k"],
    setting: Setting,
    row: Int[np.ndarray, " c"],
) -> Ranks:
    """Ranks by the cosine of the first variates, each times a power of its correlation."""
    image, text = embeddings(variates, correlation, setting)
    return blocked_ranks(lambda i, c: image[i] @ text[c].T, row, len(image))


def rsum(ranks: Ranks) -> float:
    """Sum of the six recalls, in percent."""
    return sum(sum(table.recall(way)[:3]) for way in ranks)


class Tuned(NamedTuple):
    """The best setting so far, its dev rsum and its directions."""

    setting: Setting
    rsum: float
    projection: Projection


def tune(method: str, train: Items, dev: Items) -> Tuned:
    """The best setting by dev rsum: the ridges first, then the power."""
    correlator = Correlator(train)
    ridges, powers = len(IMAGE_RIDGES) * len(TEXT_RIDGES), POWERS[method]
    with Progress("tune", ridges + 1, unit="settings") as progress:

        def best_of(ridge: tuple[float, float], projection: Projection, powers: Sequence[float]) -> Tuned:
            variates = project(projection, dev)
            found = sorted({min(dimension, len(projection.correlation)) for dimension in DIMENSIONS})
            settings = [Setting(*ridge, *rest) for rest in itertools.product(found, powers)]
            results = [rsum(rank(variates, projection.correlation, setting, dev.row)) for setting in settings]
            index = int(np.argmax(results))
            progress.advance(note=f"dev rsum {results[index]:.1f}")
            return Tuned(settings[index], results[index], projection)

        coarse = (
            best_of((image_ridge, text_ridge), projection, powers[:1])
            for text_ridge in TEXT_RIDGES
            for image_ridge, projection in correlator.solve(IMAGE_RIDGES, text_ridge, max(DIMENSIONS))
        )
        best = max(coarse, key=lambda tuned: tuned.rsum)
        return best_of(best.setting[:2], best.projection, powers)


class Fitted(NamedTuple):
    """A tuned baseline on a data set, which may vote in `xmodal eval --ensemble`."""

    workdir: Path
    dataset: Dataset
    method: str
    features: Sequence[str]
    setting: Setting
    projection: Projection
    words: Words

    def save(self) -> None:
        """Write it to its folder.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        about = {"method": self.method, "features": list(self.features), "data": str(self.dataset.directory)}
        about |= {"name": self.dataset.manifest["name"], "identity": self.dataset.identity}
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
            with open(self.workdir / FILE, "wb") as file:
                np.savez(
                    file,
                    about=json.dumps({**about, "setting": self.setting._asdict()}),
                    words=list(self.words.column),
                    idf=self.words.idf,
                    **self.projection._asdict(),
                )
        except OSError as error:
            raise CheckpointError(f"{self.workdir} cannot be written ({error.strerror}); choose another.") from None

    @classmethod
    def load(cls, workdir: Path, data: str | Path | None = None) -> Fitted:
        """A kept baseline on the data that it was fitted to, or on ``data``.

        Raises:
            CheckpointError: the file is damaged.
            DataError: the data set has gone or changed, or ``data`` has features of another width.
        """
        try:
            with np.load(workdir / FILE, allow_pickle=False) as arrays:
                about = json.loads(str(arrays["about"]))
                projection = Projection(*(arrays[name] for name in Projection._fields))
                words = Words.known(arrays["words"].tolist(), arrays["idf"])
            setting = Setting(**about["setting"])
        except ranks_file.DAMAGE as error:
            raise CheckpointError(
                f"{workdir / FILE} is damaged ({error}); make it again with `xmodal baseline`."
            ) from None
        if data is None and not Path(about["data"]).is_dir():
            raise DataError(
                f"{workdir} was fitted to {about['data']}, which is not there; say where it is now by --data."
            )
        dataset = open_dataset(data or about["data"])
        if data is None and about.get("identity", dataset.identity) != dataset.identity:  # not kept formerly
            raise DataError(
                f"{dataset.directory} has changed since {workdir} was fitted to it; restore it, name it by --data, or "
                "make the baseline again with `xmodal baseline`."
            )
        return cls(workdir, dataset, about["method"], about["features"], setting, projection, words)

    def vote(self, split: str) -> tuple[Any, Int[np.ndarray, " c"], str]:
        """A member of an ensemble, the image of each caption, and which weights it has."""
        ((items,), _) = read_items([self.dataset.split(split)], self.features, self.words)
        if items.image.shape[1] != len(self.projection.image_mean):
            raise DataError(
                f"{self.workdir} was fitted to {' and '.join(self.features)} features of other sizes than those of "
                f"{self.dataset.directory}; name data of the kind that it was fitted to."
            )
        image, text = embeddings(project(self.projection, items), self.projection.correlation, self.setting)
        ids = text_ids(self.dataset.split(split))
        return Member(lambda _, image, text: image @ text.T, None, image, text, ids), items.row, "linear"

    def __str__(self) -> str:
        return f"{self.workdir} ({self.method})"


def read_items(splits: Sequence[Split], names: Sequence[str], words: Words | None = None) -> tuple[list[Items], Words]:
    """Images and captions of the splits as vectors; without ``words``, with those of the first one."""
    bags = [[Counter(tokenize(text)) for texts in split.captions for text in texts] for split in splits]
    words = words or Words(bags[0])
    rows = [np.repeat(np.arange(len(split)), [len(texts) for texts in split.captions]) for split in splits]
    images = [read_images(split, names) for split in splits]
    return [Items(image, words(bag), row) for image, bag, row in zip(images, bags, rows, strict=True)], words


def main(args: argparse.Namespace) -> int:
    """`xmodal baseline cca|ncca`: tune on dev, print the recall table of ``--split``, keep the result if asked."""
    dataset = open_dataset(args.data)
    splits = [dataset.split(name) for name in ("train", "dev", args.split)]
    (train, dev, test), words = read_items(splits, args.features)
    setting, dev_rsum, projection = tune(args.method, train, dev)
    if args.workdir:
        Fitted(args.workdir, dataset, args.method, args.features, setting, projection, words).save()
    image, text = embeddings(project(projection, test), projection.correlation, setting)
    ids = text_ids(splits[-1])
    member = Member(lambda _, image, text: image @ text.T, None, image, text, ids)
    ranking = rank_split([member], test.row, len(image), protocol="auto", weights="raw", text_id=ids)
    result = ranking.table()
    title = (
        f"{args.method} on {dataset.manifest['name']} {args.split}, {' + '.join(args.features)} features\n"
        f"by dev rsum {dev_rsum:.1f}: image ridge {setting.image_ridge:g}, text ridge {setting.text_ridge:g}, "
        f"{setting.dimension} directions, power {setting.power:g}; {len(words.column):,} words"
    )
    table.to_screen(result, title=title, chance=True)
    if args.json:
        facts = {"method": args.method, "split": args.split, "features": args.features}
        facts |= {"data": dataset.manifest["name"], "identity": dataset.identity}
        content = {**facts, "setting": setting._asdict(), "dev_rsum": dev_rsum, **table.to_json(result)}
        digest.write(args.json, json.dumps(digest.sealed(content), indent=1, allow_nan=False) + "\n")
        about = {**facts, "system": args.method}
        ranks_file.write_beside(args.json, ranking, dataset.split(args.split), about)
    return 0
