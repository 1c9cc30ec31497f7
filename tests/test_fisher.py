"""HGLMM, Fisher vectors and randomised PCA: against arrays of the original C++ code, and in what must always hold."""

import sys

import numpy as np
import pytest
import scipy.sparse
from conftest import GOLDEN

from xmodal_jax.baselines import fisher
from xmodal_jax.baselines.fisher import Mixture, fisher_vectors, fit_pca, power_normalise
from xmodal_jax.errors import DataError, NumericError, UsageError

PARTS = ("m", "s", "mu", "sigma", "b", "prior")


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-9)


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "fisher.npz")


def mixture_of(golden, state):
    return Mixture(*(golden[f"em/{state}/{part}"] for part in PARTS))


def counts_of(golden):
    words = golden["in/sentence_word"]
    sentence, place = np.nonzero(words >= 0)
    entries = np.ones(len(place)), (sentence, words[sentence, place])
    return scipy.sparse.csr_array(entries, shape=(len(words), len(golden["in/word_vector_times_10"])))


def test_em_step_by_step(golden):
    x, mixture = golden["em/sample"], mixture_of(golden, "init")
    for number in (1, 2, 3):
        joint = fisher.log_joint(x, mixture)
        close(np.logaddexp.reduce(joint, axis=1).sum(), golden[f"em/loglik/{number - 1}"])
        weight = fisher.posterior(joint)
        close(weight, golden[f"em/iteration{number}/posterior_before"])
        mixture, expected = fisher.update_hglmm(x, weight), mixture_of(golden, f"iteration{number}")
        for part, got, want in zip(PARTS, mixture, expected, strict=True):
            np.testing.assert_array_equal(got, want) if part in "mb" else close(got, want)
    close(np.logaddexp.reduce(fisher.log_joint(x, mixture), axis=1).sum(), golden["em/loglik/3"])


def test_start_of_em(golden):
    """Spreads are those of the original; which vectors are drawn is not."""
    x, init = golden["em/sample"], mixture_of(golden, "init")
    start = fisher.start_hglmm(x, np.ones(80, int), 3, np.random.default_rng(0))
    close(start.scale, init.scale)
    close(start.variance, init.variance)
    close(start.prior, init.prior)
    assert {tuple(row) for row in start.location} <= {tuple(row) for row in x}
    assert len(np.unique(start.mean, axis=0)) == 3
    assert start.laplacian.any() and not start.laplacian.all()


@pytest.mark.parametrize(("number", "state"), [(0, "init"), (3, "iteration3")])
def test_fisher_vectors_of_the_hybrid(golden, number, state):
    raw = fisher_vectors(counts_of(golden), golden["in/word_vector_times_10"], mixture_of(golden, state))
    close(raw, golden[f"fv/state{number}/raw"])
    close(power_normalise(raw), golden[f"fv/state{number}/final"])


def test_fisher_vectors_of_a_gmm(golden):
    mean, variance = golden["gmm/mean"], golden["gmm/variance"]
    mixture = Mixture(mean, np.ones_like(mean), mean, variance, np.zeros(mean.shape, bool), golden["gmm/weight"])
    raw = fisher_vectors(counts_of(golden), golden["gmm/in/word_vector"], mixture)
    close(raw / np.sqrt(golden["in/sentence_length"])[:, None], golden["gmm/fv/raw"])
    close(power_normalise(raw), golden["gmm/fv/final"])


def test_ties_and_floors():
    """Of two halves the median is the first; no spread falls below the floor; equally good means Gaussian."""
    x = np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0], [4.0, 5.0]])
    mixture = fisher.update_hglmm(x, np.full((4, 1), 1.0))
    np.testing.assert_array_equal(mixture.location, [[2.0, 5.0]])
    np.testing.assert_array_equal(mixture.scale, [[1.0, 1e-3]])
    np.testing.assert_array_equal(mixture.variance, [[1.25, 1e-3]])
    # In the second dimension the Laplacian's density is 1 / 0.002, the Gaussian's 1 / sqrt(0.002 pi).
    np.testing.assert_array_equal(mixture.laplacian, [[False, True]])
    with pytest.raises(NumericError, match="1 of the 2 components"):
        fisher.update_hglmm(x, np.array([[1.0, 0.0]] * 4))


def blobs(components=3, each=200, size=4, seed=0):
    random = np.random.default_rng(seed)
    centres = 6 * random.normal(size=(components, size))
    return np.concatenate([centre + random.normal(size=(each, size)) for centre in centres]), centres


@pytest.mark.parametrize("fit", [fisher.fit_hglmm, fisher.fit_gmm])
def test_both_fits_find_planted_clusters(fit, capsys):
    pytest.importorskip("sklearn")
    x, centres = blobs()
    mixture = fit(x, 3, seed=4)
    order = [int(np.square(mixture.mean - centre).sum(axis=1).argmin()) for centre in centres]
    assert sorted(order) == [0, 1, 2]
    np.testing.assert_allclose(mixture.mean[order], centres, atol=0.4)
    np.testing.assert_allclose(mixture.prior, 1 / 3, atol=0.02)
    assert all(np.array_equal(a, b) for a, b in zip(mixture, fit(x, 3, seed=4), strict=True))
    assert mixture.laplacian.any() <= (fit is fisher.fit_hglmm)
    with pytest.raises(DataError, match="600 components needs as many different word vectors, not 2"):
        fit(np.repeat(x[:2], 400, axis=0), 600)


