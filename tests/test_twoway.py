"""2WayNet against ten lines of NumPy: both channels, tied masks, the terms of the loss, blocks of the last matrix."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax import config as configs
from xmodal_jax.errors import UsageError
from xmodal_jax.models.twoway import Model
from xmodal_jax.types import Batch, Images, Inputs, Texts

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(5, 7)).astype("f4"), RANDOM.normal(size=(8, 4)).astype("f4")
ROW = np.array([0, 1, 2, 3, 0, 1, 4, 4])
REAL = 6  # captions; the fifth image and the last two captions are padding


def batch(pad=0.0):
    x, y = X.copy(), Y.copy()
    x[4:], y[REAL:] = pad, pad + 1.0
    image_id, text_id = np.array([0, 1, 2, 3, -1]), np.where(np.arange(8) < REAL, np.arange(8), -1)
    texts = Texts(None, np.ones((8, 1), bool), ROW, image_id[ROW], text_id, {"fisher": y})
    return Batch(Images({"global": x}, np.ones((5, 1), bool), image_id), texts)


SMALL: Any = Model(hidden=(6, 5, 8), cells=2, scaling="none", dropout=0.0)


@partial(jax.jit, static_argnames=("model", "train"))
def run(model, variables, items, key=0, *, train) -> Any:
    """((image, x), (text, y), losses), variables after them."""

    def all_of(module, items):
        image = module.encode_image(items.image, train=train)
        text = module.encode_text(items.text, train=train)
        return image, text, module.aux(items, image, text, train=train)

    rngs = {"dropout": jax.random.key(key)}
    out, state = model.apply(variables, items, method=all_of, mutable=["batch_stats"], rngs=rngs)
    return out, {**variables, **state}


def start(model):
    """Variables whose biases are not zero."""
    variables = jax.jit(model.init)(jax.random.key(1), batch())
    noise = np.random.default_rng(3)
    return {**variables, "params": jax.tree.map(lambda p: p + 0.1 * noise.normal(size=p.shape), variables["params"])}


def oracle(params, x, y):
    """Hidden layers of both channels, from the image's side, and what each makes, of batch statistics."""
    blocks = params["matrix_3"]["kernel"]
    corner = np.zeros((4, 2))
    matrices = [params[f"matrix_{j}"]["kernel"][0] for j in range(3)]
    matrices.append(np.block([[blocks[0], corner], [corner, blocks[1]]]))

    def channel(side, z, chain):
        hidden = []
        for step, matrix in enumerate(chain):
            unit = params[f"{side}_unit_{step}"]
            z = z @ matrix + unit["bias"]
            if step < 3:
                z = (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-3) * unit["gamma"] + unit["beta"]
                z = np.where(z > 0, z, 0.3 * z)
                hidden.append(z)
        return hidden, z

    image, made_y = channel("image", x, matrices)
    text, made_x = channel("text", y, [m.T for m in matrices[::-1]])
    return image, text[::-1], made_x, made_y


def test_the_loss_is_that_of_ten_lines_of_numpy():
    variables = start(SMALL)
    params = jax.tree.map(np.asarray, variables["params"])
    x, y = X[ROW[:REAL]], Y[:REAL]
    image, text, made_x, made_y = oracle(params, x, y)

    def among(h):
        c = h.T @ h / len(h)
        return np.linalg.norm(c) - np.linalg.norm(np.diag(c))

    gamma = [unit["gamma"] for name, unit in params.items() if "gamma" in unit]
    expected = {
        "image_error": ((x - made_x) ** 2).sum(1).mean(),
        "text_error": ((y - made_y) ** 2).sum(1).mean(),
        "hidden": ((image[1] - text[1]) ** 2).sum(1).mean(),
        "decorrelation": among(image[1]) + among(text[1]),
        "variance": sum((1 / g**2).sum() for g in gamma),
    }
    assert len(gamma) == 6
    for pad in (0.0, 50.0):
        terms = run(SMALL, variables, batch(pad), train=True)[0][2]
        assert terms.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(terms[name], value, rtol=2e-5, err_msg=name)


