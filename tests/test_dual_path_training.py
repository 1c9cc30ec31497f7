"""Dual-Path in training: places of words, its classifier, the negatives it chooses, stages, groups, pixels."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_dual_path import close, images, make, texts

from xmodal_jax import config as configs
from xmodal_jax.defaults import base
from xmodal_jax.errors import UsageError
from xmodal_jax.layers.backbones.backbone import Backbone
from xmodal_jax.layers.classifier import SharedClassifier
from xmodal_jax.layers.text import placed, words_of
from xmodal_jax.losses import halves
from xmodal_jax.models.dual_path import Model
from xmodal_jax.text.vocabulary import END, START, UNKNOWN
from xmodal_jax.training import groups, memory, parallel
from xmodal_jax.training.groups import k_means, start_groups
from xmodal_jax.training.optim import live_leaves, make_optimiser, match_rules
from xmodal_jax.training.step import Initial, Objective, make_state, train_step
from xmodal_jax.types import Batch, Images


def test_words():
    token = np.array([[START, 7, UNKNOWN, 9, 8, END, 0, 0], [START, END, 0, 0, 0, 0, 0, 0]])
    left, length = words_of(token, token > 0, 4, drop_unknown=True)
    assert left.tolist() == [[7, 9, 8, 0], [0] * 4]
    assert length.tolist() == [3, 0]
    left, length = words_of(token, token > 0, 3, drop_unknown=False)
    assert left.tolist() == [[7, UNKNOWN, 9], [0] * 3]
    assert length.tolist() == [3, 0]
    assert placed(left, jnp.array([0, 3])).tolist() == left.tolist()
    assert placed(jnp.array([[7, 9, 0, 0]]), jnp.array([2])).tolist() == [[0, 0, 7, 9]]


class Still(nn.Module):
    """In place of the text net: where words stand."""

    def __call__(self, word, real, *, train):
        return jnp.concatenate([word > 0, jnp.ones_like(word)[:, :1]], axis=1).astype(jnp.float32)


def test_offsets_in_training_are_uniform(monkeypatch):
    monkeypatch.setattr("xmodal_jax.models.dual_path.TextNet", lambda *_, **__: Still())
    word = np.tile(np.array([[1, 2, 3] + [0] * 29]), (4000, 1))
    apply = partial(make(positions=8).apply, {}, texts(word, np.zeros(4000)), train=True, method="encode_text")
    stands = np.asarray(apply(rngs={"dropout": jax.random.key(0)})[1])[:, :8] > 0
    first = stands.argmax(1)
    assert (stands.sum(1) == 3).all()  # none is pushed out
    assert (np.abs(stands.astype(int) @ np.arange(8) - 3 * (first + 1)) == 0).all()  # side by side
    counts = np.bincount(first, minlength=8)
    assert (counts[6:] == 0).all()
    np.testing.assert_allclose(counts[:6], 4000 / 6, atol=5 * np.sqrt(4000 / 6))
    other = np.asarray(apply(rngs={"dropout": jax.random.key(1)})[1])
    assert (other[:, :8] != stands).any()


SMALL: dict[str, Any] = {
    "vocabulary": 34,
    "classes": 12,
    "embed_dim": 8,
    "hidden_dim": 8,
    "word_dim": 6,
    "widths": (4, 4, 4, 8),
    "blocks": (1, 1, 1, 1),
    "positions": 8,
    "dropout": 0.0,
    "candidates": 0,
}


def small(**fields):
    return Model(**(SMALL | fields))


def small_batch(candidates=0, b=8, seed=0) -> Any:
    random = np.random.default_rng(seed)

    def captions(count, image):
        word = random.integers(1, 31, (count, 5))
        return texts(word, image)._replace(id=np.arange(count) + 100)

    number = np.arange(b, dtype=np.int32)
    batch = Batch(images(random.normal(size=(b, 5)).astype(np.float32), number), captions(b, number))
    return batch._replace(candidate=captions(candidates, np.full(candidates, 9)) if candidates else None)


def test_both_paths_reach_the_classifier():
    random = np.random.default_rng(0)
    image, text = (jnp.asarray(random.normal(size=(6, 8)), jnp.float32) for _ in range(2))
    label, other = np.array([0, 1, 2, 3, 4, -1]), np.array([0, 5, 6, 7, -1, -1])
    model, batch = small(), small_batch()
    variables = jax.jit(model.init)(jax.random.key(0), batch)

    def total(params, weights):
        given = Batch(images(np.zeros((6, 5)), label), texts(np.ones((6, 5), int), other))
        terms: Any = model.apply(
            {**variables, "params": params}, given, (None, image), (None, text), train=False, method="aux"
        )
        return weights[0] * terms["instance_image"] + weights[1] * terms["instance_text"]

    kernel = np.asarray(variables["params"]["classifier"]["kernel"])

    def expected(feature, label):
        logits = np.asarray(feature) @ kernel
        chance = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        error = np.where(label[:, None] >= 0, chance - np.eye(12)[label], 0.0) / (label >= 0).sum()
        return np.asarray(feature).T @ error

    parts, gradient = (expected(image, label), expected(text, other)), jax.jit(jax.grad(total))
    for weights in ((1.0, 0.0), (0.0, 1.0), (1.0, 0.5)):
        grads = gradient(variables["params"], weights)["classifier"]["kernel"]
        close(grads, sum(w * part for w, part in zip(weights, parts, strict=True)), 1e-5)


def test_drawn_classes_stand_for_all():
    random = np.random.default_rng(0)
    layer: Any = SharedClassifier(40, 6)
    feature, label = jnp.asarray(random.normal(size=(3, 6)), jnp.float32), np.array([3, 39, -1])
    variables = layer.init(jax.random.key(0), feature)
    logits = np.asarray(layer.apply(variables, feature), np.float64)
    loss = partial(layer.apply, variables, feature, label, method="loss")
    whole = loss()
    close(whole, np.mean([np.log(np.exp(logits[i]).sum()) - logits[i, label[i]] for i in (0, 1)]))
    close(loss(drawn=jnp.asarray(random.permutation(40))), whole, 1e-5)
    # The sum of exponentials that few drawn classes estimate is right on average
    sums = jax.jit(
        jax.vmap(lambda key: jnp.exp(layer.apply(variables, feature[:1], label[:1], _draw(key), method="loss")))
    )
    mean = float(np.mean(sums(jax.random.split(jax.random.key(0), 4000))))
    assert mean == pytest.approx(np.exp(logits[0] - logits[0, 3]).sum(), rel=0.02)


def _draw(key):
    return jax.random.randint(key, (10,), 0, 40)


def test_negatives_are_the_hardest_candidates():
    model, batch = small(candidates=16, position="left"), small_batch(16)
    variables: Any = jax.jit(model.init)(jax.random.key(0), batch)

    @jax.jit
    def run(batch):
        net = model.bind(variables)
        anchor = net._unit(jax.nn.relu(net._image(batch.image, train=False)))[:4]
        return net.select(batch), anchor @ net._unit(jax.nn.relu(net._text(batch.candidate, train=False))).T

    chosen, scores = jax.device_get(run(batch))
    assert len(set(scores.argmax(1))) > 1
    for field in ("token", "id", "image_id"):
        expected = np.concatenate([getattr(batch.text, field)[:4], getattr(batch.candidate, field)[scores.argmax(1)]])
        np.testing.assert_array_equal(getattr(chosen.text, field), expected)
    assert chosen.text.row.tolist() == [0, 1, 2, 3, -1, -1, -1, -1]
    jax.tree.map(np.testing.assert_array_equal, chosen.image, batch.image)


def training(runner, *, weights, lr=0.1, rules=({"match": ".*"},), model=None, batch=None):
    """(state, function of a state and a batch to the state and metrics of a step of SGD)."""
    model, batch = model or small(), batch if batch is not None else small_batch()
    config = base("scenes").optim
    config.name, config.lr, config.momentum, config.clip_norm, config.rules = "sgd", lr, 0.9, 0.0, rules
    variables = dict(jax.jit(model.init)({"params": jax.random.key(0), "dropout": jax.random.key(0)}, batch))
    initial = Initial(variables.pop("params"), variables)
    optimiser = make_optimiser(config, initial.params, lambda _: lr)
    objective = Objective(halves, {"margin": 1.0}, weights)
    options = {"model": model, "objective": objective, "optimiser": optimiser, "stage_start": 0}
    step = runner.compile(partial(train_step, **options, live=live_leaves(config, initial.params)))
    state = jax.device_get(make_state(initial, optimiser, 0, 0.0))
    return state, lambda state, batch: step(runner.put_state(state), runner.put_batch(batch))


INSTANCE = {"rank": 0.0, "instance_image": 1.0, "instance_text": 1.0}
FULL = {"rank": 2.0, "instance_image": 1.0, "instance_text": 0.1}


def test_what_a_stage_freezes_stays_as_it_is():
    rules = ({"match": "image_head/.*", "lr": 0.0}, {"match": ".*"})
    before, step = training(parallel.jit_runner(jax.devices()[:1]), weights=INSTANCE, rules=rules)
    after, _ = step(before, small_batch())
    after, _ = step(jax.device_get(after), small_batch(seed=1))
    jax.tree.map(np.testing.assert_array_equal, after.params["image_head"], before.params["image_head"])
    moved = jax.tree.map(lambda a, b: (np.asarray(a) != b).any(), after.params, before.params)
    assert all(jax.tree.leaves({name: moved[name] for name in ("classifier", "text_net")}))


def test_candidates_are_read_where_ranking_has_weight():
    model, runner = small(candidates=16), parallel.jit_runner(jax.devices()[:1])
    batch = small_batch(16)
    spoiled = batch._replace(candidate=batch.candidate._replace(image_id=np.full(16, 11)))
    for weights, same in ((INSTANCE, True), (FULL, False)):
        state, step = training(runner, weights=weights, model=model, batch=batch)
        metrics = [step(state, given)[1] for given in (batch, spoiled)]
        assert (float(metrics[0]["instance_text"]) == float(metrics[1]["instance_text"])) == same
    assert metrics[0]["pairs"] == 4


def test_four_devices_with_a_part_of_the_classifier_each_equal_one():
    model, batch = small(candidates=16, position="left"), small_batch(16)
    results = []
    for count in (1, 4):
        runner = parallel.make_runner("jit", [8], jax.devices()[:count], sharded=model.sharded)
        before, step = training(runner, weights=FULL, lr=1e-2, model=model, batch=batch)
        state, metrics = step(before, batch)
        results.append((jax.device_get(state.params), jax.device_get(metrics)))
    kernels = [state.params["classifier"]["kernel"], state.opt_state]
    shapes = {leaf.addressable_shards[0].data.shape for leaf in jax.tree.leaves(kernels) if leaf.shape == (8, 12)}
    assert shapes == {(2, 12)}
    assert state.params["text_net"]["embedding"].sharding.is_fully_replicated
    (one, metrics), (four, other) = results
    assert other["loss"] == pytest.approx(metrics["loss"], rel=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), one, four)


def test_groups(monkeypatch):
    random = np.random.default_rng(0)
    centre = 10 * random.normal(size=(5, 7))
    truth = random.integers(0, 5, 200)
    feature = (centre[truth] + random.normal(size=(200, 7))).astype(np.float32)
    group = k_means(feature, 5, seed=0)
    np.testing.assert_array_equal(group, k_means(feature, 5, seed=0))
    assert group.dtype == np.int32
    pure = [np.bincount(truth[group == g]).max() for g in range(5)]
    assert sum(pure) >= 150  # Lloyd's algorithm may stop at two centres in one cloud
    assert sorted(np.bincount(k_means(np.ones((6, 2), np.float32), 3, seed=0), minlength=3))[0] > 0

    model, batch = small(groups=3), small_batch()
    variables: Any = jax.jit(model.init)(jax.random.key(0), batch)
    assert variables["params"]["classifier"]["kernel"].shape == (8, 3)
    given = [images(random.normal(size=(8, 5)).astype(np.float32)), images(np.ones((8, 5), "f4"), np.full(8, -1))]
    given[1].id[:4] = np.arange(8, 12)
    monkeypatch.setattr(groups, "image_batches", lambda *_: given)
    reader: Any = SimpleNamespace(count=12, names=["global"])
    params = variables["params"]
    initial = Initial(params, {name: variables[name] for name in ("groups", "batch_stats")})
    state = start_groups(initial, model, reader, 0).model_state
    of_image = np.asarray(state["groups"]["of_image"])
    assert of_image.shape == variables["groups"]["of_image"].shape
    assert len(set(of_image[8:])) == 1  # equal features
    with pytest.raises(UsageError, match=r"model\.groups 30 is more than the 12 training images"):
        start_groups(initial, small(groups=30), reader, 0)
    with pytest.raises(UsageError, match="for no system within another"):
        start_groups(initial, small(groups=0), reader, 0)
    feature = jnp.asarray(random.normal(size=(8, 8)), jnp.float32)
    variables = {**variables, "groups": {"of_image": jnp.asarray(of_image)}}
    terms: Any = model.apply(variables, batch, (None, feature), (None, feature), train=False, method="aux")
    expected = model.bind(variables).classifier.loss(feature, of_image[:8])
    assert terms["instance_image"] == terms["instance_text"] == expected


def test_classes_that_do_not_fit_are_refused(monkeypatch):
    config = base("scenes")
    memory.check(small(), small_batch(), config, 1)
    monkeypatch.setattr(memory, "available", lambda _: 3 << 30)
    large = small(classes=100_000, embed_dim=2048)
    with pytest.raises(
        UsageError, match=r"adam take 3\.1 GiB, and there are 3\.0 GiB; .* classifier/kernel of 2,048 x 1"
    ):
        memory.check(large, small_batch(), config, 1)
    memory.check(large, small_batch(), config, 4)
    config.optim.name = "sgd"
    memory.check(large, small_batch(), config, 1)


def pictures(count=8, seed=0, label=None) -> Images:
    number = np.arange(count, dtype=np.int32) if label is None else label
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), np.uint8)
    return Images({"pixels": pixels}, np.ones((count, 1), bool), number)


SEES = {"feature": "pixels", "network": "small"}


@pytest.mark.parametrize("eval_pre_relu", [True, False])
def test_a_picture_and_its_mirror_image_are_added_up(eval_pre_relu):
    model = small(**SEES, eval_pre_relu=eval_pre_relu)
    batch = small_batch()._replace(image=pictures())
    variables: Any = jax.jit(model.init)({"params": jax.random.key(0), "dropout": jax.random.key(0)}, batch)
    mirrored = pictures()._replace(feature={"pixels": pictures().feature["pixels"][:, :, ::-1]})

    def encode(image, **fields):
        net = small(**SEES, eval_pre_relu=eval_pre_relu, **fields)
        return np.asarray(net.apply(variables, image, train=False, method="encode_image")[0])

    ends = (lambda x: x) if eval_pre_relu else (lambda x: np.maximum(x, 0.0))
    net = model.bind(variables)
    total = sum(ends(np.asarray(net._image(image, train=False))) for image in (pictures(), mirrored))
    close(encode(pictures()), total / np.linalg.norm(total, axis=1, keepdims=True))
    close(encode(mirrored), encode(pictures()))
    assert np.abs(encode(mirrored, mirror=False) - encode(pictures(), mirror=False)).max() > 1e-3


def test_stage_one_leaves_the_image_network_as_it_is():
    config = configs.load("dual_path_pixels.py:dual_path,f30k")
    second = config.stages[1]["optim"]["rules"]
    model, batch = small(**SEES), small_batch()._replace(image=pictures())
    for weights, rules, moves in ((INSTANCE, config.optim.rules, False), (FULL, second, True)):
        before, step = training(
            parallel.jit_runner(jax.devices()[:1]), weights=weights, rules=rules, model=model, batch=batch
        )
        after, _ = step(before, batch)
        after, _ = step(jax.device_get(after), batch._replace(image=pictures(seed=1)))
        network = [state.params["image_vector"]["backbone"] for state in (before, after)]
        moved = jax.tree.leaves(jax.tree.map(lambda a, b: bool((np.asarray(a) != b).any()), *network))
        assert all(moved) if moves else not any(moved)
        statistics = [state.model_state["batch_stats"]["image_vector"] for state in (before, after)]
        jax.tree.map(np.testing.assert_array_equal, *statistics)
        assert (
            np.asarray(after.params["text_net"]["out"]["kernel"]) != before.params["text_net"]["out"]["kernel"]
        ).any()


@pytest.mark.parametrize("network", ["resnet18", "resnet50", "lite0", "lite2"])
def test_rules_of_both_stages_reach_the_network(network):
    config = configs.load("dual_path_pixels.py:dual_path,f8k", [f"--config.model.network={network}"])
    pictures = jax.ShapeDtypeStruct((1, 32, 32, 3), np.uint8)
    net = jax.eval_shape(Backbone(network).init, jax.random.key(0), pictures)["params"]
    params = {"image_net": {"backbone": net}, "text_net": {"embedding": 0}, "classifier": 0}
    for rules in (config.optim.rules, config.stages[1]["optim"]["rules"]):
        chosen = match_rules(params, rules)
        assert chosen["classifier"] == len(rules) - 1
    first = chosen["image_net"]["backbone"]["stem" if network.startswith("lite") else "conv1"]
    assert {config.stages[1]["optim"]["rules"][index]["lr"] for index in jax.tree.leaves(first)} == {1e-4}


def test_pixels_are_grouped_by_what_the_network_sees(monkeypatch):
    model, batch = small(**SEES, groups=2), small_batch()._replace(image=pictures())
    variables = dict(jax.jit(model.init)({"params": jax.random.key(0), "dropout": jax.random.key(0)}, batch))
    dark, light = (np.full((6, 32, 32, 3), value, np.uint8) for value in (10, 240))
    label = np.array([0, 2, 4, 6, 8, -1], np.int32)  # the last of either could not be read
    given = [pictures(6, label=label)._replace(feature={"pixels": dark})]
    given.append(pictures(6, label=np.where(label < 0, -1, label + 1))._replace(feature={"pixels": light}))
    monkeypatch.setattr(groups, "image_batches", lambda *_: given)
    reader: Any = SimpleNamespace(count=12, names=["pixels"])
    initial = start_groups(Initial(variables.pop("params"), variables), model, reader, 0)
    of_image = np.asarray(initial.model_state["groups"]["of_image"])[:10]
    assert set(of_image[::2]) != set(of_image[1::2]) and len(set(of_image[::2])) == len(set(of_image[1::2])) == 1
