"""Raw pixels: the transforms by another way to compute them, what a stream of batches holds, bad pictures by name."""

import io
import os
import shutil
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from test_pictures import png16, scene, stored

from xmodal_jax import config as configs
from xmodal_jax.data import pictures, pixels
from xmodal_jax.data.order import Sampler, generator
from xmodal_jax.data.pipeline import Captions, FeatureReader, TrainPipeline, image_batches
from xmodal_jax.data.pixels import PictureReader, Reading, Transform, crop_box, read, ten_crops
from xmodal_jax.data.records import open_dataset
from xmodal_jax.errors import DataError, UsageError
from xmodal_jax.text.vocabulary import Vocabulary

Image = pytest.importorskip("PIL.Image", reason="pillow (extra image) is not installed")
from photographs import files, photographs  # noqa: E402

CENTRE, SQUASH = Transform("centre", 24, 28), Transform("squash", 24, 28)
RANDOM = Transform("random", 24, 28, flip=True)
JPEGS = {"quality": 95, "subsampling": 0}


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def smooth(height, width):
    y, x = np.mgrid[:height, :width] / (height + width)
    return np.rint(255 * np.stack([x, y, (x + y) / 2 + 0.25], -1) / 1.25).astype(np.uint8)


def resampled(array, height, width):
    """Pillow's antialiased triangle filter, one axis after the other, in floats."""

    def weights(size, out):
        scale = size / out
        reach = max(scale, 1.0)
        centre = (np.arange(out) + 0.5) * scale
        weight = np.maximum(1 - np.abs(np.arange(size) + 0.5 - centre[:, None]) / reach, 0)
        return weight / weight.sum(1, keepdims=True)

    return np.einsum("ij,kl,jlc->ikc", weights(array.shape[0], height), weights(array.shape[1], width), array)


def saved(array, kind="JPEG", **options):
    body = io.BytesIO()
    Image.fromarray(array).save(body, kind, **options)
    return body.getvalue()


# One picture


@pytest.mark.parametrize(("height", "width"), [(40, 60), (61, 35), (24, 24), (7, 9)])
def test_the_centre_and_the_squash_are_what_they_say(height, width):
    array = noise(height, width)
    short = min(height, width)
    whole = resampled(array, 28 * height // short, 28 * width // short)
    y, x = (round((size - 24) / 2) for size in whole.shape[:2])
    assert np.abs(read(array, CENTRE) - whole[y : y + 24, x : x + 24]).max() <= 1.5
    assert np.abs(read(array, SQUASH) - resampled(array, 24, 24)).max() <= 1.5
    assert read(array, CENTRE).shape == read(array, SQUASH).shape == (24, 24, 3)
    np.testing.assert_array_equal(read(saved(array, "PNG"), CENTRE), read(array, CENTRE))
    np.testing.assert_array_equal(read(Image.fromarray(array), CENTRE), read(array, CENTRE))


def test_a_random_crop_is_a_part_of_the_picture_and_sees_nothing_beside_it():
    array = noise(50, 70)
    for row in range(20):
        box = crop_box(70, 50, RANDOM, generator(0, 1, pixels.CROP, row))
        part = array[box[1] : box[3], box[0] : box[2]]
        want = resampled(part, 24, 24)
        got = read(array, RANDOM, generator(0, 1, pixels.CROP, row)).astype(int)
        assert min(np.abs(got - want).max(), np.abs(got[:, ::-1] - want).max()) <= 1.5


def test_random_crops_have_the_areas_and_aspects_asked_for():
    random = np.random.default_rng(0)
    boxes = np.array([crop_box(400, 300, RANDOM, random) for _ in range(2000)])
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2] <= 400).all() and (boxes[:, 3] <= 300).all()
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    share, aspect = w * h / 120_000, w / h
    assert 0.075 < share.min() < 0.1 and 0.9 < share.max() <= 1
    assert 0.74 < aspect.min() < 0.77 and 1.3 < aspect.max() < 1.35
    assert boxes[:, 0].min() == 0 and boxes[:, 2].max() == 400  # edges are reached
    large = np.array(
        [crop_box(300, 300, RANDOM._replace(area=(0.64, 1.0), aspect=(1.0, 1.0)), random) for _ in range(500)]
    )
    side = large[:, 2] - large[:, 0]
    assert side.min() >= 240 and side.max() > 295
    assert (side == large[:, 3] - large[:, 1]).all()


@pytest.mark.parametrize(("width", "height", "want"), [(1000, 10, (13, 10)), (10, 1000, (10, 13)), (1, 1, (1, 1))])
def test_of_a_picture_of_an_extreme_shape_the_middle_is_taken(width, height, want):
    box = crop_box(width, height, RANDOM._replace(area=(0.9, 1.0)), np.random.default_rng(0))
    assert (box[2] - box[0], box[3] - box[1]) == want
    assert abs(box[0] + box[2] - width) <= 1 and abs(box[1] + box[3] - height) <= 1


