"""Ranks against brute force, the original evaluator's ranks, and the traps of ties, NaN and blocks."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN

from xmodal_jax import evaluation as retrieval
from xmodal_jax.errors import DataError, NumericError
from xmodal_jax.evaluation import rank


def brute_force(scores, positive):
    """Straight from the definition, one query and one item at a time."""

    def rank_of(query, positive):
        best = max(s for s, p in zip(query, positive, strict=True) if p)
        return sum(s >= best and not p for s, p in zip(query, positive, strict=True))

    return (
        [rank_of(q, p) for q, p in zip(scores.tolist(), positive.tolist(), strict=True)],
        [rank_of(q, p) for q, p in zip(scores.T.tolist(), positive.T.tolist(), strict=True)],
    )


def example(seed, *, shared=False):
    """Ragged captions in random order; every third has coarse scores full of ties, every fifth half precision."""
    random = np.random.default_rng(seed)
    n_images = int(random.integers(1, 8))
    row = random.permutation(np.repeat(np.arange(n_images), random.integers(1, 6, n_images)))
    scores = random.normal(size=(n_images, len(row))).astype(np.float32)
    if seed % 3 == 0:
        scores = np.round(2 * scores) / 2
    if seed % 5 == 0:
        scores = scores.astype(np.float16)
    positive = np.arange(n_images)[:, None] == row
    if shared:
        positive |= random.random(positive.shape) < 0.1
    return scores, positive, row


def same(got, want):
    for ours, theirs in zip(got, want, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_ranks_equal_brute_force_on_2000_matrices():
    tied = 0
    for seed in range(2000):
        scores, positive, _ = example(seed, shared=seed % 2 == 1)
        want = brute_force(scores, positive)
        same(retrieval.ranks(scores, positive), want)
        tied += not np.array_equal(want[0], retrieval.ranks(scores + 1e-3 * positive, positive)[0])
    assert tied > 100  # the examples do test ties


def test_large_matrices_are_compared_in_chunks(monkeypatch):
    for seed in range(20):
        scores, positive, _ = example(seed)
        monkeypatch.setattr(rank, "CHUNK", 2 * scores.shape[1])
        same(retrieval.ranks(scores, positive), brute_force(scores, positive))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_ranks_of_jax_arrays(dtype):
    scores, positive, row = example(7)
    scores = jnp.asarray(scores, dtype)
    want = brute_force(np.asarray(scores, np.float32), positive)
    same(retrieval.ranks(scores, jnp.asarray(positive)), want)
    same(retrieval.blocked_ranks(lambda i, c: scores[i, c], row, len(scores), image_block=2, caption_block=4), want)


@pytest.mark.parametrize("case", ["random", "cosine", "order"])
def test_ranks_of_the_original_evaluator(case):
    golden = np.load(GOLDEN / "vsepp_ranks.npz")
    scores = golden[f"{case}/score"]
    row = np.arange(300) // 5
    want = golden[f"{case}/i2t/rank"], golden[f"{case}/t2i/rank"]
    same(retrieval.ranks(scores, np.arange(60)[:, None] == row), want)
    same(retrieval.blocked_ranks(lambda i, c: scores[i, c], row, 60, image_block=7, caption_block=64), want)


def test_a_tie_counts_against_the_query():
    positive = np.eye(4, dtype=bool).repeat(3, axis=1)
    i2t, t2i = retrieval.ranks(np.zeros((4, 12)), positive)
    assert (i2t == 9).all() and (t2i == 3).all()  # constant scores rank last: all non-positives come first
    assert np.zeros(12).argsort()[::-1][0] // 3 == 3  # the original sort gives the last image the first place


def test_own_positives_are_not_counted():
    scores, positive = np.array([[3.0, 5.0, 4.0], [0.0, 6.0, 1.0]]), np.array([[1, 1, 0], [0, 1, 1]], bool)
    same(retrieval.ranks(scores, positive), ([0, 0], [0, 0, 1]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("blocked", [False, True])
@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_non_finite_scores_are_an_error_that_names_the_item(value, blocked, array):
    row = np.arange(12) // 3

    def run(scores):
        if blocked:
            scores = array(scores)
            return retrieval.blocked_ranks(lambda i, c: scores[i, c], row, 4, image_block=2, caption_block=6)
        return retrieval.ranks(array(scores), np.arange(4)[:, None] == row)

    scores = np.random.default_rng(0).normal(size=(4, 12)).astype(np.float32)
    run(scores)
    for where, named in [
        ((3, 10), "score of image 3 and caption 10 "),  # a positive
        ((3, 1), "score of image 3 and caption 1 "),
        (2, "Every score of image 2 "),
    ]:
        broken = scores.copy()
        broken[where] = value
        with pytest.raises(NumericError, match=named):
            run(broken)
    broken = scores.copy()
    broken[:, 7] = value
    with pytest.raises(NumericError, match="Every score of caption 7 "):
        run(broken)


def test_queries_without_a_positive_are_an_error_that_names_them():
    positive = np.eye(3, 5, dtype=bool)
    with pytest.raises(DataError, match=r"2 of 5 captions have no matching image .* caption 3, 4\."):
        retrieval.ranks(np.zeros((3, 5)), positive)
    with pytest.raises(DataError, match=r"1 of 5 images have no matching caption .* image 3\."):
        retrieval.ranks(np.zeros((5, 4)), np.array([0, 1, 2, 4]) == np.arange(5)[:, None])
    with pytest.raises(DataError, match="image 1"):
        retrieval.blocked_ranks(lambda i, c: np.zeros((3, 2))[i, c], np.array([0, 2]), 3)
    with pytest.raises(DataError, match="Caption 1 belongs to image 3"):
        retrieval.blocked_ranks(lambda i, c: np.zeros((3, 2))[i, c], np.array([0, 3]), 3)
    with pytest.raises(DataError, match="bool positives"):
        retrieval.ranks(np.zeros((3, 5)), positive.T)


@pytest.mark.parametrize("image_block", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("caption_block", [1, 4, 7, 100])
@pytest.mark.parametrize("kept", [0, 40, 1 << 20])
def test_blocked_equals_whole(image_block, caption_block, kept, monkeypatch):
    monkeypatch.setattr(rank, "KEPT", kept)
    for seed in (0, 4, 6, 15, 17):
        scores, positive, row = example(seed)
        shapes = set()

        def block(image, caption, scores=scores, shapes=shapes):
            part = scores[image, caption]
            shapes.add(part.shape)
            return part

        got = retrieval.blocked_ranks(block, row, len(scores), image_block=image_block, caption_block=caption_block)
        same(got, retrieval.ranks(scores, positive))
        assert len(shapes) == 1  # so that a jitted score compiles once
        assert next(iter(shapes))[0] <= image_block and next(iter(shapes))[1] <= caption_block


@pytest.mark.parametrize(("room", "twice"), [(1 << 20, 0), (3 * 10 * 8, 5), (0, 6)])
def test_blocks_are_scored_once_while_those_with_positives_fit(room, twice, monkeypatch):
    monkeypatch.setattr(rank, "KEPT", room)
    row = np.arange(40) // 5
    scores = np.random.default_rng(0).normal(size=(8, 40))
    calls = []

    def block(image, caption):
        calls.append((image.start, caption.start))
        return scores[image, caption]

    retrieval.blocked_ranks(block, row, 8, image_block=3, caption_block=11)
    assert len(set(calls)) == 3 * 4 and len(calls) == 3 * 4 + twice


def test_positives_are_masked_not_compared_across_products(monkeypatch):
    """One product's positive, compared with the next product's, would be counted against its own query."""
    random = np.random.default_rng(0)
    image = random.normal(size=(200, 64)).astype(np.float32)
    row = np.arange(1000) // 5
    text = image[row] + random.normal(size=(1000, 64)).astype(np.float32)
    scores, alone = image @ text.T, np.einsum("cd,cd->c", image[row], text)
    assert np.mean(alone < scores[row, np.arange(1000)]) > 0.05  # the trap is real: other bits, same numbers

    monkeypatch.setattr(rank, "KEPT", 0)
    calls = iter(range(1000))

    def rising(i, c):
        return scores[i, c] + np.float32(1e-4) * (next(calls) >= 4)  # a second look at a block finds higher scores

    got = retrieval.blocked_ranks(rising, row, 200, image_block=100, caption_block=250)
    want = retrieval.ranks(scores, np.arange(200)[:, None] == row)
    assert np.mean(got[0] == want[0]) > 0.95 and np.mean(got[1] == want[1]) > 0.95


MEMORY = """
import resource, numpy, jax
from xmodal_jax.evaluation import blocked_ranks
random = numpy.random.default_rng(0)
image = random.standard_normal((5000, 1024), numpy.float32)
text = random.standard_normal((25000, 1024), numpy.float32)
for index in range(25000):
    text[index] += image[index // 5]
score = jax.jit(lambda image, text: image @ text.T)
score(image[:2], text[:2]).block_until_ready()
now = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
i2t, t2i = blocked_ranks(lambda i, c: score(image[i], text[c]), numpy.arange(25000) // 5, 5000)
status = open("/proc/self/status").read()  # ru_maxrss would begin with the peak of the process that forked this one
peak = 1024 * int(status.split("VmHWM:")[1].split()[0])
print(peak - now, (i2t < 1).mean(), (t2i < 1).mean())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident memory from /proc")
def test_5000_images_by_25000_captions_need_less_than_one_gib():
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    beyond, *recalls = (float(word) for word in run.stdout.split())
    assert beyond < 1 << 30
    assert min(recalls) > 0.99
