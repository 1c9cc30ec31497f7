"""Bundles: exported functions equal the live model for every system, need none of its code, and refuse damage."""

import json
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import damages, planted
from safetensors.numpy import load_file
from test_configs import specs

import xmodal_jax
from xmodal_jax import cli
from xmodal_jax import config as configs
from xmodal_jax.errors import CheckpointError, DataError, UsageError
from xmodal_jax.evaluation.speak import Speaker
from xmodal_jax.export import functions
from xmodal_jax.export import run as export
from xmodal_jax.inference import layout as bundles
from xmodal_jax.inference.functions import take
from xmodal_jax.text.generation import Decoding
from xmodal_jax.text.vocabulary import Vocabulary
from xmodal_jax.training.model import example_batch, inputs_of, make_model
from xmodal_jax.training.step import initialise
from xmodal_jax.types import Facts, Feature, Images, Texts

WORDS = [f"w{i}" for i in range(40)]
SIZES = {"region": (None, 20), "global": (30,), "concept": (9,)}
LONG = "--config.data.lengths=(64,)"  # no caption here is cut
DENSE = 12  # numbers of a dense text vector


def systems():
    """A config of each kind of model among all configs of the repository: variants of the loss alone count once."""
    kinds = {}
    for spec in specs():
        kinds.setdefault(configs.load(f"{spec},scenes,tiny").model.to_json(sort_keys=True), spec)
    return [*kinds.values(), "vse.py:vsepp,+global"]


def build(spec):
    """A system at ``tiny`` with random parameters and running statistics."""
    name, _, feature = spec.partition(",+")
    config = configs.load(f"{name},scenes,tiny", [LONG])
    configs.systems(config)[-1].feature = feature or "region"
    inputs = inputs_of(config)
    reads = "token" in inputs.text
    vocabulary = Vocabulary.build(WORDS, 1, inputs.tokens) if reads else None
    features = {name: SIZES[name] for name in inputs.image}
    shapes = {name: Feature(shape) for name, shape in features.items()}
    dense = {name: Feature((DENSE,)) for name in inputs.text if name != "token"}
    words = max(config.data.lengths) if reads else 1
    facts = Facts(shapes, dense, len(vocabulary) if vocabulary else 0, 0, 8, words)
    model = make_model(config, facts)
    init = initialise(model, example_batch(model.inputs, facts), 0)
    rng = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda x: x + 0.1 * rng.random(x.shape).astype(x.dtype) if x.dtype.kind == "f" else x,
        {"params": init.params, **init.model_state},
    )
    return config, vocabulary, model, features, facts, variables


def build_model(spec, *, compat):
    config = configs.load(f"{spec.partition(',+')[0]},scenes,tiny")
    if "compat_padding" in config.model:
        config.model.compat_padding = compat
    return make_model(config, Facts({}, {}, 44, 0, 8, 64))


def draw(features, images=5, captions=7, regions=6):
    rng = np.random.default_rng(0)
    regional = any(None in shape for shape in features.values())
    arrays = {
        name: rng.normal(size=(images, *(regions if n is None else n for n in shape))).astype(np.float32)
        for name, shape in features.items()
    }
    mask = np.arange(regions) < rng.integers(2, regions + 1, (images, 1)) if regional else np.ones((images, 1), bool)
    sentences = [" ".join(rng.choice(WORDS, rng.integers(1, 12))) for _ in range(captions)]
    return arrays, mask, sentences


def sides(model, features, mask, vocabulary, sentences):
    """The images and the captions as the model itself takes them, captions padded further than the bundle would."""
    image = Images(features, mask, np.zeros(len(mask), np.int32))
    zero = np.zeros(len(sentences), np.int32)
    if vocabulary is None:
        vectors = np.random.default_rng(2).normal(size=(len(sentences), DENSE)).astype(np.float32)
        dense = dict.fromkeys(model.inputs.text, vectors)
        return image, Texts(None, np.ones((len(sentences), 1), bool), zero, zero, zero, dense)
    rows = [vocabulary.encode(text) for text in sentences]
    width = max(20, max(map(len, rows)) + 4)
    token = np.array([[*row, *[0] * (width - len(row))] for row in rows], np.int32)
    return image, Texts(token, token != 0, zero, zero, zero)


def live(model, variables, image, text):
    """Scores [B, C] of the model itself."""
    encode = partial(model.apply, variables, train=False)
    pair = encode(image, method="encode_image")[0], encode(text, method="encode_text")[0]
    return np.asarray(model.apply(variables, *pair, method="score"))


CARD = export.Card("Random numbers.", "none", None, "Not measured.")


