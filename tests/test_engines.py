"""Engines: exact equals sorting with NumPy, FAISS and Qdrant find what it finds, their caches are not trusted."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmodal_jax.errors import NumericError, UsageError
from xmodal_jax.inference import engines


def brute(vectors, query, k):
    """Falling scores, equal ones by row."""
    score = query.astype(np.float64) @ vectors.astype(np.float64).T
    rows = np.argsort(-score, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(score, rows, 1), rows


def draw(count, width, queries, dtype: Any = np.float32, seed=0):
    """Small whole numbers: products are exact, and many are equal."""
    random = np.random.default_rng(seed)
    return random.integers(-2, 3, (count, width)).astype(dtype), random.integers(-2, 3, (queries, width)).astype(dtype)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 9),
    st.integers(1, 5),
    st.integers(1, 120),
    st.integers(1, 100),
    st.sampled_from([np.float16, np.float32]),
    st.booleans(),
    st.integers(0, 99),
)
def test_exact_is_a_stable_sort(count, width, queries, k, block, dtype, held, seed):
    vectors, query = draw(count, width, queries, dtype, seed)
    engine = engines.Exact(vectors, block=block, resident=1 << 30 if held else 0)
    assert (engine._held is not None) == held
    score, row = engine.search(query, k)
    wanted_score, wanted_row = brute(vectors, query, k)
    np.testing.assert_array_equal(row, wanted_row)
    np.testing.assert_array_equal(score, wanted_score)
    assert row.dtype == np.int64


def test_exact_takes_many_queries(monkeypatch):
    monkeypatch.setattr(engines, "QUERIES", 8)
    vectors, query = draw(50, 4, 21)
    np.testing.assert_array_equal(engines.Exact(vectors, block=16).search(query, 7)[1], brute(vectors, query, 7)[1])


def test_exact_without_vectors_or_queries():
    vectors, query = draw(5, 4, 2)
    assert engines.Exact(vectors[:0]).search(query, 3)[1].shape == (2, 0)
    assert engines.Exact(vectors).search(query[:0], 3)[1].shape == (0, 3)


def test_what_cannot_be_asked():
    engine = engines.Exact(draw(5, 4, 1)[0])
    with pytest.raises(UsageError, match=r"\[queries, 4\] here, not \[1, 3\]"):
        engine.search(np.zeros((1, 3)), 2)
    with pytest.raises(NumericError, match="not finite"):
        engine.search(np.full((1, 4), np.nan), 2)
    with pytest.raises(UsageError, match='no engine "annoy"'):
        engines.open_engine("annoy", np.zeros((1, 4)), Path())


@pytest.mark.parametrize(("choice", "module"), [("faiss", "faiss"), ("qdrant::memory:", "qdrant_client")])
def test_a_missing_extra_is_one_sentence(choice, module, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=r'pip install "xmodal_jax\[(ann|qdrant)\]"'):
        engines.open_engine(choice, np.zeros((3, 4), np.float32), tmp_path)


def test_recall_counts_what_was_wanted():
    assert engines.recall(np.array([[1, 2, 3], [7, 8, 9]]), np.array([[3, 1], [1, 9]])) == 0.75
    assert engines.recall(np.zeros((0, 3)), np.zeros((0, 2))) == 1.0


def test_equal_scores_are_ordered_and_nothing_comes_last():
    score, row = engines._ordered(np.array([[5.0, 1, 1, 9]]), np.array([[-1, 4, 2, 0]]))
    assert row.tolist() == [[0, 2, 4, -1]]
    assert score[0, 3] == -np.inf


# FAISS


@pytest.fixture
def faiss():
    return pytest.importorskip("faiss", reason="faiss-cpu (extra ann) is not installed")


def random_vectors(count=400, width=16, dtype: Any = np.float16):
    vectors = np.random.default_rng(3).normal(size=(count, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(dtype)


def test_faiss_keeps_its_index_and_loads_it(faiss, tmp_path, monkeypatch, capsys):
    vectors = random_vectors()
    first = engines.Faiss(vectors, tmp_path / "cache", "a" * 64, vectors[:120])
    assert "recall@10 1.000" in capsys.readouterr().err
    query = vectors[:5].astype(np.float32)
    want = engines.Exact(vectors).search(query, 12)
    np.testing.assert_array_equal(first.search(query, 12)[1], want[1])
    monkeypatch.setattr(engines.Faiss, "_build", lambda *_: pytest.fail("built again"))
    again = engines.Faiss(vectors, tmp_path / "cache", "a" * 64)
    np.testing.assert_allclose(again.search(query, 12)[0], want[0], rtol=1e-5)
    assert again.recall == 1.0
    assert again.search(query, 1000)[1].shape == (5, 400)


@pytest.mark.parametrize("damage", ["index", "json", "key", "other", "shape"])
def test_faiss_never_loads_what_it_did_not_write(faiss, tmp_path, monkeypatch, damage):
    vectors = random_vectors()
    engines.Faiss(vectors, tmp_path, "a" * 64)
    (path,) = tmp_path.glob("*.index")
    about = path.with_suffix(".json")
    identity = "a" * 64
    if damage == "index":
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw)
    elif damage == "json":
        about.write_text("[" * 100_000)
    elif damage == "key":
        known = json.loads(about.read_text())
        known["key"]["vectors"] = "b" * 64
        about.write_text(json.dumps(known))
    elif damage == "other":
        identity = "a" * 16 + "c" * 48  # the same file name
    else:
        vectors = random_vectors(300)
    monkeypatch.setattr(faiss, "read_index", lambda *_: pytest.fail("loaded"))
    built = []
    build = engines.Faiss._build
    monkeypatch.setattr(engines.Faiss, "_build", lambda *args: built.append(1) or build(*args))
    engines.Faiss(vectors, tmp_path, identity)
    assert built


def test_faiss_looks_at_more_cells_until_enough_is_found(faiss, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "FLAT", 300)
    vectors = random_vectors(2000)
    engine = engines.Faiss(vectors, tmp_path, "a" * 64)
    assert engine.key["kind"] == "IVF128,SQfp16"
    assert engine.recall >= engines.WANTED
    probe = json.loads(next(tmp_path.glob("*.json")).read_text())["probe"]
    assert 8 < probe <= 128
    assert engines.Faiss(vectors, tmp_path, "a" * 64)._index.nprobe == probe
    monkeypatch.setattr(engines, "WANTED", 0.0)
    assert engines.Faiss(vectors, None, "")._index.nprobe == 8


# Qdrant


@pytest.fixture
def qdrant():
    return pytest.importorskip("qdrant_client", reason="qdrant-client (extra qdrant) is not installed")


@pytest.mark.parametrize("where", [":memory:", "folder"])
def test_qdrant_finds_what_exact_finds(qdrant, tmp_path, where):
    vectors = random_vectors(dtype=np.float32)
    engine = engines.Qdrant(vectors, str(tmp_path / "q") if where == "folder" else where, "mine")
    query = vectors[:6]
    score, row = engine.search(query, 9)
    want = engines.Exact(vectors).search(query, 9)
    np.testing.assert_array_equal(row, want[1])
    np.testing.assert_allclose(score, want[0], atol=1e-5)
    assert engine.search(query, 1000)[1].shape == (6, 400)


def test_qdrant_orders_equal_scores(qdrant):
    vectors = np.tile(np.eye(4, dtype=np.float32), (3, 1))
    assert engines.Qdrant(vectors, ":memory:", "mine").search(vectors[:1], 3)[1].tolist() == [[0, 4, 8]]


def test_qdrant_goes_on_and_is_found_again(qdrant, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "UPSERT", 100)
    vectors = random_vectors(dtype=np.float32)
    upsert = qdrant.QdrantClient.upsert
    calls = []

    def failing(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise ConnectionError("gone")
        return upsert(self, *args, **kwargs)

    monkeypatch.setattr(qdrant.QdrantClient, "upsert", failing)
    clients = []
    init = qdrant.QdrantClient.__init__
    monkeypatch.setattr(
        qdrant.QdrantClient, "__init__", lambda self, *a, **k: clients.append(self) or init(self, *a, **k)
    )
    with pytest.raises(UsageError, match=r"Qdrant at .*: gone; start it"):
        engines.Qdrant(vectors, str(tmp_path / "q"), "mine")
    clients.pop().close()
    engine = engines.Qdrant(vectors, str(tmp_path / "q"), "mine")
    assert len(calls) == 5  # two, one that failed, the two that were missing
    np.testing.assert_array_equal(engine.search(vectors[:3], 2)[1], engines.Exact(vectors).search(vectors[:3], 2)[1])
    clients.pop().close()
    engines.Qdrant(vectors, str(tmp_path / "q"), "mine")
    assert len(calls) == 5


def test_qdrant_that_does_not_answer_is_one_sentence(qdrant):
    with pytest.raises(UsageError, match=r"Qdrant at http://127\.0\.0\.1:9: .*; start it"):
        engines.Qdrant(random_vectors(10), "http://127.0.0.1:9", "mine")
