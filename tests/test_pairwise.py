"""The pairwise kernel: the same scores and gradients for every block, either backward pass, any number of devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_step import make

from xmodal_jax import losses, similarity
from xmodal_jax.models.scan import Model
from xmodal_jax.similarity import pairwise
from xmodal_jax.similarity.pairwise import Block
from xmodal_jax.training import parallel
from xmodal_jax.types import Batch, Fragments, Images, Texts


def sides(seed=0, b=7, c=9, r=3, w=30, d=6):
    random = np.random.default_rng(seed)
    length = np.array([30, 2, 11, 21, 5, 0, 13, 9, 25])[:c]
    mask = np.arange(w) < length[:, None]
    region = random.normal(size=(b, r, d)).astype("f4")
    word = random.normal(size=(c, w, d)).astype("f4") * mask[..., None]
    return Fragments(region, np.ones((b, r), bool)), Fragments(word, mask)


def score(variables, image, text):
    """Cross attention of regions that a used matrix turns, times a number; another matrix is not used."""
    region = image.feature @ variables["used"]
    return variables["factor"] * similarity.cross_attention(region, image.mask, *text, direction="t2i")


VARIABLES = {
    "factor": np.float32(1.5),
    "idle": np.ones((2, 2), "f4"),
    "used": np.random.default_rng(5).normal(size=(6, 6)).astype("f4"),
}


@functools.cache
def weighted(block):
    """A compiled function of weights [B, C]: (gradients of the weighted sum of the scores, the scores)."""
    image, text = sides()

    def total(variables, region, word, weight):
        parts = variables, image._replace(feature=region), text._replace(feature=word)
        scores = score(*parts) if block is None else pairwise.pairwise(score, *parts, block=block)
        return jnp.sum(weight * scores), scores

    gradient = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))
    return lambda weight: gradient(VARIABLES, image.feature, text.feature, weight)


@pytest.mark.parametrize("block", [Block(3, 2, 4), Block(7, 9, 1), Block(100, 100, 100)])
@pytest.mark.parametrize("pairs", [0, 1, 12, 25, 26, 63])  # up to 7 + 2 * 9 pairs carry gradients one by one
def test_neither_block_nor_backward_pass_changes_anything(block, pairs):
    random = np.random.default_rng(pairs)
    weight = np.zeros(63, "f4")
    weight[random.permutation(63)[:pairs]] = random.normal(size=pairs)
    expected, plain = weighted(None)(weight.reshape(7, 9))
    got, blocked = weighted(block)(weight.reshape(7, 9))
    np.testing.assert_allclose(blocked, plain, atol=1e-6)
    largest = max(1.0, *(np.abs(leaf).max() for leaf in jax.tree.leaves(expected)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6 * largest), got, expected)
    assert not np.asarray(got[0]["idle"]).any()


@pytest.mark.parametrize(("pairs", "chosen"), [(25, "_sparse"), (26, "_dense")])
def test_the_backward_pass_is_chosen_by_the_number_of_pairs(pairs, chosen, monkeypatch):
    for name in ("_sparse", "_dense"):
        monkeypatch.setattr(
            pairwise, name, lambda *args, number=float(name == chosen): [jnp.full_like(x, number) for x in args[-3]]
        )
    weight = np.zeros(63, "f4")
    weight[:pairs] = 1.0
    weighted.cache_clear()
    (_, region, word), _ = weighted(Block(3, 2, 4))(weight.reshape(7, 9))
    weighted.cache_clear()
    assert (np.asarray(region) == 1).all() and (np.asarray(word) == 1).all()


def test_unused_variables_are_found():
    assert pairwise.unused(score, VARIABLES, *sides()) == {1}


def test_captions_are_cut_to_their_length():
    seen = []

    def spy(variables, image, text):
        seen.append(text.mask.shape)
        return score(variables, image, text)

    jax.jit(lambda i, t: pairwise.pairwise(spy, VARIABLES, i, t, block=Block(4, 2, 4))).lower(*sides())
    assert {(2, w) for w in (10, 12, 14, 16, 18, 20, 24, 30)} <= set(seen)


def test_representations_without_fragments_are_scored_in_one_piece_or_in_blocks():
    random = np.random.default_rng(0)
    image, text = random.normal(size=(7, 4)).astype("f4"), random.normal(size=(9, 4)).astype("f4")

    def order(variables, image, text):
        return similarity.order(image, text)

    whole = pairwise.pairwise(order, {}, image, text)
    np.testing.assert_allclose(whole, similarity.order(image, text))
    gradient = jax.grad(lambda i, t, block: jnp.sum(jnp.sin(pairwise.pairwise(order, {}, i, t, block=block))), (0, 1))
    blocked = gradient(image, text, Block(2, 3, 4))
    for first, second in zip(gradient(image, text, None), blocked, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-5)


def make_batch(b=16, r=4, w=12, seed=0):
    random = np.random.default_rng(seed)
    length = random.integers(1, w + 1, b)
    mask = np.arange(w) < length[:, None]
    token = np.where(mask, random.integers(4, 30, (b, w)), 0).astype(np.int32)
    rows = np.arange(b, dtype=np.int32)
    ids = np.where(rows < b - 2, rows, -1).astype(np.int32)
    region_mask = np.arange(r) < random.integers(1, r + 1, b)[:, None]
    feature = random.normal(size=(b, r, 7)).astype(np.float32)
    return Batch(Images({"region": feature}, region_mask, ids), Texts(token, mask, rows, ids, ids))


@pytest.mark.parametrize(("direction", "hardness"), [("t2i", 1.0), ("i2t", 0.0)])
def test_one_device_equals_eight_equals_pmap(hardness, direction, monkeypatch):
    import optax

    monkeypatch.setattr(pairwise, "PIECE", 1)  # captions travel one by one
    monkeypatch.setattr(pairwise, "GRADIENT_WIDTHS", (8,))
    monkeypatch.setattr(pairwise, "WIDTHS", (8,))
    model = Model(vocabulary=30, embed_dim=8, word_dim=5, direction=direction)
    batch = make_batch()
    results = []
    runners = (parallel.jit_runner(jax.devices()[:1]), parallel.jit_runner(), parallel.pmap_runner())
    for runner in runners:
        state, step = make(model, batch, hardness, optax.identity(), block=Block(4, 3, 5), mesh=runner.mesh)
        before = jax.device_get(state.params)
        new, metrics = runner.compile(step)(runner.put_state(state), runner.put_batch(batch))
        after = jax.device_get(runner.get_state(new).params)
        results.append((runner.read(metrics), jax.tree.map(np.subtract, after, before)))
    (metrics, gradient), *others = results
    assert metrics["pairs"] == 14
    for other_metrics, other in others:
        assert other_metrics["loss"] == pytest.approx(metrics["loss"], rel=1e-6)
        largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient))
        jax.tree.map(lambda a, b, top=largest: np.testing.assert_allclose(a, b, atol=3e-6 * top), gradient, other)


def test_no_device_holds_all_pairs_of_fragments(monkeypatch):
    """Of [B, B, R, W] numbers, neither one device nor eight ever hold as many as a quarter."""
    monkeypatch.setattr(pairwise, "WIDTHS", ())
    monkeypatch.setattr(pairwise, "GRADIENT_WIDTHS", ())
    b, r, w, d = 256, 8, 32, 16
    image = Fragments(jnp.ones((b, r, d)), jnp.ones((b, r), bool))
    text = Fragments(jnp.ones((b, w, d)), jnp.ones((b, w), bool))

    def loss(image, text, mesh):
        def pair_score(_, image, text):
            return similarity.cross_attention(*image, *text, direction="t2i")

        scores = pairwise.pairwise(pair_score, {}, image, text, block=Block(16, 4, 16), mesh=mesh)
        return losses.triplet(scores, np.eye(b, dtype=bool), margin=0.2, hardness=1.0)

    for mesh in (None, parallel.make_mesh()):
        grad = jax.jit(
            jax.grad(lambda x, y, mesh=mesh: loss(image._replace(feature=x), text._replace(feature=y), mesh), (0, 1))
        )
        plan = grad.lower(image.feature, text.feature).compile().memory_analysis()
        assert plan is not None
        assert plan.temp_size_in_bytes < b * b * r * w * 4 / 4
