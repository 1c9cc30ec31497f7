"""The built-in set: a pure function of seed and index, true captions, honest features, kept truth."""

import json

import numpy as np
import pytest

from xmodal_jax.data import scenes
from xmodal_jax.data.records import open_dataset, verify
from xmodal_jax.data.scenes.features import global_feature, region_features
from xmodal_jax.data.scenes.language import write_captions
from xmodal_jax.data.scenes.render import draw
from xmodal_jax.data.scenes.world import PICTURE, sample_regions, sample_scene, stream
from xmodal_jax.data.text import tokenize
from xmodal_jax.errors import DataError, UsageError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "set"
    scenes.make(folder, 60, 3)
    return open_dataset(folder)


def test_a_scene_depends_on_seed_and_index_alone():
    for index in (0, 7):
        one, two = sample_scene(3, index), sample_scene(3, index)
        assert one == two
        np.testing.assert_array_equal(draw(one, stream(3, index, PICTURE)), draw(two, stream(3, index, PICTURE)))
        assert write_captions(one, 3, index) == write_captions(two, 3, index)
    assert sample_scene(3, 0) != sample_scene(4, 0)


def test_splits_and_pictures(made):
    assert [len(made.split(name)) for name in ("train", "dev", "test")] == [40, 10, 10]
    assert {name: len(own) for name, own in scenes.split_ranges(3000).items()} == {
        "train": 2000,
        "dev": 500,
        "test": 500,
    }
    split = made.split("test")
    assert all(path is not None and path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in split.pictures)
    assert all(len(captions) == 5 == len(set(captions)) for captions in split.captions)
    item = split.read([4])[0]
    assert item.boxes is not None
    assert item.boxes.min() >= 0
    assert item.boxes.max() <= 1
    assert verify(made.directory) == []


def test_truth_points_at_words_and_regions(made):
    split = made.split("train")
    lines = (made.directory / "train.truth.jsonl").read_text().splitlines()
    for captions, line in zip(split.captions, lines, strict=True):
        truth = json.loads(line)
        assert all(-1 <= covered < len(truth["things"]) for covered in truth["regions"])
        for caption, words in zip(captions, truth["words"], strict=True):
            tokens = tokenize(caption)
            assert words, caption
            assert all(0 <= word < len(tokens) and 0 <= thing < len(truth["things"]) for word, thing in words)


def test_colour_words_are_true_of_the_objects_they_point_at():
    names = {
        "red": "red",
        "crimson": "red",
        "yellow": "yellow",
        "golden": "yellow",
        "green": "green",
        "blue": "blue",
        "azure": "blue",
        "purple": "purple",
        "violet": "purple",
        "white": "white",
        "pale": "white",
    }
    seen = 0
    for index in range(80):
        scene = sample_scene(0, index)
        for caption in write_captions(scene, 0, index):
            tokens = tokenize(caption.text)
            for word, thing in caption.words:
                if tokens[word] in names:
                    assert scene.things[thing].colour == names[tokens[word]], caption.text
                    seen += 1
    assert seen > 200


def test_left_and_right_are_true():
    seen = 0
    for index in range(200):
        scene = sample_scene(0, index)
        for caption in write_captions(scene, 0, index):
            tokens = tokenize(caption.text)
            for side, sign in (("left", 1), ("right", -1)):
                if tokens.count(side) == 1 and tokens[tokens.index(side) + 1 : tokens.index(side) + 2] == ["of"]:
                    at = tokens.index(side)
                    before = {thing for word, thing in caption.words if word < at}
                    after = {thing for word, thing in caption.words if word > at}
                    if len(before) == len(after) == 1:
                        a, b = scene.things[before.pop()], scene.things[after.pop()]
                        assert sign * (b.x - a.x) > 0, caption.text
                        seen += 1
    assert seen > 5


def test_features_come_from_the_pixels_under_the_box():
    index = next(i for i in range(20) if len(sample_scene(0, i).things) >= 3)
    scene = sample_scene(0, index)
    picture = draw(scene, stream(0, index, PICTURE))
    boxes = np.clip([thing.box for thing in scene.things], 0, 1).astype(np.float32)
    other = next(colour for colour in ("red", "blue") if colour != scene.things[0].colour)
    changed = picture.copy()
    x1, y1, x2, y2 = (boxes[0] * np.array([128, 128, 128, 128])).astype(int)
    changed[y1:y2, x1:x2] = {"red": (220, 30, 30), "blue": (30, 30, 220)}[other]
    before, after = region_features(picture, boxes), region_features(changed, boxes)
    assert not np.array_equal(before[0], after[0])
    apart = [
        i for i in range(1, len(boxes)) if (boxes[i, :2] > boxes[0, 2:]).any() or (boxes[i, 2:] < boxes[0, :2]).any()
    ]
    assert apart
    np.testing.assert_array_equal(before[apart], after[apart])
    assert global_feature(picture).shape == before[0].shape


def test_features_of_a_new_picture_of_another_size():
    picture = np.random.default_rng(0).integers(0, 256, (90, 140, 3), dtype=np.uint8)
    assert np.isfinite(region_features(picture, np.array([[0, 0, 1, 1], [0.2, 0.2, 0.3, 0.9]], np.float32))).all()
    assert np.isfinite(global_feature(picture)).all()
    with pytest.raises(DataError, match="uint8"):
        global_feature(picture.astype(np.float32))


def test_a_detector_misses_some_and_keeps_its_count():
    counts = {len(sample_regions(sample_scene(0, i), 0, i).boxes) for i in range(30)}
    assert len(counts) == 1


def test_test_words_are_known_from_training():
    words = [
        {w for i in indices for c in write_captions(sample_scene(0, i), 0, i) for w in tokenize(c.text)}
        for indices in (range(600), range(600, 700))
    ]
    assert words[1] <= words[0]


def test_too_few_images_is_one_sentence(tmp_path):
    with pytest.raises(UsageError, match="at least 12"):
        scenes.make(tmp_path / "set", 5, 0)