def test_counts_are_as_good_as_occurrences():
    x, _ = blobs(each=20)
    often = np.random.default_rng(1).integers(1, 5, len(x))
    first = fisher.start_hglmm(x, often, 3, np.random.default_rng(0))
    other = fisher.start_hglmm(np.repeat(x, often, axis=0), np.ones(often.sum(), int), 3, np.random.default_rng(0))
    for got, want in zip(first, other, strict=True):
        np.testing.assert_allclose(got, want)
    often[7] = 10**6
    assert x[7] in fisher.start_hglmm(x, often, 1, np.random.default_rng(0)).mean  # drawn as it occurs
    often[7] = 1
    pytest.importorskip("sklearn")
    for fit in (fisher.fit_hglmm, fisher.fit_gmm):
        for got, want in zip(fit(x, 3, 0, often), fit(np.repeat(x, often, axis=0), 3), strict=True):
            np.testing.assert_allclose(got, want)


def test_laplacian_and_gaussian_dimensions_are_told_apart():
    random = np.random.default_rng(0)
    x = np.stack([random.normal(size=3000), random.laplace(size=3000)], axis=1)
    np.testing.assert_array_equal(fisher.fit_hglmm(x, 1).laplacian, [[False, True]])


def test_hglmm_needs_no_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    x, _ = blobs()
    assert fisher.fit_hglmm(x, 3).mean.shape == (3, 4) and fisher.fit_rotation(x, "pca").shape == (4, 4)
    for needs in (lambda: fisher.fit_gmm(x, 3), lambda: fisher.fit_rotation(x, "ica")):
        with pytest.raises(UsageError, match=r'pip install "xmodal_jax\[fisher\]"'):
            needs()


def test_bags_of_words(golden):
    """Order does not matter, a word counts as often as it occurs, unknown words do not count, nothing known is zero."""
    x, mixture = golden["in/word_vector_times_10"][:3], mixture_of(golden, "iteration3")
    column = {"dog": 0, "runs": 1, "fast": 2}
    bags = [{"dog": 2, "runs": 1}, {"runs": 1, "zebra": 5, "dog": 2}, {"dog": 1}, {"zebra": 1}, {}]
    counts = fisher.count_words(bags, column)
    np.testing.assert_array_equal(counts.toarray(), [[2, 1, 0], [2, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]])
    raw, mean = fisher_vectors(counts, x, mixture), fisher.mean_vectors(counts, x)
    for vectors in (raw, power_normalise(raw), mean):
        np.testing.assert_array_equal(vectors[0], vectors[1])
        assert not vectors[3:].any() and vectors[:3].any(axis=1).all()
    alone = [fisher_vectors(fisher.count_words([{word: 1}], column), x, mixture) for word in ("dog", "runs")]
    np.testing.assert_allclose(raw[0] * np.sqrt(3), (2 * alone[0] + alone[1])[0])  # sums over words, over sqrt(N)
    np.testing.assert_allclose(mean[0], fisher.unit((2 * x[0] + x[1]) / 3))
    assert fisher_vectors(fisher.count_words([], column), x, mixture).shape == (0, 30)


def test_rotations():
    random = np.random.default_rng(0)
    hidden = random.laplace(size=(2000, 3)) * [3, 1, 2]
    mix = np.linalg.qr(random.normal(size=(3, 3)))[0]
    x = hidden @ mix + [5, 0, 0]
    principal = fisher.fit_rotation(x, "pca")
    close(principal @ principal.T, np.eye(3))
    turned = (x - x.mean(axis=0)) @ principal.T
    spread = np.cov(turned.T)
    close(spread, np.diag(np.diag(spread)))
    assert (np.diff(np.diag(spread)) < 0).all()
    pytest.importorskip("sklearn")
    independent = fisher.fit_rotation(x, "ica")
    found = np.abs(np.corrcoef((x @ independent.T).T, hidden.T)[:3, 3:])
    assert sorted(found.argmax(axis=1)) == [0, 1, 2] and found.max(axis=1).min() > 0.99
    np.testing.assert_allclose((x @ independent.T).std(axis=0), 1, rtol=1e-3)


def test_pca_recovers_a_low_rank():
    random = np.random.default_rng(0)
    x = random.normal(size=(300, 5)) * [9, 7, 5, 3, 1] @ np.linalg.qr(random.normal(size=(40, 5)))[0].T + 2
    pca = fit_pca(x, 5, surplus=0)
    close(pca(x) @ pca.axes + pca.mean, x)
    close(pca.axes @ pca.axes.T, np.eye(5))
    close(pca.kept, 1)
    assert (pca.axes.max(axis=1) > -pca.axes.min(axis=1)).all()
    exact = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(np.linalg.norm(pca(x), axis=0), exact[1][:5])
    np.testing.assert_allclose(np.abs(pca.axes), np.abs(exact[2][:5]), atol=1e-9)
    with pytest.raises(DataError, match="41 principal axes need as many sentences and numbers, not 300 of 40"):
        fit_pca(x, 41)


def test_pca_of_noise_is_near_the_best_and_repeats():
    random = np.random.default_rng(0)
    x = (random.normal(size=(400, 120)) * np.linspace(3, 1, 120)).astype(np.float32)
    pca = fit_pca(x, 20, seed=3, rounds=4)
    variance = np.square(np.linalg.svd(x - x.mean(axis=0), compute_uv=False))
    assert 0.99 * variance[:20].sum() < np.square(pca(x)).sum() <= 1.0001 * variance[:20].sum()
    np.testing.assert_allclose(pca.kept, np.square(pca(x)).sum() / variance.sum(), rtol=1e-2)
    assert pca.axes.dtype == pca.mean.dtype == np.float32
    again, other = fit_pca(x, 20, seed=3, rounds=4), fit_pca(x, 20, seed=4, rounds=4)
    np.testing.assert_array_equal(pca.axes, again.axes)
    assert not np.array_equal(pca.axes, other.axes)
    assert np.linalg.svd(pca.axes[:5] @ other.axes.T, compute_uv=False).min() > 0.99
