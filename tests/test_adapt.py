"""ADAPT against arrays of the original code: scores, training step, loss, rates; the fovea's gradients; padding."""

import importlib.util
import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN, ROOT
from ml_collections import ConfigDict
from test_vse_golden import layout, lookup

from xmodal_jax import losses
from xmodal_jax.convert import systems
from xmodal_jax.models.adapt import Conditioner, Filtered, Model
from xmodal_jax.similarity import fovea
from xmodal_jax.similarity.pairwise import Block, pairwise
from xmodal_jax.training import schedules
from xmodal_jax.training.optim import make_optimiser
from xmodal_jax.types import Images, Texts

ARRAYS = np.load(GOLDEN / "adapt.npz")
META = json.loads(str(ARRAYS["meta"]))["options"]
FIXED = ("embed_fixed", "embedding")
POOLS = {"t2i": "mean", "i2t": "max"}


def config(arg):
    spec: Any = importlib.util.spec_from_file_location("adapt", Path(ROOT) / "configs" / "adapt.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(arg)


def names(direction):
    return {tuple(ours.split("/")): theirs for ours, theirs in systems.adapt_names(direction).items()}


def tree(prefix, table):
    out: dict[str, Any] = {}
    for path, name in table.items():
        node = out
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = jnp.asarray(layout(path, ARRAYS[prefix + name]))
    return out


@pytest.mark.parametrize(("case", "direction", "smooth"), [module[:3] for module in META["modules"]])
@pytest.mark.parametrize("noise", ["", "_noise_padded"])
def test_scores_of_the_module_alone(case, direction, smooth, noise):
    region, word = ARRAYS[f"{case}/in/region"], ARRAYS[f"{case}/in/word{noise}"]
    mask = np.arange(word.shape[1]) < ARRAYS[f"{case}/in/length"][:, None]
    table = {path[1:]: name for path, name in names(direction).items() if path[0] == "conditioner"}
    params = tree(f"{case}/w/", {path: name.removeprefix("similarity.") for path, name in table.items()})
    running = {new: ARRAYS[f"{case}/w/norm.norm.running_{new}"] for new in ("mean", "var")}
    d = region.shape[-1]
    sides = [(region, np.ones(region.shape[:2], bool)), (word, mask)]
    shown, whole = sides if direction == "t2i" else sides[::-1]
    limit = 34 if direction == "i2t" else None
    fragments: Any = Filtered(d, True, limit).apply(
        {"batch_stats": {"norm": running}}, *shown, np.ones(len(shown[0]), bool), train=False
    )
    if direction == "t2i":
        assert fragments.mask.all()
    query: Any = Conditioner(d, jnp.float32).apply(
        {"params": params}, *whole, np.ones(len(whole[0]), bool), train=False
    )
    scores = jax.jit(partial(fovea, smooth=smooth, pool=POOLS[direction]))(*fragments, *query)
    expected = ARRAYS[f"{case}/out/score{noise}"]
    np.testing.assert_allclose(scores if direction == "t2i" else scores.T, expected, atol=1e-5, rtol=0)


@pytest.fixture(params=["t2i", "i2t"], scope="module")
def case(request):
    """Direction, arrays' prefix, the model with the original's padding, variables, images, texts."""
    name = f"model_{request.param}"
    options = META["models"][name]
    fields = {"direction": request.param, "pool": POOLS[request.param], "smooth": float(options["gamma"])}
    model = Model(vocabulary=60, embed_dim=24, word_dim=10, compat_padding=True, **fields)
    running = {new: jnp.asarray(ARRAYS[f"{name}/w/similarity.norm.norm.running_{new}"]) for new in ("mean", "var")}
    variables = {
        "params": tree(f"{name}/w/", names(request.param)),
        "batch_stats": {"filtered": {"norm": running}},
    }
    feature, token = ARRAYS[f"{name}/in/feature"], ARRAYS[f"{name}/in/token"]
    rows = np.arange(len(token))
    mask = np.arange(token.shape[1]) < ARRAYS[f"{name}/in/length"][:, None]
    image = Images({"region": feature}, np.ones(feature.shape[:2], bool), rows)
    return request.param, name, model, variables, image, Texts(token, mask, rows, rows, rows)


def scores_of(model, variables, image, text, *, train=False):
    """(scores, new running statistics)."""

    def forward(model, image, text):
        sides = model.encode_image(image, train=train)[0], model.encode_text(text, train=train)[0]
        return model.score(*sides)

    return model.apply(variables, image, text, method=forward, mutable=["batch_stats"])


def test_the_model_in_use(case):
    _, name, model, variables, image, text = case

    def outputs(variables):
        return (
            model.apply(variables, image, method="regions"),
            model.apply(variables, text, method="words"),
            scores_of(model, variables, image, text)[0],
        )

    for part, value in zip(("region", "word", "score"), jax.jit(outputs)(variables), strict=True):
        np.testing.assert_allclose(value, ARRAYS[f"{name}/out/{part}"], atol=1e-5, rtol=0)


def test_the_model_in_training(case):
    direction, name, model, variables, image, text = case
    tau = ARRAYS[f"{name}/train/tau"]

    def loss(params):
        scores, new = scores_of(model, {**variables, "params": params}, image, text, train=True)
        return losses.triplet(scores, np.eye(8, dtype=bool), margin=0.2, hardness=jnp.asarray(tau)), (scores, new)

    (value, (scores, new)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    np.testing.assert_allclose(scores, ARRAYS[f"{name}/train/score"], atol=1e-5, rtol=0)
    expected = float(ARRAYS[f"{name}/train/loss"])
    assert abs(float(value) - expected) <= 2e-5 * max(1.0, expected)
    for kind, value in new["batch_stats"]["filtered"]["norm"].items():
        step = ARRAYS[f"{name}/train/step/similarity.norm.norm.running_{kind}"]
        np.testing.assert_allclose(value, step, atol=1e-5, rtol=0)

    table = {path: original for path, original in names(direction).items() if path != FIXED}
    for path, original in table.items():
        reference = layout(path, ARRAYS[f"{name}/train/grad/{original}"])
        scale = max(1.0, np.abs(reference).max())
        np.testing.assert_allclose(lookup(grads, path), reference, atol=5e-5 * scale, rtol=0, err_msg=original)
    # One step by the config's optimiser: global clip, Adamax, the frozen table neither moved nor counted in the norm
    optim = config(direction).optim
    norm = np.sqrt(sum(np.square(lookup(grads, path)).sum() for path in table))
    assert norm == pytest.approx(float(ARRAYS[f"{name}/train/grad_norm"]), rel=5e-5)
    optimiser: Any = make_optimiser(optim, variables["params"], lambda _: optim.lr)
    updates = jax.jit(optimiser.update)(grads, optimiser.init(variables["params"]), variables["params"])[0]
    assert not np.any(lookup(updates, FIXED))
    for path, original in table.items():
        sure = np.abs(lookup(grads, path)) * optim.clip_norm / norm > 1e-5  # elsewhere it is the sign of noise
        assert sure.any()
        stepped = lookup(variables["params"], path) + lookup(updates, path)
        reference = layout(path, ARRAYS[f"{name}/train/step/{original}"])
        np.testing.assert_allclose(stepped[sure], reference[sure], atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", ["model_t2i", "model_i2t"])
def test_the_annealed_loss(name):
    iterations, taus, values = (ARRAYS[f"{name}/tau/{part}"] for part in ("iteration", "value", "loss"))
    np.testing.assert_allclose(1.0 - 0.991**iterations, taus, atol=1e-6)
    loss = jax.jit(partial(losses.triplet, positive=np.eye(8, dtype=bool), margin=0.2))
    for tau, expected in zip(taus, values, strict=True):
        value = float(loss(ARRAYS[f"{name}/train/score"], hardness=tau))
        assert abs(value - expected) <= 2e-5 * max(1.0, expected)


def test_the_learning_rate_of_each_step():
    schedule = META["schedule"]
    options = ConfigDict(
        {"line": schedule["warm"], "at_steps": tuple(range(*schedule["decay"])), "factor": schedule["rate"]}
    )
    rates = schedule["lr"] * jax.vmap(schedules.adapt(options, 0, 0))(jnp.arange(schedule["steps"]))
    np.testing.assert_allclose(rates, ARRAYS["schedule/lr_used"], rtol=1e-6)
    published = config("i2t,f30k").optim.schedule
    assert (tuple(published.line), tuple(published.at_steps)) == ((0.5, 2.0, 4000), (10000, 13000, 16000, 19000))


def naive(fragment, mask, scale, shift, query, *, smooth, pool):
    x = scale[None, :, None] * fragment[:, None] + shift[None, :, None]  # [N, M, T, D]
    real = mask[:, None, :, None]
    parts = jax.nn.softmax(jnp.where(real, smooth * x, -1e30), axis=2) * x
    pooled = {
        "mean": lambda: jnp.sum(jnp.where(real, parts, 0.0), axis=2) / jnp.sum(mask, axis=1)[:, None, None],
        "max": lambda: jnp.max(jnp.where(real, parts, -1e30), axis=2),
    }[pool]()
    return jnp.einsum("nmd,md->nm", pooled / jnp.linalg.norm(pooled, axis=-1, keepdims=True), query)


def planes(seed=0, n=4, t=6, m=5, d=7):
    random = np.random.default_rng(seed)
    fragment, scale, shift, query, weight = (
        random.normal(size=shape).astype("f4") for shape in ((n, t, d), (m, d), (m, d), (m, d), (n, m))
    )
    mask = np.arange(t) < np.array([6, 1, 4, 0])[:, None]  # the last item has no fragments
    return fragment, mask, scale, shift, query / np.linalg.norm(query, axis=1, keepdims=True), weight


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_scores_and_gradients_of_the_fovea(pool):
    fragment, mask, *query, weight = planes()

    def gradients(function, rows, fragment, *query):
        def total(smooth, fragment, *query):
            scores = function(fragment, mask[rows], *query, smooth=smooth, pool=pool)
            return jnp.sum(scores * weight[rows]), scores

        return jax.value_and_grad(total, argnums=range(5), has_aux=True)(3.0, fragment[rows], *query)

    full = slice(0, 3)
    # Outside jit: XLA may fuse what "max" compares for equality twice, in two ways that round differently
    (_, expected), reference = gradients(naive, full, fragment, *query)
    dirty = np.where(mask[..., None], fragment, 1e3)  # noise in the padding that would win every softmax
    (_, scores), grads = jax.jit(partial(gradients, fovea, full))(dirty, *query)
    np.testing.assert_allclose(scores, expected, atol=2e-6)
    for ours, theirs in zip(grads, reference, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * max(1.0, np.abs(theirs).max()))
    # The item without fragments scores 0; it and a query of zeros leave all gradients finite, huge exponents do too
    query[1], query[2] = (np.concatenate([np.zeros_like(x[:1]), x[1:]]) for x in query[1:])
    (_, scores), grads = jax.jit(partial(gradients, fovea, slice(None)))(1e3 * dirty, *query)
    np.testing.assert_array_equal(scores[3], 0.0)
    assert all(np.isfinite(x).all() for x in (scores, *grads))


def test_padding_and_other_items_change_nothing(case):
    """Without ``compat_padding``; in training, statistics leave out padding and rows that only fill up the batch."""
    _, _, model, variables, image, text = case
    model = model.clone(compat_padding=False)
    mask = np.arange(image.mask.shape[1]) < np.array([7, 1, 0, 3, 7, 2, 5, 4])[:, None]
    image = image._replace(mask=mask)
    grown = [(0, 0), (0, 2)]
    wide_image = Images(
        {"region": np.pad(np.where(mask[..., None], image.feature["region"], 9.0), [*grown, (0, 0)])},
        np.pad(mask, grown),
        image.id,
    )
    wide_text = text._replace(token=np.pad(np.where(text.mask, text.token, 7), grown), mask=np.pad(text.mask, grown))
    order = np.array([4, 0, 5])
    pick = partial(jax.tree.map, lambda x: x[order])
    score = jax.jit(partial(scores_of, model))
    scores, _ = score(variables, image, text)
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(score(variables, wide_image, wide_text)[0], scores, atol=1e-6)
    np.testing.assert_allclose(score(variables, pick(image), pick(text))[0], scores[order][:, order], atol=1e-6)

    train = jax.jit(partial(scores_of, model, train=True))
    scores, stats = train(variables, image, text)
    filled = [jax.tree.map(lambda x: np.concatenate([x, x[:2]]), side) for side in (wide_image, wide_text)]
    filled = [side._replace(id=np.where(np.arange(10) < 8, side.id, -1)) for side in filled]
    again, same = train(variables, *filled)
    np.testing.assert_allclose(again[:8, :8], scores, atol=2e-6)
    for first, second in zip(jax.tree.leaves(stats), jax.tree.leaves(same), strict=True):
        np.testing.assert_allclose(first, second, atol=1e-6)


def test_blocks_change_nothing(case):
    """Through ``pairwise``, where a sparse cotangent takes its own backward pass."""
    _, _, model, variables, image, text = case
    sides = [
        model.apply(variables, x, train=False, method=m)[0] for x, m in ((image, "encode_image"), (text, "encode_text"))
    ]

    def loss(sides, block):
        score: Any = partial(model.apply, method="score")
        scores = score(variables, *sides) if block is None else pairwise(score, variables, *sides, block=block)
        return losses.triplet(scores, np.eye(8, dtype=bool), margin=0.2, hardness=1.0)

    value, grads = (jax.jit(jax.value_and_grad(partial(loss, block=None), allow_int=True)))(sides)
    again, same = (jax.jit(jax.value_and_grad(partial(loss, block=Block(3, 2, 5)), allow_int=True)))(sides)
    assert float(again) == pytest.approx(float(value), rel=1e-5)
    for first, second in zip(jax.tree.leaves(grads), jax.tree.leaves(same), strict=True):
        if first.dtype == jnp.float32:
            np.testing.assert_allclose(second, first, atol=2e-5 * max(1.0, np.abs(first).max()))
