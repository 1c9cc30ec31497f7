"""Dual-Path against arrays of the original network: vectors, losses, gradients, offsets; its classifier and stages."""

import json
from functools import partial
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN
from flax.traverse_util import flatten_dict, unflatten_dict

from xmodal_jax.defaults import base
from xmodal_jax.errors import UsageError
from xmodal_jax.layers.classifier import SharedClassifier
from xmodal_jax.layers.text import placed, words_of
from xmodal_jax.losses import halves
from xmodal_jax.models.dual_path import Model
from xmodal_jax.text.vocabulary import END, START, UNKNOWN
from xmodal_jax.training import groups, memory, parallel
from xmodal_jax.training.groups import k_means, start_state
from xmodal_jax.training.optim import live_leaves, make_optimiser
from xmodal_jax.training.step import Initial, Objective, make_state, train_step
from xmodal_jax.types import Batch, Images, Texts

ARRAYS = np.load(GOLDEN / "dual_path.npz")
OPTIONS = json.loads(str(ARRAYS["meta"]))["options"]
FIRST = {1: "2_{}", 2: "3_{}", 3: "4_{}", 4: "5_{}"}  # the original counts a stage's first block with the stage before
SIZES: dict[str, Any] = {
    "vocabulary": 34,
    "classes": 9,
    "embed_dim": 32,
    "hidden_dim": 32,
    "word_dim": 6,
    "widths": (8, 12, 20, 32),
    "blocks": (3, 4, 6, 1),
    "candidates": 0,
}


def make(**fields):
    return Model(**(SIZES | fields))


def units():
    """Our name of each unit (a convolution and its norm): the original's."""
    names = {"image_head/hidden": "fc1", "image_head/out": "fc1_1", "text_net/out": "fc5_2"}
    last = {1: "fc2_4a", 2: "fc3_5a", 3: "fc4_7a"}  # the first block of the next stage
    for stage, count in enumerate(SIZES["blocks"], 1):
        for block in range(1, count + 1):
            original = last[stage - 1] if stage > 1 and block == 1 else f"fc{stage + 1}_{block}"
            ours = f"text_net/block_{stage}_{block}"
            names |= {f"{ours}/{part}": f"{original}_{n}" for n, part in enumerate(("first", "second", "third"), 1)}
            if block == 1:
                names[f"{ours}/shortcut"] = f"{original.removesuffix('a')}b"
    return names


def tree(prefix) -> Any:
    flat = {}

    def norm(ours, theirs):
        flat[f"{ours}/norm/scale"], flat[f"{ours}/norm/bias"] = (ARRAYS[f"{prefix}/{theirs}bn_{x}"] for x in "wb")

    for ours, theirs in units().items():
        flat[f"{ours}/kernel"] = ARRAYS[f"{prefix}/{theirs}f"][0]
        norm(ours, theirs)
    rows = ARRAYS[f"{prefix}/fc2f"][0, 0]  # the first word of the original is row 0, and 4 here
    flat["text_net/embedding"] = np.concatenate([np.zeros((4, 6), np.float32), rows])
    flat["text_net/embedding_bias"] = ARRAYS[f"{prefix}/fc2b"]
    norm("text_net", "fc2")
    flat["classifier/kernel"] = ARRAYS[f"{prefix}/fcsharef"][0, 0]
    flat["classifier/bias"] = ARRAYS[f"{prefix}/fcshareb"]
    return unflatten_dict({key: jnp.asarray(value) for key, value in flat.items()}, sep="/")


def statistics() -> Any:
    flat = {}
    for ours, theirs in (units() | {"text_net": "fc2"}).items():
        mean, root = ARRAYS[f"w/{theirs}bn_m"].T
        flat[f"{ours}/norm/mean"], flat[f"{ours}/norm/var"] = mean, root**2 - 1e-3
    return unflatten_dict({key: jnp.asarray(value) for key, value in flat.items()}, sep="/")


VARIABLES = {"params": tree("w"), "batch_stats": statistics()}
WORD, LENGTH = ARRAYS["in/word"], ARRAYS["in/length"]
OFFSET = np.argmax(WORD > 0, axis=1)


def texts(word, label) -> Texts:
    """Captions whose words are those of ``word`` without the gaps, between start and end."""
    rows = [[START, *(row[row > 0] + 3), END] for row in word]
    width = max(map(len, rows))
    token = np.array([row + [0] * (width - len(row)) for row in rows], np.int32)
    number = np.arange(len(rows), dtype=np.int32)
    return Texts(token, token > 0, number, np.asarray(label, np.int32), number)


