"""STT against arrays of the original TensorFlow code: embeddings, logits, losses, gradients, clipping, an Adam step,
greedy sentences, with attention and without; then, of the system without, padding, devices, layers, both cells, and a
speaker that learns four captions."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import GOLDEN

from xmodal_jax import config, losses
from xmodal_jax.errors import UsageError
from xmodal_jax.models import stt_att
from xmodal_jax.models.stt import Model
from xmodal_jax.text.generation import Decoding, generate
from xmodal_jax.text.vocabulary import END, START
from xmodal_jax.training import parallel
from xmodal_jax.training.optim import clip_by_tensor_norm, path_name
from xmodal_jax.training.step import Initial, Objective, make_state, train_step
from xmodal_jax.types import Batch, Images, Inputs, Texts

SEQ = "dynamic_seq2seq"
COMMON = {  # our parameter -> the original's name
    "image_encoder/kernel": "image_embedding/weights",
    "image_encoder/bias": "image_embedding/biases",
    "embed/embedding": "embeddings/embedding_share",
    "decoder/project/kernel": f"{SEQ}/decoder/output_projection/kernel",
}
PROJECTION = {"text_projection/kernel": "text_embedding/weights", "text_projection/bias": "text_embedding/biases"}
DECODER = {"decoder/gru/layer_0": "decoder/multi_rnn_cell/cell_0/gru_cell"}
GRUS = {
    "stt": {"text_encoder/layer_0": "encoder/rnn/multi_rnn_cell/cell_0/gru_cell", **DECODER},
    "stt_att": {
        "text_encoder/forward": "bidirectional_rnn/fw/fwd_gru",
        "text_encoder/backward": "bidirectional_rnn/bw/bwd_gru",
        **DECODER,
    },
}
# The norm that the original clips the word table by, over that of its whole gradient
SHARED = {"stt": 2.449 / 2.565, "stt_att": 0.907}


def names_of(system):
    cells = {
        f"{ours}/{gate}_{kind}": f"{SEQ}/{theirs}/{gate}/{kind}"
        for ours, theirs in GRUS[system].items()
        for gate in ("gates", "candidate")
        for kind in ("kernel", "bias")
    }
    return COMMON | cells | (PROJECTION if system == "stt" else {})


# The original's ids 0 <unk>, 1 <s>, 2 </s>, 3 the first word: ours but for <unk>, which changes places with that word.
OURS = np.arange(24)
OURS[[0, 3]] = 3, 0


def close(got, expected, tolerance=1e-5):
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * max(1.0, np.abs(expected).max()))


def ours(name, array):
    """An array of the original in our order of ids."""
    if name == "embed/embedding":
        return array[OURS]
    return array[:, OURS] if name == "decoder/project/kernel" else array


def named(tree):
    return {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def texts(token, length, rows):
    mask = np.arange(token.shape[1]) < np.asarray(length)[:, None]
    return Texts(np.where(mask, token, 0).astype(np.int32), mask, rows, rows, rows)


class Golden:
    """The batch, the parameters and the results of the original "stt" or "stt_att"."""

    def __init__(self, system):
        self.arrays, self.system, self.names = np.load(GOLDEN / "stt.npz"), system, names_of(system)
        self.options = json.loads(str(self.arrays["meta"]))["options"]
        self.params = {}
        for path, name in self.names.items():
            *parents, last = path.split("/")
            node = self.params
            for key in parents:
                node = node.setdefault(key, {})
            node[last] = jnp.asarray(ours(path, self["w/" + name]))
        rows = np.arange(6, dtype=np.int32)
        said = OURS[self.arrays["in/decoder_input_id"]], OURS[self.arrays["in/decoder_target_id"]]
        target = np.concatenate([said[0][:, :1], said[1]], axis=1)
        self.model = {"stt": Model, "stt_att": stt_att.Model}[system](24, embed_dim=8, word_dim=6)
        self.batch: Any = Batch(
            Images({self.model.feature: self["in/image"]}, np.ones((6, 1 if system == "stt" else 5), bool), rows),
            texts(OURS[self.arrays["in/encoder_id"]], self.arrays["in/encoder_length"], rows),
            texts(target, self.arrays["in/decoder_length"] + 1, rows),
        )

    def __getitem__(self, name):
        return self.arrays[f"{self.system}/{name}"]


@pytest.fixture(scope="module", params=["stt", "stt_att"])
def golden(request):
    return Golden(request.param)


def total(params, model, batch, options):
    """(loss, (scores, terms)) with the published weights."""
    scores, aux = model.apply({"params": params}, batch, train=True)
    rank = losses.triplet(scores, np.eye(len(scores), dtype=bool), margin=options["margin"], hardness=1)
    terms = {"rank": rank, **aux}
    weights = dict(zip(("rank", "captioning", "paraphrasing"), options["weights"], strict=True))
    return sum(weights[name] * term for name, term in terms.items()), terms


@pytest.fixture(scope="module")
def stepped(golden):
    """(loss, terms), gradients of the parameters and the image."""

    @partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def run(params, feature):
        batch = golden.batch._replace(image=golden.batch.image._replace(feature={golden.model.feature: feature}))
        return total(params, golden.model, batch, golden.options)

    return jax.jit(run)(golden.params, golden["in/image"])


def test_names_are_all_parameters(golden):
    variables = jax.eval_shape(golden.model.init, jax.random.key(0), golden.batch)
    assert named(jax.tree.map(lambda x: np.zeros(x.shape), variables["params"])).keys() == golden.names.keys()


def test_embeddings_scores_and_logits(golden):
    @jax.jit
    def run(params, batch):
        bound = golden.model.bind({"params": params})
        (image, seen), (text, read) = (
            bound.encode_image(batch.image, train=False),
            bound.encode_text(batch.text, train=False),
        )
        words, mask = bound.embed(batch.target.token[:, :-1]), batch.target.mask[:, 1:]
        logits = [bound.decoder(start, words, mask) for start in (seen, read)]
        return image, text, seen, read, bound.score(image, text), logits

    image, text, seen, read, scores, logits = jax.tree.map(np.asarray, run(golden.params, golden.batch))
    close(seen, golden["out/image"])
    close(read, golden["out/text"])
    if golden.system == "stt":
        close(scores, golden["out/image"] @ golden["out/text"].T)
    else:
        close(image["region"].feature, golden["out/region"])
        words = golden["out/word"][golden.batch.text.mask]  # before they are normalised
        close(text["word"].feature[golden.batch.text.mask], words / np.linalg.norm(words, axis=-1, keepdims=True))
        close(scores, golden["out/score"])
    mask = golden.batch.target.mask[:, 1:]
    for name, got in zip(("image", "text"), logits, strict=True):
        close(got[mask], golden[f"out/{name}_logits"].swapaxes(0, 1)[..., OURS][mask])


def test_losses_and_gradients(golden, stepped):
    (loss, terms), (grads, feature) = stepped
    for name, theirs in {"captioning": "caption", "paraphrasing": "paraphrase", "rank": "sim"}.items():
        close(terms[name], golden[f"loss/{theirs}"], 2e-5)
    close(loss, golden["loss/total"], 2e-5)
    for path, grad in named(grads).items():
        close(grad, ours(path, golden[f"grad/{golden.names[path]}"]), 5e-5)
    close(feature, golden["grad/in/image"], 5e-5)


def test_each_tensor_is_clipped_by_itself(golden, stepped):
    _, (grads, _) = stepped
    limit = golden.options["clip"]
    clipped, _ = clip_by_tensor_norm(limit).update(grads, optax.EmptyState())
    for path, grad in named(clipped).items():
        expected = ours(path, golden[f"clipped/{golden.names[path]}"])
        if path == "embed/embedding":  # the original adds up the squares of a word's gradients before the gradients
            factor = golden[f"clip_norm/{golden.names[path]}"] / np.linalg.norm(named(grads)[path])
            assert factor == pytest.approx(SHARED[golden.system], abs=1e-3)
            grad = grad / factor
        else:
            assert np.linalg.norm(named(grads)[path]) == pytest.approx(
                golden[f"clip_norm/{golden.names[path]}"], rel=1e-4
            )
        close(grad, expected, 5e-5)


def test_one_adam_step(golden, stepped):
    _, (grads, _) = stepped
    rate = golden.options["lr"]
    # TensorFlow adds its epsilon of 1e-8 before the second moment's bias is corrected
    adam = optax.adam(rate, eps=1e-8 / np.sqrt(1 - 0.999))
    optimiser = optax.chain(clip_by_tensor_norm(golden.options["clip"]), adam)
    updates, _ = optimiser.update(grads, optimiser.init(golden.params), golden.params)
    for path, new in named(optax.apply_updates(golden.params, updates)).items():
        sure = np.abs(ours(path, golden[f"clipped/{golden.names[path]}"])) > 1e-5
        assert sure.any()
        np.testing.assert_allclose(
            new[sure], ours(path, golden[f"step/{golden.names[path]}"])[sure], rtol=0, atol=1e-2 * rate
        )


def speak(model, params, source, decoding):
    functions = (partial(model.apply, {"params": params}, method=name) for name in ("begin", "word"))
    return jax.jit(partial(generate, *functions, decoding=decoding))(source)


@pytest.mark.parametrize("side", ["image", "text"])
def test_greedy_sentences(golden, side):
    """The original goes on after </s> until all have ended; its sentences end at the first."""
    said = speak(golden.model, golden.params, getattr(golden.batch, side), Decoding(longest=20))
    theirs = OURS[golden[f"greedy/{side}"].T]
    theirs = np.pad(theirs, ((0, 0), (0, 20 - theirs.shape[1])), constant_values=END)
    theirs = np.where(np.cumsum(theirs == END, axis=1) > 0, 0, theirs)
    np.testing.assert_array_equal(said.token, theirs)
    np.testing.assert_array_equal(said.length, (theirs > 0).sum(1))


@pytest.mark.parametrize("absolute", ["", "_abs"])
def test_similarity_loss_alone(absolute):
    """Without mining the original leaves the diagonal in, which adds the margin once a pair and direction."""
    arrays = np.load(GOLDEN / "stt.npz")
    image, text = (np.abs(x) if absolute else x for x in (arrays["sim/in/image"], arrays["sim/in/text"]))
    positive, margin = np.eye(7, dtype=bool), json.loads(str(arrays["meta"]))["options"]["margin"]
    hardest, plain = (losses.triplet(image @ text.T, positive, margin=margin, hardness=h) for h in (1, 0))
    close(hardest, arrays[f"sim/cosine{absolute}/hardest/total"], 2e-5)
    close(plain + 2 * 7 * margin, arrays[f"sim/cosine{absolute}/all_with_diagonal/total"], 2e-5)


def example(images=4, captions=2, width=6, vocabulary=12, seed=0) -> Any:
    """Aligned images, captions and targets of random words."""
    random = np.random.default_rng(seed)
    count = images * captions
    row = np.repeat(np.arange(images, dtype=np.int32), captions)

    def random_texts():
        length = random.integers(3, width + 1, count)
        token = random.integers(4, vocabulary, (count, width))
        token[:, 0] = START
        token[np.arange(count), length - 1] = END
        return texts(token, length, np.arange(count, dtype=np.int32))._replace(row=row, image_id=row)

    feature = random.normal(size=(images, 5)).astype(np.float32)
    image = Images({"global": feature}, np.ones((images, 1), bool), np.arange(images, dtype=np.int32))
    return Batch(image, random_texts(), random_texts())


def small(**fields):
    return Model(12, **{"embed_dim": 8, "word_dim": 5, **fields})


def initial(model, batch):
    return jax.jit(model.init)(jax.random.key(0), batch)["params"]


@partial(jax.jit, static_argnums=0)
def terms_of(model, params, batch):
    return model.apply({"params": params}, batch)[1]


@partial(jax.jit, static_argnums=0)
def begin(model, params, source):
    return model.apply({"params": params}, source, method="begin")


@partial(jax.jit, static_argnums=0)
def spell(model, params, carry, token):
    """Logits [N, T, V] a word at a time."""

    def step(carry, word):
        return model.apply({"params": params}, carry, word, method="word")

    return jnp.swapaxes(jax.lax.scan(step, carry, token.T)[1], 0, 1)


@pytest.mark.parametrize("cell", ["tensorflow", "pytorch"])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_word_at_a_time_gives_the_logits_of_teacher_forcing(cell, layers):
    batch, model = example(), small(cell=cell, layers=layers)
    params = initial(model, batch)

    def force(params, vector, token):
        bound = model.bind({"params": params})
        return bound.decoder(vector, bound.embed(token), jnp.ones(token.shape, bool))

    assert {f"layer_{i}" for i in range(layers)} == params["decoder"]["gru"].keys() == params["text_encoder"].keys()
    for source in (batch.image, batch.text):
        carry = begin(model, params, source)
        assert [state.shape for state in carry] == [(len(source.id), 8 // layers)] * layers
        vector = np.concatenate(carry, axis=1)
        np.testing.assert_allclose(np.linalg.norm(vector, axis=1), 1.0, rtol=1e-5)
        token = batch.target.token[: len(vector)]
        forced = jax.jit(force)(params, vector, token)
        np.testing.assert_allclose(spell(model, params, carry, token), forced, atol=1e-5)


def test_further_captions_are_spoken_of_the_right_image_and_caption():
    """Each term from the definitions: sums over tokens, means over captions."""
    batch, model = example(), small()
    params = initial(model, batch)
    aux = terms_of(model, params, batch)
    image, text = (begin(model, params, source)[0] for source in (batch.image, batch.text))
    token, mask = batch.target.token, batch.target.mask
    for name, state in (("captioning", image[batch.text.row]), ("paraphrasing", text)):
        log_p = np.asarray(jax.nn.log_softmax(spell(model, params, (state,), token[:, :-1])))
        word_log_p = np.take_along_axis(log_p, token[:, 1:, None], axis=2)[..., 0]
        assert float(aux[name]) == pytest.approx(-word_log_p[mask[:, 1:]].sum() / 8, rel=1e-5)


def test_padding_does_not_count():
    batch, model = example(), small()
    params = initial(model, batch)
    expected = terms_of(model, params, batch)
    wide = batch.target._replace(
        token=np.pad(np.where(batch.target.mask, batch.target.token, 9), ((0, 0), (0, 3)), constant_values=7),
        mask=np.pad(batch.target.mask, ((0, 0), (0, 3))),
    )
    again = terms_of(model, params, batch._replace(target=wide))
    more = jax.tree.map(lambda x: np.concatenate([x, x[:2]]), batch)
    more.text.id[8:], more.target.id[8:], more.text.row[8:] = -1, -1, 0
    padded = terms_of(model, params, more)
    nothing = batch._replace(text=batch.text._replace(id=np.full(8, -1)))
    for name, value in expected.items():
        assert float(again[name]) == pytest.approx(float(value), rel=1e-5)
        assert float(padded[name]) == pytest.approx(float(value), rel=1e-5)
        assert float(terms_of(model, params, nothing)[name]) == 0


def test_two_devices_that_hold_their_own_rows_equal_one():
    """Their gradients, by which the parameters move here."""
    batch, model = example(), small()
    weights = {"rank": 1.0, "captioning": 0.25, "paraphrasing": 0.25}
    objective = Objective(losses.triplet, {"margin": 0.2, "hardness": 1}, weights)
    options = {"model": model, "objective": objective, "optimiser": optax.identity(), "stage_start": 0}
    results = []
    for runner in (parallel.jit_runner(jax.devices()[:1]), parallel.pmap_runner(jax.devices()[:2])):
        state = make_state(Initial(initial(model, batch), {}), optax.identity(), 0, 0.0)
        step = runner.compile(partial(train_step, **options))
        new, _ = step(runner.put_state(state), runner.put_batch(batch))
        results.append(named(jax.device_get(runner.get_state(new).params)))
    for name, value in results[0].items():
        close(results[1][name], value)


def test_regions_are_averaged_over_the_real_ones():
    batch, model = example(), small(feature="region")
    params = initial(small(), batch)
    region = np.random.default_rng(2).normal(size=(4, 3, 5)).astype(np.float32)
    mask = np.arange(3) < np.array([3, 1, 2, 3])[:, None]
    image = Images({"region": region}, mask, batch.image.id)
    pooled = Images({"global": np.stack([r[m].mean(0) for r, m in zip(region, mask, strict=True)])}, mask, image.id)
    got, expected = (begin(m, params, i)[0] for m, i in ((model, image), (small(), pooled)))
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert model.inputs == Inputs(("region",), captions={"target": 1})
    assert [name for name in named(params) if re.fullmatch(model.word_tables, name)] == ["embed/embedding"]


def test_bfloat16_stays_close_and_speaks_float32():
    batch, model = example(), small(dtype="bfloat16")
    params = initial(model, batch)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))
    expected = terms_of(small(), params, batch)
    for name, value in terms_of(model, params, batch).items():
        assert value.dtype == jnp.float32
        assert float(value) == pytest.approx(float(expected[name]), rel=0.01)
    carry = begin(model, params, batch.image)
    assert {state.dtype for state in carry} == {jnp.dtype("float32")}
    assert spell(model, params, carry, batch.target.token[:4]).dtype == jnp.float32


def test_sizes_and_cells_that_do_not_exist_are_refused():
    for fields, message in (({"layers": 3}, "sizes that divide"), ({"cell": "lstm"}, 'No GRU cell "lstm"')):
        with pytest.raises(UsageError, match=message):
            jax.eval_shape(small(**fields).init, jax.random.key(0), example())


def test_learns_to_say_what_belongs_to_an_image():
    """Four images with two captions each; captioning says one of the image's, a caption's paraphrase is the other."""
    batch = example(seed=3)
    other = np.arange(8) ^ 1
    target = jax.tree.map(lambda x: x[other], batch.text)._replace(row=batch.text.row)
    batch = batch._replace(target=target)
    model = small(embed_dim=32, word_dim=16)
    params = initial(model, batch)
    optimiser = optax.adam(1e-2)

    @jax.jit
    def train(params):
        def step(_, carry):
            params, state = carry
            grads = jax.grad(lambda p: sum(model.apply({"params": p}, batch)[1].values()))(params)
            updates, state = optimiser.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        return jax.lax.fori_loop(0, 200, step, (params, optimiser.init(params)))[0]

    params = train(params)

    def words(said):
        return [tuple(row[:n].tolist()) for row, n in zip(np.asarray(said.token), said.length, strict=True)]

    captions = [tuple(t[m][1:-1].tolist()) for t, m in zip(batch.text.token, batch.text.mask, strict=True)]
    assert words(speak(model, params, batch.text, Decoding())) == [captions[c] for c in other]
    for image, said in enumerate(words(speak(model, params, batch.image, Decoding("beam")))):
        assert said in captions[2 * image : 2 * image + 2]


def test_configs_weigh_the_three_tasks():
    folder = Path(__file__).resolve().parent.parent / "configs" / "stt.py"
    joint = config.load(f"{folder}:stt,f30k")
    assert joint.weights.to_dict() == {"rank": 1.0, "captioning": 0.25, "paraphrasing": 0.25}
    assert (joint.optim.clip_norm, joint.optim.clip_tensor_norm, joint.loss.margin) == (0.0, 2.0, 0.2)
    assert joint.data.sampler == "pairs"
    assert round(joint.optim.schedule.every * 4532) == 15_000
    for variant, name in {"retrieval": "rank", "captioning": "captioning", "paraphrasing": "paraphrasing"}.items():
        weights = config.load(f"{folder}:{variant}").weights.to_dict()
        assert [key for key, weight in weights.items() if weight] == [name]
