"""The built-in data set: pure in (seed, index), true captions, truth that points right, features that see pixels."""

import argparse
import collections
import functools
import itertools
import json

import numpy as np
import pytest

from xmodal_jax.data import records
from xmodal_jax.data.scenes import features, language, main, make, make_item, render, split_ranges, world
from xmodal_jax.errors import DataError, UsageError
from xmodal_jax.text.tokens import tokenize
from xmodal_jax.text.vocabulary import Vocabulary

SEED = 0
NOUNS = {word: shape for shape, words in language.SHAPE_WORDS.items() for word in words}
NOUNS |= {language.plural(word): shape for word, shape in NOUNS.items()}
MEANING = {  # word -> (field of a Thing, its value)
    **{word: ("shape", shape) for word, shape in NOUNS.items()},
    **{word: ("colour", colour) for colour, words in language.COLOUR_WORDS.items() for word in words},
    **{word: ("texture", texture) for texture, words in language.TEXTURE_WORDS.items() for word in words},
    **{word: ("texture", texture) for texture, word in language.TEXTURE_NOUNS.items()},
    **{word: ("size", size) for size, words in language.SIZE_WORDS.items() for word in words},
}
ANY = {word for noun in language.ANY_SHAPE for word in (noun, language.plural(noun))}
RELATIONS = {words: name for name, choices in language.RELATION_WORDS.items() for words in choices}
GROUNDS = {words: ground for ground, choices in language.GROUND_WORDS.items() for words in choices}


@functools.cache
def scene(index):
    return world.sample_scene(SEED, index)


@functools.cache
def captions(index):
    return language.write_captions(scene(index), SEED, index)


def picture_of(scene_, index=0):
    return render.draw(scene_, world.stream(SEED, index, world.PICTURE))


def spoken(caption):
    """Token index -> the objects it speaks of."""
    objects = collections.defaultdict(list)
    for word, thing in caption.words:
        objects[word].append(thing)
    return objects


# Pure in (seed, index)


def test_the_same_seed_and_index_give_the_same_bytes(tmp_path):
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    make_item(SEED, 3, folders[0])  # another one before must not matter
    (first, truth), (second, again) = (make_item(SEED, 7, folder) for folder in folders)
    assert first.picture and second.picture and first.picture.read_bytes() == second.picture.read_bytes()
    assert first.captions == second.captions and json.dumps(truth) == json.dumps(again)
    assert first.boxes is not None and second.boxes is not None and np.array_equal(first.boxes, second.boxes)
    assert all(first.features[key].tobytes() == second.features[key].tobytes() for key in ("region", "global"))
    other, _ = make_item(SEED + 1, 7, tmp_path)
    assert other.captions != first.captions


def test_a_larger_set_has_the_same_test_and_dev_images():
    small, large = split_ranges(2000), split_ranges(9000)
    assert small["test"] == large["test"] and small["dev"] == large["dev"] and len(large["test"]) == 500
    for images in (12, 60, 1999, 3000):
        assert sorted(i for indices in split_ranges(images).values() for i in indices) == list(range(images))
    assert {name: len(indices) for name, indices in split_ranges(60).items()} == {"train": 40, "dev": 10, "test": 10}


def test_a_family_shares_its_bags_and_deals_them_differently():
    dealt = 0
    for index in range(0, 100, world.FAMILY):
        family = [scene(index + member) for member in range(world.FAMILY)]
        bags = [
            [sorted(kind) for kind in zip(*(thing[:4] for thing in sibling.things), strict=True)] for sibling in family
        ]
        assert all(bag == bags[0] for bag in bags)
        dealt += len({tuple(sorted(thing[:4] for thing in sibling.things)) for sibling in family}) == world.FAMILY
    assert dealt > 30


# Layout


