"""RRF-Net against arrays of its published network: embeddings, loss, gradients, running statistics; its variants."""

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
from xmodal_jax.losses import bi_rank
from xmodal_jax.losses.pairing import Pairing
from xmodal_jax.models.rrf import Model
from xmodal_jax.training.optim import match_rules
from xmodal_jax.types import Batch, Images, Inputs, Texts

ARRAYS = np.load(GOLDEN / "rrf.npz")
OPTIONS = json.loads(str(ARRAYS["meta"]))["options"]
LABEL = ARRAYS["net/in/label"]
SIDES = {"image_branch": "img", "text_branch": "text"}
LAYERS = {"hidden": "fc1", "narrow": "fc2", "fusion": "fc3_res_weight", "out": "fc4"}
NORMS = {
    "input_norm": "data_bnorm",
    "narrow_norm": "bnorm2",
    "fusion_norm": "fc3_res_weight_bnorm",
    "out_norm": "bnorm4",
}


def close(got, expected, tolerance=1e-5):
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * max(1.0, np.abs(expected).max()))


def norms(steps):
    return NORMS | {f"residual_norm_{t}": f"bnorm3_t{t}" for t in range(steps + 1)}


def params(prefix, steps):
    """Parameters, or their gradients, of both branches from the original's arrays under ``prefix``."""

    def array(name):
        return jnp.asarray(ARRAYS[f"{prefix}/{name}"], jnp.float32)

    tree = {}
    for branch, side in SIDES.items():
        tree[branch] = {
            ours: {"scale": array(f"scale_{side}_{name}/0"), "bias": array(f"scale_{side}_{name}/1")}
            for ours, name in norms(steps).items()
        }
        for ours, name in LAYERS.items():
            kernel = array(f"{side}_{name}/0")
            kernel = (
                kernel.reshape(kernel.shape[:2]).T if name != "fc3_res_weight" else kernel.reshape(-1, 1)[: steps + 1]
            )
            tree[branch][ours] = {"kernel": kernel, "bias": array(f"{side}_{name}/1")}
        tree[branch]["residual"] = {"kernel": array(f"{side}_fc3_w").T, "bias": array(f"{side}_fc3_b")}
    return tree


def statistics(prefix, steps):
    """Running statistics: Caffe stores their sums and a count."""

    def read(name):
        mean, var, count = (ARRAYS[f"{prefix}/{name}/{i}"] for i in range(3))
        values = {"mean": mean / count, "var": var / count, "count": np.broadcast_to(count, mean.shape)}
        return {key: jnp.asarray(value, jnp.float32) for key, value in values.items()}

    return {
        branch: {ours: read(f"{side}_{name}") for ours, name in norms(steps).items()} for branch, side in SIDES.items()
    }


def variables(steps):
    return {"params": params("w", steps), "batch_stats": statistics("w", steps)}


def model(steps=3, **options):
    return Model(embed_dim=8, hidden_dim=12, steps=steps, **options)


NUMBER = np.arange(len(LABEL))
BATCH = Batch(
    Images({"global": ARRAYS["net/in/img"].astype(np.float32)}, np.ones((8, 1), bool), LABEL),
    Texts(None, np.ones((8, 1), bool), NUMBER, LABEL, NUMBER, {"fisher": ARRAYS["net/in/text"].astype(np.float32)}),
)


def initial(model) -> Any:
    return jax.jit(model.init)(jax.random.key(0), BATCH)


@partial(jax.jit, static_argnums=0, static_argnames="train")
def encode(model, variables, batch, *, train) -> Any:
    """(image, text, running statistics of both after them)."""
    apply = partial(model.apply, train=train, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)})
    (image, _), state = apply(variables, batch.image, method="encode_image")
    (text, _), state = apply({**variables, **state}, batch.text, method="encode_text")
    return image, text, state["batch_stats"]


def loss(image, text):
    pairing = Pairing.of(BATCH.image, BATCH.text)
    given = OPTIONS["net_loss"]
    weights = dict(zip(("i2t_weight", "text_weight", "t2i_weight", "image_weight"), given["alpha"], strict=True))
    score: Any = partial(model().apply, {}, method="score")
    return bi_rank(
        score(image, text),
        pairing.positive(),
        pairing.counted(mask_same_image=True),
        image_scores=score(image, image),
        text_scores=score(text, text),
        margin=given["margin"],
        k=given["neg_num"],
        **weights,
    )


