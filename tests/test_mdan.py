"""m-DAN against the equations of the paper in NumPy; padding, order, steps, gradients; what its steps look at."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax import config as configs
from xmodal_jax.errors import UsageError
from xmodal_jax.losses import triplet
from xmodal_jax.models import vse
from xmodal_jax.models.mdan import Model
from xmodal_jax.types import Batch, Images, Inputs, Texts

B, R, F, W, D = 4, 5, 7, 6, 8
RANDOM = np.random.default_rng(0)
REGIONS, LENGTHS = np.array([5, 2, 1, 0]), np.array([6, 3, 2, 4])
NUMBER = np.arange(B)
IMAGES = Images({"region": RANDOM.normal(size=(B, R, F)).astype(np.float32)}, np.arange(R) < REGIONS[:, None], NUMBER)
MASK = np.arange(W) < LENGTHS[:, None]
TEXTS = Texts(np.where(MASK, RANDOM.integers(1, 20, (B, W)), 0), MASK, NUMBER, NUMBER, NUMBER)
SIZES: Any = {"vocabulary": 20, "embed_dim": D, "hidden_dim": 6, "word_dim": 5}


def parameters(model, images=IMAGES) -> Any:
    """Random ones, biases too."""
    tree = jax.eval_shape(lambda: model.init(jax.random.key(0), Batch(images, TEXTS)))["params"]
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: random.normal(scale=0.5, size=leaf.shape).astype(np.float32), tree)


@partial(jax.jit, static_argnums=0)
def encode(model, params, images, texts) -> Any:
    """(image, text, where the steps look) in use."""
    apply = partial(model.apply, {"params": params})
    image, text = (
        apply(items, train=False, method=f"encode_{side}")[0] for side, items in (("image", images), ("text", texts))
    )
    return image, text, apply(images, texts, method="glimpses")


def oracle(p, x, steps, project):
    """The vectors of one item's real fragments ``x``, one after the other, and the attention of each step."""

    def fully(x, name):
        return np.tanh(x @ p[name]["kernel"] + p[name]["bias"])

    memory = v = fully(x.mean(0), "project_0") if project else x.mean(0)
    vectors, attention = [v], []
    for k in range(1, steps + 1):
        logit = (fully(x, f"fragment_{k}") * fully(memory, f"memory_{k}")) @ p[f"attend_{k}"]["kernel"][:, 0]
        a = np.exp(logit) / np.exp(logit).sum()
        v = fully(a @ x, f"project_{k}") if project else a @ x
        memory = memory + v
        vectors.append(v)
        attention.append(a)
    return np.concatenate(vectors), np.array(attention).reshape(steps, len(x))


@pytest.mark.parametrize("steps", [0, 2])
def test_equations(steps):
    model = Model(**SIZES, steps=steps)
    params = parameters(model)
    image, text, (regions, words) = encode(model, params, IMAGES, TEXTS)
    assert image.shape == text.shape == (B, (steps + 1) * D)
    assert (regions.shape, words.shape) == ((B, B, steps, R), (B, B, steps, W))
    bound = model.bind({"params": params})
    states = bound.context(bound.embed(TEXTS.token), MASK)
    sides = (
        (image, regions[:, 1], "image_glimpses", IMAGES.feature["region"], REGIONS, True),
        (text, words[2], "text_glimpses", np.asarray(states), LENGTHS, False),
    )
    for got, attention, name, x, counts, project in sides:
        for n, count in enumerate(counts):
            if count:
                wanted, weight = oracle(params.get(name, {}), x[n, :count], steps, project)
                np.testing.assert_allclose(got[n], wanted, atol=1e-5)
                np.testing.assert_allclose(attention[n, :, :count], weight, atol=1e-5)
            assert not attention[n, :, count:].any()
    halves = [np.asarray(side).reshape(B, steps + 1, D) for side in (image, text)]
    score: Any = model.apply({"params": params}, image, text, method="score")
    np.testing.assert_allclose(score, np.einsum("bkd,ckd->bc", *halves), atol=1e-4)


