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


def role(epoch, name) -> np.ndarray:
    return getattr(epoch, name)


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
    assert all(len(batch) == 1 for batch in lengths)
    assert sorted(epoch.caption[epoch.caption >= 0]) == list(range(20))
    first_round = [batch.pop() for batch in lengths[: len(set(LENGTHS))]]
    assert first_round == sorted(set(LENGTHS))


def test_captions_bring_others_of_their_image():
    plain, epoch = make(batch_size=4).epoch(2), make(batch_size=4, captions_per_image=3).epoch(2)
    np.testing.assert_array_equal(epoch.caption[:, ::3], plain.caption)
    np.testing.assert_array_equal(epoch.row, np.repeat(np.arange(4), 3))
    for image, captions in zip(epoch.image.ravel(), epoch.caption.reshape(-1, 3), strict=True):
        if image < 0:
            assert (captions < 0).all()
            continue
        assert (OWNER[captions] == image).all()
        assert len(set(captions)) == min(3, COUNTS[image])


def test_pairs_sees_every_ordered_pair_once():
    epoch = make("pairs", batch_size=7, roles={"target": 1}).epoch(0)
    real = epoch.caption >= 0
    seen = sorted(zip(epoch.caption[real].tolist(), role(epoch, "target")[real].tolist(), strict=True))
    groups = [np.flatnonzero(image == OWNER).tolist() for image in range(len(COUNTS))]
    pairs = [(a, b) for group in groups for a in group for b in group if a != b]
    pairs += [(group[0], group[0]) for group in groups if len(group) == 1]  # its only caption is its own target
    assert seen == sorted(pairs)
    assert (role(epoch, "target")[~real] < 0).all()


@pytest.mark.parametrize(("sampler", "k"), [("captions", 1), ("captions", 2), ("images", 6)])
def test_targets_are_others_of_the_same_image(sampler, k):
    epoch, plain = (make(sampler, roles=roles).epoch(1) for roles in ({"target": k}, {}))
    np.testing.assert_array_equal(epoch.caption, plain.caption)  # the order stays as it was
    for caption, targets in zip(epoch.caption.ravel(), role(epoch, "target").reshape(-1, k), strict=True):
        if caption < 0:
            assert (targets < 0).all()
            continue
        others = set(np.flatnonzero(OWNER[caption] == OWNER)) - {caption} or {caption}
        assert set(targets) <= others
        assert len(set(targets)) == min(k, len(others))
    drawn = np.concatenate([role(make(sampler, roles={"target": k}).epoch(e), "target") for e in range(2, 4)])
    assert len(np.unique(drawn)) > 10


def test_candidates_come_from_images_outside_the_batch():
    sampler = make(batch_size=3, roles={"candidate": 9})
    epoch = sampler.epoch(0)
    assert role(epoch, "candidate").shape == (len(epoch.image), 9)
    for image, candidates in zip(epoch.image, role(epoch, "candidate"), strict=True):
        assert not set(OWNER[candidates]) & set(image.tolist())
    again = make(batch_size=3, roles={"candidate": 9}).epoch(0)
    np.testing.assert_array_equal(role(again, "candidate"), role(epoch, "candidate"))
    assert (role(sampler.epoch(1), "candidate") != role(epoch, "candidate")).any()


def test_roles_that_cannot_be_filled_are_refused():
    with pytest.raises(UsageError, match="no candidate captions"):
        make("images", batch_size=8, roles={"candidate": 2})
    with pytest.raises(UsageError, match='role "aim"'):
        make(roles={"aim": 1})
    with pytest.raises(UsageError, match="one further caption"):
        make("pairs")


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
        make("length_buckets", captions_per_image=2)
    with pytest.raises(UsageError, match="batch_size"):
        make(batch_size=64, drop_last=True)