def test_objects_stay_inside_and_apart():
    for index in range(60):
        things = scene(index).things
        assert 2 <= len(things) <= 5
        for i, a in enumerate(things):
            assert min(a.box) >= 0 and max(a.box) <= 1
            assert all(np.hypot(a.x - b.x, a.y - b.y) >= a.radius + b.radius for b in things[:i])


def test_boxes_are_valid_and_cover_what_the_truth_says():
    missed = found_twice = distractors = first = 0
    for index in range(200):
        boxes, covers = world.sample_regions(scene(index), SEED, index)
        assert boxes.shape == (world.REGIONS, 4) and boxes.dtype == np.float32
        assert boxes.min() >= 0 and boxes.max() <= 1 and (boxes[:, 2:] > boxes[:, :2]).all()
        shared = world.overlap(boxes, np.array([thing.box for thing in scene(index).things]))
        for row, covered in zip(shared, covers, strict=True):
            assert covered == (row.argmax() if row.max() >= 0.5 else -1)
        times = [covers.count(i) for i in range(len(scene(index).things))]
        missed, found_twice = missed + times.count(0), found_twice + sum(n > 1 for n in times)
        distractors, first = distractors + covers.count(-1), first + (covers[0] < 0)
    assert missed > 5 and found_twice > 20 and distractors > 500
    assert 5 < first < 100  # the most confident box is mostly, but not always, an object


def test_overlap_is_intersection_over_union():
    boxes = np.array([(0, 0, 0.5, 0.5)])
    others = np.array([(0, 0, 0.5, 0.5), (0.25, 0, 0.75, 0.5), (0.6, 0.6, 1, 1)])
    np.testing.assert_allclose(world.overlap(boxes, others), [[1, 1 / 3, 0]])


# Captions


def test_captions_are_true_and_every_truth_word_names_its_object():
    seen = collections.Counter()
    for index in range(300):
        assert len({caption.text for caption in captions(index)}) == 5
        for caption in captions(index):
            tokens, objects = tokenize(caption.text), spoken(caption)
            assert all(0 <= word < len(tokens) for word in objects)
            for k, token in enumerate(tokens):
                if token in MEANING:
                    field, value = MEANING[token]
                    assert objects[k], f"{token} of {caption.text!r} speaks of no object"
                    assert all(getattr(scene(index).things[i], field) == value for i in objects[k]), caption.text
                    seen[field] += 1
                else:
                    assert not objects[k] or token in ANY | set(language.NUMBERS), (token, caption.text)
            for article, word in itertools.pairwise(tokens):
                assert article not in ("a", "an") or (article == "an") == (word[0] in "aeiou"), caption.text
            joined = " ".join(tokens)
            for words, ground in GROUNDS.items():
                if words in joined and not any(words != other and words in other for other in GROUNDS):
                    assert ground == scene(index).background, caption.text
                    seen["ground"] += 1
    assert min(seen[kind] for kind in ("shape", "colour", "texture", "size", "ground")) > 100


def test_relations_in_captions_hold_between_the_objects_they_join():
    checked = collections.Counter()
    for index in range(300):
        for caption in captions(index):
            tokens, objects = tokenize(caption.text), spoken(caption)
            for words, name in RELATIONS.items():
                parts = words.split()
                for k in range(len(tokens) - len(parts)):
                    if tokens[k : k + len(parts)] != parts:
                        continue
                    before = [i for word in range(k) for i in objects.get(word, [])]
                    after = [i for word in range(k, len(tokens)) for i in objects.get(word, [])]
                    pairs = [(before[-1], after[0])] if after else [(before[-1], i) for i in set(before[:-1])]
                    for a, b in pairs:
                        if a != b:
                            things = scene(index).things
                            assert holds(name, things[a], things[b]), caption.text
                            checked[name] += 1
    assert set(checked) == set(language.RELATION_WORDS) and min(checked.values()) > 20


