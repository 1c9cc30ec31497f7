"""Bundles: exported functions equal the live model for every system, need none of its code, and refuse damage."""

import json
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers import damages, planted
from safetensors.numpy import load_file

import xmodal_jax
from xmodal_jax import cli
from xmodal_jax import config as configs
from xmodal_jax.errors import CheckpointError, DataError, UsageError
from xmodal_jax.export import functions
from xmodal_jax.export import run as export
from xmodal_jax.inference import layout as bundles
from xmodal_jax.inference.bundle import take
from xmodal_jax.text.vocabulary import SPECIAL, Vocabulary
from xmodal_jax.training.model import example_batch, inputs_of, make_model
from xmodal_jax.training.step import initialise
from xmodal_jax.types import Facts, Feature, Images, Texts
from xmodal_jax.verbs import doctor

SYSTEMS = [
    "vse.py:vsepp",
    "vse.py:vsepp,+global",
    "vse.py:vse0",
    "vse.py:order",
    "vse.py:bow",
    "vse.py:sigmoid",
    "vse_infty.py:bigru",
    "scan.py:t2i_lse",
    "scan.py:i2t_avg",
    "adapt.py:t2i",
    "adapt.py:i2t",
    "dvsa.py:dvsa",
    "chan.py:chan",
    "chan.py:scan_summax_i2t",
    "sgraf.py:sgr",
    "sgraf.py:saf",
]
WORDS = [f"w{i}" for i in range(40)]
SIZES = {"region": (None, 20), "global": (30,)}


def build(spec):
    """A system at ``tiny`` with random parameters and running statistics."""
    name, _, feature = spec.partition(",+")
    overrides = [f"--config.model.feature={feature or 'region'}"]
    config = configs.load(f"{name},tiny", overrides)
    vocabulary = Vocabulary([*SPECIAL, *WORDS])
    features = {name: SIZES[name] for name in inputs_of(config).image}
    shapes = {name: Feature(shape) for name, shape in features.items()}
    facts = Facts(shapes, {}, len(vocabulary), 0, 8, max(config.data.lengths))
    model = make_model(config, facts)
    init = initialise(model, example_batch(model.inputs, facts), 0)
    rng = np.random.default_rng(1)
    variables = jax.tree.map(
        lambda x: x + 0.1 * rng.random(x.shape).astype(x.dtype) if x.dtype.kind == "f" else x,
        {"params": init.params, **init.model_state},
    )
    return config, vocabulary, model, features, facts, variables


def draw(features, images=5, captions=7, regions=6):
    rng = np.random.default_rng(0)
    regional = any(None in shape for shape in features.values())
    own = {
        name: rng.normal(size=(images, *(regions if n is None else n for n in shape))).astype(np.float32)
        for name, shape in features.items()
    }
    mask = np.arange(regions) < rng.integers(2, regions + 1, (images, 1)) if regional else np.ones((images, 1), bool)
    sentences = [" ".join(rng.choice(WORDS, rng.integers(1, 12))) for _ in range(captions)]
    return own, mask, sentences


def live(model, variables, features, mask, vocabulary, sentences):
    """Scores [B, C] of the model itself, its captions padded further than the bundle would."""
    rows = [vocabulary.encode(text) for text in sentences]
    token = np.array([[*row, *[0] * (20 - len(row))] for row in rows], np.int32)
    zero = np.zeros(len(rows), np.int32)
    encode = partial(model.apply, variables, train=False)
    image, _ = encode(Images(features, mask, np.zeros(len(mask), np.int32)), method="encode_image")
    text, _ = encode(Texts(token, token != 0, zero, zero, zero), method="encode_text")
    return np.asarray(model.apply(variables, image, text, method="score"))


CARD = export.Card("Random numbers.", "none", None, "Not measured.")


