"""The order of batches: each sampler's promise, purity in (seed, epoch, index), padding."""

import numpy as np
import pytest

from xmodal_jax.data.order import Sampler
from xmodal_jax.errors import UsageError

COUNTS = [3, 1, 5, 2, 0, 4, 5]
OWNER = np.repeat(np.arange(len(COUNTS)), COUNTS)
LENGTHS = np.random.default_rng(0).integers(3, 7, sum(COUNTS))


def make(sampler="captions", batch_size=4, seed=0, **options):
    return Sampler(COUNTS, LENGTHS, sampler=sampler, batch_size=batch_size, seed=seed, **options)


def test_captions_sees_every_caption_once_with_its_image():
    epoch = make().epoch(0)
    assert epoch.image.shape == epoch.caption.shape == (5, 4)
    seen = epoch.caption[epoch.caption >= 0]
    assert sorted(seen) == list(range(20))
    np.testing.assert_array_equal(epoch.image[epoch.caption >= 0], OWNER[seen])
    np.testing.assert_array_equal(epoch.row, np.arange(4))


def test_the_short_batch_is_padded_or_dropped():
    padded, dropped = make(batch_size=8).epoch(0), make(batch_size=8, drop_last=True).epoch(0)
    assert (padded.caption[-1] < 0).sum() == 4
    np.testing.assert_array_equal(padded.image < 0, padded.caption < 0)
    np.testing.assert_array_equal(dropped.caption, padded.caption[:2])


@pytest.mark.parametrize("k", [1, 3])
def test_images_draws_k_of_each_image(k):
    epoch = make("images", batch_size=3, captions_per_image=k).epoch(1)
    assert sorted(epoch.image[epoch.image >= 0]) == [0, 1, 2, 3, 5, 6]  # image 4 has no caption
    assert epoch.caption.shape == (2, 3 * k)
    np.testing.assert_array_equal(epoch.row, np.repeat(np.arange(3), k))
    for image, captions in zip(epoch.image.ravel(), epoch.caption.reshape(-1, k), strict=True):
        assert (OWNER[captions] == image).all()
        assert len(set(captions)) == min(k, COUNTS[image])


def test_images_reaches_every_caption_in_time():
    sampler = make("images", batch_size=3)
    seen = {int(c) for epoch in range(60) for c in sampler.epoch(epoch).caption.ravel()}
    assert seen == set(range(20))


def test_length_buckets_hold_one_length_a_batch_and_go_round():
    epoch = make("length_buckets", batch_size=3).epoch(0)
    lengths = [set(LENGTHS[row[row >= 0]]) for row in epoch.caption]
    assert all(len(one) == 1 for one in lengths)
    assert sorted(epoch.caption[epoch.caption >= 0]) == list(range(20))
    first_round = [one.pop() for one in lengths[: len(set(LENGTHS))]]
    assert first_round == sorted(set(LENGTHS))


@pytest.mark.parametrize("sampler", ["captions", "images", "length_buckets"])
def test_pure_in_seed_and_epoch(sampler):
    a, b = make(sampler), make(sampler)
    late = a.epoch(7).caption
    for epoch in (0, 1, 2):
        np.testing.assert_array_equal(a.epoch(epoch).caption, b.epoch(epoch).caption)
    np.testing.assert_array_equal(late, b.epoch(7).caption)
    assert not np.array_equal(a.epoch(0).caption, a.epoch(1).caption)
    assert not np.array_equal(a.epoch(0).caption, make(sampler, seed=1).epoch(0).caption)
    assert a.steps_per_epoch == len(a.epoch(3).caption)


def test_refusals_name_the_key():
    with pytest.raises(UsageError, match=r"data\.sampler"):
        make("random")
    with pytest.raises(UsageError, match="captions_per_image"):
        make("captions", captions_per_image=2)
    with pytest.raises(UsageError, match="batch_size"):
        make(batch_size=64, drop_last=True)
