"""MTE: the two sides of the modality game, what it leaves alone in the tower, and what a bundle keeps."""

import json
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import planted
from test_configs import final, train

from xmodal_jax import cli
from xmodal_jax import config as configs
from xmodal_jax.errors import UsageError
from xmodal_jax.losses import modality
from xmodal_jax.matcher import Matcher
from xmodal_jax.models import mte, scan, vse
from xmodal_jax.training import log, schedules
from xmodal_jax.training.model import example_batch, inputs_of, make_model
from xmodal_jax.types import Batch, Facts, Feature, Images, Texts

pytestmark = pytest.mark.usefixtures("one_device")

TOWER = vse.Model(vocabulary=9, embed_dim=6, word_dim=4)
RANDOM = np.random.default_rng(0)
IMAGE_ID, TEXT_ID = np.array([0, 1, 2, -1]), np.array([0, 1, 2, 3, -1, -1])
BATCH = Batch(
    Images({"global": RANDOM.normal(size=(4, 5)).astype("f4")}, np.ones((4, 1), bool), IMAGE_ID),
    Texts(RANDOM.integers(1, 9, (6, 7)), np.ones((6, 7), bool), np.array([0, 1, 2, 0, 3, 3]), TEXT_ID, TEXT_ID),
)
CLOUDS = RANDOM.normal(size=(4, 6)), RANDOM.normal(size=(6, 6)) + 0.5, IMAGE_ID >= 0, TEXT_ID >= 0


def game(model, variables, *, train, key=0):
    """(terms of both sides, embeddings) of the batch."""

    @jax.jit
    def play(variables):
        rngs = {"dropout": jax.random.key(key)}
        sides = [
            model.apply(variables, items, train=train, method=method, rngs=rngs)
            for method, items in (("encode_image", BATCH.image), ("encode_text", BATCH.text))
        ]
        return model.apply(variables, BATCH, *sides, train=train, method="aux", rngs=rngs), [x[0] for x in sides]

    return play(variables)


def start(model, key=1):
    return jax.jit(model.init)(jax.random.key(key), BATCH)


# The losses


def test_losses_are_those_of_ten_lines_of_numpy():
    image, text = CLOUDS[0][:3], CLOUDS[1][:4]
    logit = image[:, 0], text[:, 0]
    sigmoid = [1 / (1 + np.exp(-x)) for x in logit]
    padded = CLOUDS[0][:, 0], CLOUDS[1][:, 0], *CLOUDS[2:]
    expected = -np.mean(np.log(sigmoid[0])) - np.mean(np.log(1 - sigmoid[1]))
    np.testing.assert_allclose(modality.discrimination(*padded), expected, rtol=1e-5)
    expected = (np.mean(sigmoid[0] > 0.5) + np.mean(sigmoid[1] < 0.5)) / 2
    np.testing.assert_allclose(modality.accuracy(*padded), expected, rtol=1e-6)
    np.testing.assert_allclose(modality.gap(*CLOUDS), np.linalg.norm(image.mean(0) - text.mean(0)), rtol=1e-5)
    apart = {a + b: ((x[:, None] - y) ** 2).sum(-1) for a, x in zip("vs", (image, text), strict=True)
             for b, y in zip("vs", (image, text), strict=True)}  # fmt: skip
    kernel = {pair: np.exp(-d / apart["vs"].mean()).mean() for pair, d in apart.items()}
    np.testing.assert_allclose(modality.mmd(*CLOUDS), kernel["vv"] + kernel["ss"] - 2 * kernel["vs"], rtol=1e-4)


def test_equal_clouds_have_no_gap_and_finite_gradients():
    x, real = jnp.asarray(CLOUDS[0], jnp.float32), jnp.ones(4, bool)
    for measure in (modality.gap, modality.mmd):
        value, gradient = jax.value_and_grad(measure)(x, x, real, real)
        assert abs(value) < 1e-6 and np.isfinite(gradient).all()
        nothing, gradient = jax.value_and_grad(measure)(0 * x, 0 * x, real, real)
        assert nothing == 0 and np.isfinite(gradient).all()


# The two sides of the game


def identity(x, alpha):
    return x


# Gradient reversal as the papers draw it, one pass for both sides
reverse: Any = jax.custom_vjp(identity)
reverse.defvjp(lambda x, alpha: (x, alpha), lambda alpha, g: (-alpha * g, None))


