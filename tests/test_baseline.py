"""Linear CCA: against the definition, on a planted data set, and on the real features."""

import argparse
import json
import shutil
from collections import Counter

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
from helpers import planted

from xmodal_jax import cli
from xmodal_jax.baselines import cca as baseline
from xmodal_jax.data import records
from xmodal_jax.errors import DataError, NumericError, UsageError
from xmodal_jax.evaluation.vote import Member, scaled


def correlated(rho, *, n_images=4000, noise=3, seed=0):
    """Images and captions with canonical correlations ``rho``, beside ``noise`` free dimensions, in a mixed basis."""
    random = np.random.default_rng(seed)
    row = np.repeat(np.arange(n_images), random.integers(1, 4, n_images))
    hidden = random.normal(size=(n_images, len(rho)))
    image = np.concatenate([hidden, random.normal(size=(n_images, noise))], axis=1)
    described = rho * hidden[row] + np.sqrt(1 - np.square(rho)) * random.normal(size=(len(row), len(rho)))
    text = np.concatenate([described, random.normal(size=(len(row), noise))], axis=1)
    mix = [random.normal(size=(side.shape[1],) * 2) for side in (image, text)]
    return baseline.Items((image @ mix[0] + 3).astype(np.float32), scipy.sparse.csr_array(text @ mix[1] - 1), row)


def solve(items, image_ridge, text_ridge, dimension=256):
    ((_, projection),) = baseline.Correlator(items).solve([image_ridge], text_ridge, dimension)
    return projection


def test_planted_correlations_are_recovered():
    rho = np.array([0.9, 0.7, 0.4])
    projection = solve(correlated(rho), 1e-9, 1e-9)
    np.testing.assert_allclose(projection.correlation[:3], rho, atol=0.03)
    assert projection.correlation[3:].max() < 0.1  # nothing else is correlated