@pytest.mark.parametrize("spec", systems())
def test_exported_scores_are_the_live_ones(spec, tmp_path):
    config, vocabulary, model, features, facts, variables = build(spec)
    parts = {"config": config, "model": model, "variables": variables, "facts": facts}
    export.write(tmp_path / "b", vocabulary=vocabulary, card=CARD, **parts)
    m = xmodal_jax.load(tmp_path / "b")
    arrays, mask, sentences = draw(features)
    image, text = sides(model, arrays, mask, vocabulary, sentences)
    want = live(model, variables, image, text)
    images = m.embed_images(arrays, mask)
    texts = m.embed_texts(sentences) if vocabulary else m.embed_vectors(text.feature)
    got = m.score(images, texts)
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= 1e-6 * np.abs(want).max()
    np.testing.assert_allclose(m.score(take(images, [2, 0]), take(texts, slice(3, 4))), got[[2, 0], 3:4], atol=1e-6)
    stored = {name for about in m.manifest["functions"].values() for name in about["parameters"]}
    assert set(load_file(tmp_path / "b" / bundles.PARAMETERS)) == stored
    if model.has("begin"):
        assert vocabulary is not None
        speaker = Speaker(model, vocabulary, Decoding(), batch_size=4)
        assert m.caption(arrays, mask) == speaker.say(variables, image)
        if "begin_text" in m.manifest["functions"]:
            assert m.paraphrase(sentences) == speaker.say(variables, text)
        beam = Decoding("beam", beams=3, longest=6)
        other = Speaker(model, vocabulary, beam, batch_size=4)
        assert m.caption(arrays, mask, decoding=beam) == other.say(variables, image)
    assert ("glimpses" in m.manifest["functions"]) == model.has("glimpses")
    if model.has("glimpses"):
        looks = jax.jit(partial(model.apply, variables, method="glimpses"))(image, text)
        longest = np.asarray(text.mask).sum(1).max()
        regions, words = m.glimpses(arrays, sentences, mask)
        np.testing.assert_allclose(regions, looks[0], atol=1e-6)
        np.testing.assert_allclose(words, looks[1][..., :longest], atol=1e-6)
    if "attention" in m.manifest["functions"]:
        weight = m.attend(take(images, [0]), [sentences[0]])[0, 0]
        assert weight.shape[0] == 8
        assert np.isfinite(weight).all()
        assert (weight[~np.pad(mask[0], (0, 2))] == 0).all()


def test_parameters_that_nothing_reads_stay_behind():
    structs = [jax.ShapeDtypeStruct((2,), np.float32)] * 3
    used = functions.used(lambda p, x: jax.numpy.tanh(p[0]) + x * jax.jit(lambda a: a + 1)(p[2]), structs, structs[0])
    assert used == [True, False, True]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A bundle of a two-epoch run, through the command line."""
    folder = tmp_path_factory.mktemp("export")
    planted(folder / "data")
    options = [f"--config.data.dir={folder / 'data'}", "--config.data.minimum_count=1", "--config.model.feature=region"]
    assert cli.run(["train", "--config", "scan.py:t2i_lse,tiny", "--workdir", str(folder / "run"), *options]) == 0
    assert cli.run(["eval", "--workdir", str(folder / "run")]) == 0
    assert cli.run(["export", "--workdir", str(folder / "run"), "--out", str(folder / "bundle")]) == 0
    return folder


@pytest.mark.parametrize("compat", [True, False])
def test_padding_that_counts_is_said_on_export(compat, exported, tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "bundle"
    options = [f"--config.data.dir={exported / 'data'}", "--config.model.feature=region", "--config.steps=1"]
    options.append(f"--config.model.compat_padding={compat}")
    assert cli.run(["train", "--config", "chain.py:code,tiny", "--workdir", str(run), *options]) == 0
    capsys.readouterr()
    assert cli.run(["export", "--workdir", str(run), "--out", str(out)]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: Padding counts")]
    assert len(said) == compat
    assert ("Padding counts in this system" in (out / "README.md").read_text()) == compat


def test_the_systems_whose_padding_counts_know_it():
    counts = {spec for spec in systems() if build_model(spec, compat=True).padding_counts}
    assert {spec.partition(".")[0] for spec in counts} == {"chain", "adapt"}
    assert not any(build_model(spec, compat=False).padding_counts for spec in systems())


ALONE = """
import sys

class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "flax", "optax", "orbax") or name.startswith("xmodal_jax.models"):
            raise ImportError("walled off: " + name)