def holds(name, a, b):
    """Written anew, and no looser than what a reader would accept."""
    return {
        "left": a.x < b.x - 0.1,
        "right": a.x > b.x + 0.1,
        "above": a.y < b.y - 0.1,
        "below": a.y > b.y + 0.1,
        "near": np.hypot(a.x - b.x, a.y - b.y) < 0.4,
        "far": np.hypot(a.x - b.x, a.y - b.y) > 0.55,
    }[name]


def test_counts_and_places_in_captions_are_right():
    counts = places = 0
    for index in range(400):
        things = scene(index).things
        for caption in captions(index):
            tokens, objects = tokenize(caption.text), spoken(caption)
            for k, token in enumerate(tokens):
                if token in language.NUMBERS[2:]:
                    number = language.NUMBERS.index(token)
                    if "among" in tokens and tokens[k + 2] == ",":
                        assert number == len(things), caption.text
                        continue
                    group = [word for word in (k + 1, k + 2) if objects[word] == objects[k]]
                    meant = [MEANING[tokens[word]] for word in group if tokens[word] in MEANING]
                    fits = [i for i, t in enumerate(things) if all(getattr(t, f) == v for f, v in meant)]
                    assert objects[k] == fits and number == len(fits), caption.text
                    counts += 1
                if token == "corner":
                    a = things[objects[max(word for word in objects if word < k and objects[word])][0]]
                    assert (a.x < 0.5) == (tokens[k - 1] == "left") and (a.y < 0.5) == (tokens[k - 2] == "top")
                    places += 1
    assert counts > 30 and places > 30


def test_no_test_word_is_outside_the_training_vocabulary():
    splits = split_ranges(2000)
    train = Vocabulary.build(caption.text for i in splits["train"] for caption in captions(i))
    held = {token for i in (*splits["test"], *splits["dev"]) for c in captions(i) for token in tokenize(c.text)}
    assert held <= set(train.words)
    assert 100 <= len(train) <= 200


# Pictures


def test_a_picture_shows_its_objects_and_nothing_else():
    thing = world.Thing("circle", "red", "plain", "large", 0.3, 0.6, 0.14, 0.0)
    picture = picture_of(world.Scene("snow", (thing,)))
    assert picture.shape == (render.SIDE, render.SIDE, 3) and picture.dtype == np.uint8
    row, column = int(0.6 * render.SIDE), int(0.3 * render.SIDE)
    red, green, blue = picture[row - 3 : row + 4, column - 3 : column + 4].reshape(-1, 3).mean(0)
    assert red > 170 and green < 90 and blue < 90
    empty = picture_of(world.Scene("snow", ()))
    assert np.abs(empty[:40].astype(int) - picture[:40]).max() < 40  # far from the object only the light differs


@pytest.mark.parametrize("shape", world.SHAPES)
def test_shapes_fill_their_boxes_and_distances_have_the_right_sign(shape):
    v, u = np.mgrid[-1.2:1.2:121j, -1.2:1.2:121j].astype(np.float32)
    inside = render.shape_distance(shape, u, v) < 0
    assert inside[60, 60] and not inside[0].any() and not inside[:, 0].any()
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    assert min(np.ptp(rows), np.ptp(columns)) > 80  # of 100 that the box is wide
    assert 0.25 < inside.mean() * 1.44 < 0.8


def test_textures_differ_and_a_plain_one_has_no_pattern():
    v, u = np.mgrid[-1:1:41j, -1:1:41j].astype(np.float32)
    patterns = {texture: render.texture_pattern(texture, u, v, 0.05) for texture in world.TEXTURES}
    assert not patterns["plain"].any()
    for texture in world.TEXTURES[1:]:
        assert 0.1 < patterns[texture].mean() < 0.7
        assert all(np.abs(patterns[texture] - patterns[other]).mean() > 0.1 for other in patterns if other != texture)


# Features


