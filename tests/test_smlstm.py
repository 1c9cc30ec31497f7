"""sm-LSTM against its equations in NumPy, pair by pair; what the printed forms cannot do; padding, blocks, memory."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax import config as configs
from xmodal_jax.errors import UsageError
from xmodal_jax.layers.recurrent import scanned
from xmodal_jax.models import smlstm
from xmodal_jax.models.smlstm import Model
from xmodal_jax.similarity.pairwise import Block, pairwise
from xmodal_jax.types import Batch, Images, Inputs, Texts

B, C, R, F, M, W = 3, 5, 4, 6, 5, 6
RANDOM = np.random.default_rng(0)
REGIONS, LENGTHS, ROW = np.array([4, 2, 1]), np.array([6, 3, 2, 4, 5]), np.array([2, 0, 1, 0, 2])
MASK, REGION_MASK = np.arange(W) < LENGTHS[:, None], np.arange(R) < REGIONS[:, None]
FEATURES = {"region": RANDOM.normal(size=(B, R, F)), "global": RANDOM.normal(size=(B, M))}
IMAGES = Images({name: x.astype(np.float32) for name, x in FEATURES.items()}, REGION_MASK, np.arange(B))
TEXTS = Texts(np.where(MASK, RANDOM.integers(1, 20, (C, W)), 0), MASK, ROW, ROW, np.arange(C))
SIZES: Any = {
    "vocabulary": 20,
    "embed_dim": 7,
    "attention_dim": 5,
    "similarity_dim": 3,
    "hidden_dim": 4,
    "text_dim": 3,
    "word_dim": 5,
    "steps": 2,
}
BLOCK = Block(2, 2, 3)


def parameters(model) -> Any:
    """Random ones, biases too."""
    tree = jax.eval_shape(lambda: model.init(jax.random.key(0), Batch(IMAGES, TEXTS)))["params"]
    random = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), tree)


@partial(jax.jit, static_argnums=0)
def use(model, params, images, texts) -> Any:
    """(scores, where the steps look, auxiliary losses, encoded items)."""

    def every(model):
        image, text = model.encode_image(images, train=False), model.encode_text(texts, train=False)
        apart = jax.tree.map(lambda leaf: leaf[:, None], image)
        aux = model.aux(Batch(images, texts), image, text, train=False)
        return model.score(image[0], text[0]), model.looks(apart, text), aux, (image[0], text[0])

    return model.apply({"params": params}, method=every)


@partial(jax.jit, static_argnums=(0, 1))
def pull(model, block, params, items, cotangent) -> Any:
    """Scores of encoded items, block by block or all at once, and the gradient of their sum weighted by ``cotangent``
    for the parameters and the items' numbers."""

    def score(params, image, text):
        return model.apply({"params": params}, image, text, method="score")

    leaves, tree = jax.tree.flatten(items)

    def scores(params, numbers):
        image, text = tree.unflatten([x if x.dtype == bool else n for x, n in zip(leaves, numbers, strict=True)])
        if block:
            return pairwise(score, params, image, text, block=block)
        with scanned():
            return score(params, image, text)

    numbers = [jnp.zeros(()) if leaf.dtype == bool else leaf for leaf in leaves]
    out, back = jax.vjp(scores, params, numbers)
    return out, back(cotangent)


def sigma(x):
    return 1.0 / (1.0 + np.exp(-x))


def softmax(x):
    return np.exp(x) / np.exp(x).sum()