def test_a_step_has_weights_of_its_own():
    tree: Any = jax.eval_shape(lambda: Model(**SIZES, steps=2).init(jax.random.key(0), Batch(IMAGES, TEXTS)))["params"]
    assert set(tree["image_glimpses"]) == {
        *(f"{kind}_{k}" for kind in ("fragment", "memory", "attend", "project") for k in (1, 2)),
        "project_0",
    }
    assert set(tree["text_glimpses"]) == {f"{kind}_{k}" for kind in ("fragment", "memory", "attend") for k in (1, 2)}
    assert tree["image_glimpses"]["project_2"]["kernel"].shape == (F, D)


def test_padding_and_the_order_of_regions_change_nothing():
    model = Model(**SIZES)
    params = parameters(model)
    image, text, (regions, words) = encode(model, params, IMAGES, TEXTS)
    wide_images = Images(
        {"region": np.pad(IMAGES.feature["region"], ((0, 0), (0, 2), (0, 0)), constant_values=50.0)},
        np.pad(IMAGES.mask, ((0, 0), (0, 2))),
        NUMBER,
    )
    pad = ((0, 0), (0, 3))
    wide_texts = TEXTS._replace(token=np.pad(TEXTS.token, pad, constant_values=3), mask=np.pad(MASK, pad))
    wide = encode(model, params, wide_images, wide_texts)
    narrow = (image, text, (np.pad(regions, ((0, 0),) * 3 + ((0, 2),)), np.pad(words, ((0, 0),) * 3 + ((0, 3),))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), wide, narrow)
    turned = IMAGES._replace(feature={"region": IMAGES.feature["region"][:, ::-1]}, mask=IMAGES.mask[:, ::-1])
    again, _, (back, _) = encode(model, params, turned, TEXTS)
    np.testing.assert_allclose(again, image, atol=1e-5)
    np.testing.assert_allclose(back[..., ::-1], regions, atol=1e-5)


@pytest.mark.parametrize("hardness", [0.0, 1.0])
def test_every_parameter_has_a_finite_gradient(hardness):
    model = Model(**SIZES, dropout=0.0)
    params = parameters(model)

    @jax.jit
    @jax.grad
    def gradients(params):
        scores, _ = model.apply({"params": params}, Batch(IMAGES, TEXTS), train=True)
        return triplet(scores, np.eye(B, dtype=bool), margin=100.0, hardness=hardness)

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients(params)):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, path


def test_dropout_in_training_alone():
    model = Model(**SIZES)
    params = parameters(model)
    for side, items in (("image", IMAGES), ("text", TEXTS)):
        apply = jax.jit(partial(model.apply, train=True, method=f"encode_{side}"))
        first, second = (apply({"params": params}, items, rngs={"dropout": jax.random.key(k)})[0] for k in (0, 1))
        still = encode(model, params, IMAGES, TEXTS)[side == "text"]
        assert min(np.abs(a - b).max() for a, b in ((first, second), (first, still))) > 1e-3


def test_one_vector_an_image_is_one_region():
    model = Model(**SIZES, feature="global")
    images = Images({"global": IMAGES.feature["region"][:, 0]}, np.ones((B, 1), bool), NUMBER)
    _, _, (regions, _) = encode(model, parameters(model, images), images, TEXTS)
    np.testing.assert_array_equal(regions, np.ones((B, B, 2, 1)))


def test_other_systems_have_no_steps():
    with pytest.raises(UsageError, match="vse has no steps that look at regions and words"):
        vse.Model(vocabulary=3).glimpses(IMAGES, TEXTS)
    model = Model(**SIZES)
    assert model.has("glimpses") and not model.has("attention") and not vse.Model(vocabulary=3).has("glimpses")


def test_half_precision():
    model, half = Model(**SIZES), Model(**SIZES, dtype="bfloat16")
    params = parameters(model)
    full, low = (encode(m, params, IMAGES, TEXTS)[0] for m in (model, half))
    assert low.dtype == jnp.float32
    assert 1e-4 < np.abs(low - full).max() < 0.1


@pytest.mark.parametrize("variant", ["mdan", "all"])
@pytest.mark.parametrize("data", ["scenes", "f8k", "f30k"])
def test_config(variant, data):
    config = configs.load(f"mdan.py:{variant},{data}")
    fields = dict(config.model)
    assert fields.pop("name") == "mdan"
    assert Model(vocabulary=9, **fields).inputs == Inputs(("region",))
    assert (config.loss.name, config.loss.hardness) == ("triplet", float(variant == "mdan"))
