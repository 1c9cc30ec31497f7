"""Words that the vocabulary lacks and texts that are cut: said by every verb that reads captions, refused where too
much is unknown."""

import json
import warnings

import numpy as np
import pytest
from helpers import planted
from test_gallery import bundle_of, data, indexed, vse  # noqa: F401  (fixtures)

from xmodal_jax import cli
from xmodal_jax.data import check, sources, writer
from xmodal_jax.data.pipeline import Captions
from xmodal_jax.data.records import Item, open_dataset
from xmodal_jax.data.sources import rare_words
from xmodal_jax.defaults import base
from xmodal_jax.errors import CutWarning, DataError
from xmodal_jax.inference import load
from xmodal_jax.text import unknown
from xmodal_jax.text.vocabulary import MINIMUM, SPECIAL, Coverage, Vocabulary

pytestmark = pytest.mark.usefixtures("one_device")
TRAIN = ["train", "--config", "vse.py:vsepp,tiny", "--config.model.feature=region", "--config.steps=1"]


def shop(folder, rare):
    """Captions of ten words each, of which so many occur once."""

    def items(split, count):
        for i in range(count):
            words = [f"{split}{i}x{n}" for n in range(rare)] + [f"shirt{n}" for n in range(10 - rare)]
            features = np.random.default_rng([i, len(split)]).normal(size=(2, 4)).astype(np.float16)
            yield Item(f"{split}-{i}", [" ".join(words)], {"region": features}, None, (0, 0), None)

    writer.write(folder, {s: items(s, 20) for s in ("train", "dev", "test")}, name="shop", source={})
    return folder


def test_levels():
    def of(share, tokens=1000):
        return unknown.level(Coverage(tokens, round(share * tokens), 9, 0))

    assert [of(share) for share in (0.09, 0.1, 0.49, 0.5, 1.0)] == ["", "warnings", "warnings", "errors", "errors"]
    assert of(1.0, 99) == "" and unknown.level(Coverage(1000, 1000, 9, 9), 1.0) == "warnings"
    assert base("own").data.minimum_count == MINIMUM
    assert cli.make_parser().parse_args(["data", "check", "x"]).minimum_count == MINIMUM
    words = unknown.sentence(Coverage(1000, 123, 9, 2))
    assert words == "12.3 % of 1,000 tokens are unknown, 2 of 9 captions have none that is known"


def test_what_is_told_of_captions_that_are_read_is_that_of_the_text():
    texts = [["a dog", "zebra quagga"], ["a a"]]
    for vocabulary in (Vocabulary([*SPECIAL, "a"]), Vocabulary.build([], 1, "characters")):
        sentences = [*texts[0], *texts[1]]
        assert Captions(texts, vocabulary, [3]).coverage == vocabulary.coverage(sentences)
    assert Captions([["两只狗"]], Vocabulary.build([], 1, "characters"), [8]).coverage == Coverage(3, 3, 1, 1)


@pytest.mark.parametrize(("rare", "level"), [(0, ""), (2, "warnings"), (6, "errors"), (10, "errors")])
def test_import_and_check_tell_the_share(rare, level, tmp_path, capsys):
    folder = shop(tmp_path / "set", rare)
    line = rare_words(folder, open_dataset(folder).manifest)[0]
    assert f"{10.0 * rare:.1f} % of 200 tokens in train" in line and ("warning: " in line) == bool(level)
    assert ("20 captions hold only such" in line) == (rare == 10)
    assert line in sources.summary(folder, open_dataset(folder).manifest, sources.Report(), [])
    result = check.check(folder)
    findings = {kind: [s for s in result[kind] if "are unknown" in s] for kind in ("errors", "warnings")}
    assert {kind: len(found) for kind, found in findings.items()} == {
        kind: 3 if kind == level else 0 for kind in ("errors", "warnings")
    }
    assert result["unknown"]["test"]["unknown"] == 20 * rare
    if level == "errors":
        assert not [s for s in check.check(folder, allow_unknown=True)["errors"] if "are unknown" in s]
        assert cli.run(["data", "check", str(folder)]) == 3
        assert cli.run(["data", "check", str(folder), "--allow-unknown"]) == 0
        assert f"captions of test: {10.0 * rare:.1f} % of 200 tokens are unknown" in capsys.readouterr().out
    assert check.check(folder, minimum=1)["unknown"]["train"]["unknown"] == 0


def test_trainings_and_evaluations_tell_the_share_and_refuse_half(tmp_path, capsys):
    folder, run = shop(tmp_path / "set", 6), tmp_path / "run"
    argv = [*TRAIN, f"--config.data.dir={folder}", "--workdir", str(run)]
    assert cli.run(argv) == 3
    assert "Captions of train: 60.0 % of 200 tokens are unknown" in capsys.readouterr().err
    assert not run.exists()
    assert cli.run([*argv, "--config.data.most_unknown=1", "--config.data.lengths=(8,)"]) == 0
    out = capsys.readouterr().out
    assert "warning: captions of dev: 60.0 % of 200 tokens are unknown" in out
    assert "captions of train: 20 of 20 are longer than 8 tokens and are cut" in out
    assert cli.run(["eval", "--workdir", str(run)]) == 3
    assert "Captions of test: 60.0 %" in capsys.readouterr().err
    target = tmp_path / "t.json"
    assert cli.run(["eval", "--workdir", str(run), "--allow-unknown", "--json", str(target)]) == 0
    assert "warning: captions of test: 60.0 %" in capsys.readouterr().err
    assert json.loads(target.read_text())["unknown"] == {"tokens": 200, "unknown": 120, "captions": 20, "blank": 0}


def test_a_remedy_is_part_of_the_refusal():
    with pytest.raises(DataError, match=r"60\.0 % of 200 tokens are unknown, .* do this"):
        unknown.judge({"x": Coverage(200, 120, 20, 1)}, most=0.5, remedy="do this")


def test_a_cut_text_is_told_wherever_it_is_read(vse, data, tmp_path, capsys):  # noqa: F811
    bundle = load(vse)
    most = max(bundle.lengths)
    long, short = "red0 " * (most + 5), "red0 dog1"
    assert (bundle.cut(long), bundle.cut(short)) == (7, 0)  # with <start> and <end>
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for text in (short, long, long):
            bundle.embed_texts([text])
    assert [w.category for w in caught] == [CutWarning] and f"more than {most} tokens" in str(caught[0].message)
    gallery = indexed(vse, data, tmp_path / "g")
    capsys.readouterr()
    assert cli.run(["search", str(gallery), long, "-k", "2"]) == 0
    assert capsys.readouterr().err == f"the sentence is cut: its last 7 tokens are not read, only {most} are\n"
    assert cli.run(["search", str(gallery), long, "-k", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cut"] == 7
    many = planted(tmp_path / "many", train=2, other=2)

    def items():
        for item in open_dataset(many).split("test").read([0, 1]):
            yield item._replace(captions=[long, *item.captions])

    writer.write(tmp_path / "long", {"test": items()}, name="long", source={})
    argv = ["index", "--bundle", str(vse), "--data", str(tmp_path / "long"), "--out", str(tmp_path / "h")]
    assert cli.run(argv) == 0
    assert f"2 captions are longer than {most} tokens and are cut" in capsys.readouterr().err