def oracle(p, image, caption, form, local, steps):
    """The score of one pair and where it looks; ``image`` and ``caption`` are (real fragments, global context)."""

    def fully(x, layer):
        return x @ layer["kernel"] + layer.get("bias", 0.0)

    def attend(side, x, m, h):
        terms = [np.tile(fully(m, side["context"]), (len(x), 1)), fully(x, side["fragment"])]
        terms.append(np.tile(fully(h, side["past"]), (len(x), 1)))
        a, b, c = terms if form == "joint" else [sigma(term) for term in terms]
        hidden = {"joint": lambda: sigma(a + b + c), "product": lambda: a * b * c, "printed": lambda: a + b + c}[form]()
        return softmax((hidden @ side["weight"])[:, 0])

    h = cell = np.zeros(SIZES["hidden_dim"])
    looks = []
    for _ in range(steps):
        weights = [attend(p[name], x, m, h) for name, (x, m) in (("image", image), ("text", caption))]
        looks.append(weights)
        a, w = (
            sigma(fully(weight @ side[0], p[name]["value"]) + p[name]["bias"])
            for name, side, weight in zip(("image", "text"), (image, caption), weights, strict=True)
        )
        s = fully(a + w if local == "add" else a * w, p["similarity"])
        lstm = p["collect"]
        into, forget, new, out = np.split(s @ lstm["input"] + h @ lstm["recurrent"] + lstm["bias"], 4)
        cell = sigma(forget) * cell + sigma(into) * np.tanh(new)
        h = sigma(out) * np.tanh(cell)
    return fully(sigma(fully(h, p["hidden"])), p["final"])[0], [np.array(side) for side in zip(*looks, strict=True)]


@pytest.mark.parametrize(
    ("form", "local", "regulariser", "steps"),
    [
        ("joint", "mul", "squared", 3),
        ("joint", "add", "printed", 2),
        ("product", "mul", "squared", 2),
        ("product", "add", "squared", 1),
        ("printed", "mul", "printed", 2),
    ],
)
def test_equations(form, local, regulariser, steps):
    fields = {"attention_form": form, "local_sim": local, "steps": steps, "regulariser": regulariser}
    model = Model(**{**SIZES, **fields})
    params = parameters(model)
    assert ("bias" in params["pairs"]["image"]["fragment"]) == (form != "joint")  # one bias of a sum is enough
    scores, (regions, words), aux, _ = use(model, params, IMAGES, TEXTS)
    assert (scores.shape, regions.shape, words.shape) == ((B, C), (B, C, steps, R), (B, C, steps, W))
    bound = model.bind({"params": params})
    states = np.asarray(bound.words(bound.embed(TEXTS.token), MASK))
    covered = np.zeros((B, C))
    for b, c in np.ndindex(B, C):
        image = FEATURES["region"][b, : REGIONS[b]], FEATURES["global"][b]
        caption = states[c, : LENGTHS[c]], states[c, LENGTHS[c] - 1]
        score, looks = oracle(params["pairs"], image, caption, form, local, steps)
        assert scores[b, c] == pytest.approx(score, abs=1e-4)
        for got, wanted in zip((regions[b, c], words[b, c]), looks, strict=True):
            np.testing.assert_allclose(got[:, : wanted.shape[1]], wanted, atol=1e-5)
            assert not got[:, wanted.shape[1] :].any()
        covered[b, c] = sum(
            np.sum((1.0 - look.sum(axis=0)) ** (2 if regulariser == "squared" else 1)) for look in looks
        )
    assert aux["coverage"] == pytest.approx(covered[ROW, np.arange(C)].mean(), rel=1e-4)
    assert steps == 1 or (np.ptp(regions[0], axis=(0, 1)).max() > 1e-4) == (form != "printed")


def test_the_printed_attention_knows_neither_pair_nor_step():
    """The oracle above has the terms of the context and of the past; here they are other ones."""
    model = Model(**SIZES, attention_form="printed", regulariser="printed")
    params = parameters(model)
    scores, (regions, words), *_ = use(model, params, IMAGES, TEXTS)
    for look in (np.asarray(regions), np.asarray(words).swapaxes(0, 1)):
        np.testing.assert_allclose(look, np.broadcast_to(look[:, :1, :1], look.shape), atol=1e-6)
    other = {**params, "pairs": {**params["pairs"]}}
    for side in ("image", "text"):
        ways = {name: jax.tree.map(lambda x: -2.0 * x, params["pairs"][side][name]) for name in ("context", "past")}
        other["pairs"][side] = {**params["pairs"][side], **ways}
    np.testing.assert_allclose(use(model, other, IMAGES, TEXTS)[0], scores, atol=1e-5)
    joint = Model(**SIZES)
    assert np.abs(use(joint, other, IMAGES, TEXTS)[0] - use(joint, params, IMAGES, TEXTS)[0]).max() > 1e-2


