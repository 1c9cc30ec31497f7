"""CHAIN-VSE against arrays of the original PyTorch code; what padding may change, what the paper's branches see."""

import importlib.util
import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN
from flax.traverse_util import unflatten_dict

from xmodal_jax import losses
from xmodal_jax.errors import UsageError
from xmodal_jax.models.chain import BRANCHES, FIRST, Branches, Maxout, Model, pool
from xmodal_jax.types import Batch, Images, Texts

ARRAYS = np.load(GOLDEN / "chain.npz")
OPTIONS = json.loads(str(ARRAYS["meta"]))["options"]
BLOCKS = {f"branches/first_{width}": f"init_convs.{i}" for i, width in enumerate(FIRST)} | {
    f"branches/branch_{i}_{j}": f"towers.{i}.{j}" for i, tower in enumerate(BRANCHES["code"]) for j in range(len(tower))
}
MEASURES = {"cosine": "dot", "order": "order_root"}


def make(**fields):
    sizes: dict[str, Any] = {"vocabulary": 75, "embed_dim": 12, "first_filters": 2, "filters": 4}
    return Model(**(sizes | fields))


def tree(prefix) -> Any:
    """Parameters, or their gradients: PyTorch keeps a convolution as [out, in, width] and a linear map as [out, in]."""
    flat = {}
    for ours, theirs in (("image_encoder", "img/fc"), ("text_encoder", "txt/fc")):
        flat[f"{ours}/kernel"] = ARRAYS[f"{prefix}/{theirs}.weight"].T
        flat[f"{ours}/bias"] = ARRAYS[f"{prefix}/{theirs}.bias"]
    for ours, theirs in BLOCKS.items():
        pieces = [f"{prefix}/txt/{theirs}.conv{piece}.conv.0" for piece in (1, 2)]
        flat[f"{ours}/kernel"] = np.stack([ARRAYS[f"{name}.weight"] for name in pieces]).transpose(3, 2, 0, 1)
        flat[f"{ours}/bias"] = np.stack([ARRAYS[f"{name}.bias"] for name in pieces])
    return unflatten_dict({key: jnp.asarray(value) for key, value in flat.items()}, sep="/")


def texts(token) -> Texts:
    rows = np.arange(len(token))
    return Texts(token, token != 0, rows, rows, rows)


def images(feature) -> Images:
    return Images({"global": feature}, np.ones((len(feature), 1), bool), np.arange(len(feature)))


@partial(jax.jit, static_argnums=0)
def encode_texts(model, params, text):
    return model.apply({"params": params}, text, train=False, method="encode_text")[0]


def encode(model, params, token):
    return encode_texts(model, params, texts(token))


PARAMS, TOKEN = tree("w"), ARRAYS["in/char"]


def test_the_parameters_are_all_of_the_original():
    batch = Batch(images(ARRAYS["in/feature"]), texts(TOKEN))
    ours: Any = jax.eval_shape(make().init, jax.random.key(0), batch)["params"]
    assert jax.tree.map(np.shape, ours) == jax.tree.map(np.shape, PARAMS)


def test_branches_of_a_caption_without_padding():
    branches = Branches(75, "code", 2, 4, 2, "max", jnp.dtype("float32"))
    token = ARRAYS["inner/char"][None]
    maps = jax.jit(branches.apply)({"params": PARAMS["branches"]}, token, token != 0)
    assert len(maps) == 4
    for number, (x, _) in enumerate(maps):
        np.testing.assert_allclose(x.transpose(0, 2, 1), ARRAYS[f"inner/tower{number}"], atol=1e-5)


def test_embeddings_are_those_of_each_caption_alone():
    image, _ = make().apply({"params": PARAMS}, images(ARRAYS["in/feature"]), train=True, method="encode_image")
    np.testing.assert_allclose(image, ARRAYS["out/image"], atol=1e-5)
    for token in (TOKEN, ARRAYS["in/char_padded_more"]):
        np.testing.assert_allclose(encode(make(), PARAMS, token), ARRAYS["out/caption_alone"], atol=1e-5)
    for compat in (False, True):
        out = encode(make(compat_padding=compat), PARAMS, ARRAYS["nopad/in/char"])
        np.testing.assert_allclose(out, ARRAYS["nopad/out/caption"], atol=1e-5)


def test_compat_padding_is_the_original():
    model = make(compat_padding=True)
    np.testing.assert_allclose(encode(model, PARAMS, TOKEN), ARRAYS["out/caption"], atol=1e-5)
    more = encode(model, PARAMS, ARRAYS["in/char_padded_more"])
    np.testing.assert_allclose(more, ARRAYS["out/caption_padded_more"], atol=1e-5)


