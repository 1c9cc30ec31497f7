"""Attention weights against loops and against the scores they belong to; `xmodal attend`; word-region accuracy."""

import re
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from helpers import planted

from xmodal_jax import cli, similarity
from xmodal_jax.errors import DataError, UsageError
from xmodal_jax.evaluation.encode import Evaluator
from xmodal_jax.evaluation.run import Run
from xmodal_jax.models import adapt, chan, dvsa, mdan, scan, sgraf, smlstm, vse
from xmodal_jax.similarity.attention import NORMS
from xmodal_jax.training.model import example_batch
from xmodal_jax.types import Batch, Images, Texts
from xmodal_jax.verbs import attend, looks

pytestmark = pytest.mark.usefixtures("one_device")

B, C, R, W, D = 3, 4, 5, 6, 8


def sides(seed=0):
    """Regions and words with their masks: ragged, one image without regions, one caption without words."""
    random = np.random.default_rng(seed)
    region, word = random.normal(size=(B, R, D)).astype(np.float32), random.normal(size=(C, W, D)).astype(np.float32)
    return region, np.arange(R) < np.array([[5], [3], [0]]), word, np.arange(W) < np.array([[6], [1], [4], [0]])


def oracle(region, region_mask, word, word_mask, direction, smooth):
    """SCAN's attention with the leaky ReLU and l2 norm, pair by pair."""
    out = np.zeros((len(region), len(word), region.shape[1], word.shape[1]))
    for b, c in np.ndindex(out.shape[:2]):
        similar = region[b, region_mask[b]] @ word[c, word_mask[c]].T
        similar = similar if direction == "t2i" else similar.T
        similar = np.where(similar > 0, similar, 0.1 * similar)
        similar /= np.sqrt(np.square(similar).sum(axis=1, keepdims=True)) + 1e-8
        weight = np.exp(smooth * similar) / np.exp(smooth * similar).sum(axis=0)
        out[b, c][np.ix_(region_mask[b], word_mask[c])] = weight if direction == "t2i" else weight.T
    return out


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_weights_against_loops(direction):
    got = similarity.attention_weights(*sides(), direction=direction, smooth=4.0)
    np.testing.assert_allclose(got, oracle(*sides(), direction, 4.0), atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_weights_are_those_of_the_score(direction, norm):
    """The cosines between fragments and what they attend to by these weights add up to the score."""
    region, _, word, word_mask = sides()
    weight = np.asarray(similarity.attention_weights(*sides(), direction=direction, norm=norm, smooth=2.0))
    if direction == "t2i":
        query, attended = word[None], np.einsum("bcrw,brd->bcwd", weight, region)
    else:
        query, attended = region[:, None], np.einsum("bcrw,cwd->bcrd", weight, word)
    lengths = np.linalg.norm(query, axis=-1) * np.linalg.norm(attended, axis=-1)
    cosine = (query * attended).sum(axis=-1) / np.maximum(lengths, 1e-8)
    score = similarity.cross_attention(*sides(), direction=direction, norm=norm, smooth=2.0, pool="sum")
    np.testing.assert_allclose(cosine.sum(axis=-1) * word_mask.any(axis=1), score, atol=1e-5)


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_matches_against_loops(direction):
    region, region_mask, word, word_mask = sides()
    region[0, 1] = region[0, 0]  # these tie
    word[2, 1] = word[2, 0]
    wanted = np.zeros((B, C, R, W))
    for b, c in np.ndindex(B, C):
        real = np.outer(region_mask[b], word_mask[c])
        similar = np.where(real, region[b] @ word[c].T, -np.inf)
        axis = 0 if direction == "t2i" else 1
        best = real & (similar == similar.max(axis=axis, keepdims=True))
        wanted[b, c] = best / np.maximum(best.sum(axis=axis, keepdims=True), 1)
    got = similarity.match_weights(region, region_mask, word, word_mask, direction=direction)
    np.testing.assert_allclose(got, wanted)
    assert 0.5 in wanted


def apply(model):
    """The representations of a small batch by a fresh model, and its attention [2, 2, R, W]."""
    random = np.random.default_rng(1)
    feature = {"region": random.normal(size=(2, 4, 5)).astype(np.float32), "global": np.ones((2, 5), np.float32)}
    rows = np.arange(2, dtype=np.int32)
    images = Images(feature, np.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool), rows)
    mask = np.array([[1, 1, 1], [1, 1, 0]], bool)
    texts = Texts(np.where(mask, [[1, 5, 2], [1, 2, 0]], 0).astype(np.int32), mask, rows, rows, rows)

    @jax.jit
    def every(images, texts):
        variables = model.init(jax.random.key(0), Batch(images, texts))
        image = model.apply(variables, images, train=False, method="encode_image")[0]
        text = model.apply(variables, texts, train=False, method="encode_text")[0]
        return image, text, model.apply(variables, image, text, method="attention")

    return every(images, texts)


