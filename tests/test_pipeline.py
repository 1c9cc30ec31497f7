"""The tf.data pipeline: what it delivers equals the records; hosts, resumption, padding and cut captions."""

import subprocess
import sys

import numpy as np
import pytest
from helpers import planted

from xmodal_jax.data.order import Sampler
from xmodal_jax.data.pipeline import Captions, FeatureReader, TrainPipeline, image_batches, text_batches
from xmodal_jax.data.records import open_dataset
from xmodal_jax.errors import UsageError
from xmodal_jax.text.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return open_dataset(planted(tmp_path_factory.mktemp("data") / "set"))


@pytest.fixture(scope="module")
def vocabulary(dataset):
    return Vocabulary.build((t for captions in dataset.split("train").captions for t in captions), 1)


def dense(split):
    """A vector of every caption that tells which it is."""
    count = sum(map(len, split.captions))
    return {"mean": np.arange(count * 2, dtype=np.float32).reshape(count, 2)}


def make(dataset, vocabulary, host=0, hosts=1, boxes=False, sampler="captions", batch_size=8, features=None, **options):
    split = dataset.split("train")
    captions = Captions(split.captions, vocabulary, (6, 9), features)
    order = Sampler(captions.counts, captions.lengths, sampler=sampler, batch_size=batch_size, seed=3, **options)
    reader = FeatureReader(split, ["region", "global"], boxes=boxes)
    return TrainPipeline(reader, captions, order, process_index=host, process_count=hosts)


def test_batches_hold_what_the_records_hold(dataset, vocabulary):
    pipeline = make(dataset, vocabulary, boxes=True)
    split = dataset.split("train")
    texts = [text for captions in split.captions for text in captions]
    for batch in pipeline.batches(0, 3):
        items = split.read(batch.image.id.tolist())
        for i, item in enumerate(items):
            r = len(item.features["region"])
            np.testing.assert_array_equal(batch.image.feature["region"][i, :r], item.features["region"])
            np.testing.assert_array_equal(batch.image.feature["global"][i], item.features["global"])
            np.testing.assert_array_equal(batch.image.box[i, :r], item.boxes)
            assert batch.image.mask[i].tolist() == [True] * r + [False] * (batch.image.mask.shape[1] - r)
            assert not batch.image.feature["region"][i, r:].any()
            words = batch.text.token[i][batch.text.mask[i]].tolist()
            assert words == vocabulary.encode(texts[batch.text.id[i]])
            assert batch.text.image_id[i] == batch.image.id[i]
        assert batch.image.feature["region"].dtype == np.float16


def test_a_later_start_gives_the_same_batches(dataset, vocabulary):
    per_epoch = make(dataset, vocabulary).steps_per_epoch
    whole = list(make(dataset, vocabulary).batches(0, per_epoch + 3))
    late = list(make(dataset, vocabulary).batches(per_epoch - 1, per_epoch + 3))
    assert len(late) == 4
    for a, b in zip(whole[-4:], late, strict=True):
        np.testing.assert_array_equal(a.text.token, b.text.token)
        np.testing.assert_array_equal(a.image.feature["region"], b.image.feature["region"])


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_read_the_global_batch(dataset, vocabulary, hosts):
    (whole,) = make(dataset, vocabulary).batches(2, 3)
    parts = [next(make(dataset, vocabulary, host, hosts).batches(2, 3)) for host in range(hosts)]
    for field in ("token", "mask", "row", "id", "image_id"):
        joined = np.concatenate([getattr(part.text, field) for part in parts])
        np.testing.assert_array_equal(joined, getattr(whole.text, field))
    joined = np.concatenate([part.image.feature["global"] for part in parts])
    np.testing.assert_array_equal(joined, whole.image.feature["global"])


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_roles_and_dense_vectors_reach_the_batch_on_every_host(dataset, vocabulary, hosts):
    split = dataset.split("train")
    texts = [text for group in split.captions for text in group]
    owner = np.repeat(np.arange(len(split)), [len(group) for group in split.captions])
    options = {"roles": {"target": 2, "candidate": 4}, "features": dense(split)}
    plan = make(dataset, vocabulary, **options).plan(2)
    parts = [next(make(dataset, vocabulary, host, hosts, **options).batches(2, 3)) for host in range(hosts)]
    for role, wanted in (("text", plan.caption), ("target", plan.target), ("candidate", plan.candidate)):
        captions = [getattr(part, role) for part in parts]
        ids = np.concatenate([group.id for group in captions])
        np.testing.assert_array_equal(ids, wanted)
        vectors = np.concatenate([group.feature["mean"] for group in captions])
        np.testing.assert_array_equal(vectors, dense(split)["mean"][ids])
        for group in captions:
            for token, mask, number in zip(group.token, group.mask, group.id, strict=True):
                assert token[mask].tolist() == vocabulary.encode(texts[number])
    for part in parts:
        assert part.target is not None and part.candidate is not None
        np.testing.assert_array_equal(np.repeat(part.text.image_id, 2), part.target.image_id)
        np.testing.assert_array_equal(np.repeat(part.text.row, 2), part.target.row)
        assert not set(owner[part.candidate.id]) & set(plan.image.tolist())


