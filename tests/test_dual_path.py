"""Dual-Path against arrays of the original network: vectors, losses, gradients, offsets; its classifier and stages."""

import json
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN
from flax.traverse_util import flatten_dict, unflatten_dict

from xmodal_jax.layers.text import placed, words_of
from xmodal_jax.losses import halves
from xmodal_jax.models.dual_path import Model
from xmodal_jax.text.vocabulary import END, START
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