def test_a_colour_changes_its_region_and_no_disjoint_one():
    index = next(i for i in range(100) if len(scene(i).things) >= 3)
    original = scene(index)
    new = "green" if original.things[0].colour != "green" else "red"
    other = original._replace(things=(original.things[0]._replace(colour=new), *original.things[1:]))
    boxes = np.array([thing.box for thing in original.things], np.float32)
    before, after = (features.region_features(picture_of(s, index), boxes).astype(float) for s in (original, other))
    change = np.abs(before - after).max(1)
    shadow = np.array(original.things[0].box) + np.array((-0.05, -0.05, 0.05, 0.05))
    apart = [i for i in range(1, len(boxes)) if world.overlap(boxes[i : i + 1], shadow[None]).max() == 0]
    assert change[0] > 0.5 and apart and change[apart].max() < 1e-3
    first, second = (features.global_feature(picture_of(s, index)).astype(float) for s in (original, other))
    assert np.abs(first - second).max() > 0.1


def test_pixels_outside_a_box_have_no_influence():
    picture = picture_of(scene(2), 2)
    painted = picture.copy()
    painted[:64, :64] = (30, 30, 220)
    boxes = np.array([(0.1, 0.1, 0.4, 0.4), (0.5, 0, 1, 1), (0.1, 0.55, 0.9, 0.95)], np.float32)
    before, after = features.region_features(picture, boxes), features.region_features(painted, boxes)
    assert not np.array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[1:], after[1:])


def test_features_of_a_picture_nobody_has_seen():
    random = np.random.default_rng(1)
    for shape in ((64, 48), (200, 333), (3, 5)):
        picture = random.integers(0, 256, (*shape, 3), np.uint8)
        boxes = np.array([(0, 0, 1, 1), (0.2, 0.3, 0.4, 0.9), (0.5, 0.5, 0.5, 0.5), (1, 1, 1, 1)])
        region, whole = features.region_features(picture, boxes), features.global_feature(picture)
        assert region.shape == (4, sum(features.FEATURES)) and whole.shape == (sum(features.FEATURES),)
        assert region.dtype == whole.dtype == np.float16
        assert np.isfinite(region).all() and np.isfinite(whole).all()


def test_both_features_at_once_equal_each_alone():
    picture, (boxes, _) = picture_of(scene(5), 5), world.sample_regions(scene(5), SEED, 5)
    region, whole = features.picture_features(picture, boxes)
    np.testing.assert_allclose(region, features.region_features(picture, boxes), atol=2e-3)
    np.testing.assert_allclose(whole, features.global_feature(picture), atol=2e-3)


def test_the_global_feature_knows_the_ground():
    whole = picture_of(scene(5), 5)
    ground = slice(sum(features.FEATURES[:2]), sum(features.FEATURES[:3]))
    row = features.region_features(whole, np.array([(0, 0, 1, 1)]))[0]
    np.testing.assert_allclose(features.global_feature(whole)[ground], row[ground], atol=2e-3)


def test_cut_averages_exactly_what_lies_under_a_cell():
    picture = np.random.default_rng(0).integers(0, 256, (48, 96, 3), np.uint8)
    window = features.cut(picture, np.array([(0, 0, 1, 1), (0, 0, 0.5, 1)], np.float32))
    assert features.CELLS == 24
    corner = features.cut(picture, np.array([(1, 1, 1, 1)], np.float32))  # no wider than a pixel, and inside
    np.testing.assert_allclose(corner[0, 12, 12], picture[-1, -1] / 255, atol=1e-6)
    np.testing.assert_allclose(window[0], picture.reshape(24, 2, 24, 4, 3).mean((1, 3)) / 255, atol=1e-6)
    np.testing.assert_allclose(window[1], picture[:, :48].reshape(24, 2, 24, 2, 3).mean((1, 3)) / 255, atol=1e-6)