SIZES: Any = {"vocabulary": 9, "embed_dim": 8, "word_dim": 4}


@pytest.mark.parametrize(
    "model",
    [
        scan.Model(**SIZES, smooth=3.0, norm="softmax"),
        sgraf.Model(**SIZES, similarity_dim=4),
        chan.Model(**SIZES, heads=2),
        dvsa.Model(**SIZES, hidden_dim=4),
    ],
    ids=["scan", "sgraf", "chan", "dvsa"],
)
def test_words_of_a_model_share_out_one(model):
    image, text, weight = apply(model)
    assert weight.shape == (2, 2, 4, 3)
    np.testing.assert_allclose(weight.sum(axis=2), [[[1, 1, 1], [1, 1, 0]]] * 2, atol=1e-6)
    assert not weight[1, :, 2:].any()
    if isinstance(model, scan.Model):
        parts = (*image["region"], *text["word"])
        wanted = similarity.attention_weights(*parts, direction="t2i", norm="softmax", smooth=3.0)
    elif isinstance(model, sgraf.Model):
        wanted = similarity.attention_weights(*image.part, *text.part, direction="t2i", smooth=9.0)
    else:
        part = image if isinstance(model, chan.Model) else jax.tree.map(lambda leaf: leaf[:, 1:], image)
        wanted = similarity.match_weights(*part, *text)
    np.testing.assert_allclose(weight, wanted, atol=1e-6)


@pytest.mark.parametrize("model", [scan.Model(**SIZES, direction="i2t"), chan.Model(**SIZES, heads=0, direction="i2t")])
def test_regions_of_a_model_share_out_one(model):
    np.testing.assert_allclose(apply(model)[2].sum(axis=3)[:, 0], [[1, 1, 1, 1], [1, 1, 0, 0]], atol=1e-6)


def test_models_without_attention_say_so():
    for model in (vse.Model(**SIZES), adapt.Model(**SIZES)):
        with pytest.raises(UsageError, match="has no attention between words and regions"):
            apply(model)
    with pytest.raises(UsageError, match='"defrag" matches no word with a region'):
        apply(dvsa.Model(**SIZES, hidden_dim=4, relation="defrag"))
    assert attend.with_attention() == ["chan", "dvsa", "mdan", "scan", "sgraf", "smlstm", "stt_att"]


def test_accuracy_of_a_truth_made_by_hand():
    attention = np.zeros((3, 4, 6))
    attention[0, :, 1] = 0.1, 0.2, 0.6, 0.1  # word 0 looks at region 2, which covers object 0
    attention[0, :, 2] = 0.1, 0.2, 0.6, 0.1  # word 1 too, but it names objects 1 and 2
    attention[1, :, 3] = 0.5, 0.5, 0.0, 0.0  # word 2 is undecided between an object of its own and none
    attention[2, :3, 2] = 0.3, 0.3, 0.4  # word 1 names an object that no region covers
    truth = [
        {"regions": [1, -1, 0, 1], "words": [[[0, 0], [1, 1], [1, 2]], [[2, 1], [4, 0], [9, 0]]]},  # 4: cut off
        {"regions": [-1, 0, 0], "words": [[[1, 1]]]},
    ]
    got = attend.word_accuracy(attention, truth)
    assert got == pytest.approx(((1 + 0 + 0.5 + 0) / 4, (0.25 + 0.5 + 0.5 + 0) / 4, 3 / 4, 4))


def test_the_strongest_box_counts():
    boxes = np.array([[0, 0, 0.5, 1], [0.25, 0, 1, 1], [0.999, 0, 1, 1]])
    lit = looks._lit(np.zeros((4, 8, 3)), boxes, np.array([1.0, 0.2, 0.0]))
    np.testing.assert_allclose(lit[0, [0, 3, 4, 7], 0], [0, 0, 0.85 * 0.8, 0.85 * 0.8])