@pytest.mark.parametrize("spec", SYSTEMS)
def test_exported_scores_are_the_live_ones(spec, tmp_path):
    config, vocabulary, model, features, facts, variables = build(spec)
    parts = {"config": config, "model": model, "variables": variables, "facts": facts}
    export.write(tmp_path / "b", vocabulary=vocabulary, card=CARD, **parts)
    m = xmodal_jax.load(tmp_path / "b")
    own, mask, sentences = draw(features)
    want = live(model, variables, own, mask, vocabulary, sentences)
    images, texts = m.embed_images(own, mask), m.embed_texts(sentences)
    got = m.score(images, texts)
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= 1e-6 * np.abs(want).max()
    np.testing.assert_allclose(m.score(take(images, [2, 0]), take(texts, slice(3, 4))), got[[2, 0], 3:4], atol=1e-6)
    stored = {name for about in m.manifest["functions"].values() for name in about["parameters"]}
    assert set(load_file(tmp_path / "b" / bundles.PARAMETERS)) == stored
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
def made(tmp_path_factory):
    """A bundle of a two-epoch run, through the command line."""
    folder = tmp_path_factory.mktemp("export")
    planted(folder / "data")
    options = [f"--config.data.dir={folder / 'data'}", "--config.data.minimum_count=1", "--config.model.feature=region"]
    assert cli.run(["train", "--config", "scan.py:t2i_lse,tiny", "--workdir", str(folder / "run"), *options]) == 0
    assert cli.run(["eval", "--workdir", str(folder / "run")]) == 0
    assert cli.run(["export", "--workdir", str(folder / "run"), "--out", str(folder / "bundle")]) == 0
    return folder


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


LACKING = doctor.lacks("onnx")
needs_onnx = pytest.mark.skipif(bool(LACKING), reason=f"the extra onnx is not installed: {'; '.join(LACKING)}")


@needs_onnx
@pytest.mark.parametrize("spec", ["vse.py:vsepp", "scan.py:t2i_lse", "dvsa.py:dvsa"])
def test_onnx_finds_what_the_bundle_finds(spec, tmp_path):
    import onnxruntime as ort

    config, vocabulary, model, features, facts, variables = build(spec)
    parts = {"config": config, "model": model, "variables": variables, "facts": facts}
    export.write(tmp_path / "b", vocabulary=vocabulary, card=CARD, with_onnx=True, **parts)
    m = xmodal_jax.load(tmp_path / "b")
    own, mask, sentences = draw(features)
    want = m.score(m.embed_images(own, mask), m.embed_texts(sentences))
    ids, lengths = m.tokens(sentences)

    def run(name, feed):
        session = ort.InferenceSession(tmp_path / "b" / f"{name}.onnx", providers=["CPUExecutionProvider"])
        sizes = m.manifest["onnx"][name]["fixed"]
        if "r" in sizes:  # such a graph takes padded regions
            width = sizes["r"] - mask.shape[1]
            feed = {key: np.pad(x, [(0, 0), (0, width), (0, 0)][: x.ndim]) for key, x in feed.items()}
        outputs: Any = session.run(None, feed)
        return dict(zip([node.name for node in session.get_outputs()], outputs, strict=True))

    image = run("encode_image", {**own, "mask": mask})
    text = run("encode_text", {"token": ids, "mask": np.arange(ids.shape[1]) < lengths[:, None]})
    got = run("score", {**image, **text})["score"]
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())
    assert set(m.manifest["onnx"]) == set(m.manifest["functions"])


@needs_onnx
def test_a_graph_that_onnx_cannot_hold_is_one_sentence_and_writes_nothing(tmp_path):
    config, vocabulary, model, _, facts, variables = build("sgraf.py:saf")
    parts = {"config": config, "model": model, "variables": variables, "facts": facts}
    with pytest.raises(UsageError, match=r"^score of this system cannot become ONNX \(.*\); leave out --onnx, [^\n]*$"):
        export.write(tmp_path / "b", vocabulary=vocabulary, card=CARD, with_onnx=True, **parts)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("module", ["jax2onnx", "onnxruntime"])
