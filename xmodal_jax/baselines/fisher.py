"""Numbers of a sentence without a network: mixtures of word vectors, Fisher vectors under them, randomised PCA.

A sentence is the bag of its words' vectors; its Fisher vector says in which direction the parameters of a mixture,
fitted to many word vectors, would have to move to fit this bag better (Perronnin and Dance, CVPR 2007). The hybrid
Gaussian-Laplacian mixture (HGLMM) is that of Klein, Lev, Sadeh and Wolf, CVPR 2015 (released code hglmm_fv 1.6, a copy
of which is in layumi/Image-Text-Embedding). All is float64; the PCA keeps the type it is given.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
import scipy.sparse
from jaxtyping import Bool, Float, Int

from xmodal_jax.errors import DataError, NumericError, require
from xmodal_jax.progress import Progress

ITERATIONS = 10  # of EM, as the released code
FLOOR = 1e-3  # least scale and variance
SAMPLE = 300_000  # most vectors that a GMM is fitted to; the released code samples as many words
FACTOR = {"hglmm": 10.0, "gmm": 1.0}  # of the unit word vectors; the released code scales for the HGLMM alone
Counts = Int[np.ndarray, " n"]


class Mixture(NamedTuple):
    """K components in D dimensions, each Laplacian or Gaussian in each dimension: a GMM is one without a Laplacian."""

    location: Float[np.ndarray, "k d"]  # of the Laplacian
    scale: Float[np.ndarray, "k d"]
    mean: Float[np.ndarray, "k d"]  # of the Gaussian
    variance: Float[np.ndarray, "k d"]
    laplacian: Bool[np.ndarray, "k d"]  # which of the two counts
    prior: Float[np.ndarray, " k"]


def unit(x: Float[np.ndarray, "*n d"]) -> Float[np.ndarray, "*n d"]:
    """Rows to unit length; a zero row stays zero."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), np.finfo(x.dtype).tiny)


def count_words(bags: Sequence[Mapping[str, int]], column: Mapping[str, int]) -> scipy.sparse.csr_array:
    """How often each known word occurs: [C, V], from the words of C sentences and the columns of V known words."""
    known = [sorted((column[word], count) for word, count in bag.items() if word in column) for bag in bags]
    start = np.cumsum([0, *map(len, known)])
    pairs = np.array([pair for row in known for pair in row], np.int64).reshape(-1, 2)
    return scipy.sparse.csr_array((pairs[:, 1].astype(np.float64), pairs[:, 0], start), shape=(len(bags), len(column)))


# Mixtures


def log_joint(x: Float[np.ndarray, "n d"], mixture: Mixture) -> Float[np.ndarray, "n k"]:
    """Logarithm of prior times density of each component."""
    joint = np.tile(np.log(mixture.prior), (len(x), 1))
    log_volume = np.where(mixture.laplacian, np.log(2 * mixture.scale), np.log(2 * np.pi * mixture.variance) / 2)
    joint -= log_volume.sum(axis=1)
    for column, location, scale, mean, variance, laplacian in zip(x.T, *(part.T for part in mixture[:5]), strict=True):
        away = column[:, None] - np.where(laplacian, location, mean)
        joint -= np.where(laplacian, np.abs(away) / scale, np.square(away) / (2 * variance))
    return joint


