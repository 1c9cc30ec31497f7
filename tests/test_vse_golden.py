"""The VSE family against arrays of the original PyTorch code: embeddings, scores, losses, gradients, one Adam step."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import GOLDEN

from xmodal_jax import losses, similarity
from xmodal_jax.convert import systems
from xmodal_jax.models.vse import Model
from xmodal_jax.types import Images, Texts

NAMES = {tuple(ours.split("/")): theirs for ours, theirs in systems.VSEPP.items()}


def layout(path, array):
    return systems.layout(path[-1], array)


def unflatten(arrays, prefix):
    tree = {}
    for path, name in NAMES.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = jnp.asarray(layout(path, arrays[f"{prefix}/{name}"]))
    return tree


def lookup(tree, path):
    for key in path:
        tree = tree[key]
    return np.asarray(tree)


@pytest.fixture(params=["cosine", "order"])
def case(request):
    arrays = np.load(GOLDEN / f"vsepp_model_{request.param}.npz")
    options = json.loads(str(arrays["meta"]))["options"]
    model = Model(
        vocabulary=60,
        embed_dim=24,
        word_dim=20,
        measure={"cosine": "dot", "order": "order_root"}[request.param],
        absolute=options["use_abs"],
    )
    length, n = arrays["in/length"], len(arrays["in/length"])
    mask = np.arange(arrays["in/token"].shape[1]) < length[:, None]
    rows = np.arange(n)
    image = Images({"global": arrays["in/feature"]}, np.ones((n, 1), bool), rows)
    text = Texts(arrays["in/token"], mask, rows, rows, rows)
    return arrays, options, model, image, text


def encode(model, params, image, text):
    image, _ = model.apply({"params": params}, image, train=True, method="encode_image")
    text, _ = model.apply({"params": params}, text, train=True, method="encode_text")
    return image, text


def loss(params, model, image, text, options, hardness):
    image, text = encode(model, params, image, text)
    scores = model.apply({"params": params}, image, text, method="score")
    return losses.triplet(scores, np.eye(len(scores), dtype=bool), margin=options["margin"], hardness=hardness)


def test_embeddings_and_scores(case):
    arrays, _, model, image, text = case
    params = unflatten(arrays, "w")
    v, s = encode(model, params, image, text)
    np.testing.assert_allclose(v, arrays["out/image"], atol=1e-5)
    np.testing.assert_allclose(s, arrays["out/caption"], atol=1e-5)
    scores = model.apply({"params": params}, v, s, method="score")
    np.testing.assert_allclose(scores, arrays["out/score"], atol=1e-5)
    if "out/score_order_squared" in arrays:
        np.testing.assert_allclose(similarity.order(v, s), arrays["out/score_order_squared"], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "hardness"), [("sum", 0), ("max", 1), ("sum", jnp.array(0.0)), ("max", jnp.array(1.0))]
)
def test_losses_and_gradients(case, name, hardness):
    arrays, options, model, image, text = case
    value, grads = jax.value_and_grad(loss)(unflatten(arrays, "w"), model, image, text, options, hardness)
    expected = arrays[f"out/loss_{name}"]
    assert abs(float(value) - expected) <= 2e-5 * max(1.0, float(expected))
    for path, original in NAMES.items():
        reference = layout(path, arrays[f"grad_{name}/{original}"])
        np.testing.assert_allclose(lookup(grads, path), reference, atol=5e-5 * max(1.0, np.abs(reference).max()))
    norm = float(arrays[f"out/grad_norm_{name}"])
    assert abs(float(optax.global_norm(grads)) - norm) <= 5e-5 * max(1.0, norm)


def test_one_adam_step(case):
    arrays, options, model, image, text = case
    params = unflatten(arrays, "w")
    grads = jax.grad(loss)(params, model, image, text, options, int(options["max_violation"]))
    clip = optax.clip_by_global_norm(options["grad_clip"])
    clipped, _ = clip.update(grads, clip.init(params))
    optimiser = optax.chain(clip, optax.adam(options["learning_rate"]))
    updates, _ = optimiser.update(grads, optimiser.init(params), params)
    stepped = optax.apply_updates(params, updates)
    for path, original in NAMES.items():
        sure = np.abs(lookup(clipped, path)) > 1e-5  # elsewhere the first Adam step is the sign of rounding noise
        assert sure.any()
        reference = layout(path, arrays[f"step/{original}"])
        np.testing.assert_allclose(lookup(stepped, path)[sure], reference[sure], atol=2e-6)
