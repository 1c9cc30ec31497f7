"""What the service says beside its hits: how much was scored, unknown words, examples of its own gallery."""

import asyncio
import re

import galleries
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the service needs the extra serve")

from helpers import nothing_compiles
from starlette.testclient import TestClient
from test_serve import Served

from xmodal_jax.serve import guard
from xmodal_jax.serve.app import ASSETS
from xmodal_jax.serve.live import SAMPLES, open_state
from xmodal_jax.serve.words import results_of


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    service = Served(galleries.gallery(tmp_path_factory.mktemp("answers")), lambda path: open_state(path, rerank=5))
    yield service
    service.close()


def test_cut_candidates_are_told(served):
    answer = served.post(text="a red square", k=3).json()
    assert (answer["scored"], answer["of"]) == (5, galleries.COUNT)
    answer = served.post(item=0, k=20).json()
    assert (answer["scored"], answer["of"]) == (20, 2 * galleries.COUNT)


def test_an_unknown_query_is_refused_and_leaves_those_beside_it_alone(served):
    refused = served.post(text="many zyzzyvas", k=3)
    assert refused.status_code == 422
    assert refused.json()["detail"].startswith("No word of the query is in the vocabulary (many, zyzzyvas)")
    assert served.post(text="?!", k=3).status_code == 422
    marked = served.post(text="red zyzzyvas", k=3)
    assert marked.json()["unknown"] == ["zyzzyvas"]

    async def together():
        state = served.live.state
        questions = [served.batcher.ask("text", state.by_text, (text, 2), 10) for text in ("a red square", "red zyx")]
        return await asyncio.gather(*questions)

    assert all(len(answer["hits"]) == 2 for answer in asyncio.run(together()))


def test_a_sentence_that_is_too_long_says_so(served):
    most = max(served.live.state.gallery.bundle.lengths)
    long = served.post(text="red " * (most + 3), k=1).json()
    assert (long["cut"], served.post(text="red", k=1).json()["cut"]) == (5, 0)  # with its start and end
    assert "its last 5 words were not read" in results_of("red", long)


def test_examples_come_from_the_gallery_and_have_answers(served):
    answer = served.client.get("/examples").json()
    captions = {line["caption"] for line in served.live.state.gallery.texts.lines}
    assert 1 <= len(answer["sentences"]) <= 3
    for sentence in answer["sentences"]:
        assert sentence in captions
        assert served.post(text=sentence, k=1).json()["unknown"] == []
    rows = [image["row"] for image in answer["images"]]
    assert rows == sorted(set(rows))
    assert len(rows) == min(SAMPLES, galleries.COUNT)
    assert answer["images"][0]["id"] == served.live.state.gallery.images.lines[0]["id"]


def test_attention_is_given_beside_what_none_would_be(served):
    answer = served.post("/attend", item=0, text="a red square").json()
    assert answer["uniform"] == pytest.approx(1 / len(answer["boxes"]), abs=1e-4)
    assert np.sum(answer["weights"], axis=1) == pytest.approx(1, abs=0.01)


def test_the_first_look_comes_as_fast_as_the_others(served, caplog):
    state = served.live.state
    with nothing_compiles(caplog):
        for words in (1, 5, 7, 12, 20, 30, 45, 61, 100):
            state.attend([(words % galleries.COUNT, "red " * words)])


def test_without_javascript_a_sentence_is_answered_in_html(served):
    answer = served.client.get("/", params={"text": "a red square", "k": "24"})
    assert answer.status_code == 200
    assert answer.text.count("<li>") == galleries.COUNT
    assert not re.search(r"<(script|iframe|svg|style|math)", answer.text)
    assert 'src="/items/' in answer.text
    cut = {"unknown": [], "scored": 5, "of": 12, "hits": []}
    assert "5 of 12 were scored in full" in results_of("a", cut)
    marked = served.client.get("/", params={"text": "red <b>zyx"})
    assert "Not in the vocabulary: " in marked.text and "<b>" not in marked.text
    for text in ("many zyzzyvas", " ", "a" * 2001):
        refused = served.client.get("/", params={"text": text})
        assert refused.status_code == 422
        assert 'role="alert"' in refused.text
    other = served.client.get("/", params={"text": "a"}, headers={"sec-fetch-site": "cross-site"})
    assert other.status_code == 403
    assert 'method="get"' in served.client.get("/").text


def test_with_a_token_no_question_goes_without_it(served):
    options = {"metrics": served.metrics, "token": "sesame", "loopback": False, "log": None}
    client = TestClient(guard.Guard(served.client.app.app, **options), base_url="http://host")
    assert client.get("/").status_code == 200
    assert client.get("/", params={"text": "a red square"}).status_code == 401
    assert [client.get(path).status_code for path in ASSETS] == [200] * len(ASSETS)