def test_regions_tell_the_attributes_of_their_objects():
    right, total = np.zeros(4), 0
    ends = np.cumsum([0, *map(len, features.ATTRIBUTES)])
    for index in range(40):
        boxes, covers = world.sample_regions(scene(index), SEED, index)
        rows = features.region_features(picture_of(scene(index), index), boxes)
        for row, covered in zip(rows, covers, strict=True):
            if covered >= 0:
                thing, total = scene(index).things[covered], total + 1
                for kind, names in enumerate(features.ATTRIBUTES):
                    right[kind] += names[row[ends[kind] : ends[kind + 1]].argmax()] == thing[kind]
    assert (right / total > (0.9, 0.95, 0.85, 0.95)).all()  # chance: 0.17, 0.17, 0.25, 0.5


def test_most_objects_are_proposed_from_pixels_alone():
    found = total = 0
    for index in range(60):
        boxes = features.propose_boxes(picture_of(scene(index), index))
        shared = world.overlap(boxes, np.array([thing.box for thing in scene(index).things]))
        found, total = found + (shared.max(0) > 0.5).sum(), total + shared.shape[1]
    assert found / total > 0.85
    blank = np.full((50, 50, 3), 128, np.uint8)
    np.testing.assert_array_equal(features.propose_boxes(blank), [(0, 0, 1, 1)])


@pytest.mark.parametrize(
    ("picture", "boxes", "says"),
    [
        (np.zeros((8, 8, 3), np.float32), np.zeros((1, 4)), "must be uint8 [H, W, 3], not float32 [8, 8, 3]"),
        (np.zeros((8, 8), np.uint8), np.zeros((1, 4)), "not uint8 [8, 8]"),
        (np.zeros((8, 8, 3), np.uint8), np.zeros((1, 3)), "must be finite and [R, 4], not [1, 3]"),
        (np.zeros((8, 8, 3), np.uint8), np.full((1, 4), np.nan), "must be finite"),
    ],
)
def test_a_wrong_picture_or_box_is_said(picture, boxes, says):
    with pytest.raises(DataError) as error:
        features.region_features(picture, boxes)
    assert says in str(error.value)
    if says.startswith(("must be uint8", "not uint8")):
        for function in (features.global_feature, features.propose_boxes):
            with pytest.raises(DataError):
                function(picture)


# The whole set


def test_a_small_set_goes_through_records(tmp_path, capsys):
    out = tmp_path / "scenes"
    arguments = argparse.Namespace(out=out, images=60, seed=3)
    assert main(arguments) == 0
    assert "train 40, dev 10, test 10 images" in capsys.readouterr().out
    dataset = records.open_dataset(out)
    assert records.verify(out) == [] and dataset.manifest["boxes"]
    assert len(list((out / "images").iterdir())) == 60
    split = dataset.split("dev")
    item, truth = make_item(3, split_ranges(60)["dev"][4], tmp_path)
    read = split.read([4])[0]
    assert read.id == item.id and list(read.captions) == item.captions and read.size == (128, 128)
    assert read.features["region"].tobytes() == item.features["region"].tobytes()
    assert read.features["global"].tobytes() == item.features["global"].tobytes()
    assert read.boxes is not None and item.boxes is not None and np.array_equal(read.boxes, item.boxes)
    picture = split.pictures[4]
    assert picture and item.picture and picture.read_bytes() == item.picture.read_bytes()
    lines = [json.loads(line) for line in (out / "dev.truth.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == split.ids and lines[4] == json.loads(json.dumps(truth))
    assert main(arguments) == 0  # finished already: nothing to do
    with pytest.raises(DataError):
        make(out, 60, 4)


@pytest.mark.parametrize(("images", "seed", "says"), [(11, 0, "at least 12"), (60, -1, "--seed -1 is negative")])
def test_wrong_options_are_usage_errors(tmp_path, images, seed, says):
    with pytest.raises(UsageError) as error:
        make(tmp_path / "scenes", images, seed)
    assert says in str(error.value) and not (tmp_path / "scenes").exists()
