"""One training step: the same on one device, on eight, and under pmap; auxiliary losses; statistics; guards."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xmodal_jax import losses, similarity
from xmodal_jax.errors import UsageError
from xmodal_jax.matcher import Matcher
from xmodal_jax.models.vse import Model
from xmodal_jax.similarity.pairwise import Block
from xmodal_jax.training import optim, parallel
from xmodal_jax.training.step import Initial, Objective, check_weights, loss_fn, make_state, train_step
from xmodal_jax.types import Batch, Images, Texts


def make_batch(b=16, k=1, w=6, seed=0, padded=2):
    random = np.random.default_rng(seed)
    c = b * k
    image_id = np.where(np.arange(b) < b - padded, random.integers(0, 9, b), -1).astype(np.int32)
    row = np.repeat(np.arange(b), k).astype(np.int32)
    length = random.integers(1, w + 1, c)
    mask = np.arange(w) < length[:, None]
    token = np.where(mask, random.integers(4, 30, (c, w)), 0).astype(np.int32)
    text_id = np.where(image_id[row] >= 0, np.arange(c), -1).astype(np.int32)
    feature = random.normal(size=(b, 7)).astype(np.float32)
    image = Images({"global": feature}, np.ones((b, 1), bool), image_id)
    return Batch(image, Texts(token, mask, row, image_id[row], text_id))


def make(model, batch, hardness=1.0, optimiser=None, weights=None, **options):
    variables = dict(model.init({"params": jax.random.key(0), "dropout": jax.random.key(0)}, batch))
    initial = Initial(variables.pop("params"), variables)
    optimiser = optimiser or optax.sgd(0.1)
    objective = Objective(losses.triplet, {"margin": 0.2, "hardness": hardness}, weights or {"rank": 1.0}, **options)
    step = partial(train_step, model=model, objective=objective, optimiser=optimiser, stage_start=0)
    return make_state(initial, optimiser, 0, 0.0), step


@pytest.mark.parametrize(("hardness", "k"), [(1.0, 1), (0.0, 2)])
def test_one_device_equals_eight_equals_pmap(hardness, k):
    model = Model(vocabulary=30, embed_dim=8, word_dim=5)
    batch = make_batch(k=k)
    results = []
    runners = (parallel.jit_runner(jax.devices()[:1]), parallel.jit_runner(), parallel.pmap_runner())
    for runner in runners:
        state, step = make(model, batch, hardness, optax.identity())  # identity: parameters move by the gradient itself
        before = jax.device_get(state.params)
        new, metrics = runner.compile(step)(runner.put_state(state), runner.put_batch(batch))
        after = jax.device_get(runner.get_state(new).params)
        results.append((runner.read(metrics), jax.tree.map(np.subtract, after, before)))
    assert len(jax.devices()) == 8
    (metrics, gradient), *others = results
    assert metrics["pairs"] == 14 * k
    for other_metrics, other in others:
        assert other_metrics["loss"] == pytest.approx(metrics["loss"], rel=1e-6)
        largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient))
        jax.tree.map(lambda a, b, top=largest: np.testing.assert_allclose(a, b, atol=1e-6 * top), gradient, other)


def test_same_image_captions_are_negatives_unless_masked():
    batch = make_batch(padded=0)
    siblings = batch.image.id[:, None] == batch.text.image_id[None, :]
    identity = np.eye(16, dtype=bool)
    assert (siblings & ~identity).any()
    pairing = losses.Pairing.of(batch.image, batch.text)
    plain = np.asarray(pairing.counted(mask_same_image=False))
    masked = np.asarray(pairing.counted(mask_same_image=True))
    assert plain.all()
    np.testing.assert_array_equal(masked, ~siblings | identity)


class Auxiliary(Matcher):
    """A model with batch statistics, dropout and an auxiliary loss, to see that the step carries all three."""

    def setup(self):
        self.dense, self.norm, self.embed = nn.Dense(4), nn.BatchNorm(), nn.Embed(30, 4)

    def encode_image(self, image, *, train):
        out = self.norm(self.dense(image.feature["global"]), use_running_average=not train)
        return similarity.l2_normalise(out), jnp.square(out)

    def encode_text(self, text, *, train):
        return similarity.l2_normalise(self.embed(text.token).sum(1)), None

    def score(self, image, text):
        return similarity.dot(image, text)

    def aux(self, batch, image, text, *, train):
        return {"size": jnp.mean(image[1])}


def test_auxiliary_losses_and_statistics():
    batch = make_batch()
    state, step = make(Auxiliary(), batch, weights={"rank": 1.0, "size": 0.5})
    new, metrics = jax.jit(step)(state, batch)
    assert float(metrics["loss"]) == pytest.approx(float(metrics["rank"] + 0.5 * metrics["size"]), rel=1e-5)
    mean = new.model_state["batch_stats"]["norm"]["mean"]
    assert np.abs(mean).max() > 0


def test_weights_must_name_every_loss_once():
    batch = make_batch()
    model = Auxiliary()
    variables = model.init(jax.random.key(0), batch)
    for weights in ({"rank": 1.0}, {"rank": 1.0, "size": 1.0, "caption": 1.0}):
        with pytest.raises(UsageError, match=r"missing size|unknown caption"):
            check_weights(model, Objective(losses.triplet, {}, weights), variables, batch)


def test_rank_weight_zero_skips_the_scores():
    batch = make_batch()
    state, step = make(Auxiliary(), batch, weights={"rank": 0.0, "size": 1.0})
    _, metrics = jax.jit(step)(state, batch)
    assert "rank" not in metrics


def test_a_non_finite_batch_changes_nothing_but_the_step():
    batch = make_batch()
    model = Model(vocabulary=30, embed_dim=8, word_dim=5)
    state, step = make(model, batch, optimiser=optax.adam(0.1))
    broken = batch._replace(image=batch.image._replace(feature={"global": batch.image.feature["global"] * np.nan}))
    new, metrics = jax.jit(step)(state, broken)
    assert not metrics["finite"]
    assert int(new.step) == 1
    jax.tree.map(np.testing.assert_array_equal, new._replace(step=0), state._replace(step=0))


def test_averaged_weights_follow_their_formula():
    batch = make_batch()
    model = Model(vocabulary=30, embed_dim=8, word_dim=5)
    state, step = make(model, batch)
    state = state._replace(ema=state.params)
    new, _ = jax.jit(partial(step, ema_decay=0.9))(state, batch)
    jax.tree.map(
        lambda e, old, p: np.testing.assert_allclose(e, 0.9 * old + 0.1 * p, atol=1e-6),
        new.ema,
        state.params,
        new.params,
    )


def test_blocks_do_not_change_the_loss():
    batch = make_batch()
    model = Model(vocabulary=30, embed_dim=8, word_dim=5, measure="order_root", absolute=True)
    variables = model.init(jax.random.key(0), batch)
    values = []
    for block in (None, Block(3, 4, 5)):
        objective = Objective(losses.triplet, {"margin": 0.2, "hardness": 1.0}, {"rank": 1.0}, block=block)
        grad = jax.value_and_grad(loss_fn, has_aux=True)
        (value, _), gradient = grad(variables["params"], model, objective, {}, batch, jnp.int32(0), jax.random.key(0))
        values.append((value, gradient))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *values)


def test_a_batch_must_divide_over_the_devices():
    with pytest.raises(UsageError, match="multiple of 8"):
        parallel.make_runner("jit", [16, 12])
    with pytest.raises(UsageError, match="pmpa"):
        parallel.make_runner("pmpa", [16])


def test_a_frozen_part_costs_no_backward_pass_and_does_not_count_in_the_norm():
    batch = make_batch(k=1)
    model = Model(vocabulary=30, embed_dim=8, word_dim=5)
    state, step = make(model, batch, 0.0, optax.identity())
    names = [optim.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.params)]
    live = [name.startswith("image_encoder") for name in names]

    def run(**options):
        compiled = jax.jit(partial(step, **options)).lower(state, batch).compile()
        new, metrics = compiled(state, batch)
        cost: Any = compiled.cost_analysis()
        return jax.device_get(new.params), float(metrics["grad_norm"]), cost["flops"]

    whole, norm, flops = run()
    frozen, part, fewer = run(live=live)
    assert fewer < 0.8 * flops  # the text encoder has most of the arithmetic
    assert part < norm
    for name, on, before, new, other in zip(
        names, live, *map(jax.tree.leaves, (state.params, frozen, whole)), strict=True
    ):
        np.testing.assert_array_equal(new, other if on else before, err_msg=name)


def test_violations_are_captions_whose_image_prefers_another_within_the_margin():
    model, rates = Model(vocabulary=30, embed_dim=8, word_dim=5), []
    for seed in range(4):
        batch = make_batch(b=5, seed=seed)
        state, step = make(model, batch)
        step = partial(step, objective=Objective(losses.triplet, {"margin": 0.02, "hardness": 1.0}, {"rank": 1.0}))
        scores, real = np.asarray(model.apply({"params": state.params}, batch)[0]), np.flatnonzero(batch.text.id >= 0)
        hardest = [max(scores[batch.text.row[c], other] for other in real if other != c) for c in real]
        violated = [high + 0.02 > scores[batch.text.row[c], c] for c, high in zip(real, hardest, strict=True)]
        rates.append(np.mean(violated))
        assert step(state, batch)[1]["violations"] == pytest.approx(rates[-1])
    assert any(0 < rate < 1 for rate in rates), rates