def test_strength_is_absolute():
    """0 at an even share and below, 1 at all, between them by the logarithm; no word is stretched to the top."""
    np.testing.assert_allclose(looks.strength_of(np.full(8, 0.125)), 0, atol=1e-12)
    np.testing.assert_allclose(looks.strength_of(np.eye(8)[2]), np.eye(8)[2])
    halves = looks.strength_of(np.array([0.5, 0.5, 0, 0]))
    np.testing.assert_allclose(halves, [0.5, 0.5, 0, 0])
    np.testing.assert_allclose(looks.strength_of(np.array([3.0, 3.0, 0, 0])), halves)  # regions that look at words
    assert looks.strength_of(np.array([0.26, 0.25, 0.25, 0.24])).max() < 0.03
    assert looks.strength_of(np.array([0.7])).tolist() == [1.0]
    assert not looks.strength_of(np.zeros(3)).any() and looks.strength_of(np.zeros(0)).shape == (0,)


def test_a_word_that_looks_nowhere_in_particular_is_drawn_faded(tmp_path):
    from PIL import Image

    boxes = np.array([[0, 0, 0.5, 1], [0.5, 0, 1, 1]])
    Image.new("RGB", (40, 40), "blue").save(tmp_path / "blue.png")
    weight = np.array([[0.5, 1.0], [0.5, 0.0]])
    pair = looks.Pair("a", "of it", 0.5, ["of", "it"], [True, True], weight, boxes, tmp_path / "blue.png", (40, 40))
    clear = []
    for word in (0, 1):
        single = pair._replace(words=pair.words[word : word + 1], weight=weight[:, word : word + 1])
        looks.draw([single], tmp_path / "out.png")
        drawn = np.asarray(Image.open(tmp_path / "out.png").convert("RGB"))
        clear.append((drawn == [0, 0, 255]).all(axis=-1).sum())
    assert clear[1] > 1.3 * clear[0] > 0  # the picture itself is clear in both


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set and a short run of SCAN on it."""
    folder = tmp_path_factory.mktemp("attend")
    data = planted(folder / "data", train=20, other=6)
    argv = ["train", "--config", "scan.py:t2i_lse,tiny", f"--config.data.dir={data}", "--config.data.minimum_count=1"]
    assert cli.run([*argv, "--workdir", str(folder / "run"), "--config.data.batch_size=8", "--config.steps=1"]) == 0
    return folder


def test_each_caption_attends_to_its_own_image(folder, tmp_path):
    run = Run(folder / "run")
    split, variables = run.dataset.split("test"), run.variables(1)[0]
    captions = run.captions("test")
    stacks = run.evaluator.representations(variables, run.reader("test"), captions, quiet=True)
    every = attend.own_attention(run, variables, *stacks, captions.image)
    last = attend.look(run, variables, split, 5, split.captions[5][-1])
    regions, words = last.weight.shape
    np.testing.assert_allclose(every[-1, :regions, 1 : 1 + words], last.weight, atol=1e-6)
    assert not every[-1, regions:].any()
    boxes = split.read([5])[0].boxes
    assert boxes is not None
    np.testing.assert_allclose(last.boxes, boxes)
    scores = np.asarray(run.evaluator.score(variables, *stacks))
    assert last.score == pytest.approx(scores[5, -1], abs=1e-5)


def test_draws_a_picture(folder, tmp_path, capsys):
    from PIL import Image

    argv = ["attend", "--workdir", str(folder / "run"), "--image", "dev-2"]
    assert cli.run([*argv, "--caption", "red1 Zebra big0 " * 3, "--out", str(tmp_path / "one.png")]) == 0
    said = capsys.readouterr().out
    assert "not in the vocabulary" in said and ": zebra, zebra, zebra\n" in said
    assert "at step 1, split dev" in said
    run = Run(folder / "run")
    pair = attend.look(run, run.variables(1)[0], run.dataset.split("dev"), 2, "red1 zebra")
    assert (pair.words, pair.known) == (["red1", "zebra"], [True, False])
    long = attend.look(run, run.variables(1)[0], run.dataset.split("dev"), 2, "red1 " * 70)
    assert len(long.words) == long.weight.shape[1] == max(run.config.data.lengths) - 2
    assert "was cut after" in capsys.readouterr().out
    blue = np.zeros((8, 8, 3), np.uint8) + np.array([0, 0, 255], np.uint8)
    Image.fromarray(blue).save(tmp_path / "blue.png")
    looks.draw([pair, pair._replace(picture=tmp_path / "blue.png")], tmp_path / "two.png")
    drawn = {name: np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")) for name in ("one", "two")}
    assert drawn["one"].shape[0] > 300  # nine words over two rows
    assert (drawn["two"] == [0, 0, 255]).all(axis=-1).sum() > 10_000
    assert not (drawn["one"] == [0, 0, 255]).all(axis=-1).any()
    assert cli.run([*argv, "--out", str(tmp_path / "default.png")]) == 0
    with pytest.raises(UsageError, match=r"no/way\.png cannot be written"):
        looks.draw([pair], tmp_path / "no" / "way.png")


@pytest.mark.parametrize(
    "model",
    [partial(mdan.Model, hidden_dim=8), partial(smlstm.Model, context="mean", hidden_dim=8, text_dim=4, steps=2)],
    ids=["mdan", "smlstm"],
)
def test_steps_are_drawn_each_beside_its_words(model, folder, tmp_path):
    from PIL import Image

    run = Run(folder / "run")
    run.model = model(vocabulary=run.facts.vocabulary, embed_dim=8, word_dim=8)
    run.evaluator = Evaluator(run.model, batch_size=4)
    attend.check(run)
    split = run.dataset.split("dev")
    batch = example_batch(run.model.inputs, run.facts, images=2)
    variables = jax.jit(run.model.init)(jax.random.key(0), batch)
    pair = attend.look(run, variables, split, 2, "red1 zebra big0")
    assert pair.steps is not None and pair.titles == ["step 1", "step 2"]
    assert (pair.weight.shape, pair.steps.shape) == ((len(pair.boxes), 2), (2, 3))
    np.testing.assert_allclose(pair.weight.sum(axis=0), 1.0, atol=1e-5)
    assert (pair.steps.sum(axis=1) < 1.0).all()  # <start> and <end> have the rest
    drawn = []
    for share in ([0.9, 0.0, 0.0], [0.1, 0.1, 0.1]):
        looks.draw([pair._replace(steps=np.array([share, [0.9, 0.0, 0.0]]))], tmp_path / "steps.png")
        drawn.append(np.asarray(Image.open(tmp_path / "steps.png").convert("RGB")))
    changed = np.abs(drawn[0].astype(int) - drawn[1]).max(axis=-1) > 30
    assert changed.sum() > 200  # the bars of the first step alone
    looks.draw([pair._replace(steps=np.zeros((0, 3)), weight=np.zeros((len(pair.boxes), 0)))], tmp_path / "none.png")


def test_refuses_a_run_that_has_nothing_to_show(folder):
    run = Run(folder / "run")
    attend.check(run)
    run.inputs = run.inputs._replace(image=("global",))
    with pytest.raises(UsageError, match="reads the feature global, which has no regions; train with"):
        attend.check(run)
    run.dataset.manifest["boxes"] = False
    with pytest.raises(DataError, match=r"carries no boxes, .* import it again with SPLIT_boxes\.npy"):
        attend.check(run)
    run.model = vse.Model(**SIZES)
    with pytest.raises(UsageError, match=r"no attention .*; these have: chan, dvsa, mdan, scan, sgraf, smlstm"):
        attend.check(run)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--image", "test-9"], 2, 'No image "test-9" in .*data; near to it: test-5'),
        (["--image", "?", "--split", "dev"], 2, 'No image "\\?" in split "dev" .*; the first are dev-0, dev-1, dev-2'),
        (["--image", "test-1", "--split", "dev"], 2, 'No image "test-1" in split "dev"'),
        (["--image", "test-1", "--split", "tset"], 3, 'has no split "tset".*Did you mean "test"'),
        (["--image", "test-1", "--caption", " "], 2, "The caption has no word; give one"),
        (["--image", "test-1", "--step", "7"], 4, "no checkpoint of step 7; there are: 1"),
        (["--image", "test-1", "--workdir", "data"], 4, "not a run folder"),
    ],
)
def test_refusals(folder, tmp_path, monkeypatch, capsys, options, code, message):
    monkeypatch.chdir(folder)
    out = ["--out", str(tmp_path / "out.png")]
    assert cli.run(["attend", "--workdir", "run", *out, *options]) == code
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert not (tmp_path / "out.png").exists()
