"""SCO's order learning against a NumPy LSTM; what is shared; scheduled sampling; sentences; devices; verbs; configs."""

import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import planted

from xmodal_jax import cli, losses
from xmodal_jax import config as configs
from xmodal_jax.errors import UsageError
from xmodal_jax.models import sco
from xmodal_jax.models.sco_order import Model
from xmodal_jax.text.generation import Decoding, generate
from xmodal_jax.text.vocabulary import END, START
from xmodal_jax.training import parallel
from xmodal_jax.training.optim import path_name
from xmodal_jax.training.step import Initial, Objective, make_state, train_step
from xmodal_jax.types import Batch, Images, Texts

SHARED = {"share_lstm": True, "share_words": True}
VOCABULARY = 11


def example(images=4, captions=2, width=6, seed=0) -> Any:
    """Images of concepts and a context, and captions of random words."""
    random = np.random.default_rng(seed)
    count = images * captions
    length = random.integers(3, width + 1, count)
    mask = np.arange(width) < length[:, None]
    token = random.integers(4, VOCABULARY, (count, width))
    token[:, 0] = START
    token[np.arange(count), length - 1] = END
    row = np.repeat(np.arange(images, dtype=np.int32), captions)
    feature = {"concept": random.random((images, 6)), "global": random.normal(size=(images, 5))}
    feature = {name: value.astype(np.float32) for name, value in feature.items()}
    texts = Texts(np.where(mask, token, 0).astype(np.int32), mask, row, row, np.arange(count, dtype=np.int32))
    return Batch(Images(feature, np.ones((images, 1), bool), np.arange(images, dtype=np.int32)), texts)


def small(**fields):
    return Model(VOCABULARY, **{"embed_dim": 8, "word_dim": 4, **fields})


@partial(jax.jit, static_argnums=0)
def initial(model, batch):
    return model.init({"params": jax.random.key(1), "dropout": jax.random.key(2)}, batch)


@partial(jax.jit, static_argnums=0, static_argnames="train")
def generation(model, variables, batch, key=None, *, train=False):
    """(L_gen, the captions' mean, the variables that changed)."""
    rngs = {} if key is None else {"dropout": key}
    (_, terms), new = model.apply(variables, batch, train=train, rngs=rngs, mutable=["sampling"])
    return terms["captioning"], new


def typed(function: Any) -> Any:
    """For the type checker, which does not know what `apply` returns."""
    return function


