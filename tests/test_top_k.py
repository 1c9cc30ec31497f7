"""Top-k ranking losses: arrays of the original code of two-branch networks and of RRF-Net, loops, and corners."""

import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN

from xmodal_jax.losses import bi_rank, top_k
from xmodal_jax.losses.pairing import Pairing
from xmodal_jax.similarity import dot, euclidean


def with_gradients(loss, *args):
    """(value, gradients by all arguments), in one compilation."""
    return jax.jit(jax.value_and_grad(loss, tuple(range(len(args)))))(*args)


def close(got, expected, tolerance):
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * max(1.0, np.abs(expected).max()))


def options_of(arrays):
    return json.loads(str(arrays["meta"]))["options"]["losses"]


TWO_BRANCH = np.load(GOLDEN / "two_branch.npz")
RRF = np.load(GOLDEN / "rrf.npz")
POSITIVE = np.arange(7)[:, None] == np.repeat(np.arange(7), 2)
TERMS = {"sentence_term": "i2t_weight", "image_term": "t2i_weight", "sentence_only_term": "text_weight"}
ALPHAS = ("i2t_weight", "text_weight", "t2i_weight", "image_weight")


def two_branch(image, text, **options):
    return top_k(euclidean(image, text), POSITIVE, text_scores=euclidean(text, text), **options)


@pytest.mark.parametrize("setting", ["code_defaults", "all_negatives"])
@pytest.mark.parametrize("mode", ["test", "train"])
def test_two_branch_terms_and_gradients(mode, setting):
    image, text = TWO_BRANCH[f"{mode}/out/image"], TWO_BRANCH[f"{mode}/out/sentence"]
    given = options_of(TWO_BRANCH)[setting]
    shared = {"margin": given["margin"], "k": given["num_neg_sample"]}
    for term, weight in TERMS.items():
        weights = dict.fromkeys(TERMS.values(), 0.0) | {weight: 1.0}
        close(two_branch(image, text, **shared, **weights), TWO_BRANCH[f"{mode}/{setting}/{term}"], 2e-5)
    weights = {"t2i_weight": given["im_loss_factor"], "text_weight": given["sent_only_loss_factor"]}
    value, grads = with_gradients(lambda *sides: two_branch(*sides, **shared, **weights), image, text)
    close(value, TWO_BRANCH[f"{mode}/{setting}/loss"], 2e-5)
    if mode == "train":
        for side, gradient in zip(("image", "sentence"), grads, strict=True):
            close(gradient, TWO_BRANCH[f"train/{setting}/grad/out/{side}"], 5e-5)


def labelled(label):
    """Image i with caption i, all labels as image ids: the pairs that RRF-Net's loss looks at."""
    number = jnp.arange(len(label))
    return Pairing(jnp.asarray(label), number, jnp.asarray(label), number)


def rrf(image, text, **options):
    pairing = labelled(RRF["loss/in/label"])
    where = pairing.counted(mask_same_image=True)
    scores = {"image_scores": dot(image, image), "text_scores": dot(text, text)}
    return bi_rank(dot(image, text), pairing.positive(), where, **scores, **options)


@pytest.mark.parametrize("setting", ["neg1", "neg3", "neg50", "cross_only"])
def test_rrf_values_and_gradients(setting):
    given = options_of(RRF)[setting]
    options = {"margin": given["margin"], "k": given["neg_num"], **dict(zip(ALPHAS, given["alpha"], strict=True))}
    sides = [RRF[f"loss/in/{side}"].astype(np.float32) for side in ("image", "text")]
    value, grads = with_gradients(lambda *sides: rrf(*sides, **options), *sides)
    close(value, RRF[f"loss/{setting}/value"], 2e-5)
    for side, gradient in zip(("image", "text"), grads, strict=True):
        close(gradient, RRF[f"loss/{setting}/grad/{side}"], 5e-5)


@pytest.mark.parametrize("setting", ["neg1", "neg3", "neg50", "cross_only"])
@pytest.mark.parametrize("direction", ["i2t", "t2i"])
def test_rrf_negatives(direction, setting):
    """A negative that is chosen has a gradient, of the score with its anchor and of that with the anchor's like."""
    given = options_of(RRF)[setting]
    image, text = (RRF[f"loss/in/{side}"].astype(np.float32) for side in ("image", "text"))
    pairing = labelled(RRF["loss/in/label"])
    alike = {"i2t": "text", "t2i": "image"}[direction]
    weights = dict.fromkeys(ALPHAS, 0.0) | {f"{direction}_weight": 1.0, f"{alike}_weight": 1.0}
    options = {"margin": given["margin"], "k": given["neg_num"], **weights}

    @jax.jit
    @partial(jax.grad, argnums=(0, 1, 2))
    def gradients(scores, images, texts):
        where = pairing.counted(mask_same_image=True)
        return bi_rank(scores, pairing.positive(), where, image_scores=images, text_scores=texts, **options)

    scores = dot(image, text)
    cross, images, texts = gradients(scores, dot(image, image), dot(text, text))
    chosen = RRF[f"loss/{setting}/negatives_{direction}"] > 0
    assert chosen.any()
    cross = np.asarray(cross if direction == "i2t" else cross.T)
    np.testing.assert_array_equal((cross > 0) & ~np.eye(9, dtype=bool), chosen)
    # The terms of the like choose no negatives of their own: however similar others are, these alone are compared.
    like = {"text": texts, "image": images}[alike]
    assert not np.asarray(like)[~chosen].any()
    _, *near = gradients(scores, jnp.full((9, 9), 5.0), jnp.full((9, 9), 5.0))
    np.testing.assert_array_equal(np.asarray(near[alike == "text"]) > 0, chosen)


