"""`xmodal bench`: rows on small data, the table, bad names; and, where torch is installed, that both sides agree."""

import json

import jax
import numpy as np
import pytest

from xmodal_jax import bench, cli, similarity
from xmodal_jax.bench import cases, material, measure, networks

KEYS = {"name", "ours_s", "loop_s", "ratio", "gflops", "gemm_share", "memory_mb"}


@pytest.fixture
def small(monkeypatch):
    for name, value in {"B": 8, "R": 5, "D": 16}.items():
        for module in (cases, material, networks):
            monkeypatch.setattr(module, name, value, raising=False)
    monkeypatch.setattr(measure, "GEMM", (64, 16, 32))


@pytest.mark.parametrize("name", ["scan_t2i_forward", "scan_i2t_hardest"])
def test_a_row_has_all_it_promises(name, small, monkeypatch):
    monkeypatch.setitem(
        cases.GROUPS["kernels"], name, lambda: cases.scan("t2i", None if "forward" in name else 1.0, 8, 8)
    )
    monkeypatch.setattr(measure, "has_torch", lambda: False)
    row = measure.ours(name)
    assert set(row) >= KEYS
    assert row["ours_s"] > 0
    assert row["loop_s"] is None
    assert row["gemm_share"] == pytest.approx(row["gflops"] / row["gemm_gflops"])
    json.dumps(row)


def test_peak_memory_sees_what_a_run_allocates_and_gives_back():
    assert 90 < (measure.peak_above(lambda: np.ones(100 * 2**17).sum()) or 100) < 130
    assert (measure.peak_above(lambda: None) or 0) < 5


def test_rows_are_chosen_by_name(capsys):
    assert bench.chosen("step", None) == ["scan_step"]
    assert bench.chosen("all", "ranks_5k,scan_step") == ["ranks_5k", "scan_step"]
    for argv in (["bench", "step", "--only", "ranks_5k"], ["bench", "--only", ""]):
        assert cli.run(argv) == 2
        assert "scan_step" in capsys.readouterr().err


def test_the_table_has_a_dash_for_what_was_not_measured():
    row = {"name": "x", "ours_s": 0.5, "loop_s": None, "ratio": None, "note": "half"}
    assert bench.to_lines([row])[1].split() == ["x", "0.5", "s", "-", "-", "-", "-", "-", "-", "half"]


def test_a_row_that_dies_is_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(measure, "has_torch", lambda: False)
    monkeypatch.setitem(cases.GROUPS["step"], "nothing", lambda: None)  # which the fresh process does not know
    assert cli.run(["bench", "step", "--only", "nothing"]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("xmodal: The benchmark nothing (ours) ended with code 1: StopIteration")


def agree(case):
    """Ours and the loop on the same data: the same scores, or the same loss."""
    got = jax.jit(case.function)(*case.args)
    want = case.loop()()
    got = got[0] if isinstance(got, tuple) else got
    np.testing.assert_allclose(
        np.asarray(got)[..., : np.shape(want)[-1]] if np.ndim(want) else got, want, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
@pytest.mark.parametrize("hardness", [None, 0.0, 0.5, 1.0])
def test_scan_equals_its_loop(direction, hardness, small):
    pytest.importorskip("torch", reason="torch (extra bench) is not installed")
    agree(cases.scan(direction, hardness, 8, 8))


def test_adapt_equals_its_loop(small):
    pytest.importorskip("torch", reason="torch (extra bench) is not installed")
    agree(cases.adapt(None))


@pytest.mark.parametrize("hardness", [None, 0.0])
def test_smlstm_equals_its_loop(hardness, small):
    pytest.importorskip("torch", reason="torch (extra bench) is not installed")
    agree(networks.selective(hardness, hidden=16))


@pytest.mark.parametrize("level", ["word", "short", "long", "sentence"])
def test_mcnn_equals_its_loop(level):
    pytest.importorskip("torch", reason="torch (extra bench) is not installed")
    agree(networks.mcnn(level, None if level == "short" else 0.0, 6))


def test_vse_equals_its_loop(small):
    pytest.importorskip("torch", reason="torch (extra bench) is not installed")
    agree(cases.vse(32, 5))


def test_ranks_equal_their_loop(small):
    pytest.importorskip("torch", reason="torch (extra bench) is not installed")
    from xmodal_jax.bench import loops
    from xmodal_jax.evaluation.rank import ranks

    image, text = (np.random.default_rng(i).normal(size=(n, 16)) for i, n in enumerate((20, 60)))
    positive = np.arange(20)[:, None] == np.arange(60) // 3
    np.testing.assert_array_equal(loops.ranks(image, text, 3, 20), np.concatenate(ranks(image @ text.T, positive)))


def test_sentences_equal_their_loop(small):
    """Beside the beam ours keeps greedy's sentence, which may be the better one."""
    pytest.importorskip("torch", reason="torch (extra bench) is not installed")
    case = cases.sentences(items=12, few=12, vocabulary=20, word_dim=6)
    ours = [[token for token in row if token] for row in np.asarray(jax.jit(case.function)(*case.args)).tolist()]
    theirs = case.loop()() if case.loop else []
    assert sum(a == b for a, b in zip(ours, theirs, strict=True)) >= 10
    assert len({tuple(row) for row in ours}) > 1


def test_the_whole_matrix_is_what_evaluation_scores(small):
    case = cases.eval_whole(6, 9)
    region, word, mask = case.args
    want = similarity.cross_attention(region, np.ones((6, 5), bool), word, mask, direction="t2i", pool="mean")
    np.testing.assert_allclose(jax.jit(case.function)(*case.args), want, atol=1e-6)


def test_gemm_rate_is_positive(small):
    assert measure.gemm_rate() > 0


def test_pictures_a_second_are_measured_beside_a_loop(monkeypatch, capsys):
    pytest.importorskip("PIL", reason="pillow (extra image) is not installed")
    from xmodal_jax.bench import pixels

    for name, value in {"SIZES": ((40, 30),), "SIDES": (8,), "BATCH": 2, "RENDERED": 3}.items():
        monkeypatch.setattr(pixels, name, value)
    assert cli.run(["bench", "pixels", "--seconds", "0.05"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("name pixels_40x30_8  images_per_s")
    assert "loop_images_per_s" in out