def test_gradients_are_those_of_gradient_reversal():
    model, alpha = mte.Model(TOWER, hidden=(8, 4), dropout=0.0), 0.3
    variables = start(model)
    net = mte.Discriminator((8, 4), 0.0)

    def weighed(params):
        terms, _ = game(model, {"params": params}, train=True)
        return terms["modality"] + alpha * terms["confusion"]

    def reversed_once(params):
        _, sides = game(model, {"params": params}, train=True)
        discriminate: Any = partial(net.apply, {"params": params["discriminator"]}, train=True)
        image, text = (discriminate(reverse(side, alpha)) for side in sides)
        return modality.discrimination(image, text, IMAGE_ID >= 0, TEXT_ID >= 0)

    got, expected = (jax.jit(jax.grad(loss))(variables["params"]) for loss in (weighed, reversed_once))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), got, expected)
    for tower in (got["image_encoder"]["kernel"], got["text_encoder"]["embed"]["embedding"]):
        assert np.abs(tower).max() > 1e-4


def test_both_sides_see_the_same_units_dropped():
    model = mte.Model(TOWER, hidden=(8, 4), dropout=0.5)
    variables = start(model)
    terms, _ = game(model, variables, train=True)
    assert terms["confusion"] == -terms["modality"]
    assert terms["modality"] != game(model, variables, train=True, key=1)[0]["modality"]
    assert terms["modality"] != game(model, variables, train=False)[0]["modality"]


def test_the_flipped_form_asks_for_the_other_labels():
    model = mte.Model(TOWER, hidden=(8, 4), dropout=0.0, adversary="flipped")
    variables = start(model)
    terms, sides = game(model, variables, train=True)
    discriminate: Any = partial(mte.Discriminator((8, 4)).apply, {"params": variables["params"]["discriminator"]})
    image, text = (nn.sigmoid(discriminate(side, train=False)) for side in sides)
    np.testing.assert_allclose(terms["confusion"], -np.log(1 - image[:3]).mean() - np.log(text[:4]).mean(), rtol=1e-5)
    confused = jax.grad(lambda v: game(model, v, train=True)[0]["confusion"])(variables)["params"]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(confused["discriminator"]))


def test_the_ramp_is_that_of_the_paper():
    config = configs.load("mte.py:vsepp,f8k", ["--config.ramps.confusion=2.0"])
    weights = schedules.weights(config, per_epoch=10)
    share = np.arange(0, 40) / 20
    expected = 12.8 * (2 / (1 + np.exp(-10 * np.minimum(share, 1))) - 1)
    np.testing.assert_allclose([weights["confusion"](step) for step in range(40)], expected, rtol=1e-5, atol=1e-9)
    assert weights["confusion"](0) == 0 and weights["modality"] == 1.0
    config.ramps.confusion = 0.0
    assert schedules.weights(config, per_epoch=10)["confusion"] == pytest.approx(12.8)
    config.ramps.captioning = 1.0
    with pytest.raises(UsageError, match=r"config\.ramps names captioning, which config\.weights does not\."):
        schedules.weights(config, per_epoch=10)


# The seam


def test_what_is_no_vector_is_refused_in_one_sentence():
    model = mte.Model(scan.Model(vocabulary=9, embed_dim=6, word_dim=4, feature="global"))
    with pytest.raises(UsageError, match=r'^The system "scan" \(config\.model\.tower\) gives .* say\.'):
        start(model)
    with pytest.raises(UsageError, match="there are reversal, flipped"):
        start(mte.Model(TOWER, adversary="sgd"))


def test_a_tower_is_built_like_a_system_and_answers_as_one(tmp_path):
    config = configs.load("mte.py:vsepp,tiny", ["--config.model.tower.embed_dim=7"])
    model = make_model(config, Facts(vocabulary=11))
    assert model.tower == vse.Model(**{**dict(config.model.tower, vocabulary=11), "name": None})
    assert model.inputs == inputs_of(config) == model.tower.inputs
    assert model.word_tables == model.tower.word_tables
    assert model.has("aux") and not model.has("begin") and not model.has("attention")
    (tmp_path / "mine.py").write_text("from xmodal_jax.models.stt import Model\n")
    (tmp_path / "config.py").write_text(
        "from ml_collections import ConfigDict\n"
        "from xmodal_jax.defaults import base\n"
        "def get_config(arg=None):\n"
        "    config = base('own')\n"
        "    config.model = ConfigDict({'name': 'mte', 'tower': {'name': 'mine.py', 'embed_dim': 8}})\n"
        "    return config\n"
    )
    config = configs.load(f"{tmp_path / 'config.py'}:own")
    assert config.model.tower.name == str((tmp_path / "mine.py").resolve())
    speaker = make_model(config, Facts(vocabulary=11))
    assert speaker.has("begin") and speaker.inputs.captions == {"target": 1}
    config.model.tower.name = "vsee"
    with pytest.raises(UsageError, match=r'No model "vsee" \(config\.model\.tower\.name\)'):
        make_model(config, Facts())
    config.model.tower = {"name": "vse", "colour": 1}
    with pytest.raises(UsageError, match=r"^config\.model\.tower: .*colour"):
        make_model(config, Facts())