sys.meta_path.insert(0, Wall())
import numpy as np
import xmodal_jax
m = xmodal_jax.load(sys.argv[1])
images = m.embed_images(np.ones((3, 5, 8), np.float32))
print(m.score(images, m.embed_texts(["a red square", "two"])).shape)
"""


@pytest.mark.parametrize("module", ["jax2onnx", "onnxruntime"])
def test_onnx_without_its_extra_is_one_sentence_and_writes_nothing(module, exported, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", sys)  # stands in where the extra is not installed
    monkeypatch.setitem(sys.modules, module, None)  # an import of it fails
    assert cli.run(["export", "--workdir", str(exported / "run"), "--onnx", "--out", str(tmp_path / "b")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"xmodal: This command needs {module} (")
    assert line.endswith('; install it with pip install "xmodal_jax[onnx]".')
    assert not (tmp_path / "b").exists()


def test_a_bundle_needs_neither_models_nor_tensorflow(exported):
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(exported / "bundle")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.stdout == "(3, 2)\n", done.stderr[-2000:]


def test_the_card_tells_data_and_recall(exported):
    card = (exported / "bundle" / "README.md").read_text()
    assert "t2i R@1" in card
    assert re.search(r"\| data \| planted, manifest [0-9a-f]{12}, 20 words \|", card)
    assert xmodal_jax.load(exported / "bundle").system == "scan"


def test_one_flipped_bit_is_named(exported, tmp_path):
    names = [*json.loads((exported / "bundle" / "manifest.json").read_text())["files"], "manifest.json"]
    for name in names:
        raw = (exported / "bundle" / name).read_bytes()
        copy = tmp_path / "copy"
        copy.mkdir(exist_ok=True)
        for other in (exported / "bundle").iterdir():
            (copy / other.name).write_bytes(other.read_bytes())
        place = len(raw) // 2
        (copy / name).write_bytes(raw[:place] + bytes([raw[place] ^ 4]) + raw[place + 1 :])
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
            xmodal_jax.load(copy)


@pytest.mark.slow
def test_no_damage_goes_unseen(exported, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(exported / "bundle", copy)
    for damage in damages(copy, flips=1000, cuts=200):
        try:
            xmodal_jax.load(copy)
        except CheckpointError:
            continue
        pytest.fail(f"{damage}: not seen")
    xmodal_jax.load(copy)


def test_what_is_not_a_bundle(exported, tmp_path, capsys):
    with pytest.raises(CheckpointError, match="does not describe an xmodal_jax bundle"):
        xmodal_jax.load(exported / "data")
    with pytest.raises(CheckpointError, match="is not an xmodal_jax bundle"):
        xmodal_jax.load(tmp_path)
    assert cli.run(["export", "--workdir", str(exported / "run"), "--out", str(exported / "data")]) == 4
    assert "is not empty" in capsys.readouterr().err
    assert cli.run(["export", "--workdir", str(tmp_path), "--out", str(tmp_path / "b")]) == 4
    assert not (tmp_path / "b").exists()
    manifest = bundles.read_manifest(exported / "bundle", bundles.FORMAT, bundles.VERSION, "try again")
    outside = {**manifest, "files": {"../secret": {"bytes": 1, "sha256": ""}}}
    with pytest.raises(CheckpointError, match="lies outside"):
        bundles.check_files(exported / "bundle", outside, "try again")


def test_wrong_input_is_one_sentence(exported):
    m = xmodal_jax.load(exported / "bundle")
    with pytest.raises(UsageError, match="a list of sentences"):
        m.embed_texts("two dogs")
    with pytest.raises(UsageError, match=r"\[images, regions, 8\]"):
        m.embed_images(np.zeros((2, 5, 9)))
    with pytest.raises(DataError, match="of image 1 is not finite"):
        m.embed_images(np.stack([np.zeros((5, 8)), np.full((5, 8), np.nan)]))
    with pytest.raises(UsageError, match="nothing that makes them from"):
        m.embed_images(["picture.png"])
    with pytest.raises(UsageError, match="Token ids go from 0"):
        m.embed_tokens(np.array([[1, 100_000, 2]]))
    with pytest.raises(UsageError, match="no image embedding"):
        m.score(m.embed_texts(["a"]), ["b"])
    with pytest.raises(UsageError, match="does not speak of images"):
        m.caption(np.zeros((1, 5, 8)))
    assert m.score(m.embed_images(np.zeros((0, 5, 8))), ["two dogs"]).shape == (0, 1)
    assert m.score(m.embed_images(np.ones((2, 5, 8))), []).shape == (2, 0)


def test_the_lines_of_the_readme_run(exported):
    text = (Path(__file__).resolve().parent.parent / "README.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "xmodal_jax.load" in block]
    names = {"features": np.ones((3, 5, 8), np.float32)}
    exec(code.replace("vsepp.bundle", str(exported / "bundle")), names)
    assert names["scores"].shape == (3, 1)


def test_token_ids_are_sentences(exported):
    m = xmodal_jax.load(exported / "bundle")
    sentences = ["two red dogs", "a cat that sits on a big table"]
    images = m.embed_images(np.random.default_rng(0).normal(size=(4, 5, 8)))
    ids, lengths = m.tokens(sentences)
    want = m.score(images, sentences)
    np.testing.assert_array_equal(m.score(images, m.embed_tokens(ids, lengths)), want)
    np.testing.assert_array_equal(m.score(images, m.embed_tokens(np.pad(ids, ((0, 0), (0, 5))))), want)