def posterior(joint: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """How much each component is responsible for each vector, from :func:`log_joint`; rows add up to 1."""
    weight = np.exp(joint - joint.max(axis=1, keepdims=True))
    return weight / weight.sum(axis=1, keepdims=True)


def start_hglmm(x: Float[np.ndarray, "n d"], often: Counts, components: int, random: np.random.Generator) -> Mixture:
    """Centres at different random vectors, spreads of all vectors, Laplacian or Gaussian by the toss of a coin.

    ``often`` says how many times each vector counts.

    Raises:
        DataError: fewer different vectors than components.
    """
    centre = x[_different(x, often, components, random)]
    whole = [np.repeat(column, often) for column in x.T]
    scale = np.array([np.abs(column - np.median(column)).mean() for column in whole])
    variance = np.array([column.var() for column in whole])
    spread = [np.tile(np.maximum(size, FLOOR), (components, 1)) for size in (scale, variance)]
    laplacian = random.random(centre.shape) < 0.5
    return Mixture(centre, spread[0], centre, spread[1], laplacian, np.full(components, 1 / components))


def _different(x: np.ndarray, often: np.ndarray, number: int, random: np.random.Generator) -> np.ndarray:
    """Random rows of which no two are equal, as likely as they are frequent: two equal centres would never part."""
    _, first, inverse = np.unique(x, axis=0, return_index=True, return_inverse=True)
    if len(first) < number:
        raise DataError(
            f"A mixture of {number} components needs as many different word vectors, not {len(first)}; "
            "give fewer --components or more training captions."
        )
    share = np.bincount(inverse.ravel(), often)
    return first[random.choice(len(first), number, replace=False, p=share / share.sum())]


def update_hglmm(x: Float[np.ndarray, "n d"], weight: Float[np.ndarray, "n k"]) -> Mixture:
    """The M step: location, scale, mean, variance and priors, then which of the two fits better.

    ``weight`` is the posterior, times the vectors' counts if they have any.
    The location is a weighted median: the first vector, by size, at which the running weight reaches half of the whole.
    A dimension is Laplacian where that has strictly more expected log-likelihood, with the new values (released code).

    Raises:
        NumericError: a component has lost all its vectors.
    """
    total = weight.sum(axis=0)
    if not total.all():
        raise NumericError(
            f"{int((total == 0).sum())} of the {len(total)} components of the mixture fit no word vector any more; "
            "give fewer --components or another --seed."
        )
    location, deviation, mean, square = (np.empty((len(total), x.shape[1])) for _ in range(4))
    for d, column in enumerate(x.T):
        order = np.argsort(column, kind="stable")
        reached = (np.cumsum(weight[order], axis=0) < total / 2).sum(axis=0)
        location[:, d] = column[order[np.minimum(reached, len(x) - 1)]]
        deviation[:, d] = (weight * np.abs(column[:, None] - location[:, d])).sum(axis=0) / total
        mean[:, d] = (weight * column[:, None]).sum(axis=0) / total
        square[:, d] = (weight * np.square(column[:, None] - mean[:, d])).sum(axis=0) / total
    scale, variance = np.maximum(deviation, FLOOR), np.maximum(square, FLOOR)
    as_laplacian = -np.log(2 * scale) - deviation / scale
    as_gaussian = -(np.log(2 * np.pi * variance) + square / variance) / 2
    return Mixture(location, scale, mean, variance, as_laplacian > as_gaussian, total / total.sum())


def fit_hglmm(
    x: Float[np.ndarray, "n d"],
    components: int,
    seed: int = 0,
    often: Counts | None = None,
    *,
    iterations: int = ITERATIONS,
) -> Mixture:
    """Hybrid mixture of vectors, which count ``often`` times each, by expectation maximisation.

    Raises what :func:`start_hglmm` and :func:`update_hglmm` do.
    """
    often = np.ones(len(x), np.int64) if often is None else often
    mixture = start_hglmm(x, often, components, np.random.default_rng(seed))
    with Progress("HGLMM", iterations, unit="iterations") as progress:
        for _ in range(iterations):
            joint = log_joint(x, mixture)
            mixture = update_hglmm(x, posterior(joint) * often[:, None])
            likelihood = np.average(np.logaddexp.reduce(joint, axis=1), weights=often)
            progress.advance(note=f"log-likelihood before {likelihood:.4f} a vector")
    return mixture


def fit_gmm(x: Float[np.ndarray, "n d"], components: int, seed: int = 0, often: Counts | None = None) -> Mixture:
    """Gaussian mixture with diagonal covariances, by scikit-learn; the released code uses VLFeat's.

    scikit-learn knows no counts: with ``often`` the mixture is fitted to at most ``SAMPLE`` random occurrences.

    Raises:
        DataError: fewer different vectors than components.
        UsageError: scikit-learn (extra ``fisher``) is not installed.
    """
    require("sklearn", "fisher")
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    random = np.random.default_rng(seed)
    if often is not None:
        rows = np.repeat(np.arange(len(x)), often)
        x = x[np.sort(random.choice(rows, SAMPLE, replace=False)) if len(rows) > SAMPLE else rows]
    _different(x, np.ones(len(x), np.int64), components, random)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 100 iterations are enough
        fitted = GaussianMixture(components, covariance_type="diag", random_state=seed).fit(x)
    mean, variance = np.asarray(fitted.means_), np.asarray(fitted.covariances_)
    nothing = np.zeros(mean.shape, bool)
    return Mixture(mean, np.ones(mean.shape), mean, variance, nothing, np.asarray(fitted.weights_))


# Vectors of sentences


def fisher_vectors(
    counts: scipy.sparse.csr_array, x: Float[np.ndarray, "v d"], mixture: Mixture
) -> Float[np.ndarray, "c f"]:
    """Fisher vectors of C sentences, F = 2 K D: all first-order entries, component by component, then the second-order.

    With N words x in a sentence, posteriors g and priors p, a Gaussian entry is the sum of
    g (x - mean) / sqrt(variance) or of g ((x - mean)^2 / variance - 1) / sqrt(2), a Laplacian one that of
    g sign(x - location) or of g (|x - location| / scale - 1), all over sqrt(N p): the gradients times the inverse root
    of the Fisher information (Klein et al., CVPR 2015; released code). sign(0) is 1. For a GMM this is sqrt(N) times
    VLFeat's vector, the same once :func:`power_normalise` is through with it. A sentence without words is all zero.
    """
    words = np.asarray(counts.sum(axis=1))[:, None]
    used = np.unique(counts.indices)
    counts, x = counts[:, used], x[used]
    weight = posterior(log_joint(x, mixture)) / np.sqrt(mixture.prior)
    raw = np.empty((len(words), 2, *mixture.mean.shape))
    for k, (location, scale, mean, variance, laplacian) in enumerate(zip(*mixture[:5], strict=True)):
        away, standard = x - location, (x - mean) / np.sqrt(variance)
        first = np.where(laplacian, np.where(away >= 0, 1.0, -1.0), standard)
        second = np.where(laplacian, np.abs(away) / scale - 1, (np.square(standard) - 1) / np.sqrt(2))
        for part, entry in enumerate((first, second)):
            raw[:, part, k] = counts @ (weight[:, k, None] * entry)
    return raw.reshape(len(raw), 2 * mixture.mean.size) / np.sqrt(np.maximum(words, 1))


def power_normalise(x: Float[np.ndarray, "c f"]) -> Float[np.ndarray, "c f"]:
    """Signed square root of every entry, then unit length (Perronnin, Sanchez and Mensink, ECCV 2010)."""
    return unit(np.sign(x) * np.sqrt(np.abs(x)))


def mean_vectors(counts: scipy.sparse.csr_array, x: Float[np.ndarray, "v d"]) -> Float[np.ndarray, "c d"]:
    """Mean of the words' vectors at unit length; a sentence without words is all zero."""
    return unit(counts @ x)


# Linear maps


def fit_rotation(x: Float[np.ndarray, "n d"], kind: str, seed: int = 0) -> Float[np.ndarray, "d d"]:
    """The matrix R that takes word vectors to their principal axes ("pca") or independent components ("ica"): x R^T.

    Both are fitted around the mean and used without it, as in the released code; "pca" does not rescale, "ica" does,
    to unit variance. Its deflation with cubes stands for the defaults of MATLAB's FastICA 2.5 [recalled].

    Raises:
        UsageError: scikit-learn (extra ``fisher``) is not installed and "ica" is asked for.
    """
    if kind == "pca":
        return _face(np.linalg.eigh(np.cov(x.T, ddof=0))[1].T[::-1])
    require("sklearn", "fisher")
    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        ica = FastICA(algorithm="deflation", fun="cube", whiten="unit-variance", max_iter=1000, random_state=seed)
        return np.asarray(ica.fit(x).components_)


class PCA(NamedTuple):
    """Principal axes, the largest first: of P out of F."""

    mean: Float[np.ndarray, " f"]
    axes: Float[np.ndarray, "p f"]
    kept: float  # share of the variance

    def __call__(self, x: Float[np.ndarray, "n f"]) -> Float[np.ndarray, "n p"]:
        return (x - self.mean) @ self.axes.T


def fit_pca(x: Float[np.ndarray, "n f"], rank: int, seed: int = 0, *, rounds: int = 2, surplus: int = 10) -> PCA:
    """The ``rank`` leading principal axes, found in a random subspace (Halko, Martinsson and Tropp, SIAM Review, 2011).

    ``rounds`` of subspace iteration and ``surplus`` further dimensions make them sharp; they are exact where the
    variance has no more than ``rank`` directions. The array is neither copied nor centred: the products do that.

    Raises:
        DataError: fewer vectors or numbers than ``rank``.
    """
    if rank > min(x.shape):
        raise DataError(
            f"{rank:,} principal axes need as many sentences and numbers, not {len(x):,} of {x.shape[1]:,}."
        )
    mean = x.mean(axis=0, dtype=np.float64).astype(x.dtype)
    size = min(rank + surplus, *x.shape)
    basis = np.random.default_rng(seed).standard_normal((x.shape[1], size)).astype(x.dtype)
    with Progress("PCA", rounds + 1, unit="rounds") as progress:

        def turn(basis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            rows, _ = _orthogonal(x @ basis - mean @ basis)
            progress.advance()
            return _orthogonal(x.T @ rows - np.outer(mean, rows.sum(axis=0)))

        for _ in range(rounds):
            basis, _ = turn(basis)
        basis, triangle = turn(basis)
    triangle = triangle.astype(np.float64)
    variance, within = np.linalg.eigh(triangle @ triangle.T)  # of the centred rows, inside the basis
    axes = _face((basis @ within[:, ::-1][:, :rank].astype(x.dtype)).T)
    whole = np.square(np.linalg.norm(x)) - len(x) * np.square(np.linalg.norm(mean))
    return PCA(mean, np.ascontiguousarray(axes), float(variance[::-1][:rank].sum() / max(whole, np.finfo(float).tiny)))


def _orthogonal(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """QR decomposition in the type of ``x``, which is overwritten; NumPy's would compute in float64."""
    factors: Any = scipy.linalg.qr(x, overwrite_a=True, mode="economic", check_finite=False)
    return factors[0], factors[1]


def _face(axes: np.ndarray) -> np.ndarray:
    """The largest entry of every row positive: the sign of an axis is arbitrary."""
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    return axes * np.where(largest < 0, -1, 1).astype(axes.dtype)
