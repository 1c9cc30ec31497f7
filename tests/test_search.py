"""Search: both directions agree with scoring everything, whatever the engine; what re-ranking keeps."""

import importlib.util
import json
import subprocess
import sys
import threading

import numpy as np
import pytest
from test_gallery import bundle_of, data, indexed, scan, scan_gallery, vse  # noqa: F401  (fixtures)

from xmodal_jax import cli
from xmodal_jax.bench import search as bench
from xmodal_jax.errors import UsageError
from xmodal_jax.inference import engines, index
from xmodal_jax.inference import measure as measuring
from xmodal_jax.inference import search as searching
from xmodal_jax.inference.gallery import Gallery
from xmodal_jax.inference.search import Searcher

TEXTS = ["red0 dog1 sea2", "big3", "dog0 dog1 dog2 dog3 red0 red1 red2 red3 big0 big1 sea3"]


@pytest.fixture(scope="module")
def vse_gallery(vse, data, tmp_path_factory):  # noqa: F811
    return Gallery(indexed(vse, data, tmp_path_factory.mktemp("vse_gallery") / "g"))


@pytest.fixture(scope="module")
def scans(scan_gallery):  # noqa: F811
    return Gallery(scan_gallery)


def everything(gallery):
    """Scores [images, texts] of the stored embeddings, and a function for sentences."""
    m, rows = gallery.bundle, slice(None)
    images, texts = (
        side.take(rows) if len(side.leaves) > 1 else side.take(rows)["embedding"]
        for side in (gallery.images, gallery.texts)
    )
    return m.score(images, texts), lambda sentences: m.score(images, sentences)


def same(hits, scores):
    """The hits are the best of ``scores``, up to items whose scores are equal to rounding."""
    want = np.sort(scores)[::-1][: len(hits)]
    np.testing.assert_allclose([hit.score for hit in hits], want, atol=2e-6)
    np.testing.assert_allclose(scores[[hit.row for hit in hits]], want, atol=2e-6)
    assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
    assert len({hit.row for hit in hits}) == len(hits)


@pytest.mark.parametrize("rerank", [None, "all", 7])
@pytest.mark.parametrize("which", ["vse_gallery", "scans"])
def test_both_directions_find_what_scoring_everything_finds(which, rerank, request):
    gallery = request.getfixturevalue(which)
    searcher = Searcher(gallery, rerank=rerank)
    pairs, of_texts = everything(gallery)
    scores = of_texts(TEXTS)
    for text, hits, score in zip(TEXTS, searcher.by_text(TEXTS, 5), scores.T, strict=True):
        if which == "vse_gallery" or rerank != 7:
            same(hits, score)
        same(searcher.by_text([text], 1000)[0], score)  # more than there are
        np.testing.assert_allclose([hit.score for hit in hits], score[[hit.row for hit in hits]], atol=2e-6)
        assert hits[0].id == f"test-{hits[0].row}"
        assert hits[0].captions[0] == gallery.texts.lines[gallery.images.lines[hits[0].row]["captions"][0]]["caption"]
    for row in (0, 20):
        hits = searcher.by_image(row, 6)
        if which == "vse_gallery" or rerank != 7:
            same(hits, pairs[row])
        assert hits[0].captions == [gallery.texts.lines[hits[0].row]["caption"]]
        assert hits[0].id == f"test-{gallery.texts.lines[hits[0].row]['image']}"
        assert hits[0].picture is None


def test_candidates_are_the_coarse_best(scans):
    searcher = Searcher(scans, rerank=4)
    assert [searcher.depth(scans.images, k) for k in (3, 9)] == [4, 9]
    query = searcher._texts(TEXTS[:1])
    _, coarse = engines.Exact(scans.images.coarse).search(query.vectors, 4)
    hits = searcher.by_text(TEXTS[:1], 4)[0]
    assert {hit.row for hit in hits} == set(coarse[0].tolist())


def test_scoring_in_parts_changes_nothing(scans, monkeypatch):
    want = Searcher(scans, rerank="all").by_text(TEXTS, 21)
    monkeypatch.setattr(searching, "PARTS", (8,))
    monkeypatch.setattr(searching, "PART", 8)
    got = Searcher(scans, rerank="all").by_text(TEXTS, 21)
    for some, others in zip(got, want, strict=True):
        np.testing.assert_allclose([h.score for h in some], [h.score for h in others], atol=1e-6)