def test_a_very_long_picture_does_not_fill_the_memory():
    line = np.zeros((2, 600_000, 3), np.uint8)
    line[:, 299_980:300_020] = 200
    line[:, 300_000:] = 100
    got = read(line, CENTRE)
    assert got.shape == (24, 24, 3) and got[12, 2].tolist() == [200] * 3 and got[12, 21].tolist() == [100] * 3
    assert ten_crops(line, CENTRE).shape == (10, 24, 24, 3)


def test_the_mirror_is_a_coin_and_nothing_else():
    array = noise(28, 28)
    plain = read(array, CENTRE)
    flips = []
    for row in range(200):
        got = read(array, CENTRE._replace(flip=True), generator(7, 0, pixels.CROP, row))
        flips.append(bool((got != plain).any()))
        np.testing.assert_array_equal(got[:, ::-1] if flips[-1] else got, plain)
    assert 70 < sum(flips) < 130


def test_ten_crops_are_corners_centre_and_their_mirrors():
    array = noise(28, 40)
    crops = ten_crops(array, CENTRE)
    for got, (y, x) in zip(crops, [(0, 0), (0, 16), (4, 0), (4, 16), (2, 8)], strict=False):
        np.testing.assert_array_equal(got, array[y : y + 24, x : x + 24])
    np.testing.assert_array_equal(crops[5:], crops[:5, :, ::-1])
    np.testing.assert_array_equal(crops[4], read(array, CENTRE))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("transform", [CENTRE, SQUASH, RANDOM])
def test_pictures_are_seen_as_a_viewer_shows_them(orientation, transform):
    picture, exif = stored(scene(), orientation)
    body = io.BytesIO()
    picture.save(body, "JPEG", exif=exif, **JPEGS)
    want = read(scene(), transform, generator(0, 0, 3, 5)).astype(int)
    assert np.abs(read(body.getvalue(), transform, generator(0, 0, 3, 5)) - want).mean() < 4


@pytest.mark.parametrize("transform", [CENTRE, SQUASH, RANDOM._replace(area=(0.9, 1.0))])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_made_small_while_it_is_decoded_and_looks_the_same(transform, orientation, monkeypatch):
    picture, exif = stored(smooth(700, 900), orientation)
    body = io.BytesIO()
    picture.save(body, "JPEG", exif=exif, **JPEGS)
    drafts = []
    seen = pictures.shown
    monkeypatch.setattr(pictures, "shown", lambda picture: drafts.append(picture.size) or seen(picture))
    want = read(smooth(700, 900), transform, generator(0, 0, 3, 1)).astype(int)
    drafts.clear()
    got = read(body.getvalue(), transform, generator(0, 0, 3, 1))
    assert max(drafts[0]) < 300  # not the 900 of the file
    assert np.abs(got - want).max() <= 5
    np.testing.assert_array_equal(read(body.getvalue(), transform, generator(0, 0, 3, 1)), got)


def test_sixteen_bits_alpha_and_palettes_are_the_one_readers():
    deep = png16(np.full((30, 30, 1), 257 * 99, np.uint16), 0)
    assert (read(deep, CENTRE) == 99).all()
    clear = np.zeros((30, 30, 4), np.uint8)
    assert (read(saved(clear, "PNG"), CENTRE) == 255).all()
    grey = saved(np.full((30, 30), 50, np.uint8), "PNG")
    assert (read(grey, SQUASH) == 50).all()


# Configs


def config_of(*overrides):
    return configs.load("vse.py:vsepp,tiny", list(overrides))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("side=0", "from 1 to 2048"),
        ("resize=5000", "from 1 to 2048"),
        ("train=ten", "one of random, centre, squash"),
        ("eval=random", "one of centre, squash"),
        ("area=(0.5,0.2)", "above 0 and at most 1"),
        ("area=(0.0,1.0)", "above 0 and at most 1"),
        ("aspect=(-1.0,1.0)", "above 0"),
        ("policy=ignore", "one of refuse, skip"),
    ],
)
def test_values_that_cannot_be_are_refused(override, words):
    from xmodal_jax.training.checks import check

    with pytest.raises(UsageError, match=rf"config.data.pixels.{override.partition('=')[0]} is .*{words}"):
        check(config_of(f"--config.data.pixels.{override}"))