def test_a_system_without_tokens_reads_vectors_alone(dataset):
    split = dataset.split("train")
    batch = next(make(dataset, None, features=dense(split), captions_per_image=2).batches(0, 1))
    assert batch.text.token is None
    assert batch.text.mask.shape == (16, 1)
    assert batch.text.feature is not None
    np.testing.assert_array_equal(batch.text.feature["mean"], dense(split)["mean"][batch.text.id])
    np.testing.assert_array_equal(batch.text.row, np.repeat(np.arange(8), 2))


def test_a_later_stage_goes_on_with_the_epochs(dataset, vocabulary):
    plain = make(dataset, vocabulary)
    split, per_epoch = dataset.split("train"), plain.steps_per_epoch
    later = TrainPipeline(plain.reader, plain.captions, plain.sampler, first_step=100, first_epoch=3)
    assert len(split) and per_epoch > 1
    for step in (0, per_epoch + 1):
        np.testing.assert_array_equal(later.plan(100 + step).caption, plain.plan(3 * per_epoch + step).caption)


def test_candidates_must_divide_over_hosts(dataset, vocabulary):
    with pytest.raises(UsageError, match="candidates 3 does not divide"):
        make(dataset, vocabulary, 0, 2, roles={"candidate": 3})


def test_evaluation_sees_every_item_once(dataset, vocabulary):
    split = dataset.split("test")
    captions = Captions(split.captions, vocabulary, (6, 9))
    reader = FeatureReader(split, ["global"])
    images = np.concatenate([batch.id for batch in image_batches(reader, 5)])
    texts = np.concatenate([batch.id for batch in text_batches(captions, 7)])
    assert images[images >= 0].tolist() == list(range(16))
    assert sorted(texts[texts >= 0]) == list(range(len(captions)))
    limited = FeatureReader(split, ["global"], limit=3)
    assert np.concatenate([batch.id for batch in image_batches(limited, 5)]).tolist() == [0, 1, 2, -1, -1]


def test_long_captions_are_cut_and_unknown_words_are_kept_as_unk(vocabulary):
    long = "red0 " * 20_000
    captions = Captions([[long, "zebra quagga"], ["red0"]], vocabulary, (4, 8))
    assert captions.cut == 1
    texts = captions.texts(np.array([0, 1, 2, -1]), np.array([0, 0, 1, 0]))
    assert texts.token.shape == (4, 8)
    assert texts.token[0, 7] == 2
    assert texts.token[1].tolist() == [1, 3, 3, 2, 0, 0, 0, 0]
    assert not texts.mask[3].any()
    assert texts.image_id.tolist() == [0, 0, 1, -1]
    assert captions.texts(np.array([1, 2]), np.array([0, 1])).token.shape == (2, 4)


def test_a_missing_feature_is_named(dataset):
    with pytest.raises(UsageError, match=r'no feature "pixels", only region, global'):
        FeatureReader(dataset.split("train"), ["pixels"])


def test_batch_must_divide_over_hosts(dataset, vocabulary):
    with pytest.raises(UsageError, match="multiple of 3"):
        make(dataset, vocabulary, 0, 3)


def test_a_program_may_end_while_batches_are_read_ahead(dataset):
    """A thread of TensorFlow that still asks for Python then would abort the process or hang it."""
    program = """
import sys
import numpy as np
from xmodal_jax.data.pipeline import FeatureReader
from xmodal_jax.data.records import open_dataset

def first(split):
    stream = FeatureReader(split, ["global"]).stream(0, 10**9, lambda _: np.arange(2))
    return next(stream)["global"]

print(first(open_dataset(sys.argv[1]).split("train")).shape)
"""
    command = [sys.executable, "-c", program, str(dataset.directory)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (0, "(2, 8)\n"), ended.stderr
