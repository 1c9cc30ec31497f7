"""GXN: the combined score, rewards that are those of the evaluation, the self-critical gradient by its formula, and an
adversarial network each of whose players is trained by its own loss alone."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import planted
from test_configs import train
from test_stt import example

from xmodal_jax import cli, losses
from xmodal_jax import config as configs
from xmodal_jax.data.records import open_dataset
from xmodal_jax.errors import UsageError
from xmodal_jax.evaluation import captions
from xmodal_jax.evaluation.run import Run
from xmodal_jax.layers.imagine import as_picture, doublings
from xmodal_jax.losses import adversarial, tokens
from xmodal_jax.models.gxn import Model
from xmodal_jax.report import imagined
from xmodal_jax.text import generation, ngrams, rewards
from xmodal_jax.text.vocabulary import END, START
from xmodal_jax.training import parallel
from xmodal_jax.training.checkpoint import Checkpoints
from xmodal_jax.training.step import Initial, Objective, loss_fn, make_state, train_step
from xmodal_jax.types import Inputs

pytestmark = pytest.mark.usefixtures("one_device")

RANDOM = np.random.default_rng(0)


def small(**fields) -> Model:
    sizes = {"embed_dim": 8, "word_dim": 5, "gru_dim": 6, "side": 16, "noise_dim": 3, "condition_dim": 4, "filters": 2}
    return Model(12, **{**sizes, "longest": 5, **fields})


def batch_of(pixels=0) -> Any:
    batch = example(images=4, captions=2)
    if not pixels:
        return batch
    square = RANDOM.integers(0, 256, (4, pixels, pixels, 3), np.uint8)
    return batch._replace(image=batch.image._replace(feature={**batch.image.feature, "pixels": square}))


def start(model, batch) -> Any:
    return jax.jit(model.init)(jax.random.key(0), batch)


@partial(jax.jit, static_argnums=0)
def run(model, variables, batch, key=1) -> Any:
    """(image, text, terms) in training."""
    rngs = {"dropout": jax.random.key(key)}
    image = model.apply(variables, batch.image, train=True, method="encode_image")
    text = model.apply(variables, batch.text, train=True, method="encode_text")
    return image, text, model.apply(variables, batch, image, text, train=True, method="aux", rngs=rngs)


# The score


@pytest.mark.parametrize("measure", ["dot", "order"])
def test_one_product_is_the_combined_score(measure):
    batch, model = batch_of(), small(measure=measure, absolute=measure == "order", abstract=0.3)
    variables = start(model, batch)
    feature, params = batch.image.feature["global"], variables["params"]

    def unit(x):
        x = np.asarray(x) / np.linalg.norm(x, axis=-1, keepdims=True)
        return np.abs(x) if measure == "order" else x

    def score(v, t):
        return v @ t.T if measure == "dot" else -(np.maximum(t[None] - v[:, None], 0) ** 2).sum(-1)

    images = {k: unit(feature @ params[f"{k}_image"]["kernel"]) for k in ("abstract", "grounded")}
    (v, grounded), (t, said), _ = run(model, variables, batch)
    np.testing.assert_allclose(grounded, images["grounded"], rtol=1e-4, atol=1e-6)
    texts = {"abstract": np.asarray(t)[:, :8] / 0.3**0.5, "grounded": np.asarray(said)}
    np.testing.assert_allclose(texts["grounded"], np.asarray(t)[:, 8:] / 0.7**0.5, rtol=1e-5)
    expected = 0.3 * score(images["abstract"], texts["abstract"]) + 0.7 * score(images["grounded"], texts["grounded"])
    got: Any = model.apply(variables, v, t, method="score")
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    assert np.abs(texts["abstract"] - texts["grounded"]).max() > 0.1  # two encoders


def test_a_single_embedding_has_no_second():
    model = small(dual=False, bidirectional=False)
    params = start(model, batch_of())["params"]
    assert params.keys() == {"embed", "grounded_image", "grounded_text"}
    assert params["grounded_text"].keys() == {"forward", "Dense_0"}
    assert not model.has("begin") and not model.has("imagine") and not model.has("aux")
    assert {"forward", "backward"} < start(small(), batch_of())["params"]["abstract_text"].keys()


def test_inputs_follow_the_paths():
    assert small().inputs == Inputs(("global",)) and not small(references=4).inputs.captions
    assert small(paths=("i2t",), references=4).inputs == Inputs(("global",), captions={"target": 4})
    assert small(paths=("t2i",)).inputs == Inputs(("global",), further=("pixels",))
    assert small(paths=("t2i",), feature="pixels").inputs == Inputs(("pixels",))
    for fields, message in (
        ({"measure": "cosine"}, r'No "cosine" of model\.measure'),
        ({"paths": ("t2t",)}, r'No "t2t" of model\.paths'),
        ({"reward": "meteor"}, "there are cider, bleu"),
        ({"paths": ("t2i",), "side": 20}, "not 20"),
    ):
        with pytest.raises(UsageError, match=message):
            jax.eval_shape(small(**fields).init, jax.random.key(0), batch_of())


# Rewards

WORDS = 7


def corpus(images=9, seed=3):
    """Captions of few words, so that they have n-grams in common: ragged numbers of references."""
    random = np.random.default_rng(seed)
    return [
        [random.integers(4, 4 + WORDS, random.integers(1, 9)) for _ in range(random.integers(1, 4))]
        for _ in range(images)
    ]


def padded(sentences, width):
    return np.stack([np.pad(s, (0, width - len(s))) for s in sentences]), np.array([len(s) for s in sentences])


def references_of(images, most, width):
    """[N, K, W], [N, K] and which count; the others repeat the first."""
    tokens_, lengths = zip(*(padded([*g, *[g[0]] * (most - len(g))], width) for g in images), strict=True)
    return np.stack(tokens_), np.stack(lengths), np.arange(most) < np.array([len(g) for g in images])[:, None]


def texts(sentences):
    return [" ".join(f"w{x}" for x in s) for s in sentences]


@pytest.mark.parametrize("seed", range(2))
def test_rewards_are_those_of_the_evaluation(seed):
    images = corpus(seed=seed)
    random = np.random.default_rng(seed + 10)
    said = [g[0] if i < 2 else random.integers(4, 4 + WORDS, i) for i, g in enumerate(images)]
    table = ngrams.count([c for g in images for c in g], np.repeat(np.arange(9), [len(g) for g in images]))
    expected = captions.score(texts(said), [texts(g) for g in images]).items
    for name, values in (("cider", expected.cider_d), ("bleu", expected.bleu[:, 3])):
        got = jax.jit(rewards.REWARDS[name])(*padded(said, 11), *references_of(images, 3, 10), table)
        np.testing.assert_allclose(got, values, rtol=1e-4, atol=1e-6)
    assert expected.cider_d.max() > 0.5 and len(np.unique(expected.cider_d)) > 5


def test_frequencies_count_images_and_leave_out_what_has_one():
    table = ngrams.count([np.array(x) for x in ([4, 5, 6, 4, 5], [4, 5], [5, 6], [4, 5, 9])], np.array([0, 0, 1, 2]))
    token = jnp.array([[4, 5, 6, 4, 5], [9, 5, 6, 0, 0]])
    found = ngrams.frequencies(table, token, rewards.places(token, jnp.array([5, 3])))
    assert np.asarray(found[0]).tolist() == [[2, 3, 2, 2, 3], [0, 3, 2, 0, 0]]
    assert np.asarray(found[1]).tolist() == [[2, 2, 0, 2, 0], [0, 2, 0, 0, 0]]
    assert not np.any(found[2:]) and table.images == 3
    nothing = ngrams.count([np.array([4])], np.array([0]))
    assert not np.any(ngrams.frequencies(nothing, token, token > 0))


def test_self_critical_gradient_is_the_formula():
    """Sentences drawn by the model, their probabilities word by word, and what they share with the references."""
    batch = batch_of()
    model = small(paths=("i2t",), references=1)
    variables = start(model, batch)
    sentences = [np.asarray(t[m][1:-1]) for t, m in zip(batch.text.token, batch.text.mask, strict=True)]
    others = [np.asarray(t[m][1:-1]) for t, m in zip(batch.target.token, batch.target.mask, strict=True)]
    batch = batch._replace(target=batch.target._replace(id=batch.target.id + 100))
    pairs = list(zip(sentences, others, strict=True))
    table = ngrams.count([c for pair in pairs for c in pair], np.repeat(np.arange(8), 2))
    variables = {**variables, "ngrams": jax.tree.map(jnp.asarray, table._asdict())}

    def loss(params):
        return run(model, {**variables, "params": params}, batch)[2]["self_critical"]

    got = jax.jit(jax.grad(loss))(variables["params"])
    # The same draw, from the model's own methods
    key: Any = model.apply({}, rngs={"dropout": jax.random.key(1)}, method=lambda m: m.make_rng("dropout"))
    key = jax.random.fold_in(key, 1)
    begin: Any
    word: Any
    (begin, word) = (partial(model.apply, variables, method=name) for name in ("begin", "word"))
    each = batch.image._replace(
        feature={"global": batch.image.feature["global"][batch.text.row]}, mask=np.ones((8, 1), bool)
    )
    drawn: Any = jax.jit(partial(generation.sample, begin, word, longest=5))(each, key=key)
    likely = jax.jit(partial(generation.greedy, begin, word, longest=5))(each)
    said, plain = ([np.asarray(t[:n]) for t, n in zip(s.token, s.length, strict=True)] for s in (drawn, likely))
    score = [captions.score(texts(x), [texts(pair) for pair in pairs]).items.cider_d for x in (said, plain)]
    advantage = score[0] - score[1]
    assert np.abs(advantage).max() > 0.05

    def formula(params):
        apply: Callable[..., Any] = partial(model.apply, {**variables, "params": params})
        spoken = np.stack([np.pad([*sentence, END][:5], (0, 5))[:5] for sentence in said])
        carry: Any
        logits: Any
        carry, last, total = apply(each, method="begin"), jnp.full(8, START), jnp.zeros(())
        for step in range(5):
            carry, logits = apply(carry, last, method="word")
            barred = np.array([0, 1, 3, *([END] if step == 0 else [])])
            probability = jax.nn.log_softmax(logits.at[:, barred].set(-1e30))
            last = jnp.asarray(spoken[:, step])
            total -= jnp.sum(jnp.where(last > 0, advantage * probability[jnp.arange(8), last], 0.0)) / 8
        return total

    expected = jax.jit(jax.grad(formula))(variables["params"])
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-5), got, expected)
    assert np.abs(got["decoder"]["project"]["kernel"]).max() > 1e-4
    assert np.abs(got["grounded_image"]["kernel"]).max() > 1e-5


def test_what_is_no_real_caption_has_no_reward():
    weight = jnp.array([1.0, 2.0, 3.0])
    value, gradient = jax.value_and_grad(tokens.self_critical)(
        weight, jnp.array([2.0, 1.0, 9.0]), jnp.array([1.0, 1.5, 0.0]), jnp.array([True, True, False])
    )
    assert value == pytest.approx(-(1.0 * 1.0 - 0.5 * 2.0) / 2)
    np.testing.assert_allclose(gradient, [-0.5, 0.25, 0.0])


# The adversarial network


def test_losses_are_those_of_ten_lines_of_numpy():
    true, fake, wrong = RANDOM.normal(size=(3, 5))
    real, differs = np.arange(5) < 4, np.arange(5) % 2 == 0
    d = [1 / (1 + np.exp(-x)) for x in (true, fake, wrong)]
    expected = -np.log(d[0][real]).mean() - 0.5 * np.log(1 - d[1][real]).mean() - 0.5 * np.log(1 - d[2][differs]).mean()
    np.testing.assert_allclose(adversarial.discrimination(true, fake, wrong, real, differs), expected, rtol=1e-5)
    np.testing.assert_allclose(adversarial.generation(fake, real), -np.log(d[1][real]).mean(), rtol=1e-5)
    mean, log_sigma = RANDOM.normal(size=(2, 5, 3))
    variance = np.exp(2 * log_sigma)
    kl = 0.5 * (mean**2 + variance - 1 - np.log(variance)).sum(1)
    np.testing.assert_allclose(adversarial.divergence(mean, log_sigma, real), kl[real].mean(), rtol=1e-5)


def test_each_loss_trains_its_own_player_alone():
    batch, model = batch_of(pixels=16), small(paths=("t2i",))
    variables = start(model, batch)

    def names(term):
        grads = jax.jit(jax.grad(lambda params: run(model, {"params": params}, batch)[2][term]))(variables["params"])
        flat = jax.tree_util.tree_leaves_with_path(grads)
        return {"/".join(str(k.key) for k in path) for path, leaf in flat if np.any(leaf)}

    everything = {"/".join(str(k.key) for k in p) for p, _ in jax.tree_util.tree_leaves_with_path(variables["params"])}
    players = {name for name in everything if name.startswith("imagination/discriminator/")}
    generator = {name for name in everything if name.startswith("imagination/")} - players
    encoder = {name for name in everything if name.startswith(("embed", "grounded_text"))}
    assert names("discrimination") == players and len(players) > 8
    assert names("generation") == generator | encoder and len(generator) > 6
    augment = {"imagination/augment/kernel", "imagination/augment/bias"}
    assert names("kl") == augment | encoder


def test_the_discriminator_meets_captions_of_other_images_alone():
    batch, model = batch_of(pixels=16), small(paths=("t2i",))
    variables = start(model, batch)
    (_, _, terms) = run(model, variables, batch)
    alone = batch._replace(text=batch.text._replace(image_id=np.zeros(8, np.int32)))
    without = run(model, variables, alone)[2]
    assert without["discrimination"] != terms["discrimination"] and without["generation"] == terms["generation"]
    more = jax.tree.map(lambda x: np.concatenate([x, x[:2]]), batch.text)
    for ids in (more.id, more.image_id):
        ids[8:] = -1
    # Noise is drawn for all rows at once, so only what does not depend on it stays equal
    grown = run(model, variables, batch._replace(text=more))[2]
    np.testing.assert_allclose(grown["kl"], terms["kl"], rtol=1e-5)


def test_pictures_are_made_smaller_and_sides_must_double():
    pixels = RANDOM.integers(0, 256, (2, 32, 32, 3), np.uint8)
    assert as_picture(pixels, 16).shape == (2, 16, 16, 3)
    np.testing.assert_allclose(as_picture(pixels, 32), pixels / 127.5 - 1, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(as_picture(pixels, 16).mean(), (pixels / 127.5 - 1).mean(), atol=0.02)
    assert [doublings(side) for side in (8, 16, 64)] == [1, 2, 4]


def test_it_draws_each_caption_by_its_noise():
    batch, model = batch_of(), small(paths=("t2i",))
    variables = start(model, batch)
    draw = jax.jit(partial(model.apply, variables, method="imagine"))
    one, again, other = (np.asarray(draw(batch.text, jax.random.key(k))) for k in (0, 0, 1))
    assert one.shape == (8, 16, 16, 3) and one.min() >= 0 and one.max() <= 1
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-4
    with pytest.raises(UsageError, match="makes no pictures"):
        batch_model = small()
        super(Model, batch_model).imagine(batch.text, jax.random.key(0))


# Configs


def test_variants_are_the_rows_of_the_ablation():
    models = {
        name: configs.load(f"gxn.py:{name},f30k").model for name in ("gru", "bigru", "gxn", "xe", "mix", "t2i", "both")
    }
    assert [m.dual for m in models.values()] == [False, False, True, True, True, True, True]
    assert [m.bidirectional for m in models.values()] == [False, *[True] * 6]
    assert [list(m.paths) for m in models.values()] == [[], [], [], ["i2t"], ["i2t"], ["t2i"], ["i2t", "t2i"]]
    assert [m.references for m in models.values()] == [0, 0, 0, 0, 4, 0, 4]
    stages = configs.load("gxn.py:both,f30k").stages
    assert stages[0]["weights"]["generation"] == 0 and stages[1]["weights"]["rank"] == 0
    assert stages[2]["weights"] == {"captioning": 0.5, "self_critical": 0.5} and stages[2]["optim"]["lr"] == 2e-5


# Runs


def test_two_devices_that_hold_their_own_rows_equal_one():
    model, batch = small(paths=("i2t",)), batch_of()
    objective = Objective(losses.triplet, {"margin": 0.2, "hardness": 0.0}, {"rank": 1.0, "captioning": 1.0})
    options = {"model": model, "objective": objective, "optimiser": optax.identity(), "stage_start": 0}
    params, results = jax.device_get(start(model, batch)["params"]), []
    for runner in (parallel.jit_runner(jax.devices()[:1]), parallel.pmap_runner(jax.devices()[:2])):
        state = make_state(Initial(params, {}), optax.identity(), 0, 0.0)
        step = runner.compile(partial(train_step, **options))
        new, _ = step(runner.put_state(state), runner.put_batch(batch))
        results.append(jax.device_get(runner.get_state(new).params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, atol=1e-5 * max(1.0, np.abs(a).max())), *results)


def test_idle_losses_are_neither_computed_nor_logged():
    batch, model = batch_of(pixels=16), small(paths=("t2i",))
    variables = start(model, batch)
    weights = {"rank": 1.0, "discrimination": 0.0, "generation": 0.0, "kl": 0.0}

    def metrics(**other):
        objective = Objective(losses.triplet, {"margin": 0.2, "hardness": 0.0}, {**weights, **other})
        rest = (model, objective, {}, batch, jnp.zeros((), jnp.int32), jax.random.key(0))
        return jax.eval_shape(lambda params: loss_fn(params, *rest), variables["params"])[1][0]

    assert "discrimination" not in metrics() and "kl" not in metrics()
    assert {"discrimination", "generation", "kl"} <= metrics(generation=1.0).keys()


def test_a_run_draws_what_it_imagines_and_reads_no_pictures_after_training(tmp_path, capsys):
    data = planted(tmp_path / "set", train=12, other=4, pictures=True)
    tiny = ["--config.stages=()", "--config.steps=1", "--config.log.every_steps=1"]
    assert train("gxn.py:t2i", data, tmp_path / "run", *tiny) == 0
    run_ = Run(tmp_path / "run")
    assert list(run_.facts.image) == ["region"]  # evaluation, bundles and the service ask for no pictures
    capsys.readouterr()
    assert cli.run(["show", str(tmp_path / "run"), "--imagined", str(tmp_path / "a.png")]) == 0
    assert "8 captions of dev" in capsys.readouterr().out and (tmp_path / "a.png").stat().st_size > 10_000
    made = imagined.imagine(run_, run_.variables(1)[0], "test", np.array([0, 5, 7]), 2, 0)
    assert made.shape == (3, 2, 16, 16, 3) and np.abs(made[:, 0] - made[:, 1]).max() > 1e-4

    bare = planted(tmp_path / "bare", train=12, other=4)
    assert train("gxn.py:t2i", bare, tmp_path / "refused", *tiny) == 3
    assert "has no pictures, and the system reads pixels; add them" in capsys.readouterr().err


def test_a_run_rewards_by_the_n_grams_of_its_training_captions(tmp_path, capsys):
    data = planted(tmp_path / "set", train=12, other=4)
    assert train("gxn.py:mix", data, tmp_path / "run", "--config.stages=()", "--config.steps=1") == 0
    state = Checkpoints(tmp_path / "run", read_only=True).restore_model(1)["model_state"]["ngrams"]
    split = open_dataset(data).split("train")
    words = Run(tmp_path / "run").vocabulary
    assert words is not None
    images = [{word for text in group for word in text.split()} for group in split.captions]
    frequency = {word: sum(word in image for image in images) for word in set().union(*images)}
    kept = {words.encode(word)[1]: count for word, count in frequency.items() if count > 1}
    alone = state["prefix"] == -1
    assert dict(zip(state["word"][alone].tolist(), state["frequency"][alone].tolist(), strict=True)) == kept
    assert state["images"] == 12 and (~alone).sum() > 10
    assert cli.run(["show", str(tmp_path / "run"), "--imagined", str(tmp_path / "a.png")]) == 2
    assert "makes no pictures of captions" in capsys.readouterr().err