def test_the_transforms_of_a_config():
    config = config_of("--config.data.pixels.side=24", "--config.data.pixels.area=(0.64,1.0)")
    assert pixels.transform_of(config, train=True) == Transform("random", 24, 256, (0.64, 1.0), (0.75, 4 / 3), True)
    assert pixels.transform_of(config) == Transform("centre", 24, 256)
    with pytest.raises(UsageError, match="resize 10 is below side 24"):
        pixels.transform_of(config_of("--config.data.pixels.side=24", "--config.data.pixels.resize=10"))
    reading = pixels.reading_of(
        config_of("--config.data.pixels.policy=skip", "--config.seed=5"), ["pixels"], train=True
    )
    assert reading is not None and reading[1:] == (5, "skip")
    reading = pixels.reading_of(config_of("--config.data.pixels.policy=skip"), ["pixels"])
    assert reading is not None and reading.policy == "refuse"
    assert pixels.reading_of(config, ["region"]) is None


# Batches


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return photographs(tmp_path_factory.mktemp("pixels"))


@pytest.fixture
def copy(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def pipeline(folder, host=0, hosts=1, policy="refuse", batch_size=8, **options):
    split = open_dataset(folder).split("train")
    vocabulary = Vocabulary.build((text for texts in split.captions for text in texts), 1)
    captions = Captions(split.captions, vocabulary, (8,))
    sampler = Sampler(captions.counts, captions.lengths, sampler="captions", batch_size=batch_size, seed=3, **options)
    reader = FeatureReader(split, ["pixels"], reading=Reading(RANDOM, 3, policy))
    return TrainPipeline(reader, captions, sampler, process_index=host, process_count=hosts)


def test_batches_hold_the_pictures_and_a_late_start_gives_the_same_bytes(folder):
    whole = list(pipeline(folder).batches(0, 8))  # an epoch has 6 steps
    split = open_dataset(folder).split("train")
    assert split.feature_names == []
    for step, batch in enumerate(whole):
        got = batch.image.feature["pixels"]
        assert got.shape == (8, 24, 24, 3) and got.dtype == np.uint8 and batch.image.mask.all()
        for place, row in enumerate(batch.image.id.tolist()):
            want = read(split.pictures[row], RANDOM, generator(3, step, pixels.CROP, row))
            np.testing.assert_array_equal(got[place], want)
    for step, batch in zip(range(5, 8), pipeline(folder).batches(5, 8), strict=True):
        np.testing.assert_array_equal(batch.image.feature["pixels"], whole[step].image.feature["pixels"])
        np.testing.assert_array_equal(batch.text.token, whole[step].text.token)
    first, again = (
        {row: batch.image.feature["pixels"][i] for batch in whole[a:b] for i, row in enumerate(batch.image.id.tolist())}
        for a, b in ((0, 3), (3, 6))
    )
    both = first.keys() & again.keys()
    assert sum((first[row] != again[row]).any() for row in both) > len(both) / 2  # drawn anew each time


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_see_the_global_batch(folder, hosts):
    (whole,) = pipeline(folder).batches(2, 3)
    parts = [next(pipeline(folder, host, hosts).batches(2, 3)) for host in range(hosts)]
    joined = np.concatenate([part.image.feature["pixels"] for part in parts])
    np.testing.assert_array_equal(joined, whole.image.feature["pixels"])


def test_a_short_batch_is_padded_with_black_and_evaluation_sees_each_picture_once(folder):
    split = open_dataset(folder).split("test")
    batches = list(image_batches(FeatureReader(split, ["pixels"], reading=Reading(CENTRE)), 10))
    assert [batch.id.tolist() for batch in batches] == [list(range(10)), [*range(10, 16), -1, -1, -1, -1]]
    assert not batches[1].feature["pixels"][6:].any()
    got = np.concatenate([batch.feature["pixels"] for batch in batches])[:16]
    np.testing.assert_array_equal(got, [read(path, CENTRE) for path in split.pictures])
    limited = FeatureReader(split, ["pixels"], limit=3, reading=Reading(CENTRE))
    assert np.concatenate([batch.id for batch in image_batches(limited, 4)]).tolist() == [0, 1, 2, -1]


# Bad pictures


def damage(folder, row, body):
    """Write a picture of train anew under its old length, so that only decoding tells."""
    path = files(folder, "train")[row]
    length = path.stat().st_size
    path.write_bytes((body + b"\0" * length)[:length])
    return path


def huge(width=12_000, height=10_001):
    body = png16(np.zeros((1, 1, 1), np.uint16), 0)
    size = b"IHDR" + struct.pack(">II", width, height) + body[24:29]
    return body[:12] + size + struct.pack(">I", zlib.crc32(size)) + body[33:]


BAD = {
    "corrupt": (b"\xff\xd8\xff\xe0" + b"\1" * 400, "is not a readable"),
    "empty": (b"", "is not a readable"),
    "huge": (huge(), "has 12,000 x 10,001 pixels; at most 120,000,000"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_picture_is_refused_by_file_and_row(copy, kind):
    body, words = BAD[kind]
    path = damage(copy, 5, body)
    with pytest.raises(DataError, match=rf'split "train", row 5 \(image "train05.webp"\): .*{path.name} .*{words}'):
        list(pipeline(copy).batches(0, 6))


@pytest.mark.parametrize("kind", [*BAD, "missing", "cut"])
@pytest.mark.parametrize("hosts", [1, 2])
def test_a_bad_picture_is_skipped_with_its_captions_and_named_once(copy, kind, hosts, capsys):
    whole = list(pipeline(copy).batches(0, 12))
    path = files(copy, "train")[5]
    if kind == "missing":
        path.unlink()
    elif kind == "cut":
        os.truncate(path, 40)
    else:
        damage(copy, 5, BAD[kind][0])
    lines = [pipeline(copy, host, hosts, policy="skip") for host in range(hosts)]
    parts = [list(line.batches(0, 12)) for line in lines]
    for step, before in enumerate(whole):
        after = [part[step] for part in parts]
        ids, images, owners, rows = (
            np.concatenate([getattr(side, name) for side in sides])
            for sides, name in (
                ([batch.text for batch in after], "id"),
                ([batch.image for batch in after], "id"),
                ([batch.text for batch in after], "image_id"),
                ([batch.text for batch in after], "row"),
            )
        )
        gone = before.image.id == 5
        np.testing.assert_array_equal(images, np.where(gone, -1, before.image.id))
        np.testing.assert_array_equal(ids, np.where(gone[before.text.row], -1, before.text.id))
        np.testing.assert_array_equal(owners, np.where(gone[before.text.row], -1, before.text.image_id))
        np.testing.assert_array_equal(rows, before.text.row)
        square = np.concatenate([batch.image.feature["pixels"] for batch in after])
        np.testing.assert_array_equal(square[~gone], before.image.feature["pixels"][~gone])
        assert not square[gone].any()
        mask = np.concatenate([batch.text.mask for batch in after])
        assert not mask[gone[before.text.row]].any()
    told = capsys.readouterr().err
    assert told.count("skipped: ") == hosts and "row 5" in told and "train05.webp" in told
    assert all(list(line.reader.skipped) == [5] for line in lines if line.reader.skipped)


def test_a_batch_without_any_picture_ends_the_training(copy):
    for row in range(24):
        damage(copy, row, BAD["corrupt"][0])
    with pytest.raises(DataError, match="No picture of a whole batch can be read"):
        list(pipeline(copy, policy="skip").batches(0, 1))


def test_files_that_are_not_those_of_the_manifest_are_found_before_the_first_step(copy):
    split = open_dataset(copy).split("train")
    with files(copy, "train")[3].open("ab") as file:
        file.write(b"more")
    files(copy, "train")[7].unlink()
    with pytest.raises(DataError, match=r'2 of 24 pictures of split "train" are missing or not.*train03.png'):
        PictureReader(split, Reading(CENTRE))
    assert sorted(PictureReader(split, Reading(CENTRE, 0, "skip")).skipped) == [3, 7]
    shutil.rmtree(copy / "images")
    for policy in pixels.POLICIES:
        with pytest.raises(DataError, match=r"24 of 24 pictures"):
            PictureReader(split, Reading(CENTRE, 0, policy))


def test_an_ending_that_lies_and_an_animation_are_read_all_the_same(tmp_path):
    array = noise(30, 40)
    Image.fromarray(array).save(tmp_path / "picture.jpg", "BMP")
    np.testing.assert_array_equal(read(tmp_path / "picture.jpg", CENTRE), read(array, CENTRE))
    first, second = Image.new("RGB", (40, 30), (0, 0, 255)), Image.new("RGB", (40, 30), (255, 0, 0))
    first.save(tmp_path / "moving.gif", save_all=True, append_images=[second])
    assert (read(tmp_path / "moving.gif", CENTRE) == (0, 0, 255)).all()


def test_a_program_may_end_while_pictures_are_read_ahead(folder):
    program = """
import sys
import numpy as np
from xmodal_jax.data.pipeline import FeatureReader
from xmodal_jax.data.pixels import Reading, Transform
from xmodal_jax.data.records import open_dataset

def first(split):
    reading = Reading(Transform("centre", 24, 28))
    stream = FeatureReader(split, ["pixels"], reading=reading).stream(0, 10**9, lambda _: np.arange(24))
    return next(stream)["pixels"]

print(first(open_dataset(sys.argv[1]).split("train")).shape)
"""
    ended = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (0, "(24, 24, 24, 3)\n"), ended.stderr
    assert "Traceback" not in ended.stderr
