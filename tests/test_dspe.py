"""DSPE against arrays of the original code: embeddings, running statistics, losses, gradients; its variants."""

import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN

from xmodal_jax import config as configs
from xmodal_jax.errors import UsageError
from xmodal_jax.layers.norm import BatchNorm
from xmodal_jax.losses import top_k
from xmodal_jax.models.dspe import Model
from xmodal_jax.types import Batch, Images, Inputs, Texts

ARRAYS = np.load(GOLDEN / "two_branch.npz")
SIDES = {"image_branch": ("im_embed", "image"), "text_branch": ("sent_embed", "sentence")}
PARAMS = {
    "hidden/kernel": "1/fc/weights",
    "hidden/bias": "1/fc/biases",
    "norm/scale": "1/bnorm/gamma",
    "norm/bias": "1/bnorm/beta",
    "out/kernel": "2/weights",
    "out/bias": "2/biases",
}
STATISTICS = {"norm/mean": "1/bnorm/moving_mean", "norm/var": "1/bnorm/moving_variance"}
MODEL = Model(embed_dim=10, hidden_dim=16)
ROW = np.repeat(np.arange(7), 2)
BATCH = Batch(
    Images({"global": ARRAYS["in/image"]}, np.ones((7, 1), bool), np.arange(7)),
    Texts(None, np.ones((14, 1), bool), ROW, ROW, np.arange(14), {"fisher": ARRAYS["in/sentence"]}),
)


def close(got, expected, tolerance=1e-5):
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * max(1.0, np.abs(expected).max()))


def tree(prefix, names):
    """{branch: {layer: {name: array}}} of the original's arrays under ``prefix``."""
    result = {}
    for branch, (original, _) in SIDES.items():
        for path, name in names.items():
            layer, leaf = path.split("/")
            node = result.setdefault(branch, {}).setdefault(layer, {})
            node[leaf] = jnp.asarray(ARRAYS[f"{prefix}/{original}_{name}"])
    return result


VARIABLES = {"params": tree("w", PARAMS), "batch_stats": tree("w", STATISTICS)}


def encode(model, variables, batch, *, train) -> Any:
    """(image, text, running statistics of both after them)."""
    apply = partial(model.apply, train=train, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)})
    (image, _), state = apply(variables, batch.image, method="encode_image")
    (text, _), state = apply({**variables, **state}, batch.text, method="encode_text")
    return image, text, state.get("batch_stats")


@pytest.fixture
def original_masks(monkeypatch):
    """Dropout keeps what it kept in the original run, where both branches drew with the same seed."""
    kept = {"image": ARRAYS["train/dropout_keep/image"], "sentence": ARRAYS["train/dropout_keep/sentence"]}
    np.testing.assert_array_equal(kept["sentence"][:7], kept["image"])
    by_shape = {mask.shape: mask for mask in kept.values()}

    def bernoulli(key, p, shape):
        assert p == 0.5
        return jnp.asarray(by_shape[tuple(shape)])

    monkeypatch.setattr(jax.random, "bernoulli", bernoulli)


def test_embeddings_and_scores_in_use():
    image, text, _ = encode(MODEL, VARIABLES, BATCH, train=False)
    close(image, ARRAYS["test/out/image"])
    close(text, ARRAYS["test/out/sentence"])
    scores = MODEL.apply(VARIABLES, image, text, method="score")
    apart = np.linalg.norm(ARRAYS["test/out/image"][:, None] - ARRAYS["test/out/sentence"], axis=-1)
    close(scores, -np.sqrt(apart**2 + 1e-4))
    assert MODEL.inputs == Inputs(image=("global",), text=("fisher",))


@pytest.mark.parametrize("setting", ["code_defaults", "all_negatives"])
def test_training_step(setting, original_masks):
    given = json.loads(str(ARRAYS["meta"]))["options"]["losses"][setting]

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
    def loss(params, feature, vector):
        batch = Batch(
            BATCH.image._replace(feature={"global": feature}), BATCH.text._replace(feature={"fisher": vector})
        )
        image, text, after = encode(MODEL, {**VARIABLES, "params": params}, batch, train=True)
        score: Any = partial(MODEL.apply, VARIABLES, method="score")
        value = top_k(
            score(image, text),
            np.arange(7)[:, None] == ROW,
            text_scores=score(text, text),
            margin=given["margin"],
            k=given["num_neg_sample"],
            t2i_weight=given["im_loss_factor"],
            text_weight=given["sent_only_loss_factor"],
        )
        return value, (image, text, after)

    inputs = VARIABLES["params"], jnp.asarray(ARRAYS["in/image"]), jnp.asarray(ARRAYS["in/sentence"])
    (value, (image, text, after)), (grads, *input_grads) = loss(*inputs)
    close(image, ARRAYS["train/out/image"])
    close(text, ARRAYS["train/out/sentence"])
    close(value, ARRAYS[f"train/{setting}/loss"], 2e-5)
    jax.tree.map(close, after, tree("train/after", STATISTICS))
    jax.tree.map(partial(close, tolerance=5e-5), grads, tree(f"train/{setting}/grad/w", PARAMS))
    for name, gradient in zip(("image", "sentence"), input_grads, strict=True):
        close(gradient, ARRAYS[f"train/{setting}/grad/in/{name}"], 5e-5)


def padded(noise):
    """The batch with two more images and three more captions of id -1."""
    feature = np.pad(ARRAYS["in/image"], ((0, 2), (0, 0)), constant_values=noise)
    vector = np.pad(ARRAYS["in/sentence"], ((0, 3), (0, 0)), constant_values=-noise)
    image = Images({"global": feature}, np.ones((9, 1), bool), np.append(np.arange(7), [-1, -1]))
    row, image_id, caption_id = (np.append(x, [y] * 3) for x, y in ((ROW, 8), (ROW, -1), (np.arange(14), -1)))
    return Batch(image, Texts(None, np.ones((17, 1), bool), row, image_id, caption_id, {"fisher": vector}))