def test_the_printed_regulariser_is_a_constant():
    sizes = {}
    for name in smlstm.REGULARISERS:
        model = Model(**SIZES, regulariser=name)
        params = parameters(model)
        word = RANDOM.normal(size=(C, W, 2 * SIZES["text_dim"])).astype(np.float32)

        def coverage(pairs, model=model, params=params, word=word):
            bound = model.bind({"params": {**params, "pairs": pairs}})
            text = bound.pairs.text(word, MASK, word[:, 0])
            image = bound.encode_image(IMAGES, train=False)
            return bound.aux(Batch(IMAGES, TEXTS), image, text, train=False)["coverage"]

        value, gradient = jax.jit(jax.value_and_grad(coverage))(params["pairs"])
        sizes[name] = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(gradient))
        if name == "printed":
            assert value == pytest.approx(np.mean(REGIONS[ROW] + LENGTHS - 2 * model.steps), abs=1e-5)
    assert sizes["printed"] < 1e-5 < 1e-2 < sizes["squared"]


def test_padding_changes_nothing():
    model = Model(**SIZES)
    params = parameters(model)
    wide_images = Images(
        {
            "region": np.pad(IMAGES.feature["region"], ((0, 0), (0, 2), (0, 0)), constant_values=50.0),
            "global": IMAGES.feature["global"],
        },
        np.pad(REGION_MASK, ((0, 0), (0, 2))),
        IMAGES.id,
    )
    pad = ((0, 0), (0, 3))
    wide_texts = TEXTS._replace(token=np.pad(TEXTS.token, pad, constant_values=3), mask=np.pad(MASK, pad))
    scores, (regions, words), aux, _ = use(model, params, IMAGES, TEXTS)
    narrow = scores, (np.pad(regions, [(0, 0)] * 3 + [(0, 2)]), np.pad(words, [(0, 0)] * 3 + [(0, 3)])), aux
    wide = use(model, params, wide_images, wide_texts)[:3]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), wide, narrow)


def test_coverage_is_of_real_captions_with_their_images():
    model = Model(**SIZES)
    params = parameters(model)

    def coverage(texts):
        return float(use(model, params, IMAGES, texts)[2]["coverage"])

    def only(c):
        return coverage(TEXTS._replace(id=np.where(np.arange(C) == c, 0, -1)))

    each = [only(c) for c in range(C)]
    assert coverage(TEXTS) == pytest.approx(np.mean(each), rel=1e-5)
    assert coverage(TEXTS._replace(id=np.array([0, -1, 2, 3, -1]))) == pytest.approx(
        np.mean([each[0], each[2], each[3]]), rel=1e-5
    )
    assert coverage(TEXTS._replace(id=np.full(C, -1))) == 0


def test_gradients_through_blocks_are_the_direct_ones(monkeypatch):
    monkeypatch.setattr("xmodal_jax.layers.pairs.PAIRS", 2)  # of a block's captions two at a time, the last one alone
    model = Model(**SIZES)
    params = parameters(model)
    *_, items = use(model, params, IMAGES, TEXTS)
    few = np.zeros((B, C), np.float32)
    few[1, 2], few[2, 2], few[0, 4] = 1.0, -1.0, 0.5
    for cotangent in (few, np.random.default_rng(2).normal(size=(B, C)).astype(np.float32)):
        (got, grads), (want, wanted) = (pull(model, block, params, items, cotangent) for block in (BLOCK, None))
        np.testing.assert_allclose(got, want, atol=1e-5)
        scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(wanted))
        for leaf, other in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(leaf, other, atol=1e-5 * scale)
    for path, leaf in jax.tree_util.tree_leaves_with_path(wanted[0]["pairs"]):
        encoding = {"fragment", "context", "value"} & {getattr(key, "key", "") for key in path}
        assert np.isfinite(leaf).all() and bool(encoding) == (np.abs(leaf).max() == 0), path