def example(seed, images=5, captions=11):
    """(Pairing, scores, image scores, text scores): ragged, the last image without a caption, image 1 twice."""
    random = np.random.default_rng(seed)
    row = np.sort(np.concatenate([np.arange(images - 1), random.integers(0, images - 1, captions - images + 1)]))
    image_id = np.array([7, 3, 9, 3, 5])[:images]
    pairing = Pairing(*map(jnp.asarray, (image_id, row, image_id[row], np.arange(captions))))
    sizes = ((images, captions), (images, images), (captions, captions))
    return pairing, *(random.normal(size=size).astype(np.float32) for size in sizes)


def loop_top_k(scores, positive, where, text_scores, margin, k):
    """The three means, straight from the definition."""
    terms = {"i2t_weight": [], "t2i_weight": [], "text_weight": []}
    images, captions = scores.shape
    for c in range(captions):
        if not (positive[:, c] & where[:, c]).any():
            continue
        b = int(np.argmax(positive[:, c]))
        others = [j for j in range(captions) if where[b, j] and not positive[b, j]]
        alike = min(text_scores[c, j] for j in range(captions) if where[b, j] and positive[b, j])
        sides = {
            "i2t_weight": [margin - scores[b, c] + scores[b, j] for j in others],
            "t2i_weight": [margin - scores[b, c] + scores[i, c] for i in range(images) if where[i, c] and i != b],
            "text_weight": [margin - alike + text_scores[c, j] for j in others],
        }
        for name, hinges in sides.items():
            terms[name] += [max(0.0, hinge) for hinge in sorted(hinges, reverse=True)[:k]]
    return {name: float(np.mean(hinges)) if hinges else 0.0 for name, hinges in terms.items()}


def loop_bi_rank(scores, positive, where, image_scores, text_scores, margin, k, weights):
    total = 0.0
    images, captions = scores.shape
    for c in range(captions):
        b = int(np.argmax(positive[:, c]))
        texts = [j for j in range(captions) if where[b, j] and not positive[b, j]]
        for j in sorted(texts, key=lambda j: -scores[b, j])[:k]:
            if margin - scores[b, c] + scores[b, j] > 0:
                total += weights["i2t_weight"] * (margin - scores[b, c] + scores[b, j])
                total += weights["text_weight"] * max(0.0, margin - scores[b, c] + text_scores[c, j])
        others = [i for i in range(images) if where[i, c] and i != b]
        for i in sorted(others, key=lambda i: -scores[i, c])[:k]:
            if margin - scores[b, c] + scores[i, c] > 0:
                total += weights["t2i_weight"] * (margin - scores[b, c] + scores[i, c])
                total += weights["image_weight"] * max(0.0, margin - scores[b, c] + image_scores[b, i])
    return total / (k * captions)


@pytest.mark.parametrize("mask_same_image", [False, True])
@pytest.mark.parametrize("k", [1, 3, 4, 100])
def test_equal_loops(k, mask_same_image):
    """With an image that is drawn twice: another image by default, as in DSPE's code; of no account on demand."""
    values = []
    for seed in range(5):
        pairing, scores, images, texts = example(seed)
        positive, where = map(np.asarray, (pairing.positive(), pairing.counted(mask_same_image=mask_same_image)))
        terms = loop_top_k(scores, positive, where, texts, 0.3, k)
        for name, expected in terms.items():
            weights: Any = dict.fromkeys(terms, 0.0) | {name: 1.0}
            got = top_k(scores, positive, where, text_scores=texts, margin=0.3, k=k, **weights)
            assert float(got) == pytest.approx(expected, rel=1e-5)
        assert float(top_k(scores, positive, where, text_scores=texts, margin=0.3, k=k)) == pytest.approx(
            terms["i2t_weight"] + 1.5 * terms["t2i_weight"] + 0.05 * terms["text_weight"], rel=1e-5
        )
        weights = dict(zip(ALPHAS, (1.0, 0.5, 2.0, 1.0), strict=True))
        got = bi_rank(scores, positive, where, image_scores=images, text_scores=texts, margin=0.3, k=k)
        expected = loop_bi_rank(scores, positive, where, images, texts, 0.3, k, weights)
        assert float(got) == pytest.approx(expected, rel=1e-5)
        values.append(float(got))
    assert len(set(values)) == 5