def test_real_images_are_searched_among_made_up_ones(scan, vse, data, tmp_path, capsys):  # noqa: F811
    items = bench.with_made_up(data, ["region"], 40)
    (read,) = items.read(0)
    features, mask = read[0]["region"], read[1]
    assert items.ids[20:22] == ["test-20", "made-up-0"]
    assert len(items.ids) == len(features) == len(mask) == 40
    block = next(iter(index.items_of(data, "test", ["region"]).read(0)))
    np.testing.assert_array_equal(features[:21], block[0]["region"])
    pool = next(iter(index.items_of(data, "train", ["region"]).read(0)))[0]["region"]
    assert (features[21:, :, None] == pool.swapaxes(0, 1)).all(-1).any(-1).all()  # each region is a real one
    argv = ["bench", "rerank", "--data", str(data), "--items", "40", "--json", str(tmp_path / "rows.json")]
    assert cli.run([*argv, "--bundle", str(scan)]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert {row["items"] for row in rows} == {40}
    assert all(row["kept@10"] == 1.0 for row in rows)  # all 40 are candidates
    capsys.readouterr()
    assert cli.run([*argv, "--bundle", str(vse)]) == 2
    assert "nothing is re-ranked" in capsys.readouterr().err
    assert cli.run([*argv[:4], "--items", "20", "--bundle", str(scan)]) == 2
    assert "21 test images already" in capsys.readouterr().err


def test_one_call_scores_all_candidates(scans, monkeypatch):
    searcher = Searcher(scans, rerank=8)
    searcher.by_text(["red0"], 3)
    calls, full = [], searcher._full
    monkeypatch.setattr(searcher, "_full", lambda *pair: calls.append(pair) or full(*pair))
    searcher.by_text(["red1", "big1 sea1"], 3)
    assert [len(pair[0][0]) for pair in calls] == [searching.PARTS[0]] * 2


def test_a_system_of_one_vector_that_is_no_inner_product(data, tmp_path):  # noqa: F811
    gallery = Gallery(indexed(bundle_of("vse.py:order", tmp_path / "b"), data, tmp_path / "g"))
    assert gallery.dot is None
    scores = everything(gallery)[1](TEXTS)
    for hits, score in zip(Searcher(gallery).by_text(TEXTS, 5), scores.T, strict=True):
        same(hits, score)


def test_another_bundle_finds_the_candidates(scan, vse, data, tmp_path, vse_gallery, capsys):  # noqa: F811
    gallery = Gallery(indexed(scan, data, tmp_path / "g", "--coarse", str(vse)))
    assert gallery.coarse_bundle is not None
    assert gallery.coarse_bundle.fingerprint == vse_gallery.bundle.fingerprint
    hits = Searcher(gallery, rerank=5).by_text(TEXTS, 5)
    for some, others in zip(hits, Searcher(vse_gallery).by_text(TEXTS, 5), strict=True):
        assert {hit.row for hit in some} == {hit.row for hit in others}
    region = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    some, others = (Searcher(g, rerank=r).by_image(region, 5) for g, r in ((gallery, 5), (vse_gallery, None)))
    assert {hit.row for hit in some} == {hit.row for hit in others}
    out = ["index", "--bundle", str(scan), "--data", str(data), "--out", str(tmp_path / "h"), "--coarse", str(scan)]
    assert cli.run(out) == 2
    assert "--coarse takes a bundle of one" in capsys.readouterr().err


def test_features_are_queries(vse_gallery):
    region = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    searcher = Searcher(vse_gallery)
    hits = searcher.by_image(region, 3)
    assert hits == searcher.by_image({"region": region}, 3)
    m = vse_gallery.bundle
    same(hits, m.score(m.embed_images(region[None]), vse_gallery.texts.take(slice(None))["embedding"])[0])
    with pytest.raises(UsageError, match=r"\[images, regions, 8\]"):
        searcher.by_image(region[:, :3])


def test_what_cannot_be_asked(vse_gallery):
    searcher = Searcher(vse_gallery)
    assert searcher.by_text([], 3) == []
    with pytest.raises(UsageError, match="list of sentences"):
        searcher.by_text("red0")
    with pytest.raises(UsageError, match="query is empty"):
        searcher.by_text(["red0", " \n"])
    with pytest.raises(UsageError, match="has 2,001 characters; at most 2,000"):
        searcher.by_text(["a" * 2001])
    for k in (0, 1001):
        with pytest.raises(UsageError, match=f"k goes from 1 to 1,000, not {k}"):
            searcher.by_text(["red0"], k)
        with pytest.raises(UsageError, match="k goes from 1"):
            searcher.by_image(0, k)
    with pytest.raises(UsageError, match="from 0 to 20, not 21"):
        searcher.by_image(21)
    with pytest.raises(UsageError, match="nothing that makes them from"):
        searcher.by_image("picture.png")
    for rerank in (0, "most", -3):
        with pytest.raises(UsageError, match="--rerank takes"):
            Searcher(vse_gallery, rerank=rerank)
    with pytest.raises(UsageError, match="no engine"):
        Searcher(vse_gallery, engine="annoy").by_text(["red0"])


def test_known_and_unknown_words(vse_gallery):
    searcher = Searcher(vse_gallery)
    assert searcher.unknown("red0 unicorn") == ["unicorn"]
    searcher.check_known("red0 unicorn")
    with pytest.raises(UsageError, match=r"No word of the query is in the vocabulary \(two, unicorns\)"):
        searcher.check_known("two unicorns")


def test_what_an_approximate_engine_misses_is_left_out(vse_gallery, monkeypatch):
    class Poor:
        def search(self, query, k):
            return np.array([[0.5, -np.inf]], np.float32), np.array([[3, -1]])

    searcher = Searcher(vse_gallery)
    monkeypatch.setattr(searcher, "engine_of", lambda side: Poor())
    assert [hit.row for hit in searcher.by_text(["red0"], 2)[0]] == [3]


@pytest.mark.parametrize("which", ["vse_gallery", "scans"])
def test_after_warming_nothing_is_compiled(which, request, monkeypatch):
    import jax

    gallery = request.getfixturevalue(which)
    monkeypatch.setattr(gallery.bundle, "lengths", [8, 16])
    searcher = Searcher(gallery, rerank=9 if which == "scans" else None)
    searcher.warm(2, k=3)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration_secs, **_: compiled.append(event) if "backend_compile" in event else None
    )
    try:
        searcher.by_text(["red0"], 3)
        searcher.by_text(["red0 dog1 big2 sea3 red1 red2 red3 big1 dog0", "big1"], 2)
        for row in range(21):
            searcher.by_image(row, 3)
    finally:
        jax.monitoring.clear_event_listeners()
    assert not compiled