def test_items_are_compared_by_the_correlation_of_a_layer():
    model = SMALL.clone(momentum=1.0)
    variables = start(model)
    _, variables = run(model, variables, batch(), train=True)  # running statistics are now those of the pairs
    params = jax.tree.map(np.asarray, variables["params"])
    hidden_x, hidden_y, *_ = oracle(params, X[ROW[:REAL]], Y[:REAL])
    (image, _), (text, _), _ = run(model, variables, batch(), train=False)[0]
    scores: Any = model.apply(variables, image, text, method="score")
    expected = np.corrcoef(hidden_x[1][:4], hidden_y[1])[:4, 4:]
    np.testing.assert_allclose(scores[:4, :REAL], expected, atol=1e-4)
    assert model.inputs == Inputs(("global",), ("fisher",)) and model.rank_terms == ("rank", "hidden")


def test_encoding_leaves_the_statistics_alone_and_training_moves_each_once():
    variables = start(SMALL)
    after = run(SMALL, variables, batch(), train=True)[1]["batch_stats"]
    x = X[ROW[:REAL]] @ variables["params"]["matrix_0"]["kernel"][0] + variables["params"]["image_unit_0"]["bias"]
    np.testing.assert_allclose(after["image_unit_0"]["norm"]["mean"], 0.01 * x.mean(0), rtol=1e-4, atol=1e-7)
    still = run(SMALL, variables, batch(), train=False)[1]["batch_stats"]
    jax.tree.map(np.testing.assert_array_equal, still, variables["batch_stats"])


def test_both_channels_drop_the_same_units():
    model = Model(hidden=(40, 40), layer=0, scaling="none", dropout=0.5)
    variables = jax.jit(model.init)(jax.random.key(1), batch())

    def channels(module, items, masks):
        x, y = (jnp.asarray(z) for z in (items.image.feature["global"][ROW], items.text.feature["fisher"]))
        real = np.ones(8, bool)
        image = module.image_channel(x, real, out=4, masks=masks)
        return image[0], module.text_channel(y, real, out=7, masks=masks)[::-1][1]

    masks = [jnp.asarray(RANDOM.integers(0, 2, (8, 40)), jnp.float32) for _ in range(2)]
    for layer in model.apply(variables, batch(), masks, method=channels):
        np.testing.assert_array_equal(np.asarray(layer)[:REAL] != 0, masks[0][:REAL] != 0)
    first, second = (run(model, variables, batch(), key, train=True)[0][2]["hidden"] for key in (0, 1))
    assert first != second


def test_what_is_kept_is_divided_by_the_root_of_its_share(monkeypatch):
    monkeypatch.setattr(jax.random, "bernoulli", lambda key, p, shape: jnp.ones(shape))
    image, text = SMALL.clone(layer=0, dropout=0.36), SMALL.clone(layer=2, dropout=0.36)  # first layers of a channel
    variables = start(SMALL)
    for model, side in ((image, 0), (text, 1)):
        dropped, whole = (run(m, variables, batch(), train=True)[0][2] for m in (model, model.clone(dropout=0.0)))
        assert np.isclose(dropped["decorrelation"], whole["decorrelation"] / 0.64, rtol=2e-3), side


def test_blocks_that_do_not_fit_and_a_layer_that_is_not_there():
    with pytest.raises(UsageError, match="8 x 4, does not divide into 3 cells"):
        SMALL.clone(cells=3).init(jax.random.key(0), batch())
    with pytest.raises(UsageError, match=r"config\.model\.layer is 3; the hidden layers are 0 to 2"):
        SMALL.clone(layer=3).init(jax.random.key(0), batch())


def test_scaling():
    for scaling, (mean, length) in {"unit": (None, 1.0), "standard": (0.0, 7**0.5)}.items():
        model = SMALL.clone(scaling=scaling)
        (_, x), _, _ = run(model, start(model), batch(), train=False)[0]
        np.testing.assert_allclose(np.linalg.norm(x[:4], axis=1), length, rtol=1e-5)
        if mean is not None:
            np.testing.assert_allclose(x.mean(1), mean, atol=1e-6)


def test_the_settings_are_those_of_the_released_code():
    small, large = (configs.load(f"twoway.py:twoway,{data}") for data in ("f8k", "f30k"))
    assert list(small.model.hidden) == [2000, 3000, 4000] and small.model.cells == 1
    assert list(large.model.hidden) == [2000, 3000, 16000] and large.model.cells == 2
    assert small.optim.weight_decay == 2 * 0.005 and small.optim.nesterov and small.optim.lr == 1e-4