def images(feature, label=None) -> Images:
    number = np.arange(len(feature), dtype=np.int32) if label is None else label
    return Images({"global": feature}, np.ones((len(feature), 1), bool), number)


BATCH = Batch(images(ARRAYS["in/image"], ARRAYS["in/label_image"]), texts(WORD, ARRAYS["in/label_text"]))


def close(got, expected, tolerance=1e-5, least=0.0):
    scale = max(least, float(np.abs(expected).max()))
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * scale)


@pytest.fixture
def original_draws(monkeypatch):
    """Words stand where they stood in the original run, and dropout keeps what it kept there."""
    monkeypatch.setattr(jax.random, "randint", lambda key, shape, *_, **__: jnp.asarray(OFFSET))
    kept = iter([ARRAYS["train/dropout_keep/image"], ARRAYS["train/dropout_keep/text"]])

    def dropout(self, x, deterministic=None):
        return x if deterministic else jnp.where(next(kept), x / (1.0 - self.rate), 0.0)

    monkeypatch.setattr(nn.Dropout, "__call__", dropout)


def forward(model, variables, batch, *, train):
    """(image vectors, caption vectors, features of both, losses, statistics after)."""
    apply = partial(model.apply, train=train, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)})
    (image, after_image), state = apply(variables, batch.image, method="encode_image")
    variables = {**variables, **state}
    (text, after_text), state = apply(variables, batch.text, method="encode_text")
    variables = {**variables, **state}
    terms, _ = apply(variables, batch, (image, after_image), (text, after_text), method="aux")
    terms["rank"] = halves(image @ text.T, np.eye(len(image), dtype=bool), margin=OPTIONS["rate"])
    return (image, text), (after_image, after_text), terms, variables["batch_stats"]


def test_the_parameters_are_all_of_the_original():
    ours: Any = jax.eval_shape(make().init, jax.random.key(0), BATCH)
    assert jax.tree.map(np.shape, ours) == jax.tree.map(np.shape, VARIABLES)
    used = {f"w/{name}f" for name in units().values()} | {"w/fc2f", "w/fcsharef"}
    assert used == {name for name in ARRAYS.files if name.startswith("w/") and name.endswith("f")}


@jax.jit
def text_net(word):
    """Words that stand where they are, as the original counts them, in test mode."""

    def of(model):
        return model.text_net(jnp.where(word > 0, word + 3, 0), jnp.ones(len(word), bool), train=False)

    return nn.apply(of, make())(VARIABLES)


def test_test_mode():
    net = make().bind(VARIABLES)
    text = np.asarray(text_net(WORD))
    close(text, ARRAYS["test/stage/fc5_2bn"])
    image = np.asarray(net._image(BATCH.image, train=False))
    close(image, ARRAYS["test/stage/fc1_1bn"])
    close(net._unit(jax.nn.relu(image)), ARRAYS["test/normalised/image"])
    close(net._unit(jax.nn.relu(text)), ARRAYS["test/normalised/text"])
    for (got, label), name in zip(((image, "image"), (text, "text")), ("image", "text"), strict=True):
        loss = net.classifier.loss(jax.nn.relu(got), ARRAYS[f"in/label_{label}"])
        close(6 * loss, ARRAYS[f"test/loss/instance_{name}"], 2e-5, 1.0)