def test_duplicates_are_negatives_unless_masked():
    pairing, scores, _, texts = example(0)
    scores = np.where(np.asarray(pairing.sibling()), 50.0, scores).astype(np.float32)
    results = [
        float(
            top_k(scores, pairing.positive(), pairing.counted(mask_same_image=mask), text_scores=texts, margin=0.1, k=2)
        )
        for mask in (False, True)
    ]
    assert results[0] > 10.0 > results[1]


def test_all_negatives_are_the_mean():
    pairing, scores, _, texts = example(2)
    positive = np.asarray(pairing.positive())
    row = np.asarray(pairing.row)
    matched = scores[row, np.arange(11)]
    hinges = np.maximum(0.0, 0.2 - matched + scores)[~positive]
    weights: Any = {"i2t_weight": 0.0, "t2i_weight": 1.0, "text_weight": 0.0}
    for k in (4, 400):
        got = top_k(scores, positive, text_scores=texts, margin=0.2, k=k, **weights)
        assert float(got) == pytest.approx(hinges.mean(), rel=1e-5)


@partial(jax.jit, static_argnums=4)
def run(pairing, scores, images, texts, k):
    """Values of both losses, gradients of a sum of them."""
    positive, where = pairing.positive(), pairing.counted(mask_same_image=False)

    def both(scores, images, texts):
        first = top_k(scores, positive, where, text_scores=texts, margin=0.3, k=k)
        two = bi_rank(scores, positive, where, image_scores=images, text_scores=texts, margin=0.3, k=k)
        return first + 10.0 * two, (first, two)

    (_, values), grads = jax.value_and_grad(both, (0, 1, 2), has_aux=True)(scores, images, texts)
    return values, grads


@pytest.mark.parametrize("k", [2, 100])
def test_padding_changes_neither_losses_nor_gradients(k):
    pairing, scores, images, texts = example(1)
    values, grads = run(pairing, scores, images, texts, k)
    none, rows = -jnp.ones(3, jnp.int32), jnp.array([0, 5, 6])  # the padding captions point at a real image, at padding
    padded = Pairing(
        jnp.concatenate([pairing.image_id, none]),
        jnp.concatenate([pairing.row, rows]),
        jnp.concatenate([pairing.caption_image_id, none]),
        jnp.concatenate([pairing.caption_id, none]),
    )
    wide = [
        9.0 * np.random.default_rng(9).normal(size=np.add(x.shape, 3)).astype("f4") for x in (scores, images, texts)
    ]
    for whole, real in zip(wide, (scores, images, texts), strict=True):
        whole[: real.shape[0], : real.shape[1]] = real
    padded_values, padded_grads = run(padded, *wide, k)
    np.testing.assert_allclose(padded_values, values, rtol=1e-6)
    for grad, other in zip(grads, padded_grads, strict=True):
        assert np.any(grad)
        np.testing.assert_allclose(other, np.pad(grad, ((0, 3), (0, 3))), atol=1e-7)


def test_finite_at_ties_and_without_negatives_or_pairs():
    pairing, *_ = example(0)
    same = jnp.ones((5, 4)), jnp.ones((11, 4))

    def loss(image, text):
        scores = {"image_scores": euclidean(image, image), "text_scores": euclidean(text, text)}
        first = top_k(euclidean(image, text), pairing.positive(), text_scores=scores["text_scores"], margin=0.1, k=3)
        return first + bi_rank(euclidean(image, text), pairing.positive(), **scores, margin=0.1, k=3)

    value, grads = with_gradients(loss, *same)
    assert float(value) == pytest.approx(0.1 * (1.0 + 1.5 + 0.05) + 0.1 * 4.5, rel=1e-4)
    assert all(np.isfinite(grad).all() for grad in grads)
    alone = Pairing(*(jnp.zeros(1, jnp.int32) for _ in range(4)))
    nothing = Pairing(-jnp.ones(2, jnp.int32), *(-jnp.ones(3, jnp.int32) for _ in range(3)))
    for pairing, sizes in ((alone, ((1, 1), (1, 1), (1, 1))), (nothing, ((2, 3), (2, 2), (3, 3)))):
        values, grads = run(pairing, *(np.ones(size, np.float32) for size in sizes), 3)
        assert not np.any(values)
        assert all(np.isfinite(grad).all() for grad in grads)


def test_euclidean_is_the_distance_and_finite_for_large_vectors():
    image, text = TWO_BRANCH["recall/in/image"], TWO_BRANCH["recall/in/sentence"]
    close(-euclidean(image, text).T, TWO_BRANCH["recall/distance"], 1e-5)
    large = 1e4 * np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    value, (grad,) = with_gradients(lambda x: jnp.sum(euclidean(x, x)), large)
    assert np.isfinite(value)
    assert np.isfinite(grad).all()