def test_onnx_without_its_extra_is_one_sentence_and_writes_nothing(module, made, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", sys)  # stands in where the extra is not installed
    monkeypatch.setitem(sys.modules, module, None)  # an import of it fails
    assert cli.run(["export", "--workdir", str(made / "run"), "--onnx", "--out", str(tmp_path / "b")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"xmodal: This command needs {module} (")
    assert line.endswith('; install it with pip install "xmodal_jax[onnx]".')
    assert not (tmp_path / "b").exists()


def test_a_bundle_needs_neither_models_nor_tensorflow(made):
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(made / "bundle")], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout == "(3, 2)\n", done.stderr[-2000:]


def test_the_card_tells_data_and_recall(made):
    card = (made / "bundle" / "README.md").read_text()
    assert "t2i R@1" in card
    assert re.search(r"\| data \| planted, manifest [0-9a-f]{12}, 20 words \|", card)
    assert xmodal_jax.load(made / "bundle").system == "scan"


def test_one_flipped_bit_is_named(made, tmp_path):
    names = [*json.loads((made / "bundle" / "manifest.json").read_text())["files"], "manifest.json"]
    for name in names:
        raw = (made / "bundle" / name).read_bytes()
        copy = tmp_path / "copy"
        copy.mkdir(exist_ok=True)
        for other in (made / "bundle").iterdir():
            (copy / other.name).write_bytes(other.read_bytes())
        place = len(raw) // 2
        (copy / name).write_bytes(raw[:place] + bytes([raw[place] ^ 4]) + raw[place + 1 :])
        with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
            xmodal_jax.load(copy)


@pytest.mark.slow
def test_no_damage_goes_unseen(made, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(made / "bundle", copy)
    for damage in damages(copy, flips=1000, cuts=200):
        try:
            xmodal_jax.load(copy)
        except CheckpointError:
            continue
        pytest.fail(f"{damage}: not seen")
    xmodal_jax.load(copy)


def test_what_is_not_a_bundle(made, tmp_path, capsys):
    with pytest.raises(CheckpointError, match="does not describe an xmodal_jax bundle"):
        xmodal_jax.load(made / "data")
    with pytest.raises(CheckpointError, match="is not an xmodal_jax bundle"):
        xmodal_jax.load(tmp_path)
    assert cli.run(["export", "--workdir", str(made / "run"), "--out", str(made / "data")]) == 4
    assert "is not empty" in capsys.readouterr().err
    assert cli.run(["export", "--workdir", str(tmp_path), "--out", str(tmp_path / "b")]) == 4
    assert not (tmp_path / "b").exists()
    manifest = bundles.read_manifest(made / "bundle", bundles.FORMAT, bundles.VERSION, "try again")
    outside = {**manifest, "files": {"../secret": {"bytes": 1, "sha256": ""}}}
    with pytest.raises(CheckpointError, match="lies outside"):
        bundles.check_files(made / "bundle", outside, "try again")


def test_wrong_input_is_one_sentence(made):
    m = xmodal_jax.load(made / "bundle")
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
    with pytest.raises(UsageError, match="no caption decoder"):
        m.caption(np.zeros((1, 5, 8)))
    assert m.score(m.embed_images(np.zeros((0, 5, 8))), ["two dogs"]).shape == (0, 1)
    assert m.score(m.embed_images(np.ones((2, 5, 8))), []).shape == (2, 0)


def test_the_lines_of_the_readme_run(made):
    text = (Path(__file__).resolve().parent.parent / "README.md").read_text()
    (code,) = [own for own in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "xmodal_jax.load" in own]
    names = {"features": np.ones((3, 5, 8), np.float32)}
    exec(code.replace("vsepp.bundle", str(made / "bundle")), names)
    assert names["scores"].shape == (3, 1)


def test_token_ids_are_sentences(made):
    m = xmodal_jax.load(made / "bundle")
    sentences = ["two red dogs", "a cat that sits on a big table"]
    images = m.embed_images(np.random.default_rng(0).normal(size=(4, 5, 8)))
    ids, lengths = m.tokens(sentences)
    want = m.score(images, sentences)
    np.testing.assert_array_equal(m.score(images, m.embed_tokens(ids, lengths)), want)
    np.testing.assert_array_equal(m.score(images, m.embed_tokens(np.pad(ids, ((0, 0), (0, 5))))), want)