def test_threads_share_a_searcher(scans):
    searcher = Searcher(scans)
    want = searcher.by_text(TEXTS, 5), searcher.by_image(2, 5)
    again, out = Searcher(scans), []

    def ask():
        out.append((again.by_text(TEXTS, 5), again.by_image(2, 5)))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert out == [want] * 6
    assert len(again._engines) <= 2


@pytest.mark.parametrize("engine", ["faiss", "qdrant"])
def test_other_engines_find_the_same(engine, vse_gallery):
    pytest.importorskip({"faiss": "faiss", "qdrant": "qdrant_client"}[engine], reason=f"{engine} is not installed")
    want, got = (Searcher(vse_gallery, engine=name) for name in ("exact", engine))
    for texts in (TEXTS, TEXTS[:1]):
        for some, others in zip(got.by_text(texts, 5), want.by_text(texts, 5), strict=True):
            np.testing.assert_allclose([h.score for h in some], [h.score for h in others], atol=2e-3)
    some, others = ([hit.score for hit in found.by_image(3, 4)] for found in (got, want))
    np.testing.assert_allclose(some, others, atol=2e-3)
    assert (vse_gallery.path / "cache").is_dir()
    Gallery(vse_gallery.path)  # the cache is no part of what is hashed


ALONE = """
import sys

class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "flax", "optax", "orbax") or name.startswith("xmodal_jax.models"):
            raise ImportError("walled off: " + name)

sys.meta_path.insert(0, Wall())
from xmodal_jax import cli
sys.exit(cli.run(["search", sys.argv[1], "red0", "-k", "1"]))
"""


def test_search_needs_neither_models_nor_tensorflow(scans):
    command = [sys.executable, "-c", ALONE, str(scans.path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) == 2


# Measuring


def test_measured_shares_are_what_they_say(scans, monkeypatch):
    monkeypatch.setattr(measuring, "TIMED", 2)
    rows = measuring.measure(Searcher(scans), depths=(3, 10, 400))
    assert [(row["direction"], row["candidates"]) for row in rows] == [
        (d, n) for d in ("t2i", "i2t") for n in (3, 10, 400)
    ]
    pairs = everything(scans)[0]
    owner = np.array([line["image"] for line in scans.texts.lines])
    best = pairs.argmax(axis=0)
    query = Searcher(scans).stored(scans.texts, np.arange(len(owner)))
    _, coarse = engines.Exact(scans.images.coarse).search(query.vectors, 3)
    assert rows[0]["kept@1"] == pytest.approx(np.mean([b in c for b, c in zip(best, coarse, strict=True)]))
    assert rows[0]["kept@1"] < 1
    assert rows[0]["all R@1"] == pytest.approx(np.mean(best == owner))
    assert rows[3]["all R@1"] == pytest.approx(np.mean(owner[pairs.argmax(axis=1)] == np.arange(21)))
    for row in rows:
        assert row["candidates"] < 400 or row["kept@1"] == row["kept@10"] == 1
        assert row["speed_up"] == pytest.approx(row["all ms"] / row["ms"])
        assert row["R@10"] <= 1


def test_fewer_queries_where_all_would_be_too_many(scans, monkeypatch):
    monkeypatch.setattr(measuring, "TIMED", 1)
    rows = measuring.measure(Searcher(scans), depths=(5,), pairs=21 * 4)
    assert rows[0]["queries"] == 4
    assert rows[0]["items"] == 21


def test_bench_search(monkeypatch, tmp_path, capsys):
    small = bench.bench_search
    monkeypatch.setattr(bench, "bench_search", lambda: small(300, 16, 40))
    assert cli.run(["bench", "search", "--json", str(tmp_path / "rows.json")]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert rows[0]["name"] == "search_exact"
    assert rows[0]["recall@10"] == 1.0
    assert 0 < rows[0]["p50_ms"] <= rows[0]["p99_ms"]
    assert len(rows) == (2 if importlib.util.find_spec("faiss") else 1)
    assert "p99_ms" in capsys.readouterr().out