def named(tree):
    return {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class Loop:
    """The decoder in NumPy, one caption and one word at a time."""

    def __init__(self, model, variables):
        params = named(variables["params"])
        lstm = "text_encoder/forward" if model.share_lstm else "decoder/lstm"
        table = "text_encoder/embed/embedding" if model.share_words else "embed/embedding"
        self.input, self.recurrent, self.bias = (params[f"{lstm}/{name}"] for name in ("input", "recurrent", "bias"))
        self.kernel, self.offset = params["decoder/project/kernel"], params["decoder/project/bias"]
        self.table, self.params, self.start = params[table], params, model.start

    def first(self, v):
        zeros = np.zeros_like(self.recurrent[:, 0])
        if self.start == "state":
            return v, zeros
        word = v @ self.params["decoder/enter/kernel"] + self.params["decoder/enter/bias"]
        return self.step((zeros, zeros), word)

    def step(self, state, word):
        hidden, cell = state
        into, forget, new, out = np.split(word @ self.input + hidden @ self.recurrent + self.bias, 4)
        cell = sigmoid(forget) * cell + sigmoid(into) * np.tanh(new)
        return sigmoid(out) * np.tanh(cell), cell

    def log_p(self, v, words):
        """Log-probabilities [T, V] after each of the words."""
        state, rows = self.first(v), []
        for word in words:
            state = self.step(state, self.table[word])
            logits = state[0] @ self.kernel + self.offset
            rows.append(logits - logits.max() - np.log(np.exp(logits - logits.max()).sum()))
        return np.array(rows)

    def loss(self, v, batch, read=None):
        total = 0.0
        for c, (token, mask) in enumerate(zip(batch.text.token, batch.text.mask, strict=True)):
            words = token[mask]
            inputs = words[:-1] if read is None else np.asarray(read)[c, : len(words) - 1]
            log_p = self.log_p(np.asarray(v)[batch.text.row[c]], inputs)
            total -= sum(row[word] for row, word in zip(log_p, words[1:], strict=True))
        return total / len(batch.text.id)


def fused(model, variables, image):
    return np.asarray(model.apply(variables, image, method="fuse"))


@pytest.mark.parametrize(
    "fields",
    [{}, {"start": "input"}, SHARED, {**SHARED, "start": "input"}, {"share_words": True, "fusion": "context"}],
    ids=["alone", "input", "shared", "shared_input", "words"],
)
def test_generation_is_the_log_likelihood_of_the_caption_of_the_image(fields):
    model, batch = small(**fields), example()
    variables = initial(model, batch)
    v = fused(model, variables, batch.image)
    if model.fusion == "gate":  # it is v that speaks, not the unit vector that is compared
        assert np.abs(np.linalg.norm(v, axis=1) - 1).min() > 1e-3
    got, _ = generation(model, variables, batch)
    assert float(got) == pytest.approx(Loop(model, variables).loss(v, batch), rel=1e-5)


def test_a_decoder_adds_to_the_matching_half_and_changes_nothing_of_it():
    batch = example()
    half = sco.Model(VOCABULARY, embed_dim=8, word_dim=4)
    before, after = named(half.init(jax.random.key(1), batch)), named(initial(small(), batch))
    added = {"embed/embedding", *(f"decoder/lstm/{x}" for x in ("input", "recurrent", "bias"))}
    added |= {"decoder/project/kernel", "decoder/project/bias"}
    assert set(after) - set(before) == {f"params/{name}" for name in added}
    assert not half.has("begin") and not half.has("aux") and small().has("begin")
    variables = initial(small(), batch)
    rest = {name: variables["params"][name] for name in variables["params"] if name not in ("embed", "decoder")}
    scores, aux = half.apply({"params": rest}, batch)
    assert aux == {}
    np.testing.assert_array_equal(small().apply(variables, batch)[0], scores)


@pytest.mark.parametrize("shares", [(), ("share_lstm",), ("share_words",)])
def test_parameters_that_are_shared_have_the_gradients_of_both(shares):
    model, batch = small(**dict.fromkeys(shares, True)), example()
    params, apply = initial(model, batch)["params"], typed(model.apply)

    def terms(params):
        scores, aux = apply({"params": params}, batch)
        positive = np.arange(4)[:, None] == batch.text.row
        return jnp.stack([losses.triplet(scores, positive, margin=0.2, hardness=0.0), aux["captioning"]])

    both = jax.jit(jax.jacrev(terms))(params)
    rank, said = (named(jax.tree.map(lambda x, i=i: x[i], both)) for i in range(2))
    names = {"share_lstm": "text_encoder/forward/recurrent", "share_words": "text_encoder/embed/embedding"}
    for field, name in names.items():
        assert np.abs(rank[name]).max() > 0
        assert (np.abs(said[name]).max() > 0) == (field in shares)
    assert ("decoder/lstm/input" in said) == ("share_lstm" not in shares)
    assert ("embed/embedding" in said) == ("share_words" not in shares)
    for image_map in ("concept_map/kernel", "context_map/kernel", "concept_gate/kernel", "context_gate/kernel"):
        assert np.abs(said[image_map]).max() > 0  # order learning teaches the image side


def steep(variables):
    """Parameters that the words move, with logits so far apart that every draw is the most likely word."""
    random = np.random.default_rng(3)
    params = {**jax.tree.map(lambda x: 2 * random.normal(size=x.shape).astype(x.dtype), variables["params"])}
    params["decoder"] = {**params["decoder"], "project": jax.tree.map(lambda x: 1e4 * x, params["decoder"]["project"])}
    return {**variables, "params": params}


@partial(jax.jit, static_argnums=0)
def drawn(model, variables, batch, key):
    v = model.apply(variables, batch.image, method="fuse")[batch.text.row]
    token, valid = jnp.asarray(batch.text.token)[:, :-1], jnp.asarray(batch.text.mask)[:, 1:]
    return model.apply(variables, v, token, valid, method="sampled", rngs={"dropout": key})


def test_sampling_with_probability_0_is_teacher_forcing():
    batch, key = example(), jax.random.key(5)
    variables = initial(small(), batch)
    expected, _ = generation(small(), variables, batch)
    for model in (small(sampling=0.0), small(sampling=1e-30)):  # nothing is drawn, and all draws are turned down
        assert float(generation(model, variables, batch, key, train=True)[0]) == float(expected)


@pytest.mark.parametrize("fields", [{}, {**SHARED, "start": "input"}])
def test_sampling_with_probability_1_reads_the_words_of_the_decoder(fields):
    model, batch, key = small(sampling=1.0, **fields), example(), jax.random.key(5)
    variables = steep(initial(model, batch))
    read = np.asarray(drawn(model, variables, batch, key))
    loop, v = Loop(model, variables), fused(model, variables, batch.image)
    for c, said in enumerate(read):
        length = batch.text.mask[c].sum() - 1
        assert said[0] == START
        assert said[1:length].tolist() == loop.log_p(v[batch.text.row[c]], said[: length - 1]).argmax(1).tolist()
    real = batch.text.mask[:, 2:]
    assert (read[:, 1:] != batch.text.token[:, 1:-1])[real].any() and len(set(read[:, 1:][real])) > 2


def test_the_loss_of_sampled_words_is_that_of_reading_them():
    """It and its gradients; the words to say stay the caption's; the key decides; at evaluation nothing is drawn."""
    model, batch = small(sampling=0.6), example()
    variables = initial(model, batch)

    def loss(params, key):
        return generation(model, {"params": params}, batch, key, train=True)[0]

    def reading(params, read):
        def terms(model):
            v, token = model.fuse(batch.image)[batch.text.row], batch.text.token
            log_p = jax.nn.log_softmax(model.decoder(v, model.embed(read), batch.text.mask[:, 1:]))
            picked = jnp.take_along_axis(log_p, token[:, 1:, None], axis=2)[..., 0]
            return -jnp.sum(jnp.where(batch.text.mask[:, 1:], picked, 0.0)) / len(token)

        return model.apply({"params": params}, method=terms)

    with_key = jax.jit(jax.value_and_grad(loss))
    first, again, other = (with_key(variables["params"], jax.random.key(k)) for k in (5, 5, 6))
    assert float(first[0]) == float(again[0]) != float(other[0])
    plain = float(generation(model, variables, batch)[0])
    assert plain == pytest.approx(Loop(model, variables).loss(fused(model, variables, batch.image), batch), rel=1e-5)
    read = drawn(model, variables, batch, jax.random.key(5))
    value, grads = jax.jit(jax.value_and_grad(reading))(variables["params"], read)
    v = fused(model, variables, batch.image)
    assert float(value) == pytest.approx(Loop(model, variables).loss(v, batch, read), rel=1e-5)
    assert float(first[0]) == pytest.approx(float(value), rel=1e-5)
    for name, grad in named(grads).items():
        np.testing.assert_allclose(named(first[1])[name], grad, atol=1e-5)


def test_the_share_of_drawn_words_rises_with_the_steps():
    model, batch = small(sampling=1.0, sampling_steps=4), example(images=40, width=12)
    variables = initial(model, batch)
    assert variables["sampling"]["steps"] == 0
    real = batch.text.mask[:, 2:]
    for steps, share in ((0, 0.0), (2, 0.5), (4, 1.0), (9, 1.0)):
        at = {**variables, "sampling": {"steps": jnp.asarray(steps, jnp.int32)}}
        read = np.asarray(drawn(model, at, batch, jax.random.key(3)))
        kept = (read[:, 1:] == batch.text.token[:, 1:-1])[real].mean()
        by_chance = 1 / VOCABULARY  # of a drawn word, before any training
        assert kept == pytest.approx(1 - share * (1 - by_chance), abs=0.06)
        _, new = generation(model, at, batch, jax.random.key(3), train=True)
        assert new["sampling"]["steps"] == steps + 1


@pytest.mark.parametrize("fields", [{}, {**SHARED, "start": "input"}])
def test_greedy_sentences_are_the_most_likely_words_of_teacher_forcing(fields):
    model, batch = small(**fields), example()
    variables = initial(model, batch)
    begin, word = (partial(typed(model.apply), variables, method=name) for name in ("begin", "word"))
    said = jax.jit(partial(generate, begin, word, decoding=Decoding(longest=7)))(batch.image)
    loop, v = Loop(model, variables), fused(model, variables, batch.image)
    for item, length in enumerate(np.asarray(said.length)):
        tokens = np.asarray(said.token)[item, :length]
        log_p = loop.log_p(v[item], [START, *tokens])
        allowed = np.where(np.isin(np.arange(VOCABULARY), (0, START, 3)), -np.inf, log_p)
        allowed[0, END] = -np.inf
        assert tokens.tolist() == allowed[:length].argmax(1).tolist()
        if length < 7:
            assert allowed[length].argmax() == END


def test_padding_does_not_matter():
    model, batch = small(), example()
    variables = initial(model, batch)
    expected = float(generation(model, variables, batch)[0])
    text = batch.text
    wide = text._replace(
        token=np.pad(np.where(text.mask, text.token, 9), ((0, 0), (0, 3)), constant_values=7),
        mask=np.pad(text.mask, ((0, 0), (0, 3))),
    )
    more = jax.tree.map(lambda x: np.concatenate([x, x[:2]]), text)
    more.id[8:], more.row[8:] = -1, 0
    for changed in (wide, more):
        assert float(generation(model, variables, batch._replace(text=changed))[0]) == pytest.approx(expected, rel=1e-5)
    nothing = text._replace(id=np.full(8, -1))
    assert float(generation(model, variables, batch._replace(text=nothing))[0]) == 0
    sampling = small(sampling=1.0)
    real = text.mask[:, 1:]
    key = jax.random.key(0)
    narrow, widened = (np.asarray(drawn(sampling, steep(variables), batch._replace(text=t), key)) for t in (text, wide))
    np.testing.assert_array_equal(widened[:, :5][real], narrow[real])


def test_two_devices_that_hold_their_own_rows_equal_one():
    model, batch = small(), example()
    objective = Objective(losses.triplet, {"margin": 0.2, "hardness": 0.0}, {"rank": 1.0, "captioning": 1.0})
    options = {"model": model, "objective": objective, "optimiser": optax.identity(), "stage_start": 0}
    results = []
    for runner in (parallel.jit_runner(jax.devices()[:1]), parallel.pmap_runner(jax.devices()[:2])):
        state = make_state(Initial(initial(model, batch)["params"], {}), optax.identity(), 0, 0.0)
        step = runner.compile(partial(train_step, **options))
        new, _ = step(runner.put_state(state), runner.put_batch(batch))
        results.append(named(jax.device_get(runner.get_state(new).params)))
    for name, value in results[0].items():
        np.testing.assert_allclose(results[1][name], value, atol=1e-5 * max(1.0, np.abs(value).max()))


def test_what_cannot_be_is_refused():
    batch = example()
    cases = {
        'shares parameters with an LSTM alone, and model.text is "gru"': {"share_words": True, "text": "gru"},
        'No start "middle" of a decoder; there are state, input': {"start": "middle"},
    }
    for message, fields in cases.items():
        with pytest.raises(UsageError, match=message):
            jax.eval_shape(small(**fields).init, jax.random.key(0), batch)
    with pytest.raises(UsageError, match="SCO speaks of images alone"):
        jax.eval_shape(partial(small().apply, method="begin"), initial(small(), batch), batch.text)
    gru = small(text="gru", sampling=0.5)  # a decoder of its own parameters goes with any sentence encoder
    assert np.isfinite(generation(gru, initial(gru, batch), batch, jax.random.key(0), train=True)[0])


def test_configs():
    fields = {"sco": {}, "shared": SHARED, "sampling": {"sampling": 0.25, "sampling_steps": 10_000}}
    for variant, expected in fields.items():
        config = configs.load(f"sco.py:{variant},f8k")
        model = {**dict.fromkeys(SHARED, False), "sampling": 0.0, "sampling_steps": 0, "start": "state", **expected}
        assert {key: config.model[key] for key in model} == model
        assert (config.model.name, config.model.fusion) == ("sco_order", "gate")
        assert config.weights.to_dict() == {"rank": 1.0, "captioning": 1.0}
    assert configs.load("sco.py").model.name == "sco_order"
    assert configs.load("sco.py:gate,f8k").weights.to_dict() == {"rank": 1.0}


@pytest.mark.usefixtures("one_device")
def test_verbs_let_it_speak_of_images(tmp_path, capsys):
    """eval, caption by the run and by its bundle; a paraphrase is refused in one sentence."""
    data = planted(tmp_path / "data", train=20, other=4)
    assert cli.run(["data", "concepts", str(data), "--count", "8", "--epochs", "1"]) == 0
    run, bundle = str(tmp_path / "run"), str(tmp_path / "bundle")
    argv = ["train", "--config", "sco.py:sco,scenes,tiny", "--data", str(data), "--workdir", run, "--config.steps=4"]
    assert cli.run([*argv, "--config.data.minimum_count=1", "--config.data.batch_size=8"]) == 0
    assert cli.run(["eval", "--workdir", run, "--json", str(tmp_path / "table.json")]) == 0
    assert set(json.loads((tmp_path / "table.json").read_text())["sentences"]) == {"captioning"}
    assert cli.run(["export", "--workdir", run, "--out", bundle]) == 0
    said = []
    for source in (["--workdir", run], ["--bundle", bundle, "--data", str(data)]):
        file = tmp_path / "said.json"
        assert cli.run(["caption", *source, "--split", "test", "--json", str(file)]) == 0
        said.append(json.loads(file.read_text()))
    assert said[0] == said[1] and all(pair["sentence"] for pair in said[0])
    capsys.readouterr()
    assert cli.run(["paraphrase", "--bundle", bundle, "red0 dog1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "does not speak of sentences, it does of the other kind of item (begin_image)" in line
