"""STT with attention beside what test_stt.py holds against the original: the loss between paraphrases from its
definition, where the decoder starts, padding, attention, bfloat16, and what its configs weigh."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ROOT
from test_stt import begin, close, example, initial, spell, terms_of

from xmodal_jax import config
from xmodal_jax.models.stt_att import Model
from xmodal_jax.types import Batch, Images, Inputs


def small(**fields):
    return Model(12, **{"embed_dim": 8, "word_dim": 5, **fields})


def regions(seed=0, count=3) -> Any:
    """`test_stt.example` with up to three regions an image, the first image with one."""
    batch = example(seed=seed)
    feature = np.random.default_rng(seed).normal(size=(4, count, 5)).astype(np.float32)
    mask = np.arange(count) < np.array([1, 3, 2, 3])[:, None]
    return batch._replace(image=Images({"region": feature}, mask, batch.image.id))


@partial(jax.jit, static_argnums=0)
def encoded(model, params, batch):
    bound = model.bind({"params": params})
    return bound.encode_image(batch.image, train=False), bound.encode_text(batch.text, train=False)


@partial(jax.jit, static_argnums=0)
def scored(model, params, batch):
    return model.apply({"params": params}, batch)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_where_the_decoder_starts():
    """Of an image the unit mean of its projected regions; of a caption the mean of the final states, at any length."""
    batch, model = regions(), small()
    params = initial(model, batch)
    assert model.inputs == Inputs(("region",), captions={"target": 1})
    kernel, bias = params["image_encoder"]["kernel"], params["image_encoder"]["bias"]
    projected = np.asarray(batch.image.feature["region"]) @ kernel + bias
    means = [rows[real].mean(0) for rows, real in zip(projected, batch.image.mask, strict=True)]
    close(begin(model, params, batch.image)[0], unit(np.stack(means)))
    (state,) = begin(model, params, batch.text)
    assert np.ptp(np.linalg.norm(state, axis=1)) > 0.01
    close(begin(small(unit_start=True), params, batch.text)[0], unit(np.asarray(state)))


def test_the_loss_between_paraphrases_from_its_definition():
    """Means over captions of the two hinges with the hardest caption of another image."""
    batch, model = regions(), small(unit_start=True, paraphrase_ranking=True, margin=0.3)
    params = initial(model, batch)
    terms = terms_of(model, params, batch)
    assert set(terms) == {"captioning", "paraphrasing", "paraphrase_ranking"}
    assert set(terms_of(small(), params, batch)) == {"captioning", "paraphrasing"}
    first, second = (np.asarray(begin(model, params, texts)[0]) for texts in (batch.text, batch.target))
    scores, image = first @ second.T, batch.text.image_id
    total = 0.0
    for c in range(8):
        others = [k for k in range(8) if image[k] != image[c]]
        total += max(0.3 - scores[c, c] + max(scores[c, k] for k in others), 0.0)
        total += max(0.3 - scores[c, c] + max(scores[k, c] for k in others), 0.0)
    assert total > 0
    assert float(terms["paraphrase_ranking"]) == pytest.approx(total / 8, rel=1e-5)


def test_padding_does_not_count():
    """Of words, targets, regions and rows."""
    batch, model = regions(), small(paraphrase_ranking=True)
    params = initial(model, batch)
    scores, terms = scored(model, params, batch)

    def wider(texts):
        token = np.pad(np.where(texts.mask, texts.token, 9), ((0, 0), (0, 3)), constant_values=7)
        return texts._replace(token=token, mask=np.pad(texts.mask, ((0, 0), (0, 3))))

    image = batch.image._replace(
        feature={"region": np.pad(batch.image.feature["region"], ((0, 0), (0, 2), (0, 0)), constant_values=5.0)},
        mask=np.pad(batch.image.mask, ((0, 0), (0, 2))),
    )
    wide = Batch(image, wider(batch.text), wider(batch.target))
    more = jax.tree.map(lambda x: np.concatenate([x, x[:2]]), wide)
    more.text.id[8:], more.target.id[8:], more.text.row[8:], more.text.image_id[8:] = -1, -1, 0, -1
    for other in (wide, more):
        got, again = scored(model, params, other)
        close(got[:4, :8], scores)
        for name, value in terms.items():
            assert float(again[name]) == pytest.approx(float(value), rel=1e-5), name


def test_attention_is_that_of_the_scores():
    """A word's weights add up to 1; the cosine of words and attended regions, averaged, is the score."""
    batch, model = regions(), small()
    params = initial(model, batch)
    (image, _), (text, _) = encoded(model, params, batch)
    weight = np.asarray(model.apply({"params": params}, image, text, method="attention"))
    real = batch.image.mask[:, None, :, None] & batch.text.mask[None, :, None, :]
    assert (weight[~real] == 0).all()
    np.testing.assert_allclose(weight.sum(2), np.broadcast_to(batch.text.mask, (4, 8, 6)), atol=1e-6)
    seen = np.einsum("bcrw,brd->bcwd", weight, image["region"].feature)
    word, mask = np.asarray(text["word"].feature), batch.text.mask
    cosine = (seen * word).sum(-1) / np.maximum(np.linalg.norm(seen, axis=-1), 1e-8)
    scores = (cosine * mask).sum(-1) / mask.sum(-1)
    close(scored(model, params, batch)[0], scores)


def test_bfloat16_stays_close():
    batch = regions()
    model, exact = small(dtype="bfloat16", paraphrase_ranking=True), small(paraphrase_ranking=True)
    params = initial(model, batch)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    (scores, terms), (expected, exact_terms) = (scored(m, params, batch) for m in (model, exact))
    assert scores.dtype == jnp.float32
    np.testing.assert_allclose(scores, expected, atol=0.02)
    for name, value in terms.items():
        assert value.dtype == jnp.float32
        assert float(value) == pytest.approx(float(exact_terms[name]), rel=0.02)
    carry = begin(model, params, batch.text)
    assert {state.dtype for state in carry} == {jnp.dtype("float32")}
    assert spell(model, params, carry, batch.target.token).dtype == jnp.float32


def test_configs_weigh_the_tasks():
    folder = ROOT / "configs" / "stt_att.py"
    joint = config.load(f"{folder}:stt_att,f30k")
    assert joint.weights.to_dict() == {"rank": 1.0, "captioning": 0.25, "paraphrasing": 0.25}
    assert (joint.model.smooth, joint.model.unit_start, joint.model.feature) == (9.0, False, "region")
    para = config.load(f"{folder}:stt_para_att,f30k")
    assert para.weights.paraphrase_ranking == para.data.batch_size == 128
    assert (para.model.unit_start, para.model.margin) == (True, 0.2)
    for variant, name in {"retrieval": "rank", "captioning": "captioning", "paraphrasing": "paraphrasing"}.items():
        weights = config.load(f"{folder}:{variant}").weights.to_dict()
        assert [key for key, weight in weights.items() if weight] == [name]