@pytest.mark.parametrize("name", ["sum", "max"])
@pytest.mark.parametrize("measure", MEASURES)
def test_scores_losses_and_gradients(measure, name):
    model = make(compat_padding=True, measure=MEASURES[measure])
    positive = np.eye(len(TOKEN), dtype=bool)

    def loss(params, feature):
        scores, _ = model.apply({"params": params}, Batch(images(feature), texts(TOKEN)), train=True)
        hardness = {"sum": 0, "max": 1}[name]
        return losses.triplet(scores, positive, margin=OPTIONS["margin"], hardness=hardness), scores

    grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (value, scores), (params, feature) = grad(PARAMS, ARRAYS["in/feature"])
    case = f"{measure}/{name}/power1"
    np.testing.assert_allclose(scores, ARRAYS[f"out/score_{measure}"], atol=1e-5)
    assert float(value) == pytest.approx(float(ARRAYS[f"loss/{case}"]), rel=2e-5)
    expected = {**tree(f"grad/{case}"), "feature": ARRAYS[f"grad/{case}/in/feature"]}

    def check(value, reference):
        np.testing.assert_allclose(value, reference, atol=5e-5 * max(1.0, np.abs(reference).max()))

    jax.tree.map(check, {**params, "feature": feature}, expected)


@pytest.mark.parametrize("fields", [{"pooling": "max"}, {"pooling": "mean", "pieces": 1}])
def test_padding_changes_nothing_in_the_paper_variant(fields):
    model = make(variant="paper", **fields)
    text = texts(np.pad(TOKEN, ((0, 1), (0, 0))))  # the last caption is padding only
    params = jax.jit(model.init)(jax.random.key(1), Batch(images(np.ones((1, 3), "f4")), text))["params"]
    expected = np.asarray(encode_texts(model, params, text))
    bias = params["text_encoder"]["bias"]  # all that there is of a caption without characters
    np.testing.assert_allclose(expected[-1], bias / np.linalg.norm(bias), atol=1e-5)
    noise = np.where(text.mask, text.token, 7)  # what stands in the padding does not matter
    np.testing.assert_allclose(encode_texts(model, params, text._replace(token=noise)), expected, atol=1e-6)
    wide = texts(np.pad(text.token, ((0, 0), (0, 9))))
    np.testing.assert_allclose(encode_texts(model, params, wide), expected, atol=1e-6)
    for row in (3, 4):  # an even length and an odd one
        alone = TOKEN[row : row + 1, : ARRAYS["in/length"][row]]
        np.testing.assert_allclose(encode(model, params, alone)[0], expected[row], atol=1e-6)
    gradients = jax.jit(jax.grad(lambda params: jnp.sum(jnp.sin(encode_texts(model, params, text)))))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize(("variant", "fields"), [("code", (9, 11, 13, 15)), ("paper", (19, 17, 23, 13))])