@pytest.mark.parametrize("spec", ["vse.py:order", "vse_infty.py:bigru", "dspe.py:dspe", "stt.py:stt", "chain.py:code"])
def test_every_vector_system_takes_it(spec):
    config = configs.load(f"{spec},tiny")
    inner = inputs_of(config)
    config.model = {"name": "mte", "tower": config.model.to_dict()}
    dense = {name: Feature((7,)) for name in inner.text if name != "token"}
    facts = Facts({name: Feature((None, 8)) for name in inner.image}, dense, 11, 0, 3, 8)
    model = make_model(config, facts)
    batch = example_batch(model.inputs, facts)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), batch))
    scores, terms = jax.eval_shape(model.apply, variables, batch)
    assert scores.shape == (1, 1) and {"modality", "confusion", "accuracy", "gap", "mmd"} <= terms.keys()


def test_the_tower_starts_and_drops_as_it_does_alone():
    bare, model = start(TOWER), start(mte.Model(TOWER))
    assert set(model["params"]) == {*bare["params"], "discriminator"}
    rest = {name: value for name, value in model["params"].items() if name != "discriminator"}
    jax.tree.map(np.testing.assert_array_equal, rest, bare["params"])


# Runs

STEPS = ["--config.steps=3", "--config.log.every_steps=1"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(data, bare vsepp, vsepp with a discriminator and alpha 0) after three steps."""
    folder = tmp_path_factory.mktemp("mte")
    data = planted(folder / "set", train=20, other=6)
    assert train("vse.py:vsepp", data, folder / "bare", *STEPS, "--config.optim.clip_norm=0.05") == 0
    alone = ["--config.weights.confusion=0.0", "--config.optim.clip_norm=0.05"]
    assert train("mte.py:vsepp", data, folder / "judged", *STEPS, *alone) == 0
    return data, folder / "bare", folder / "judged"


def params_of(workdir):
    (_, tree) = final(workdir)
    return tree["model"]["params"]


def test_alpha_0_leaves_the_tower_as_it_is_alone(runs):
    _, bare, judged = runs
    bare, judged = params_of(bare), params_of(judged)
    net = judged.pop("discriminator")
    jax.tree.map(np.testing.assert_array_equal, judged, bare)
    assert np.any(net["Dense_2"]["bias"])  # it learns all the same


def test_a_bundle_holds_the_tower_alone(runs, tmp_path):
    from safetensors.numpy import load_file

    _, bare, judged = runs
    for workdir in (bare, judged):
        assert cli.run(["export", "--workdir", str(workdir), "--out", str(tmp_path / workdir.name)]) == 0
    arrays = [load_file(tmp_path / workdir.name / "parameters.safetensors") for workdir in (bare, judged)]
    assert arrays[0].keys() == arrays[1].keys()
    jax.tree.map(np.testing.assert_array_equal, *arrays)
    functions = [json.loads((tmp_path / w.name / "manifest.json").read_text())["functions"] for w in (bare, judged)]
    assert functions[0] == functions[1]


def test_stages_train_one_side_each_and_log_the_distance(runs, tmp_path):
    data, *_ = runs
    spec = "mte.py:staged"
    stages = ["--config.log.every_steps=1", "--config.checkpoint.every_steps=1", "--config.checkpoint.keep=99"]
    assert train(spec, data, tmp_path / "run", *stages) == 0
    from xmodal_jax.training.checkpoint import Checkpoints

    checkpoints = Checkpoints(tmp_path / "run", read_only=True)
    lines = {line["step"]: line for line in log.read(tmp_path / "run" / "metrics.jsonl") if "loss" in line}
    trees = {step: checkpoints.restore_plain(step, "model")["params"] for step in checkpoints.steps()}
    assert [lines[step]["loss"] == lines[step].get(name) for step, name in ((1, "rank"), (2, "modality"))] == [True] * 2

    def moved(step):
        changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), trees[step - 1], trees[step])
        net = changed.pop("discriminator")
        return any(jax.tree.leaves(net)), any(jax.tree.leaves(changed))

    assert [moved(step) for step in (2, 3, 4)] == [(True, False), (True, True), (True, True)]
    assert lines[3]["weight_confusion"] == 0.0 and "weight_confusion" not in lines[4]
    assert {"accuracy", "gap", "mmd", "modality", "confusion"} <= lines[4].keys()


def test_what_a_system_can_do_is_asked_of_the_tower():
    """Whatever Matcher offers, lest a tower's own way is passed over in silence."""
    offered = {name for name in vars(Matcher) if not name.startswith("_") and name not in dir(nn.Module)}
    assert {"select", "sharded", "glimpses", "rank_terms", "inputs"} <= offered
    assert offered - set(vars(mte.Model)) == set()
