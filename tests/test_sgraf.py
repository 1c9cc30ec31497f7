"""SGR and SAF against arrays of the original PyTorch code in eval mode; padding, memory, running statistics."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN

from xmodal_jax import losses
from xmodal_jax.errors import UsageError
from xmodal_jax.layers.norm import BatchNorm
from xmodal_jax.models.sgraf import Model
from xmodal_jax.training.step import Objective, loss_fn
from xmodal_jax.types import Batch, Images, Texts

ARRAYS = np.load(GOLDEN / "sgraf.npz")
B, R, W, STEPS, MARGIN = (
    json.loads(str(ARRAYS["meta"]))["options"][name] for name in ("B", "R", "W", "steps", "margin")
)

KINDS = {"kernel": "weight", "bias": "bias"}
NORM = {"scale": "weight", "bias": "bias"}
RUNNING = {"mean": "running_mean", "var": "running_var"}
GRU = {"input": "weight_ih_l0", "recurrent": "weight_hh_l0", "input_bias": "bias_ih_l0", "recurrent_bias": "bias_hh_l0"}
SHARED = {  # our module -> the original's name, and its arrays
    "embed": ("txt/embed.", {"embedding": "weight"}),
    "image_encoder": ("img/fc.", KINDS),
    "context/forward": ("txt/cap_rnn.", GRU),
    "context/backward": ("txt/cap_rnn.", {mine: f"{theirs}_reverse" for mine, theirs in GRU.items()}),
    "image_whole/local": ("sim/v_global_w.embedding_local.0.", KINDS),
    "image_whole/mean": ("sim/v_global_w.embedding_global.0.", KINDS),
    "image_whole/weight": ("sim/v_global_w.embedding_common.0.", KINDS),
    "image_whole/local_norm": ("sim/v_global_w.embedding_local.1.", NORM),
    "image_whole/mean_norm": ("sim/v_global_w.embedding_global.1.", NORM),
    "text_whole/local": ("sim/t_global_w.embedding_local.0.", KINDS),
    "text_whole/mean": ("sim/t_global_w.embedding_global.0.", KINDS),
    "text_whole/weight": ("sim/t_global_w.embedding_common.0.", KINDS),
    "pairs/local": ("sim/sim_tranloc_w.", KINDS),
    "pairs/whole": ("sim/sim_tranglo_w.", KINDS),
    "pairs/final": ("sim/sim_eval_w.", KINDS),
}
LAYERS = {"query": "graph_query_w", "key": "graph_key_w", "out": "sim_graph_w"}
OWN = {
    "sgr": {
        f"pairs/reason/{mine}_{step}": (f"sim/SGR_module.{step}.{theirs}.", KINDS)
        for mine, theirs in LAYERS.items()
        for step in range(STEPS)
    },
    "saf": {
        "pairs/reason/gate": ("sim/SAF_module.attn_sim_w.", KINDS),
        "pairs/reason/norm": ("sim/SAF_module.bn.", NORM),
    },
}


def golden(variant, prefix, table):
    """Arrays under ``prefix`` as our tree; ``sim/`` is what each variant has its own of."""
    tree: dict[str, Any] = {}
    for module, (original, arrays) in table.items():
        node = tree
        for key in module.split("/"):
            node = node.setdefault(key, {})
        for mine, theirs in arrays.items():
            array = ARRAYS[prefix(variant.upper(), original + theirs)]
            node[mine] = jnp.asarray(array.T if mine in ("kernel", "input", "recurrent") else array)
    return tree


def weight(variant, name):
    return f"{variant}/w/{name[4:]}" if name.startswith("sim/") else f"w/{name}"


def call(model, variables, *args, **options) -> Any:
    return jax.jit(lambda variables, *args: model.apply(variables, *args, **options))(variables, *args)


def encode(model, variables, batch):
    sides = ((batch.image, "encode_image"), (batch.text, "encode_text"))
    return [call(model, variables, side, train=False, method=method)[0] for side, method in sides]


ONE = pytest.mark.parametrize("case", ["sgr"], indirect=True)  # where the variants do not differ


@pytest.fixture(params=["sgr", "saf"], scope="module")
def case(request):
    variant = request.param
    model = Model(vocabulary=60, embed_dim=24, word_dim=20, similarity_dim=16, reasoning=variant)
    table = SHARED | OWN[variant]
    running = {name: (theirs, RUNNING) for name, (theirs, arrays) in table.items() if arrays is NORM}
    variables = {"params": golden(variant, weight, table), "batch_stats": golden(variant, weight, running)}
    rows = np.arange(B)
    image = Images({"region": ARRAYS["in/feature"]}, np.ones((B, R), bool), rows)
    text = Texts(ARRAYS["in/token"], np.arange(W) < ARRAYS["in/length"][:, None], rows, rows, rows)
    return variant, model, variables, Batch(image, text)


def test_outputs(case):
    variant, model, variables, batch = case
    image, text = encode(model, variables, batch)
    out = {
        "out/region": image.part.feature,
        "out/word": text.part.feature,
        f"{variant.upper()}/out/image_global": image.whole,
        f"{variant.upper()}/out/text_global": text.whole,
        f"{variant.upper()}/out/score": call(model, variables, image, text, method="score"),
    }
    for name, value in out.items():
        np.testing.assert_allclose(value, ARRAYS[name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loss_and_gradients(case, dtype):
    variant, model, variables, batch = case
    model = model.clone(dtype=dtype)

    def loss(params):
        scores, _ = model.apply({**variables, "params": params}, batch)
        return losses.triplet(scores, np.eye(B, dtype=bool), margin=MARGIN, hardness=1.0), scores

    (value, scores), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    expected = golden(variant, lambda variant, name: f"{variant}/grad/{name}", SHARED | OWN[variant])
    assert jax.tree.structure(grads) == jax.tree.structure(expected)
    assert scores.dtype == jnp.float32
    if dtype == "bfloat16":
        assert np.abs(scores - ARRAYS[f"{variant.upper()}/out/score"]).max() < 0.05
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
        return
    assert float(value) == pytest.approx(float(ARRAYS[f"{variant.upper()}/out/loss_max"]), rel=2e-5, abs=2e-5)
    for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-5 * max(1.0, np.abs(theirs).max()))


def ragged(batch, noise=9.0):
    """The golden batch with fewer real regions and noise in all padding."""
    mask = np.arange(R) < np.array([36, 5, 1, 9, 36, 20, 2])[:, None]
    random = np.random.default_rng(0).normal(size=batch.image.feature["region"].shape).astype(np.float32)
    feature = np.where(mask[..., None], batch.image.feature["region"], noise * random)
    token = np.where(batch.text.mask, batch.text.token, 7)
    return Batch(batch.image._replace(feature={"region": feature}, mask=mask), batch.text._replace(token=token))


def test_an_item_alone_and_unpadded_scores_the_same(case):
    _, model, variables, batch = case
    batch = ragged(batch)
    image, text = encode(model, variables, batch)
    word, mask = text.part
    noisy = text._replace(part=text.part._replace(feature=jnp.where(mask[..., None], word, 3.0)))
    scores = call(model, variables, image, noisy, method="score")
    for b, c in ((1, 6), (2, 5)):
        regions, words = int(batch.image.mask[b].sum()), int(mask[c].sum())
        assert regions < R
        assert words < W
        feature = {"region": batch.image.feature["region"][b : b + 1, :regions]}
        zero = np.zeros(1, int)
        unpadded = Texts(batch.text.token[c : c + 1, :words], np.ones((1, words), bool), zero, zero, zero)
        alone = encode(model, variables, Batch(Images(feature, np.ones((1, regions), bool), zero), unpadded))
        np.testing.assert_allclose(call(model, variables, *alone, method="score"), scores[b, c][None, None], atol=2e-6)


def test_empty_items_have_finite_scores_and_gradients(case):
    _, model, variables, batch = case
    region_mask, word_mask = batch.image.mask.copy(), batch.text.mask.copy()
    region_mask[0], region_mask[1, 1:], word_mask[3] = False, False, False
    batch = Batch(batch.image._replace(mask=region_mask), batch.text._replace(mask=word_mask))

    def total(variables, feature):
        scores, _ = model.apply(variables, batch._replace(image=batch.image._replace(feature={"region": feature})))
        return jnp.sum(scores)

    everything = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(variables, batch.image.feature["region"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(everything))


def test_memory_does_not_grow_with_all_pairs_words():
    b, c, w, d = 16, 48, 12, 128
    model = Model(vocabulary=9, embed_dim=d, word_dim=4, similarity_dim=4, regions=4)
    image = Images({"region": np.ones((b, 4, 3), np.float32)}, np.ones((b, 4), bool), np.arange(b))
    text = Texts(np.ones((c, w), np.int32), np.ones((c, w), bool), np.arange(c), np.arange(c), np.arange(c))
    variables = jax.eval_shape(model.init, jax.random.key(0), Batch(image, text))
    sides = jax.eval_shape(lambda variables: encode(model, variables, Batch(image, text)), variables)
    step = jax.grad(lambda *args: jnp.sum(call(model, *args, method="score")))
    analysis = jax.jit(step).lower(variables, *sides).compile().memory_analysis()
    assert analysis is not None
    assert analysis.temp_size_in_bytes < 4 * b * c * w * d / 2  # half of one array of all pairs' words


def test_batch_norm_is_pytorchs_over_real_entries():
    random = np.random.default_rng(0)
    x, real = random.normal(size=(5, 4, 3)).astype(np.float32), random.random((5, 4, 3)) < 0.6
    real[..., 2] = False
    real[0, 0, 2] = True  # one entry: no variance to learn from
    start = {"mean": jnp.full(4, 0.3), "var": jnp.full(4, 2.0)}
    params = {"scale": jnp.array([1.0, 2.0, 3.0, 4.0]), "bias": jnp.array([0.5, 0.0, -1.0, 1.0])}
    variables = {"params": params, "batch_stats": start}
    out, new = call(BatchNorm(4), variables, x, real, train=True, mutable=["batch_stats"])
    for k in range(2):
        entries = x[..., k][real[..., k]]
        expected = (x[..., k] - entries.mean()) / np.sqrt(entries.var() + 1e-5) * params["scale"][k] + params["bias"][k]
        np.testing.assert_allclose(out[..., k], expected, atol=1e-5)
        assert float(new["batch_stats"]["mean"][k]) == pytest.approx(0.9 * 0.3 + 0.1 * entries.mean(), abs=1e-6)
        assert float(new["batch_stats"]["var"][k]) == pytest.approx(0.9 * 2.0 + 0.1 * entries.var(ddof=1), abs=1e-6)
    np.testing.assert_array_equal(new["batch_stats"]["mean"][2:], start["mean"][2:])
    np.testing.assert_array_equal(new["batch_stats"]["var"][2:], start["var"][2:])


@ONE
def test_training_statistics_of_images_leave_padding_out(case):
    _, model, variables, batch = case
    results = []
    for noise in (1.0, 9.0):
        image = ragged(batch, noise).image._replace(id=np.array([0, 1, 2, 3, -1, 5, 6]))
        image.feature["region"][4] *= noise
        options = {"train": True, "method": "encode_image", "mutable": ["batch_stats"]}
        results.append(call(model, variables, image, rngs={"dropout": jax.random.key(0)}, **options)[1]["batch_stats"])
    jax.tree.map(np.testing.assert_array_equal, *results)
    jax.tree.map(lambda new, old: np.testing.assert_(np.all(new != old)), results[0], variables["batch_stats"])


def test_gate_statistics_come_from_own_and_next_image_and_reach_the_step():
    random = np.random.default_rng(0)
    model = Model(vocabulary=9, embed_dim=6, word_dim=4, similarity_dim=5, regions=3, reasoning="saf", dropout=0.0)
    image = Images({"region": random.normal(size=(3, 3, 4)).astype("f4")}, np.ones((3, 3), bool), np.array([0, 1, -1]))
    row, mask = np.array([0, 0, 1, 2]), np.arange(5) < np.array([5, 2, 3, 4])[:, None]
    batch = Batch(image, Texts(random.integers(1, 9, (4, 5)), mask, row, row, np.array([0, 1, 2, -1])))
    variables: Any = jax.jit(model.init)(jax.random.key(0), batch)
    sides = encode(model, variables, batch)
    options = {"train": True, "method": "aux", "mutable": ["batch_stats"]}
    none, new = call(model, variables, batch, *((side, None) for side in sides), **options)
    assert none == {}

    gate, logits = variables["params"]["pairs"]["reason"]["gate"], []
    nodes, real = call(
        model,
        variables,
        *jax.tree.map(lambda leaf: leaf[:, None], sides[:1]),
        sides[1],
        method=lambda model, *pair: model.pairs.nodes(*pair),
    )
    real = np.broadcast_to(real, nodes.shape[:-1])
    for b, c in ((0, 0), (1, 0), (0, 1), (1, 1), (1, 2)):  # image 2 and caption 3 are padding
        logits.append((nodes[b, c] @ gate["kernel"] + gate["bias"])[real[b, c], 0])
    logits, norm = np.concatenate(logits), new["batch_stats"]["pairs"]["reason"]["norm"]
    assert float(norm["mean"][0]) == pytest.approx(0.1 * logits.mean(), abs=1e-6)
    assert float(norm["var"][0]) == pytest.approx(0.9 + 0.1 * logits.var(ddof=1), abs=1e-6)

    objective = Objective(losses.triplet, {"margin": 0.2, "hardness": 1.0}, {"rank": 1.0})
    state = {"batch_stats": variables["batch_stats"]}
    _, (_, after) = jax.jit(
        lambda params: loss_fn(params, model, objective, state, batch, jnp.array(0), jax.random.key(0))
    )(variables["params"])
    np.testing.assert_allclose(after["batch_stats"]["pairs"]["reason"]["norm"]["mean"] != 0, True)


@ONE
def test_dropout_acts_in_training(case):  # and in training only: elsewhere no key is given
    _, model, variables, batch = case
    for side, method in ((batch.image, "encode_image"), (batch.text, "encode_text")):

        def run(key, side=side, method=method):
            options = {"train": True, "method": method, "mutable": ["batch_stats"], "rngs": {"dropout": key}}
            return model.apply(variables, side, **options)[0][0]

        item = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 2))
        assert np.abs(np.diff(item.whole, axis=0)).max() > 1e-3
        assert (np.abs(np.diff(item.part.feature, axis=0)).max() > 1e-3) == (method == "encode_text")


@ONE
def test_more_regions_than_the_norm_has_channels(case):
    _, model, variables, batch = case
    image = batch.image._replace(feature={"region": np.ones((B, 37, 20), np.float32)}, mask=np.ones((B, 37), bool))
    with pytest.raises(UsageError, match=r"37 regions, config\.model\.regions is 36"):
        call(model, variables, image, train=False, method="encode_image")