def test_receptive_fields_by_finite_differences(variant, fields):
    """Characters from the first to the last whose change reaches a position, as one at a time is changed."""
    branches = Branches(75, variant, 8, 16, 2, "max", jnp.dtype("float32"))
    random = np.random.default_rng(0)
    length, place = 61, 30
    token = random.integers(3, 75, (1, length))
    real = np.ones((length, length), bool)
    params, run = jax.jit(branches.init)(jax.random.key(0), token, real[:1]), jax.jit(branches.apply)
    seen: list[set[int]] = [set() for _ in BRANCHES[variant]]
    for _ in range(4):
        token = random.integers(3, 75, (1, length))
        changed = np.where(np.eye(length, dtype=bool), random.integers(3, 75, (length, length)), token)
        both = run(params, np.concatenate([token, changed]), np.ones((length + 1, length), bool))
        before, after = ([(x[rows], valid[rows]) for x, valid in both] for rows in (slice(1), slice(1, None)))
        for reach, (old, _), (new, _) in zip(seen, before, after, strict=True):
            stride = round(length / old.shape[1])
            middle = slice(place // stride - 5, place // stride + 6)
            moved = np.any(np.asarray(new != old)[:, middle], axis=2)  # [changed character, position]
            character, position = np.nonzero(moved)
            reach |= set((character - stride * (position + middle.start)).tolist())
    assert [(min(reach), max(reach)) for reach in seen] == [(-(n // 2), n // 2) for n in fields]


def test_pooling_looks_at_real_characters_only():
    x = jnp.asarray(-1.0 - np.arange(7.0, dtype="f4")[None, :, None] ** 2)  # padding that is zero would win
    real = np.arange(7)[None] < 5
    for kind, best in (("max", [-1.0, -1.0, -5.0]), ("mean", [-8 / 3, -7.0, -32 / 3])):
        pooled, kept = pool(jnp.where(real[..., None], x, 0.0), jnp.asarray(real), kind)
        assert kept.tolist() == [[True, True, True, False]]
        np.testing.assert_allclose(pooled[0, :, 0], [*best, 0.0], rtol=1e-6)


def test_a_block_of_tokens_is_that_of_one_hot_vectors():
    block: Any = Maxout(75, 6, 5)
    params = block.init(jax.random.key(0), TOKEN, method="of_tokens")
    one_hot = jax.nn.one_hot(TOKEN, 75).at[..., 0].set(0.0)

    def run(params, x, method):
        return jnp.sum(jnp.sin(block.apply(params, x, method=method)))

    for method, x in (("of_tokens", TOKEN), ("__call__", one_hot)):
        assert block.apply(params, x, method=method).shape == (*TOKEN.shape, 6)
    first, second = jax.grad(run)(params, TOKEN, "of_tokens"), jax.grad(run)(params, one_hot, "__call__")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), first, second)
    assert not first["params"]["kernel"][:, 0].any()


def test_initial_values():
    """Xavier uniform of each convolution by itself, biases within 1 / sqrt(inputs)."""
    model = make(first_filters=16, filters=32)
    params = jax.jit(model.init)(jax.random.key(0), Batch(images(np.ones((2, 16), "f4")), texts(TOKEN[:2])))["params"]
    for name, size, out, width in (("first_7", 75, 16, 7), ("branch_1_1", 32, 32, 3)):
        kernel, bias = params["branches"][name]["kernel"], params["branches"][name]["bias"]
        assert np.abs(kernel).max() == pytest.approx((6 / ((size + out) * width)) ** 0.5, rel=0.01)
        assert 0.5 < np.abs(bias).max() * (size * width) ** 0.5 <= 1
    assert not params["image_encoder"]["bias"].any()


def test_low_precision_changes_little_and_parameters_stay():
    batch = Batch(images(ARRAYS["in/feature"]), texts(TOKEN))
    low = make(dtype="bfloat16")

    def loss(params):
        scores, _ = low.apply({"params": params}, batch)
        return jnp.sum(jnp.sin(scores)), scores

    exact, _ = jax.jit(make().apply)({"params": PARAMS}, batch)
    (_, rough), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(PARAMS)
    assert rough.dtype == jnp.float32
    assert 1e-4 < np.abs(rough - exact).max() < 0.03
    assert all(leaf.dtype == jnp.float32 and np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_regions_are_averaged_and_order_embeddings_not_negative():
    model = make(feature="region", measure="order", absolute=True, variant="paper")
    feature = np.random.default_rng(0).normal(size=(2, 3, 5)).astype("f4")
    mask = np.array([[True, True, False], [True, True, True]])
    batch = Batch(Images({"region": feature}, mask, np.arange(2)), texts(TOKEN[:2]))
    variables = jax.jit(model.init)(jax.random.key(0), batch)
    image, _ = model.apply(variables, batch.image, train=False, method="encode_image")
    feature[0, 2] = 100.0
    pooled = np.stack([feature[0, :2].mean(0), feature[1].mean(0)])
    flat, _ = model.apply(variables, Images({"region": pooled}, mask, np.arange(2)), train=False, method="encode_image")
    np.testing.assert_allclose(image, flat, atol=1e-6)
    assert (np.asarray(image) >= 0).all()
    assert (np.asarray(jax.jit(model.apply)(variables, batch)[0]) <= 0).all()
    assert model.inputs.image == ("region",)
    assert model.inputs.tokens == "characters"


@pytest.mark.parametrize("variant", BRANCHES)
def test_numbers_of_captions_and_characters_stay_free(variant):
    model = make(variant=variant)

    def function(token, mask):
        return encode_texts(model, params, Texts(token, mask, None, None, None))

    batch = Batch(images(np.ones((1, 3), "f4")), texts(TOKEN[:1]))
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(model.init, jax.random.key(0), batch))
    params, shape = params["params"], jax.export.symbolic_shape("c, w")
    structs = [jax.ShapeDtypeStruct(shape, dtype) for dtype in (jnp.int32, bool)]
    assert str(jax.eval_shape(function, *structs).shape) == "(c, 12)"


@pytest.mark.parametrize("fields", [{"variant": "third"}, {"pooling": "sum"}])
def test_unknown_names_are_refused(fields):
    with pytest.raises(UsageError, match=next(iter(fields))):
        jax.eval_shape(make(**fields).init, jax.random.key(0), Batch(images(np.ones((1, 2), "f4")), texts(TOKEN[:1])))


CONFIG = Path(__file__).resolve().parent.parent / "configs" / "chain.py"


@pytest.mark.parametrize("words", ["f8k", "coco", "scenes", "f8k,tiny"])
def test_configs_are_fields_of_the_model(words):
    spec = importlib.util.spec_from_file_location("chain", CONFIG)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for variant in module.VARIANTS:
        config = module.get_config(f"{variant},{words}")
        fields = {name: value for name, value in config.model.items() if name != "name"}
        model = make(**fields)
        assert model.variant == variant.partition("_")[0]
        assert model.absolute == model.measure.startswith("order") == (variant in ("code_order", "paper"))
        assert (config.loss.margin, config.loss.hardness, config.optim.clip_norm) == (0.05, 0.0, 1.0)