@pytest.fixture
def original_masks(monkeypatch):
    """Dropout keeps what it kept in the original run: the image's mask is drawn first."""
    masks = []

    def bernoulli(key, p, shape):
        assert (p, tuple(shape)) == (0.5, (8, 12))
        masks.append(ARRAYS[f"net/dropout_keep/{('img', 'text')[len(masks) % 2]}"])
        return jnp.asarray(masks[-1])

    monkeypatch.setattr(jax.random, "bernoulli", bernoulli)


@pytest.mark.parametrize("steps", range(4))
def test_embeddings_and_loss_in_use(steps):
    image, text, after = encode(model(steps), variables(steps), BATCH, train=False)
    close(image, ARRAYS[f"net/T{steps}/test/out/img"])
    close(text, ARRAYS[f"net/T{steps}/test/out/text"])
    close(loss(image, text), ARRAYS[f"net/T{steps}/test/loss"], 2e-5)
    jax.tree.map(np.testing.assert_array_equal, after, variables(steps)["batch_stats"])
    assert model().inputs == Inputs(image=("global",), text=("fisher",))


@pytest.mark.parametrize("steps", range(4))
def test_training_step(steps, original_masks):
    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
    def step(params, feature, vector):
        batch = Batch(
            BATCH.image._replace(feature={"global": feature}), BATCH.text._replace(feature={"fisher": vector})
        )
        out = encode(model(steps), {**variables(steps), "params": params}, batch, train=True)
        return loss(*out[:2]), out

    inputs = BATCH.image.feature["global"], (BATCH.text.feature or {})["fisher"]
    (value, (image, text, after)), (grads, *inner) = step(params("w", steps), *inputs)
    close(image, ARRAYS[f"net/T{steps}/train/out/img"])
    close(text, ARRAYS[f"net/T{steps}/train/out/text"])
    close(value, ARRAYS[f"net/T{steps}/train/loss"], 2e-5)
    for side, gradient in zip(("img", "text"), inner, strict=True):
        close(gradient, ARRAYS[f"net/T{steps}/train/grad/in/{side}"], 5e-5)
    if steps in OPTIONS["grad_T"]:
        jax.tree.map(partial(close, tolerance=5e-5), grads, params(f"net/T{steps}/train/grad/w", steps))
    if steps == 3:
        jax.tree.map(close, after, statistics("net/T3/train/after", steps))


def count(tree, name):
    """Numbers in the parameters of the text branch whose layer's name begins with ``name``."""
    return sum(leaf.size for key, part in tree["text_branch"].items() if key.startswith(name) for leaf in part.values())


def test_parameters_of_the_recurrence():
    """The shared layer is as large whatever T is; each step has a normalisation and a weight of the fusion more."""
    for steps in (0, 2, 4):
        tree: Any = jax.eval_shape(lambda steps=steps: model(steps).init(jax.random.key(0), BATCH))["params"]
        assert (count(tree, "residual"), count(tree, "residual_norm")) == (
            8 * 8 + 8 + 16 * (steps + 1),
            16 * (steps + 1),
        )
        assert count(tree, "fusion") == steps + 1 + 1 + 2
    for fusion in ("none", "sum"):
        tree = jax.eval_shape(lambda fusion=fusion: model(fusion=fusion).init(jax.random.key(0), BATCH))["params"]
        assert count(tree, "fusion") == 0


@partial(jax.jit, static_argnums=0)
def stages(model, variables, batch):
    """The outputs of the image branch's layers in use."""
    _, state = model.apply(
        variables,
        batch.image,
        train=False,
        method="encode_image",
        capture_intermediates=True,
        mutable=["intermediates"],
    )
    return {
        name: part["__call__"][0] for name, part in state["intermediates"]["image_branch"].items() if name != "__call__"
    }


