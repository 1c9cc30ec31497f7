"""`xmodal data concepts`: words and their forms, the classifiers, honest scores, and what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import WORDS, planted

from xmodal_jax import cli
from xmodal_jax.baselines import concepts as verb
from xmodal_jax.baselines.concepts import concept_loss, load_concept_model, logits, measure
from xmodal_jax.data import records
from xmodal_jax.data.check import check
from xmodal_jax.data.records import open_dataset
from xmodal_jax.errors import DataError
from xmodal_jax.text.concepts import FUNCTION, Concepts, frequent, read_concepts

TEXTS = [
    "Two dogs are running, a dog runs and ran, they run.",
    "A man rides; men are riding a bike to bikes and a building.",
    "the striped strip, a stripe, stripes and strips strips",
    "children and a child carrying what they carry; people glasses glass",
]


def test_tenses_and_plurals_are_one_word():
    forms = {words[0]: words[1:] for words in frequent(TEXTS, 13).forms}
    assert forms["dog"] == ["dogs"] and forms["man"] == ["men"] and forms["bike"] == ["bikes"]
    assert forms["run"] == ["ran", "running", "runs"] and forms["strip"] == ["strips"]
    assert forms["stripe"] == ["striped", "stripes"]
    assert forms["child"] == ["children"] and forms["carry"] == ["carrying"] and forms["person"] == ["people"]
    assert "building" in forms and not FUNCTION & {word for base, more in forms.items() for word in (base, *more)}


@pytest.mark.parametrize(
    ("text", "base", "form"),
    [
        ("a bite , a bit , biting", "bite", "biting"),
        ("we care for the car , caring", "care", "caring"),
        ("open and opened", "open", "opened"),
        ("they fall , falling", "fall", "falling"),
        ("swim swimming", "swim", "swimming"),
        ("a pony and ponies", "pony", "ponies"),
        ("bench benches", "bench", "benches"),
        ("dress dressed", "dress", "dressed"),
        ("a big red bus", "bus", "bus"),
        ("skiing skies", "skiing", "skiing"),  # a base that nobody wrote is not believed in
    ],
)
def test_forms(text, base, form):
    (found,) = [words for words in frequent([text], len(frequent_all(text))).forms if form in words]
    assert found[0] == base


def frequent_all(text):
    """How many concepts a text has: the largest count that is not refused."""
    for count in range(20, 0, -1):
        try:
            return frequent([text], count).names
        except DataError:
            continue
    return []


def test_labels_and_the_file(tmp_path):
    concepts = Concepts([["dog", "dogs"], ["run", "ran"], ["owl"]])
    labels = concepts.of([["Two dogs.", "it ran"], ["an owl"], []])
    np.testing.assert_array_equal(labels, [[1, 1, 0], [0, 0, 1], [0, 0, 0]])
    path = tmp_path / "words.txt"
    path.write_text("# mine\n\n" + concepts.text().upper())
    assert read_concepts(path).forms == concepts.forms


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "no word in it"),
        (b"# only a remark\n\n", "no word in it"),
        (b"dog dogs\ncat dogs\n", '"dogs" is in it twice'),
        (b"\xff\xfe\xfa", "cannot be read as UTF-8"),
        (None, "cannot be read as UTF-8 text (No such file"),
    ],
)
def test_a_bad_file_of_words_is_one_sentence(tmp_path, content, sentence, capsys):
    folder, path = planted(tmp_path / "set", train=4, other=2), tmp_path / "words.txt"
    if content is not None:
        path.write_bytes(content)
    assert cli.run(["data", "concepts", str(folder), "--words", str(path)]) == 3
    error = capsys.readouterr().err
    assert sentence in error and str(path) in error and "Traceback" not in error and records.verify(folder) == []


def test_loss_and_the_largest_region():
    random = np.random.default_rng(0)
    score, label = random.normal(size=(3, 4)).astype(np.float32), random.integers(0, 2, (3, 4)).astype(np.float32)
    expected = np.log1p(np.exp(-(2 * label - 1) * score)).sum() / 3
    assert concept_loss(jnp.asarray(score), label) == pytest.approx(expected, rel=1e-5)
    arrays = {"mean": random.normal(size=5), "scale": random.random(5), "bias": random.normal(size=4)}
    params = {key: jnp.asarray(x, jnp.float32) for key, x in {**arrays, "kernel": random.normal(size=(5, 4))}.items()}
    region, mask = random.normal(size=(2, 3, 5)).astype(np.float32), np.array([[1, 1, 0], [1, 1, 1]], bool)
    alone = np.asarray(logits(params, region.reshape(6, 5), np.ones((6, 1), bool))).reshape(2, 3, 4)
    np.testing.assert_allclose(
        logits(params, region, mask), [alone[0, :2].max(0), alone[1].max(0)], rtol=1e-5, atol=1e-5
    )


def test_measures():
    scores = np.array([[0.9, 3.0], [0.5, 1.0], [0.8, 2.0], [0.1, 0.0]])
    label = np.array([[1, 1], [1, 1], [0, 1], [0, 1]])
    precision, area, counted = measure(scores, label)
    assert counted == 1  # the second word is said of every image
    assert precision == pytest.approx((1 + 2 / 3) / 2) and area == pytest.approx(3 / 4)


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    return planted(tmp_path_factory.mktemp("planted") / "set", train=300, other=60)


@pytest.fixture
def folder(origin, tmp_path):
    for path in origin.iterdir():
        (tmp_path / "set").mkdir(exist_ok=True)
        (tmp_path / "set" / path.name).write_bytes(path.read_bytes())
    return tmp_path / "set"


def run(folder, *more):
    return cli.run(["data", "concepts", str(folder), "--count", "16", "--lr", "0.05", "--decay", "0", *more])


@pytest.mark.parametrize("feature", ["global", "region"])
def test_scores_tell_what_is_said(folder, feature, capsys):
    before = open_dataset(folder).identity
    assert run(folder, "--feature", feature) == 0
    out = capsys.readouterr().out
    assert "mean average precision" in out and "train: its scores are of the classifiers trained on them" in out
    dataset = open_dataset(folder)
    entry = dataset.manifest["image_features"]["concept"]
    assert dataset.identity == before and entry["shape"] == [16] and entry["feature"] == feature
    assert sorted(words[0] for words in entry["words"]) == sorted(WORDS) and entry["dev"]["map"] > 0.7
    assert check(folder)["errors"] == [] and not list(folder.glob(".*"))
    model = load_concept_model(folder / "image.concept.npz")
    assert read_concepts(folder / "image.concept.words.txt").forms == model.concepts.forms
    test = dataset.split("test")
    array = test.image_features["concept"]
    assert array.dtype == np.float32 and array.shape == (60, 16) and array.min() >= 0 and array.max() <= 1
    precision, _, _ = measure(np.asarray(array), model.concepts.of(test.captions))
    assert precision > 0.7 > 2 * measure(np.zeros((60, 16)), model.concepts.of(test.captions))[0]
    item = test.read([7])[0]
    np.testing.assert_array_equal(item.features["concept"], array[7])
    np.testing.assert_allclose(model(np.asarray(item.features[feature], np.float32)[None])[0], array[7], atol=1e-5)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert run(folder, "--feature", feature) == 0 and "nothing to do" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


def test_the_same_twice_and_from_disk_and_out_of_fold(folder, monkeypatch):
    """Equal bytes from memory and from records; folds change the scores of train alone."""
    assert run(folder, "--name", "a", "--epochs", "3") == 0
    monkeypatch.setattr(verb, "NUMBERS", 0)
    assert run(folder, "--name", "b", "--epochs", "3") == 0
    assert run(folder, "--name", "c", "--epochs", "3", "--folds", "3") == 0
    dataset = open_dataset(folder)
    for name in dataset.splits:
        first, again, folded = (dataset.split(name).image_features[key] for key in "abc")
        np.testing.assert_array_equal(first, again)
        assert np.array_equal(first, folded) == (name != "train")
    assert dataset.manifest["image_features"]["c"]["train_scores"] == "out of fold"


def test_a_training_image_out_of_fold_is_scored_by_who_has_not_seen_it(folder):
    """Scores of random words (no feature tells them) are good where an image trained its classifier, else by chance."""
    dataset = open_dataset(folder)
    reader = verb.Reader(dataset, "train", "global")
    label = np.random.default_rng(0).integers(0, 2, (300, 4)).astype(np.float32)
    options = {"seed": 0, "lr": 0.05, "decay": 0.0, "folds": 1}
    *_, params = verb.train(reader, np.arange(300), label, 40, options, verb.Progress("train", 0, quiet=True))
    seen = verb.train_scores(verb.Fit(params, 40, {}), reader, label, options)
    unseen = verb.train_scores(verb.Fit(params, 40, {}), reader, label, {**options, "folds": 3})
    assert measure(seen, label)[1] > 0.55 > measure(unseen, label)[1]


def test_words_of_ones_own(folder, tmp_path, capsys):
    words = tmp_path / "mine.txt"
    assert cli.run(["data", "concepts", str(folder), "--count", "3", "--write-words", str(words)]) == 0
    assert len(words.read_text().splitlines()) == 3 and "image_features" not in open_dataset(folder).manifest
    words.write_text("dog0 dog1 dog2\nsea3\n")
    mine = ["data", "concepts", str(folder), "--words", str(words), "--epochs", "2"]
    assert cli.run([*mine, "--count", "2"]) == 2 and "leave out --count" in capsys.readouterr().err
    assert cli.run(mine) == 0
    entry = open_dataset(folder).manifest["image_features"]["concept"]
    assert entry["words"] == [["dog0", "dog1", "dog2"], ["sea3"]] and entry["shape"] == [2]
    words.write_text("dog0\nzebra\n")
    assert cli.run(mine) == 3 and '1 concepts are in no training caption, "zebra" first' in capsys.readouterr().err


def test_a_model_of_another_set(folder, tmp_path, capsys):
    other = planted(tmp_path / "other", train=20, other=8)
    assert run(folder, "--epochs", "2") == 0
    model = folder / "image.concept.npz"
    assert cli.run(["data", "concepts", str(other), "--model", str(model)]) == 0
    entry = open_dataset(other).manifest["image_features"]["concept"]
    assert entry["fitted_on"] == "another data set" and check(other)["errors"] == []
    item = open_dataset(other).split("dev").read([0])[0]
    expected = load_concept_model(model)(np.asarray(item.features["global"])[None])[0]
    np.testing.assert_allclose(item.features["concept"], expected, atol=1e-6)
    assert cli.run(["data", "concepts", str(other), "--model", str(model)]) == 0
    narrow = planted(tmp_path / "narrow", train=4, other=2, features=5)
    assert cli.run(["data", "concepts", str(narrow), "--model", str(model)]) == 3
    assert 'reads 8 numbers of "global", which in ' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "code", "sentence"),
    [
        (["--count", "17"], 3, "The training captions have 16 semantic words, not 17; give a smaller --count"),
        (["--count", "0"], 2, "--count must be at least 1"),
        (["--folds", "0"], 2, "--folds must be at least 1"),
        (["--lr", "-1"], 2, "--lr must be above 0"),
        (["--decay", "1"], 2, "--decay must be at least 0 and below 1"),
        (["--feature", "grid"], 2, 'has no feature "grid", only region, global; choose --feature'),
        (["--name", "a/b"], 2, '"a/b" cannot name a feature'),
        (["--name", "global"], 3, 'has a feature "global" already'),
        (["--model", "nowhere.npz"], 2, "--model brings its words"),
    ],
)
def test_bad_arguments_are_one_sentence(folder, capsys, more, code, sentence):
    files = {path.name for path in folder.iterdir()}
    assert run(folder, *more) == code
    error = capsys.readouterr().err
    assert sentence in error and "Traceback" not in error and {path.name for path in folder.iterdir()} == files


def test_a_damaged_model_is_refused(tmp_path):
    for content in (b"", b"PK\x03\x04rubbish"):
        (tmp_path / "image.x.npz").write_bytes(content)
        with pytest.raises(DataError, match="is no model of concepts or is damaged"):
            load_concept_model(tmp_path / "image.x.npz")


def test_a_run_knows_the_concepts_it_was_trained_on(folder, tmp_path, capsys):
    other = planted(tmp_path / "other", train=40, other=10)
    for place, count in ((folder, "16"), (other, "16")):
        argv = ["data", "concepts", str(place), "--epochs", "1", "--count", count]
        assert cli.run(argv) == 0
    argv = ["train", "--config", "sco.py:gate,scenes,tiny", "--data", str(folder), "--workdir", str(tmp_path / "run")]
    argv += ["--config.steps=2", "--config.data.minimum_count=1", "--config.data.lengths=(8,)"]
    assert cli.run(argv) == 0
    capsys.readouterr()
    code = cli.run(["eval", "--workdir", str(tmp_path / "run"), "--data", str(other)])
    assert code == 3 and 'features "concept" of other words than those of the run' in capsys.readouterr().err
