"""The service of a system that speaks: what it says of images, pictures and sentences, and its limits."""

import galleries
import numpy as np
import pytest
from helpers import nothing_compiles, resealed

pytest.importorskip("fastapi", reason="the service needs the extra serve")


from test_serve import Served, png

from xmodal_jax.inference import index
from xmodal_jax.inference.gallery import Gallery
from xmodal_jax.inference.pixels import read_picture
from xmodal_jax.inference.search import Searcher
from xmodal_jax.serve import guard
from xmodal_jax.serve.batcher import BATCH
from xmodal_jax.serve.live import SIDE, State


@pytest.fixture(scope="module")
def speaking(tmp_path_factory):
    """A service whose system says sentences."""
    service = Served(galleries.gallery(tmp_path_factory.mktemp("speaking"), system="stt.py:stt"))
    yield service
    service.close()


def test_the_sentence_of_an_image_is_what_the_bundle_says_of_its_features(speaking):
    bundle, count = speaking.live.state.gallery.bundle, galleries.COUNT
    dataset = speaking.live.path.parent / "data"
    ((features, mask, _),) = index.items_of(dataset, "test", list(bundle.features)).read(0)
    want = bundle.caption(features, mask)
    assert len(set(want)) > 3
    assert [speaking.post("/caption", item=row).json() for row in range(count)] == [
        {"caption": sentence} for sentence in want
    ]
    found = speaking.post(text="a red square", k=count).json()["hits"]
    assert {hit["row"]: hit["said"] for hit in found} == dict(enumerate(want))
    assert [speaking.client.get(f"/items/{row}").json()["said"] for row in range(count)] == want


def test_the_sentence_of_a_picture_is_what_the_bundle_says_of_its_pixels(speaking):
    bundle, said = speaking.live.state.gallery.bundle, set()
    for row in range(4):
        picture = speaking.client.get(f"/items/{row}/picture").content
        answer = speaking.client.post("/caption/picture", content=picture, headers={"content-type": "image/png"})
        assert answer.json() == {"caption": bundle.caption([read_picture(picture, SIDE)])[0]}
        said.add(answer.json()["caption"])
    assert len(said) > 1


def test_sentences_in_other_words(speaking):
    state = speaking.live.state
    texts = ["a red square", "two zyzzyvas", "a circle left of a very large green square in the snow at night"]
    want = state.gallery.bundle.paraphrase(texts)
    assert [speaking.post("/paraphrase", text=text).json()["paraphrase"] for text in texts] == want
    assert [answer["paraphrase"] for answer in state.paraphrase(texts)] == want  # asked at once
    assert "zyzzyvas" in speaking.post("/paraphrase", text=texts[1]).json()["unknown"]
    facts = speaking.client.get("/healthz").json()
    assert facts["speaks_of_images"]
    assert facts["speaks_of_sentences"]


def test_the_first_sentence_comes_as_fast_as_the_others(speaking, caplog):
    state = speaking.live.state
    with nothing_compiles(caplog):
        state.caption([np.zeros((64, 64, 3), np.uint8)])
        for count in (1, 3, 9, BATCH):
            for words in (1, 7, 20, 1000):
                state.paraphrase(["a " * words] * count)


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/caption", {"item": galleries.COUNT - 1}, 200),
        ("/caption", {"item": galleries.COUNT}, 404),
        ("/caption", {"item": -1}, 422),
        ("/caption", {"item": 0, "k": 1}, 422),
        ("/caption", {"text": "a"}, 422),
        ("/paraphrase", {"text": "a" * 2000}, 200),
        ("/paraphrase", {"text": "a" * 2001}, 422),
        ("/paraphrase", {"text": " "}, 422),
        ("/paraphrase", {"text": "a", "k": 1}, 422),
        ("/paraphrase", {"item": 0}, 422),
        ("/paraphrase", {"text": "\u0000\u202e\U0001f984"}, 200),
    ],
)
def test_limits_of_what_is_said(speaking, path, body, status):
    answer = speaking.post(path, **body)
    assert answer.status_code == status, answer.text
    assert status == 200 or answer.json()["detail"]


def test_limits_of_a_picture_to_speak_of(speaking, monkeypatch):
    def give(content):
        return speaking.client.post("/caption/picture", content=content, headers={"content-type": "image/png"})

    image = png(64, 64)
    assert give(image + b"\0" * (guard.BODY - len(image))).status_code == 200
    assert give(image + b"\0" * (guard.BODY + 1 - len(image))).status_code == 413
    assert give(png(5001, 4000)).status_code == 422
    for broken in (b"", b"GIF89a", image[: len(image) // 2]):
        assert give(broken).status_code == 422
    assert give(b"").json()["detail"] == "The body holds no picture."
    text = speaking.client.get("/metrics").text
    assert 'xmodal_requests_total{path="/caption/picture",status="413"} 1' in text
    monkeypatch.setattr(speaking.live.state, "pixels", False)
    answer = give(image)
    assert answer.status_code == 404
    assert "ready-made features" in answer.json()["detail"]


def test_a_gallery_from_before_it_kept_sentences_says_so(speaking, tmp_path):
    def older(manifest, lines):
        del manifest["decoding"]
        for line in lines:
            del line["said"]

    old = resealed(speaking.live.path, tmp_path / "old", older)
    service = Served(old, lambda path: State(Gallery(path), Searcher(Gallery(path))))
    answer = service.post("/caption", item=0)
    assert answer.status_code == 404
    assert "index the data again, into another folder" in answer.json()["detail"]
    assert service.client.get("/items/0").json()["said"] is None
    assert service.post("/paraphrase", text="a").status_code == 200
    service.close()
