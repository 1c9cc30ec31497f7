"""The service of a system whose steps look at regions and words: answers of the bundle on the data set's features."""

import warnings

import galleries
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the service needs the extra serve")

from helpers import nothing_compiles
from test_serve import Served

from xmodal_jax.data.records import open_dataset
from xmodal_jax.errors import CutWarning, DataError
from xmodal_jax.inference.gallery import Gallery
from xmodal_jax.inference.search import Searcher
from xmodal_jax.serve.live import State


def plain(path, pictures=None):
    """A state that was not warmed."""
    gallery = Gallery(path, pictures=pictures)
    return State(gallery, Searcher(gallery))


@pytest.fixture(scope="module", params=["mdan", "smlstm"])
def steps(request, tmp_path_factory):
    """A service of a system whose steps look at regions and at words."""
    folder = tmp_path_factory.mktemp(request.param)
    service = Served(galleries.gallery(folder, system=f"{request.param}.py:{request.param}"), plain)
    yield service
    service.close()


def test_steps_look_where_the_bundle_says(steps):
    facts = steps.client.get("/healthz").json()
    assert facts["attention"] and facts["steps"]
    bundle, split = steps.live.state.gallery.bundle, open_dataset(steps.live.path.parent / "data").split("test")
    for row, text in ((0, "a red square"), (7, "a red square"), (7, "two zyzzyvas " * 5), (3, "red " * 90), (1, "?!")):
        item = split.read([row])[0]
        features = {name: item.features[name][None] for name in bundle.features}
        regions, words = (side[0, 0] for side in bundle.glimpses(features, [text]))
        answer = steps.post("/attend", item=row, text=text).json()
        count = len(answer["words"])
        assert answer["words"] == bundle.split(text)[: max(bundle.lengths) - 2]
        np.testing.assert_allclose(answer["boxes"], np.asarray(item.boxes), atol=1e-4)
        np.testing.assert_allclose(answer["weights"], regions, atol=1e-4)
        np.testing.assert_allclose(answer["steps"], words[:, 1 : 1 + count], atol=1e-4)
        want = bundle.score(bundle.embed_images(features), [text])[0, 0]
        assert answer["score"] == pytest.approx(want, rel=2e-3, abs=1e-3)  # of what the gallery keeps, in float16
    assert len(answer["weights"]) == len(answer["steps"]) > 1


def test_steps_of_more_than_one_question_at_a_time(steps):
    state = steps.live.state
    asked = [(2, "a red square"), (5, "two circles"), (0, "red")]
    assert state.attend(asked) == [state.attend([question])[0] for question in asked]


def test_without_the_data_set_steps_are_not_offered(steps, tmp_path):
    home, moved = steps.live.path.parent / "data", tmp_path / "moved"
    home.rename(moved)
    try:
        away = Served(steps.live.path, plain)
        facts = away.client.get("/healthz").json()
        assert not facts["attention"]
        refused = away.post("/attend", item=0, text="a red square")
        assert refused.status_code == 404
        assert refused.json()["detail"].endswith("looks at lies in the data set, which is not here.")
        assert away.post(text="a red square", k=3).status_code == 200
        away.close()
        assert plain(steps.live.path, moved).facts()["attention"]
        other = galleries.data(tmp_path / "other", seed=4)
        blind = plain(steps.live.path, other)
        assert not blind.facts()["attention"] and "is not the data set that" in blind.blind
    finally:
        moved.rename(home)


def test_a_data_set_that_is_damaged_meanwhile_is_no_fault_of_the_question(steps, monkeypatch, capsys):
    def broken(row):
        raise DataError("/a/secret/folder: image 0 cannot be read")

    monkeypatch.setattr(steps.live.state.gallery, "features", broken)
    answer = steps.post("/attend", item=0, text="a red square")
    assert answer.status_code == 503
    assert "secret" not in answer.text and "secret" in capsys.readouterr().err


def test_the_first_look_comes_as_fast_as_the_others(steps, caplog):
    state = plain(steps.live.path)  # with nothing compiled
    with warnings.catch_warnings(action="error", category=CutWarning):
        state.warm()
    with nothing_compiles(caplog):
        for words in (1, 5, 7, 12, 20, 30, 45, 61, 100):
            state.attend([(words % galleries.COUNT, "red " * words)])
        few = {name: value[:, :4] if value.ndim == 3 else value for name, value in state.gallery.features(0)[0].items()}
        state.gallery.bundle.glimpses(few, ["red"])
