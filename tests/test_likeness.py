"""Pictures that are like a picture: the best by their vectors, without itself; refused where there are no vectors."""

import json

import galleries
import jax
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the service needs the extra serve")

from fastapi.testclient import TestClient

from xmodal_jax import cli
from xmodal_jax.errors import UsageError
from xmodal_jax.inference.gallery import Gallery
from xmodal_jax.inference.search import Hit, Searcher
from xmodal_jax.serve.app import make_app
from xmodal_jax.serve.batcher import Batcher
from xmodal_jax.serve.guard import Metrics
from xmodal_jax.serve.live import Live, State

SYSTEMS = {"vectors": "vse.py:vsepp", "fragments": "scan.py:t2i_lse"}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    root = tmp_path_factory.mktemp("likeness")
    return {name: galleries.gallery(root / name, system=system) for name, system in SYSTEMS.items()}


@pytest.fixture(scope="module", params=["exact", "faiss"])
def searcher(request, paths):
    if request.param == "faiss":
        pytest.importorskip("faiss", reason="faiss is not installed")
    return Searcher(Gallery(paths["vectors"]), engine=request.param)


def best(searcher, vector, without=None):
    """Rows of all images by the cosine of their vectors with another, and these cosines, falling."""
    stored = np.asarray(searcher.gallery.images.vectors[:], np.float32)
    cosine = stored @ vector / np.linalg.norm(stored, axis=1) / np.linalg.norm(vector)
    order = [row for row in np.argsort(-cosine, kind="stable") if row != without]
    return cosine[order]


@pytest.mark.parametrize("k", [1, 4, 1000])
def test_the_most_alike_come_first_and_an_image_is_not_like_itself(searcher, k):
    for row in (0, 7):
        hits = searcher.by_likeness(row, k)
        want = best(searcher, np.asarray(searcher.gallery.images.vectors[row], np.float32), row)[:k]
        assert len(hits) == min(k, galleries.COUNT - 1) and row not in {hit.row for hit in hits}
        np.testing.assert_allclose([hit.score for hit in hits], want, atol=2e-3)
        assert [hit.rank for hit in hits] == list(range(1, len(hits) + 1))
    assert hits[0].id == searcher.gallery.images.lines[hits[0].row]["id"] and len(hits[0].captions) == 2


def test_a_new_picture_is_embedded_first(searcher):
    gallery = searcher.gallery
    vector = gallery.bundle.embed_images([gallery.picture(5)])[0]
    scores = [hit.score for hit in searcher.by_likeness(gallery.picture(5), galleries.COUNT)]
    np.testing.assert_allclose(scores, best(searcher, vector), atol=2e-3)


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_first_new_picture_compiles_nothing(name, paths):
    """What is told to be ready answers a picture at once; the gallery's own images are embedded already."""
    gallery, compiled = Gallery(paths[name]), []
    State(gallery, Searcher(gallery)).warm()
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration_secs, **_: compiled.append(event) if "backend_compile" in event else None
    )
    try:
        gallery.bundle.embed_images([gallery.picture(5)])
    finally:
        jax.monitoring.clear_event_listeners()
    assert not compiled


def test_what_has_no_vectors_refuses(paths):
    searcher = Searcher(Gallery(paths["fragments"]))
    with pytest.raises(UsageError, match="scores an image with a sentence, not two images with each other"):
        searcher.by_likeness(0)
    searcher = Searcher(Gallery(paths["vectors"]))
    with pytest.raises(UsageError, match="from 0 to 11, not 12"):
        searcher.by_likeness(12)
    with pytest.raises(UsageError, match="k goes from 1"):
        searcher.by_likeness(0, 0)


def test_the_command(paths, capsys):
    def run(*argv):
        capsys.readouterr()
        code = cli.run(["search", *map(str, argv)])
        said = capsys.readouterr()
        return code, said.out, said.err

    gallery = Gallery(paths["vectors"])
    name = gallery.images.lines[2]["id"]
    code, out, _ = run(gallery.path, "--image", name, "--similar", "-k", 3, "--json")
    answer = json.loads(out)
    assert code == 0 and (answer["scored"], answer["of"]) == (12, 12)
    assert [Hit(**hit) for hit in answer["hits"]] == Searcher(gallery).by_likeness(2, 3)
    assert len(run(gallery.path, "--image", gallery.picture(1), "--similar", "-k", 3)[1].splitlines()) == 4
    for argv, says in (
        ((paths["fragments"], "--image", name, "--similar"), "not two images with each other"),
        ((gallery.path, "a red square", "--similar"), "--similar is for the images like one: give --image"),
    ):
        code, out, error = run(*argv)
        assert (code, out) == (2, "") and says in error and error.count("\n") == 1


@pytest.fixture(scope="module")
def clients(paths):
    started = [Live(path, lambda path: State(g := Gallery(path), Searcher(g))) for path in paths.values()]
    batchers = [Batcher() for _ in started]
    apps = [make_app(live, batcher, Metrics()) for live, batcher in zip(started, batchers, strict=True)]
    yield dict(zip(paths, map(TestClient, apps), strict=True))
    for each in (*batchers, *started):
        each.close()


def test_the_service(clients, paths):
    client, gallery = clients["vectors"], Gallery(paths["vectors"])
    answer = client.post("/search", json={"item": 3, "find": "images", "k": 4}).json()
    want = Searcher(gallery).by_likeness(3, 4)
    assert (answer["kind"], answer["scored"], answer["of"]) == ("images", 12, 12)
    assert [(hit["row"], hit["score"]) for hit in answer["hits"]] == [(h.row, round(h.score, 4)) for h in want]
    assert client.post("/search", json={"item": 3, "find": "captions"}).json()["kind"] == "captions"
    picture = gallery.picture(6)
    assert picture is not None
    sent = {"content": picture.read_bytes(), "headers": {"content-type": "image/png"}}
    assert client.post("/search/picture?find=images&k=2", **sent).json()["hits"] == [
        hit | {"score": pytest.approx(hit["score"], abs=1e-3)}
        for hit in State(gallery, Searcher(gallery)).by_likeness([(picture, 2)])[0]["hits"]
    ]
    assert client.post("/search/picture?k=2", **sent).json()["kind"] == "captions"
    assert client.get("/healthz").json()["similar"] is True
    wrong = client.post("/search", json={"item": 3, "find": "dogs"})
    assert (wrong.status_code, wrong.json()["detail"]) == (422, "\"find\": it is 'captions' or 'images'.")
    assert client.post("/search/picture?find=dogs", **sent).status_code == 422
    other = clients["fragments"]
    assert other.get("/healthz").json()["similar"] is False
    for refused in (
        other.post("/search", json={"item": 3, "find": "images"}),
        other.post("/search/picture?find=images", **sent),
    ):
        assert refused.status_code == 404
        assert "scores images with sentences, not with images" in refused.json()["detail"]
