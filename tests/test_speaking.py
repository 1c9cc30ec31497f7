"""Speaking through the command line: captions, paraphrases, their scores, of a run and of its bundle; noise curves."""

import json

import pytest
from helpers import planted

from xmodal_jax import cli

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of STT, its bundle, and a run of VSE++ that does not speak."""
    folder = tmp_path_factory.mktemp("speaking")
    data = planted(folder / "data", train=24, other=6)
    options = ["--data", str(data), "--config.data.minimum_count=1", "--config.data.batch_size=8"]
    for spec, steps in (("stt.py:stt", 6), ("vse.py:vsepp", 1)):
        argv = ["train", "--config", f"{spec},scenes,tiny", "--workdir", str(folder / spec[:3]), *options]
        assert cli.run([*argv, f"--config.steps={steps}"]) == 0
    assert cli.run(["export", "--workdir", str(folder / "stt"), "--out", str(folder / "bundle")]) == 0
    return folder


def run(capsys, *argv):
    code = cli.run([str(arg) for arg in argv])
    done = capsys.readouterr()
    return code, done.out, done.err


def test_eval_scores_the_sentences_beside_recall(folder, capsys, tmp_path):
    code, out, _ = run(capsys, "eval", "--workdir", folder / "stt", "--json", tmp_path / "t.json", "--beams", 2)
    assert code == 0
    assert "captioning" in out and "CIDEr-D" in out
    table = json.loads((tmp_path / "t.json").read_text())
    assert set(table["sentences"]) == {"captioning", "paraphrasing"}
    assert table["sentences"]["captioning"]["decoding"]["method"] == "beam"
    assert 0 <= table["sentences"]["captioning"]["BLEU-1"] <= 1
    assert run(capsys, "eval", "--workdir", folder / "vse", "--json", tmp_path / "v.json")[0] == 0
    assert "sentences" not in json.loads((tmp_path / "v.json").read_text())


def test_run_and_bundle_say_the_same(folder, capsys, tmp_path):
    sources = (["--workdir", folder / "stt"], ["--bundle", folder / "bundle", "--data", folder / "data"])
    said = []
    for number, source in enumerate(sources):
        path = tmp_path / f"{number}.json"
        assert run(capsys, "caption", *source, "--split", "test", "--json", path)[0] == 0
        whole = json.loads(path.read_text())
        code, out, _ = run(capsys, "caption", *source, "--image", "test-2", "test-4")
        assert code == 0
        assert out.splitlines() == [f"test-{i}\t{whole[i]['sentence']}" for i in (2, 4)]
        code, out, _ = run(capsys, "paraphrase", *source, "red0 dog1 sea2", "big3")
        assert code == 0
        said.append((whole, out))
    assert said[0] == said[1]
    assert all(pair["sentence"] for pair in said[0][0])


def test_sampled_sentences_follow_the_seed(folder, capsys):
    argv = ["caption", "--workdir", folder / "stt", "--image", "test-0", "--temperature", 5]
    lines = {seed: run(capsys, *argv, "--seed", seed)[1] for seed in range(4)}
    assert run(capsys, *argv, "--seed", 3)[1] == lines[3]
    assert len(set(lines.values())) > 1


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["caption", "--workdir", "vse", "--split", "test"], "does not speak"),
        (["paraphrase", "--workdir", "vse", "red0"], "does not speak"),
        (["caption", "--workdir", "stt"], "Give --image"),
        (["paraphrase", "--workdir", "stt"], "Give sentences or --split"),
        (["caption", "--bundle", "bundle", "--split", "test"], "needs --data"),
        (["caption", "--bundle", "bundle", "--image", "nowhere.png"], "No file nowhere.png"),
        (["caption", "--workdir", "stt", "--image", "test-99"], 'No image "test-99"'),
        (["caption", "--workdir", "stt", "--split", "test", "--beams", "3", "--top-p", "0.5"], "one of the two"),
        (["caption", "--workdir", "stt", "--split", "test", "--temperature", "0"], "temperature to be above 0"),
    ],
)
def test_refusals_are_one_sentence(folder, argv, says, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    code, _, err = run(capsys, *argv)
    assert code in (2, 3)
    assert says in err
    assert "Traceback" not in err


def test_noise_curves_of_two_systems_in_one_picture(folder, capsys):
    for name in ("vse", "stt"):
        beside = ["--beside", folder / "vse"] if name == "stt" else []
        code, out, err = run(capsys, "eval", "--workdir", folder / name, "--char-noise", 0.5, 0, *beside)
        assert code == 0, err
    results = json.loads((folder / "stt" / "eval" / "noise.json").read_text())
    assert [row["char_noise"] for row in results] == [0, 0.5]
    assert results[0]["rsum"] == pytest.approx(recall(folder / "stt"))
    assert (folder / "stt" / "eval" / "noise.png").stat().st_size > 5000
    assert "noise.png" in out


def recall(workdir):
    path = workdir / "again.json"
    assert cli.run(["eval", "--workdir", str(workdir), "--json", str(path)]) == 0
    return json.loads(path.read_text())["rsum"]


def test_nearest_captions_are_copied_from_training(folder, capsys, tmp_path):
    argv = ["baseline", "nearest", "--data", folder / "data", "--features", "global,region"]
    code, out, err = run(capsys, *argv, "--json", tmp_path / "n.json")
    assert code == 0, err
    scores = json.loads((tmp_path / "n.json").read_text())
    assert set(scores["sentences"]) == {"captioning", "paraphrasing"}
    assert scores["sentences"]["captioning"]["BLEU-1"] > 0.3  # four words of sixteen, planted in the features
    assert "nearest images" in out