def sizes_of(jaxpr) -> Any:
    """Numbers of entries of all arrays that a program makes, those of its inner programs too."""
    for equation in jaxpr.eqns:
        yield from (int(np.prod(v.aval.shape)) for v in equation.outvars)
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from sizes_of(inner)


@pytest.mark.parametrize("form", ["joint", "product"])
def test_no_array_of_the_gradient_has_all_pairs_and_their_fragments(form, monkeypatch):
    monkeypatch.setattr("xmodal_jax.layers.pairs.PAIRS", 24)  # two captions at a time
    model = Model(**SIZES, attention_form=form)
    params, pairs = parameters(model), 12
    *_, items = jax.eval_shape(partial(use, model), params, IMAGES, TEXTS)

    def many(leaf):
        return jax.ShapeDtypeStruct((pairs, *leaf.shape[1:]), leaf.dtype)

    def total(params, image, text):
        scores: Any = model.apply({"params": params}, image, text, method="score")
        return scores.sum()

    sides = jax.tree.map(many, items)
    jaxpr = jax.make_jaxpr(jax.grad(total, argnums=(0, 1, 2), allow_int=True))(params, *sides)
    most = max(sizes_of(jaxpr.jaxpr))
    assert most <= pairs * max(W, R) * max(SIZES["embed_dim"], SIZES["attention_dim"])  # that of a representation
    assert pairs * W * SIZES["attention_dim"] < most < pairs**2 * R


def test_far_out_attention_stays_finite():
    model = Model(**SIZES)
    params = parameters(model)
    for side, sign in (("image", 1e4), ("text", -1e4)):
        for name in ("fragment", "past"):
            params["pairs"][side][name]["kernel"] *= sign
    *out, items = use(model, params, IMAGES, TEXTS)
    _, gradient = pull(model, None, params, items, np.ones((B, C), np.float32))
    for leaf in jax.tree.leaves((out, gradient)):
        assert np.isfinite(leaf).all()


def test_the_mean_of_the_regions_is_a_context():
    mean, given = Model(**SIZES, context="mean"), Model(**SIZES)
    assert (mean.inputs, given.inputs) == (Inputs(("region",)), Inputs(("region", "global")))
    params = parameters(mean)
    whole = np.stack([x[:count].mean(0) for x, count in zip(IMAGES.feature["region"], REGIONS, strict=True)])
    images = IMAGES._replace(feature={**IMAGES.feature, "global": whole})
    got, want = (model.apply({"params": params}, images, train=False, method="encode_image") for model in (mean, given))
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), got, want)


def test_glimpses_encode_first():
    model = Model(**SIZES)
    params = parameters(model)
    _, looks, *_ = use(model, params, IMAGES, TEXTS)
    got = jax.jit(partial(model.apply, method="glimpses"))({"params": params}, IMAGES, TEXTS)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), got, looks)


def test_half_precision():
    model, half = (Model(**{**SIZES, "steps": 1, "dtype": dtype}) for dtype in ("float32", "bfloat16"))
    params = parameters(model)
    full, low = (use(m, params, IMAGES, TEXTS)[0] for m in (model, half))
    assert low.dtype == jnp.float32
    assert 1e-4 < np.abs(low - full).max() < 0.1 * np.abs(full).max()


@pytest.mark.parametrize("field", ["attention_form", "local_sim", "regulariser"])
def test_a_choice_that_does_not_exist(field):
    fields: Any = {field: "other"}
    with pytest.raises(UsageError, match=rf'No {field} "other" \(model\.{field}\); there are '):
        parameters(Model(**SIZES, **fields))


@pytest.mark.parametrize("data", ["scenes", "f8k", "f30k"])
@pytest.mark.parametrize("variant", ["smlstm", "printed"])
def test_config(variant, data):
    config = configs.load(f"smlstm.py:{variant},{data}")
    fields = dict(config.model)
    assert fields.pop("name") == "smlstm"
    model = Model(vocabulary=9, **fields)
    assert model.inputs == Inputs(("region",) if data == "f30k" else ("region", "global"))
    assert (model.steps, config.weights.coverage, config.loss.hardness) == (3, 100.0, 0.0)
    assert model.attention_form == {"smlstm": "joint", "printed": "printed"}[variant]
