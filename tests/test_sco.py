"""SCO and DeViSE against NumPy; what each fusion reads; their configs."""

from typing import Any

import jax
import numpy as np
import pytest

from xmodal_jax import config as configs
from xmodal_jax.errors import UsageError
from xmodal_jax.losses import LOSSES
from xmodal_jax.models import devise, sco
from xmodal_jax.training.model import make_model
from xmodal_jax.types import Batch, Facts, Feature, Images, Inputs, Texts

RANDOM = np.random.default_rng(0)
CONCEPT = RANDOM.random((4, 6)).astype(np.float32)
CONTEXT = RANDOM.normal(size=(4, 5)).astype(np.float32)
TOKEN = RANDOM.integers(4, 11, (6, 7)).astype(np.int32)
ROW = np.array([0, 0, 1, 2, 3, 3])
VECTOR = RANDOM.normal(size=(6, 3)).astype(np.float32)
TEXTS = Texts(TOKEN, np.ones((6, 7), bool), ROW, ROW, np.arange(6), {"mean": VECTOR})
SIZES = {"vocabulary": 11, "embed_dim": 8, "word_dim": 4}


def images(concept=CONCEPT, context=CONTEXT, mask=None):
    feature = {"concept": concept, "global": context}
    return Images(feature, np.ones((4, 1), bool) if mask is None else mask, np.arange(4))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def build(fusion, **fields):
    model = sco.Model(**SIZES, fusion=fusion, **fields)
    return model, model.init(jax.random.key(1), Batch(images(), TEXTS))


def encoded(model, variables, image):
    return np.asarray(model.apply(variables, image, train=False, method="encode_image")[0])


def expected(fusion, params):
    kernel = {name: np.asarray(value["kernel"]) for name, value in params.items() if "kernel" in value}
    if fusion == "concept":
        return unit(CONCEPT @ kernel["concept_map"])
    if fusion == "context":
        return unit(CONTEXT @ kernel["context_map"])
    said, seen = unit(CONCEPT @ kernel["concept_map"]), unit(CONTEXT @ kernel["context_map"])
    if fusion == "sum":
        return unit(said + seen)
    t = 1 / (1 + np.exp(-(CONCEPT @ kernel["concept_gate"] + CONTEXT @ kernel["context_gate"])))
    return unit(t * said + (1 - t) * seen)


@pytest.mark.parametrize("fusion", sco.FUSIONS)
def test_fusion(fusion):
    model, variables = build(fusion)
    np.testing.assert_allclose(encoded(model, variables, images()), expected(fusion, variables["params"]), atol=1e-5)
    reads = {"concept": ("concept",), "context": ("global",)}.get(fusion, ("global", "concept"))
    assert model.inputs == Inputs(reads)
    maps = {name for name in variables["params"] if name != "text_encoder"}
    assert len(maps) == {"gate": 4, "sum": 2}.get(fusion, 1)
    assert all(variables["params"][name].keys() == {"kernel"} for name in maps)  # the equation has no bias
    scores = model.apply(variables, Batch(images(), TEXTS))[0]
    text = np.asarray(model.apply(variables, TEXTS, train=False, method="encode_text")[0])
    np.testing.assert_allclose(np.linalg.norm(text, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(scores, encoded(model, variables, images()) @ text.T, atol=1e-5)


def test_each_part_counts_at_unit_length_and_the_gate_knows_its_size():
    model, variables = build("sum")
    small = encoded(model, variables, images(3 * CONCEPT, 0.1 * CONTEXT))
    np.testing.assert_allclose(small, encoded(model, variables, images()), atol=1e-5)
    model, variables = build("gate")
    assert np.abs(encoded(model, variables, images(3 * CONCEPT)) - encoded(model, variables, images())).max() > 0.01
    order = np.array([2, 0, 3, 1])
    moved = encoded(model, variables, images(CONCEPT[order], CONTEXT[order]))
    np.testing.assert_allclose(moved, encoded(model, variables, images())[order], atol=1e-6)


def test_an_image_of_no_concept_has_a_finite_gradient():
    model, variables = build("gate")

    def total(variables):
        return model.apply(variables, images(0 * CONCEPT), train=True, method="encode_image")[0].sum()

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.grad(total)(variables)))


def test_regions_are_averaged():
    model, variables = build("gate")
    mask = np.arange(3) < np.array([3, 1, 2, 3])[:, None]
    region = RANDOM.normal(size=(4, 3, 5)).astype(np.float32)
    mean = np.stack([rows[real].mean(0) for rows, real in zip(region, mask, strict=True)])
    got = encoded(model, variables, images(context=region, mask=mask))
    np.testing.assert_allclose(got, encoded(model, variables, images(context=mean)), atol=1e-5)


def test_unknown_fusion():
    with pytest.raises(UsageError, match=r'No fusion "mean" \(model.fusion\); there are gate, sum, concept, context'):
        build("mean")


@pytest.mark.parametrize("data", ["scenes", "f8k"])
@pytest.mark.parametrize("variant", sco.FUSIONS)
def test_sco_config(variant, data):
    config = configs.load(f"sco.py:{variant},{data}")
    assert config.model.fusion == variant
    assert make_model(config, Facts(vocabulary=11)).inputs.image == build(variant)[0].inputs.image
    assert (config.loss.name, config.loss.margin, config.loss.hardness) == ("triplet", 0.2, 0.0)


def devise_scores(measure, image=CONTEXT, vector=VECTOR) -> Any:
    model = devise.Model(3, measure=measure)
    batch = Batch(images(context=image), TEXTS._replace(feature={"mean": vector}))
    variables = model.init(jax.random.key(0), batch)
    return variables["params"]["image_map"]["kernel"], model.apply(variables, batch)[0]


def test_devise():
    kernel, scores = devise_scores("dot")
    np.testing.assert_allclose(scores, CONTEXT @ kernel @ unit(VECTOR).T, atol=1e-5)
    np.testing.assert_allclose(devise_scores("dot", 2 * CONTEXT, 5 * VECTOR)[1], 2 * scores, atol=1e-5)
    kernel, scores = devise_scores("cosine")
    np.testing.assert_allclose(scores, unit(CONTEXT @ kernel) @ unit(VECTOR).T, atol=1e-5)
    assert devise.Model(3).inputs == Inputs(("global",), text=("mean",))


def test_devise_takes_the_width_of_the_vectors_from_the_data():
    config = configs.load("devise.py:devise,f8k")
    model = make_model(config, Facts(text={"mean": Feature((50,)), "more": Feature((7,))}))
    assert isinstance(model, devise.Model) and model.vector_dim == 50


def test_devise_ranks_the_sentences_of_an_image_alone():
    """Up to the number of hinges, sum_j [0.1 - t . M v + t_j . M v]_+ over all other sentences of the batch."""
    config = configs.load("devise.py:devise,f8k")
    scores = np.asarray(devise_scores("dot")[1])
    hinges = [
        max(0.0, 0.1 - scores[image, c] + scores[image, other])
        for c, image in enumerate(ROW)
        for other in range(6)
        if ROW[other] != image
    ]
    keys = ("margin", "k", "i2t_weight", "t2i_weight", "text_weight")
    options = {key: config.loss[key] for key in keys}
    positive = np.arange(4)[:, None] == ROW
    got = LOSSES[config.loss.name](scores, positive, text_scores=np.eye(6), **options)
    assert got == pytest.approx(np.mean(hinges), rel=1e-4)