def test_directions_solve_the_regularised_problem():
    """Against SVD of the whitened cross-covariance, with every pair written out."""
    items, (a, b) = correlated([0.8, 0.5], n_images=60), (0.3, 0.7)
    projection = solve(items, a, b)
    x, y = items.image[items.row].astype(np.float64), items.text.toarray()
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    covariances = [side.T @ side / len(x) for side in (x, y)]
    cxx, cyy = (c + r * np.trace(c) / len(c) * np.eye(len(c)) for c, r in zip(covariances, (a, b), strict=True))
    cxy = x.T @ y / len(x)
    root = [np.linalg.inv(np.real(scipy.linalg.sqrtm(c))) for c in (cxx, cyy)]
    np.testing.assert_allclose(projection.correlation, np.linalg.svd(root[0] @ cxy @ root[1])[1], atol=1e-6)
    eye = np.eye(len(projection.correlation))
    np.testing.assert_allclose(projection.image.T @ cxx @ projection.image, eye, atol=1e-6)
    np.testing.assert_allclose(projection.text.T @ cyy @ projection.text, eye, atol=1e-6)
    np.testing.assert_allclose(projection.image.T @ cxy @ projection.text, np.diag(projection.correlation), atol=1e-6)
    image, text = baseline.project(projection, items)
    np.testing.assert_allclose(image[items.row].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(text.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(solve(items, a, b, dimension=2).correlation, projection.correlation[:2], atol=1e-9)


def test_power_weights_the_directions():
    random = np.random.default_rng(0)
    image, text, row = random.normal(size=(9, 4)), random.normal(size=(18, 4)), np.arange(18) // 2
    rho = np.array([1, 0.5, 0.2, 0.1])

    def expected(weight):
        x, y = image * weight, text * weight
        scores = x @ y.T / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(y, axis=1)
        return (scores > scores[row, np.arange(18)]).sum(axis=0)

    for setting, weight in [((4, 2.0), rho**2), ((4, 0.0), np.ones(4)), ((2, 1.0), rho * [1, 1, 0, 0])]:
        got = baseline.rank((image, text), rho, baseline.Setting(1, 1, *setting), row)[1]
        np.testing.assert_array_equal(got, expected(weight))


def test_tf_idf():
    captions: list[Counter[str]] = [Counter(words.split(" ")) for words in ("a dog a", "a cat", "a dog", "one bird")]
    words = baseline.Words(captions)
    assert list(words.column) == ["a", "dog"]  # the others occur once
    vectors = words(captions).toarray()
    a, dog = np.log(4 / 3), np.log(4 / 2)
    np.testing.assert_allclose(vectors, [[(1 + np.log(2)) * a, dog], [a, 0], [a, dog], [0, 0]])
    with pytest.raises(DataError, match="No word occurs 2 times in the 1 training captions"):
        baseline.Words(captions[3:])


def test_constant_features_are_an_error():
    items = correlated([0.5], n_images=20)
    with pytest.raises(NumericError, match="cannot be factored"):
        solve(items._replace(image=np.zeros_like(items.image)), 1.0, 1.0)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return planted(tmp_path_factory.mktemp("baseline") / "data", train=200, other=40, features=12)


@pytest.mark.parametrize(("method", "features"), [("cca", ["region"]), ("ncca", ["global", "region"])])
def test_command_on_a_planted_set(small, tmp_path, capsys, method, features):
    out = tmp_path / "table.json"
    assert (
        baseline.main(
            argparse.Namespace(method=method, data=small, features=features, split="test", json=out, workdir=None)
        )
        == 0
    )
    result, screen = json.loads(out.read_text()), capsys.readouterr().out
    setting = result["setting"]
    assert (setting["power"] == 0) == (method == "cca")
    assert f"{method} on planted test, {' + '.join(features)} features" in screen
    assert f"{setting['dimension']} directions" in screen and f"{result['rsum']:.1f}" in screen
    assert result["rsum"] > 3 * sum(sum(way[f"r{cut}"] for cut in (1, 5, 10)) for way in result["chance"].values())
    assert result["weights"] == "raw" and result["features"] == features and result["images"] == 40


def test_unknown_and_missing_features_are_one_sentence(small):
    args = argparse.Namespace(method="cca", data=small, features=["glob"], split="test", json=None, workdir=None)
    with pytest.raises(UsageError, match='No feature "glob" for the baseline; choose from global and region'):
        baseline.main(args)
    with pytest.raises(DataError, match='no split "val"'):
        baseline.main(argparse.Namespace(**{**vars(args), "features": ["global"], "split": "val"}))


def test_a_kept_baseline_votes_in_an_ensemble(small, tmp_path, capsys):
    def table(*args):
        assert cli.run([*args, "--json", str(tmp_path / "t.json")]) == 0
        return {key: value for key, value in json.loads((tmp_path / "t.json").read_text()).items() if key in ways}

    ways = ("i2t", "t2i", "rsum")
    folder = str(tmp_path / "linear")
    alone = table("baseline", "ncca", "--data", str(small), "--features", "region", "--workdir", folder)
    alone = {way: alone[way] if way == "rsum" else {k: alone[way][k] for k in ("r1", "r5", "r10")} for way in ways}
    for scale in ([], ["--scale"]):
        voted = table("eval", "--ensemble", folder, folder, *scale)
        for way in ways:
            assert voted[way] == alone[way] if way == "rsum" else voted[way].items() >= alone[way].items()
    assert cli.run(["eval", "--workdir", folder, "--scale"]) == 2
    file = tmp_path / "linear" / baseline.FILE
    file.write_bytes(file.read_bytes()[:1000])
    capsys.readouterr()
    assert cli.run(["eval", "--ensemble", folder, folder]) == 4
    assert "baseline.npz is damaged" in capsys.readouterr().err


def test_a_kept_baseline_knows_its_data(small, tmp_path, capsys, monkeypatch):
    def ensemble(*argv):
        capsys.readouterr()
        code = cli.run(["eval", "--ensemble", folder, folder, *argv, "--json", str(tmp_path / "mean.json")])
        return code, capsys.readouterr().err.splitlines()[-1]

    data, folder = shutil.copytree(small, tmp_path / "data"), str(tmp_path / "linear")
    alone = ["baseline", "cca", "--data", str(data), "--workdir", folder, "--json", str(tmp_path / "alone.json")]
    assert cli.run(alone) == 0 and ensemble()[0] == 0
    told = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("alone", "mean")]
    assert {(content["data"], content["identity"]) for content in told} == {
        ("planted", records.open_dataset(data).identity)
    }
    monkeypatch.chdir(tmp_path)
    assert cli.run(["compare", "alone.json", "mean.json"]) == 0
    shutil.rmtree(data)
    code, said = ensemble()
    assert code == 3 and said.endswith("data, which is not there; say where it is now by --data.")
    assert ensemble("--data", str(small))[0] == 0
    planted(data, train=200, other=40, features=12, seed=1)
    code, said = ensemble()
    assert code == 3 and "data has changed since" in said and "restore it, name it by --data, or make" in said
    assert ensemble("--data", str(data))[0] == 0
    code, said = ensemble("--data", str(planted(tmp_path / "wide", train=9, other=3, features=5)))
    assert code == 3 and "was fitted to global features of other sizes than those of" in said


def test_scaling_makes_members_equal():
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(6, 4)), rng.normal(size=(9, 4))
    members = [Member(lambda _, i, t, f=factor: f * (i @ t.T), None, image, text) for factor in (1.0, 50.0)]
    first, second = (scaled(member, member).scores() for member in members)
    np.testing.assert_allclose(first, second)
    np.testing.assert_allclose(first.std(), 1.0)


FIGURES = {  # of a regularised CCA on these features, in the README of the data
    ("global",): (26.9, 52.5, 66.4, 21.1, 49.3, 63.0),
    ("region",): (24.0, 51.1, 64.0, 17.9, 43.4, 57.5),
    ("global", "region"): (29.4, 55.1, 68.3, 22.4, 50.7, 64.3),
}


@pytest.fixture(scope="module")
def real(flickr8k, tmp_path_factory):
    from xmodal_jax.cli import run

    out = tmp_path_factory.mktemp("flickr8k") / "data"
    assert run(["data", "import", "precomp", str(flickr8k), "--out", str(out), "--features", "ims,glob"]) == 0
    return out


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize(("method", "features"), [("cca", ("global",))])  # all of FIGURES: docs/results.md
def test_recall_on_the_real_features(real, tmp_path, method, features):
    out = tmp_path / "table.json"
    args = argparse.Namespace(method=method, data=real, features=list(features), split="test", json=out, workdir=None)
    assert baseline.main(args) == 0
    result = json.loads(out.read_text())
    got = [result[way][name] for way in ("i2t", "t2i") for name in ("r1", "r5", "r10")]
    assert (np.array(got) > np.array(FIGURES[features]) - 1.5).all(), got