@pytest.mark.parametrize("bn_position", ["hidden", "output"])
def test_padding_is_not_in_the_statistics(bn_position):
    model = Model(embed_dim=16, hidden_dim=16, bn_position=bn_position, dropout=0.0)
    variables = model.init(jax.random.key(0), BATCH)
    expected = encode(model, variables, BATCH, train=True)
    for noise in (3.0, 90.0):
        image, text, after = encode(model, variables, padded(noise), train=True)
        close(image[:7], expected[0])
        close(text[:14], expected[1])
        jax.tree.map(close, after, expected[2])


def test_norm_at_the_output():
    model = Model(embed_dim=12, hidden_dim=16, bn_position="output", dropout=0.0)
    variables: Any = model.init(jax.random.key(0), BATCH)
    assert variables["batch_stats"]["text_branch"]["norm"]["var"].shape == (12,)
    weights = variables["params"]["image_branch"]
    hidden = np.maximum(0.0, ARRAYS["in/image"] @ weights["hidden"]["kernel"])
    plain = hidden @ weights["out"]["kernel"]
    expected = (plain - plain.mean(0)) / np.sqrt(plain.var(0) + 1e-5)
    image, _, after = encode(model, variables, BATCH, train=True)
    close(image, expected / np.linalg.norm(expected, axis=1, keepdims=True))
    close(after["image_branch"]["norm"]["mean"], 0.9 * plain.mean(0))
    close(after["image_branch"]["norm"]["var"], 0.1 + 0.9 * plain.var(0))


def test_linear_branches():
    model = Model(embed_dim=12, nonlinear=False)
    variables = model.init(jax.random.key(0), BATCH)
    assert variables.keys() == {"params"}
    assert variables["params"]["text_branch"].keys() == {"out"}
    image, text, _ = encode(model, variables, BATCH, train=True)
    for got, x, branch in ((image, ARRAYS["in/image"], "image_branch"), (text, ARRAYS["in/sentence"], "text_branch")):
        expected = x @ variables["params"][branch]["out"]["kernel"]
        close(got, expected / np.linalg.norm(expected, axis=1, keepdims=True))
    normal = Model(embed_dim=12, nonlinear=False, bn_position="output").init(jax.random.key(0), BATCH)
    assert normal["params"]["text_branch"].keys() == {"out", "norm"}


def test_regions_are_averaged():
    random = np.random.default_rng(0)
    region, mask = (
        random.normal(size=(7, 3, 14)).astype(np.float32),
        np.arange(3) < np.array([3, 1, 2, 3, 3, 2, 1])[:, None],
    )
    mean = np.stack([item[real].mean(0) for item, real in zip(region, mask, strict=True)])
    images = [Images({"region": region}, mask, np.arange(7)), Images({"region": mean}, mask[:, :1], np.arange(7))]
    model = Model(embed_dim=10, hidden_dim=16, feature="region")
    of_regions, of_means = (encode(model, VARIABLES, Batch(item, BATCH.text), train=False)[0] for item in images)
    close(of_regions, of_means)


def test_options():
    half, *_ = encode(Model(embed_dim=10, hidden_dim=16, dtype="bfloat16"), VARIABLES, BATCH, train=False)
    assert half.dtype == jnp.float32
    assert 1e-4 < np.abs(half - ARRAYS["test/out/image"]).max() < 0.03
    dropped, *_ = encode(MODEL, VARIABLES, BATCH, train=True)
    whole, *_ = encode(Model(embed_dim=10, hidden_dim=16, dropout=0.0), VARIABLES, BATCH, train=True)
    assert np.abs(dropped - whole).max() > 0.01
    with pytest.raises(UsageError, match=r'"last" \(model.bn_position\); there are hidden, output'):
        Model(bn_position="last").init(jax.random.key(0), BATCH)


def test_zero_vectors_have_finite_gradients():
    model = Model(embed_dim=4, nonlinear=False)
    variables = model.init(jax.random.key(0), BATCH)
    nothing = BATCH.image._replace(feature={"global": np.zeros((7, 14), np.float32)})

    def total(variables):
        image, _ = model.apply(variables, nothing, train=True, method="encode_image")
        return jnp.sum(image)

    grads = jax.grad(total)(variables)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_batch_norm_epsilon_is_added_to_the_variance():
    x = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    layer = BatchNorm(3, affine=False, epsilon=0.5)
    out, _ = layer.init_with_output(jax.random.key(0), x, np.ones((6, 1), bool), train=True)
    close(out, (x - x.mean(0)) / np.sqrt(x.var(0) + 0.5))


@pytest.mark.parametrize("variant", ["dspe", "cvpr"])
@pytest.mark.parametrize("data", ["scenes", "f8k", "f30k", "coco"])
def test_config_names_what_model_and_loss_read(variant, data):
    config = configs.load(f"dspe.py:{variant},{data}")
    fields = dict(config.model)
    assert fields.pop("name") == "dspe"
    inputs = Model(**fields).inputs
    assert inputs == Inputs(*((("region",), ("tfidf",)) if data == "scenes" else (("global",), ("fisher",))))
    names = ("margin", "k", "i2t_weight", "t2i_weight", "text_weight")
    value = top_k(
        np.eye(2, dtype="f4"),
        np.eye(2, dtype=bool),
        text_scores=np.eye(2, dtype="f4"),
        **{n: config.loss[n] for n in names},
    )
    assert float(value) == 0.0
    assert config.loss.name == "top_k"