@pytest.mark.parametrize(("fusion", "steps"), [("conv", 3), ("conv", 0), ("sum", 3), ("none", 3)])
def test_stages(fusion, steps):
    given = variables(steps)
    got: Any = stages(model(steps, fusion=fusion), given, BATCH)
    prefix = f"net/T{steps}/test/stage/img"
    r = np.maximum(0, got["narrow_norm"])
    close(r, ARRAYS[f"{prefix}/h"])
    all_r = []
    for t in range(steps + 1):
        # One module makes every step, so only its last output is kept: the steps follow from the normalisations'
        r = r + np.maximum(0, got[f"residual_norm_{t}"])
        close(r, ARRAYS[f"{prefix}/r{t}"])
        all_r.append(r)
    layer = given["params"]["image_branch"]["out"]
    fused = {"conv": ARRAYS[f"{prefix}/fused"], "sum": sum(all_r), "none": r}[fusion]
    close(got["out"], fused @ layer["kernel"] + layer["bias"])


def test_no_step_and_a_fusion_by_one_is_a_residual_block():
    given: Any = initial(model(0))
    given["params"]["image_branch"]["fusion"]["kernel"] = jnp.ones((1, 1))
    block = stages(model(0, fusion="none"), given, BATCH)["out"]
    close(stages(model(0), given, BATCH)["out"], block, 1e-4)  # but for the epsilon of the fusion's normalisation


def test_padding_is_not_in_the_statistics():
    small = model(dropout=0.0)
    given = variables(3)
    expected = encode(small, given, BATCH, train=True)
    for noise in (3.0, 90.0):
        feature, vector = (
            np.pad(x, ((0, 2), (0, 0)), constant_values=noise)
            for x in (BATCH.image.feature["global"], (BATCH.text.feature or {})["fisher"])
        )
        ids = np.append(NUMBER, [-1, -1])
        padded = Batch(
            Images({"global": feature}, np.ones((10, 1), bool), ids),
            Texts(None, np.ones((10, 1), bool), ids, ids, ids, {"fisher": vector}),
        )
        image, text, after = encode(small, given, padded, train=True)
        close(image[:8], expected[0])
        close(text[:8], expected[1])
        jax.tree.map(close, after, expected[2])


def test_options():
    half, *_ = encode(model(dtype="bfloat16"), variables(3), BATCH, train=False)
    assert half.dtype == jnp.float32
    assert 1e-4 < np.abs(half - ARRAYS["net/T3/test/out/img"]).max() < 0.05
    region = np.repeat(BATCH.image.feature["global"][:, None], 3, axis=1) + np.array([-1, 0, 1])[None, :, None]
    of_regions, *_ = encode(
        model(feature="region"),
        variables(3),
        BATCH._replace(image=Images({"region": region.astype(np.float32)}, np.ones((8, 3), bool), LABEL)),
        train=False,
    )
    close(of_regions, ARRAYS["net/T3/test/out/img"])
    with pytest.raises(UsageError, match=r'"max" \(model.fusion\); there are conv, sum, none'):
        model(fusion="max").init(jax.random.key(0), BATCH)


def test_initial_values():
    wide = Model(embed_dim=64, hidden_dim=128)
    tree: Any = initial(wide)["params"]
    for layer in ("hidden", "narrow", "residual", "out"):
        part = tree["text_branch"][layer]
        assert float(jnp.std(part["kernel"])) == pytest.approx(0.05, rel=0.06)
        assert not part["bias"].any()


@pytest.mark.parametrize("data", ["scenes", "f8k", "f30k", "coco"])
def test_config(data):
    config = configs.load(f"rrf.py:rrf,{data}")
    fields = dict(config.model)
    assert fields.pop("name") == "rrf"
    net = Model(**fields)
    assert net.inputs == Inputs(*((("region",), ("tfidf",)) if data == "scenes" else (("global",), ("fisher",))))
    assert (config.loss.name, config.loss.mask_same_image) == ("bi_rank", True)
    tree: Any = jax.eval_shape(lambda: model().init(jax.random.key(0), BATCH))["params"]
    rules = [dict(rule) for rule in config.optim.rules]
    twice = {
        layer for layer, part in match_rules(tree, rules)["text_branch"].items() if rules[part["bias"]].get("lr") == 2
    }
    assert twice == {"hidden", "narrow", "residual", "fusion", "out"}
    assert all(
        rules[part["kernel"]] == rules[-1]
        for part in match_rules(tree, rules)["text_branch"].values()
        if "kernel" in part
    )