def test_train_mode(original_draws):
    left, length = words_of(BATCH.text.token, BATCH.text.mask, 32, drop_unknown=True)
    np.testing.assert_array_equal(length, LENGTH)
    np.testing.assert_array_equal(placed(left, jnp.asarray(OFFSET)), np.where(WORD > 0, WORD + 3, 0))

    def total(params, feature):
        batch = BATCH._replace(image=images(feature, BATCH.image.id))
        model, state = make(dtype="float64"), VARIABLES["batch_stats"]
        units_, after, terms, stats = forward(model, {"params": params, "batch_stats": state}, batch, train=True)
        weights = dict(zip(("rank", "instance_image", "instance_text"), OPTIONS["weights"], strict=True))
        return 6 * sum(weights[name] * value for name, value in terms.items()), (units_, after, terms, stats)

    # Fourteen batch norms of six items: in float32, rounding alone moves some gradients by 1e-3 of their largest entry.
    with jax.enable_x64(True):
        loss = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))
        wide = jax.tree.map(lambda x: np.asarray(x, np.float64), VARIABLES["params"])
        (value, (vectors, after, terms, stats)), (grads, grad) = loss(wide, ARRAYS["in/image"].astype(np.float64))
    for name, vector, feature in zip(("image", "text"), vectors, after, strict=True):
        close(vector, ARRAYS[f"train/normalised/{name}"])
        close(feature, ARRAYS[f"train/stage/{'fc1_1bnx' if name == 'image' else 'fc5_2bnx'}"])
    for name, term in terms.items():
        close(6 * term, ARRAYS[f"train/loss/{name}"], 2e-5, 1.0)
    close(value, ARRAYS["train/loss/total"], 2e-5, 1.0)
    expected = flatten_dict(tree("train/grad"), sep="/")
    for name, gradient in flatten_dict(grads, sep="/").items():
        close(gradient, expected[name], 5e-5, 1.0)
    close(grad, ARRAYS["train/grad/in/image"], 5e-5, 1.0)
    stats, before = flatten_dict(stats, sep="/"), flatten_dict(VARIABLES["batch_stats"], sep="/")
    ours = {theirs: name for name, theirs in (units() | {"text_net": "fc2"}).items()}
    for key in (name for name in ARRAYS.files if name.startswith("train/batch_moments/")):
        name = ours[key.split("/")[-1].removesuffix("bn_m")]
        mean, root = ARRAYS[key].T
        for kind, moment in (("mean", mean), ("var", root**2 - 1e-3)):
            old = np.asarray(before[f"{name}/norm/{kind}"])
            close(stats[f"{name}/norm/{kind}"], 0.9 * old + 0.1 * moment, 2e-4, 1.0)


@pytest.mark.parametrize("setting", ["margin1", "margin_half"])
def test_rank_loss_and_gradients(setting):
    image, text = (jnp.asarray(ARRAYS[f"rank/{setting}/in/{name}"], jnp.float32) for name in ("image", "text"))
    margin = OPTIONS["rank"][setting]["rate"]

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1))
    def loss(image, text, order):
        positive = np.eye(8, dtype=bool) & (np.arange(8) < 4)
        return 8 * halves((image @ text.T)[order][:, order], jnp.asarray(positive)[order][:, order], margin=margin)

    for order in (np.arange(8), np.array([0, 4, 1, 5, 2, 6, 3, 7])):  # as two devices would bring them
        value, grads = loss(image, text, order)
        close(value, ARRAYS[f"rank/{setting}/value"], 2e-5, 1.0)
        for name, gradient in zip(("image", "text"), grads, strict=True):
            close(gradient, ARRAYS[f"rank/{setting}/grad/{name}"], 5e-5, 1.0)


def test_vectors_of_all_offsets_are_added_up():
    word = ARRAYS["offset/in/word"]
    each = np.asarray(text_net(word))
    close(each, ARRAYS["offset/feature"])
    text = texts(word[13:14], [0])

    @partial(jax.jit, static_argnums=0)
    def encode(model, text):
        return model.apply(VARIABLES, text, train=False, method="encode_text")[0]

    two = texts(np.concatenate([WORD[3:4], word[:1]]), [0, 0])  # one of 32 words, which fits at one offset alone
    close(encode(make(), two)[1], ARRAYS["offset/sum_unit"])
    full = np.asarray(text_net(WORD))[3]
    close(encode(make(), two)[0], full / np.linalg.norm(full))
    for order in (np.arange(26)[::-1], np.random.default_rng(0).permutation(26)):
        total = np.add.reduce(each[order])
        close(total / np.linalg.norm(total), ARRAYS["offset/sum_unit"])
    third = encode(make(offset_step=3), text)
    total = each[::3].sum(0)
    close(third[0], total / np.linalg.norm(total))
    left = encode(make(position="left"), text)
    close(left[0], each[0] / np.linalg.norm(each[0]))


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
    state = start_state({"groups": variables["groups"], "batch_stats": {}}, model, reader, 0)
    of_image = np.asarray(state["groups"]["of_image"])
    assert of_image.shape == variables["groups"]["of_image"].shape
    assert len(set(of_image[8:])) == 1  # equal features
    with pytest.raises(UsageError, match=r"model\.groups 30 is more than the 12 training images"):
        start_state({"groups": {}}, small(groups=30), reader, 0)
    with pytest.raises(UsageError, match="for no system within another"):
        start_state({"groups": {}}, small(groups=0), reader, 0)
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
