"""ONNX graphs find and say what the bundle does; what cannot become one is refused."""

from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from test_export import CARD, build, draw, sides

import xmodal_jax
from xmodal_jax.errors import UsageError
from xmodal_jax.export import run as export
from xmodal_jax.text.generation import Decoding, allowed_log_probability
from xmodal_jax.text.vocabulary import START
from xmodal_jax.verbs import doctor

LACKING = doctor.lacks("onnx")
needs_onnx = pytest.mark.skipif(bool(LACKING), reason=f"the extra onnx is not installed: {'; '.join(LACKING)}")


@needs_onnx
@pytest.mark.parametrize(
    "spec",
    [
        "vse.py:vsepp",
        "scan.py:t2i_lse",
        "dvsa.py:dvsa",
        "smlstm.py:smlstm",
        "mcnn.py:word",
        "mcnn.py:sentence",
        "mdan.py:mdan",
        "stt_att.py:stt_att",
    ],
)
def test_onnx_finds_what_the_bundle_finds(spec, tmp_path):
    import onnxruntime as ort  # pyright: ignore[reportMissingImports]  (on 3.11 alone)

    config, vocabulary, model, features, facts, variables = build(spec)
    parts = {"config": config, "model": model, "variables": variables, "facts": facts}
    export.write(tmp_path / "b", vocabulary=vocabulary, card=CARD, with_onnx=True, **parts)
    m = xmodal_jax.load(tmp_path / "b")
    arrays, mask, sentences = draw(features)
    want = m.score(m.embed_images(arrays, mask), m.embed_texts(sentences))
    ids, lengths = m.tokens(sentences)

    def run(name, feed):
        session = ort.InferenceSession(tmp_path / "b" / f"{name}.onnx", providers=["CPUExecutionProvider"])
        sizes = m.manifest["onnx"][name]["fixed"]
        if "r" in sizes:  # such a graph takes padded regions
            width = sizes["r"] - mask.shape[1]
            feed = {key: np.pad(x, [(0, 0), (0, width), (0, 0)][: x.ndim]) for key, x in feed.items()}
        if name == "encode_text" and "w" in sizes:  # such a graph takes padded words
            feed = {key: np.pad(x, [(0, 0), (0, sizes["w"] - x.shape[1])]) for key, x in feed.items()}
        outputs: Any = session.run(None, feed)
        return dict(zip([node.name for node in session.get_outputs()], outputs, strict=True))

    image = run("encode_image", {**arrays, "mask": mask})
    text = run("encode_text", {"token": ids, "mask": np.arange(ids.shape[1]) < lengths[:, None]})
    got = run("score", {**image, **text})["score"]
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())
    assert set(m.manifest["onnx"]) == set(m.manifest["functions"])


@needs_onnx
@pytest.mark.parametrize(
    ("spec", "begins"),
    [("stt.py:stt", ("image", "text")), ("stt_att.py:stt_att", ("image", "text")), ("sco.py:sco", ("image",))],
)
def test_what_speaks_says_the_same_in_onnx(spec, begins, tmp_path):
    """The first states and the logits of a word equal JAX's, and greedy sentences come out word for word."""
    import onnxruntime as ort  # pyright: ignore[reportMissingImports]  (on 3.11 alone)

    config, vocabulary, model, features, facts, variables = build(spec)
    assert vocabulary is not None
    parts = {"config": config, "model": model, "variables": variables, "facts": facts}
    export.write(tmp_path / "b", vocabulary=vocabulary, card=CARD, with_onnx=True, **parts)
    m = xmodal_jax.load(tmp_path / "b")
    names = [f"begin_{side}" for side in begins]
    assert {name for name in m.manifest["onnx"] if name.startswith("begin")} == set(names)
    arrays, mask, sentences = draw(features)
    image, text = sides(model, arrays, mask, vocabulary, sentences)
    sessions = {
        name: ort.InferenceSession(tmp_path / "b" / f"{name}.onnx", providers=["CPUExecutionProvider"])
        for name in (*names, "word")
    }

    def run(name, feed) -> Any:
        return sessions[name].run(None, feed)

    def close(got, want):
        np.testing.assert_allclose(got, want, atol=1e-5 * max(1.0, np.abs(want).max()), rtol=0)

    decoding, word = Decoding(longest=8), jax.jit(partial(model.apply, variables, method="word"))
    inputs = {"begin_image": {**arrays, "mask": mask}, "begin_text": {"token": text.token, "mask": text.mask}}
    states, said = [f"state/{leaf['name']}" for leaf in m.manifest["functions"]["word"]["gives"][:-1]], {}
    for name, source in zip(names, (image, text), strict=False):
        state, carry = run(name, inputs[name]), model.apply(variables, source, method="begin")
        for got, want in zip(state, jax.tree.leaves(carry), strict=True):
            close(got, want)
        token, rows = np.full(len(state[0]), START, np.int32), []
        for step in range(decoding.longest):
            feed = dict(zip(states, state, strict=True))
            *state, logits = run("word", {**feed, "token": token})
            carry, want = word(carry, token)
            close(logits, want)
            best = allowed_log_probability(jax.numpy.asarray(logits), jax.numpy.asarray(step)).argmax(1)
            token = np.asarray(best, np.int32)
            rows.append(token)
        said[name] = [vocabulary.decode(row) for row in np.stack(rows, 1).tolist()]
    assert said["begin_image"] == m.caption(arrays, mask, decoding=decoding)
    if "text" in begins:
        assert said["begin_text"] == m.paraphrase(sentences, decoding=decoding)
    assert len(set(said[names[-1]])) > 1


@needs_onnx
def test_a_graph_that_onnx_cannot_hold_is_one_sentence_and_writes_nothing(tmp_path):
    config, vocabulary, model, _, facts, variables = build("sgraf.py:saf")
    parts = {"config": config, "model": model, "variables": variables, "facts": facts}
    with pytest.raises(UsageError, match=r"^score of this system cannot become ONNX \(.*\); leave out --onnx, [^\n]*$"):
        export.write(tmp_path / "b", vocabulary=vocabulary, card=CARD, with_onnx=True, **parts)
    assert not (tmp_path / "b").exists()
