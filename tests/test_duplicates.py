"""Captions that equal those of other images: in ranks, tables, scores and losses."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmodal_jax import cli, losses
from xmodal_jax.data import writer
from xmodal_jax.data.pipeline import Captions, text_ids
from xmodal_jax.data.records import Item, open_dataset
from xmodal_jax.evaluation import rank, ranks, table
from xmodal_jax.evaluation.vote import Member, Positives, rank_table, score_block
from xmodal_jax.losses import Pairing, chunked
from xmodal_jax.text.same import numbered, plain
from xmodal_jax.text.vocabulary import SPECIAL, Vocabulary
from xmodal_jax.training.log import read

pytestmark = pytest.mark.usefixtures("one_device")
TITLES = "red cotton shirt|blue denim jeans|black leather shoes|white summer dress|green rain jacket|grey wool hat"


def table_of(scores, row, text_id, **options):
    def score(_, image, text):
        return scores[image[:, None], text]

    member = Member(score, None, np.arange(len(scores)), np.arange(scores.shape[1]), options.pop("read_id", None))
    options = {"protocol": "full", "weights": "raw", "draws": 20, "text_id": text_id, **options}
    return rank_table([member], row, len(scores), **options)


@pytest.mark.parametrize("blocks", [(3, 4), (100, 100)])
@pytest.mark.parametrize("kept", [0, 1 << 20])
def test_shared_ranks_equal_those_of_the_whole_matrix(blocks, kept, monkeypatch):
    monkeypatch.setattr(rank, "KEPT", kept)
    random = np.random.default_rng(0)
    row, text = np.sort(np.concatenate([np.arange(11), random.integers(0, 11, 12)])), random.integers(0, 9, 23)
    scores = random.integers(0, 12, (11, 23)).astype(np.float32)  # many ties
    positive = np.array([[t in text[row == b] for t in text] for b in range(11)])
    same = Positives(row, text, 11)
    np.testing.assert_array_equal(same.block(slice(0, 11), slice(0, 23)), positive)
    for way, axis in zip(same.counts, (1, 0), strict=True):
        np.testing.assert_array_equal(way, positive.sum(axis=axis))
    assert same.equal == (positive.sum(axis=0) > 1).sum()
    for array in (scores, jnp.asarray(scores)):
        options = {"positive_block": same.block, "image_block": blocks[0], "caption_block": blocks[1]}
        counts = rank.blocked_counts(lambda i, c, array=array: array[i, c], row, 11, **options)
        for got, want in zip(counts[:2], ranks(scores, positive), strict=True):
            np.testing.assert_array_equal(got, want)
        plain_counts = rank.blocked_counts(lambda i, c, array=array: array[i, c], row, 11)
        matched = np.arange(11)[:, None] == row
        for found, mask in ((counts, positive), (plain_counts, matched)):
            best = np.where(mask, scores, -np.inf)
            tied = (scores == best.max(axis=1, keepdims=True)) & ~mask, (scores == best.max(axis=0)) & ~mask
            np.testing.assert_array_equal(found.i2t_tied, tied[0].any(axis=1))
            np.testing.assert_array_equal(found.t2i_tied, tied[1].any(axis=0))


def test_a_perfect_system_is_seen_to_be_one():
    kind = np.arange(60) % 6
    scores = (kind[:, None] == kind).astype(np.float32)
    separate, shared = (table_of(scores, np.arange(60), kind, shared=shared) for shared in (False, True))
    assert (separate.i2t.r1, separate.t2i.r1, separate.duplicates) == (0, 0, table.Duplicates(False, 60, (60, 60)))
    assert (shared.i2t.r1, shared.t2i.r1, shared.duplicates) == (100, 100, table.Duplicates(True, 60, (0, 0)))
    notes = [" ".join(table._notes(result)) for result in (separate, shared)]
    assert "60 captions equal one of another image; right for their own image alone (duplicates: separate)" in notes[0]
    assert "(60 images and 60 captions have one)" in notes[0] and "--duplicates shared" in notes[0]
    assert "right for all their images (duplicates: shared)" in notes[1] and "--duplicates" not in notes[1]
    content = table.to_json(separate)
    assert (content["duplicates"], content["equal_captions"], content["tied"]) == (
        "separate",
        60,
        {"i2t": 60, "t2i": 60},
    )


def test_few_equal_captions_are_counted_without_advice_and_none_without_a_word():
    scores = np.random.default_rng(0).normal(size=(50, 50))
    text = np.arange(50)
    assert "equal" not in " ".join(table._notes(table_of(scores, np.arange(50), text)))
    text[1] = 0
    notes = " ".join(table._notes(table_of(scores, np.arange(50), text)))
    assert "2 captions equal one of another image" in notes and "--duplicates" not in notes


def test_chance_counts_all_positives():
    random = np.random.default_rng(0)
    row, text = np.repeat(np.arange(12), 2), random.integers(0, 8, 24)
    draws = [table_of(random.normal(size=(12, 24)), row, text, shared=True, draws=0) for _ in range(200)]
    for way, expected in enumerate(draws[0].chance):
        seen = np.mean([draw.folds[0][way][:3] for draw in draws], axis=0)
        np.testing.assert_allclose(seen, expected[:3], atol=6)


def test_equal_captions_have_equal_scores_in_every_block(monkeypatch):
    monkeypatch.setattr("xmodal_jax.evaluation.vote.CAPTION_BLOCK", 4)
    random = np.random.default_rng(0)
    read_id = numbered(random.integers(0, 6, 15).tolist())
    base = random.normal(size=(5, 15))[:, np.unique(read_id, return_index=True)[1][read_id]]

    def score(_, image, text):  # no call gives the bits of another
        return base[image[:, None], text] + 1e-9 * random.normal(size=(len(image), len(text)))

    member = Member(score, None, np.arange(5), np.arange(15), read_id)
    block = score_block([member, member])
    pieces = [[block(slice(i, i + 2), slice(c, c + 5)) for c in (0, 5, 10)] for i in (0, 2, 3)]
    for parts in pieces:
        whole = np.concatenate(parts, axis=1)
        for first in range(15):
            for second in np.flatnonzero(read_id == read_id[first]):
                np.testing.assert_array_equal(whole[:, first], whole[:, second])
    np.testing.assert_allclose(np.concatenate(pieces[0], axis=1), base[:2], atol=1e-8)
    alone = score_block([member._replace(read_id=np.arange(15)), member])  # another member tells them apart
    assert (alone(slice(0, 2), slice(0, 15))[:, 0] != alone(slice(0, 2), slice(0, 15))[:, 0]).any()


def test_what_is_equal_to_a_reader_and_to_the_system():
    texts = [["Two  dogs", "a zebra"], ["two dogs", "a quagga"]]
    captions = Captions(texts, Vocabulary([*SPECIAL, "a", "two", "dogs"]), [8])
    assert captions.text_id.tolist() == [0, 1, 0, 2] and captions.read_id.tolist() == [0, 1, 0, 1]
    assert Captions(texts, None, [8], {"mean": np.zeros((4, 2))}).read_id.tolist() == [0, 1, 2, 3]
    assert plain(" A  B ") == "a b"


def pairing_of(seed, b=7, c=12):
    random = np.random.default_rng(seed)
    image_id, row = np.array([3, 5, 3, 8, 9, 2, -1]), random.integers(0, b, c)
    text_id, text = np.where(np.arange(c) < c - 2, np.arange(c), -1), random.integers(0, 5, c)
    return Pairing(image_id, row, image_id[row], text_id, np.where(text_id >= 0, text, -1))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mask_same_image", [False, True])
def test_masked_pairs_equal_loops(seed, mask_same_image):
    pairing = pairing_of(seed)
    image_id, row, of, caption, text = map(np.asarray, pairing)
    want = np.zeros((7, 12), bool)
    for b in range(7):
        known = {text[c] for c in range(12) if of[c] == image_id[b] and caption[c] >= 0}
        for c in range(12):
            real = image_id[b] >= 0 and caption[c] >= 0
            sibling = of[c] == image_id[b] and row[c] != b
            twin = of[c] != image_id[b] and text[c] in known
            want[b, c] = real and not twin and not (sibling and mask_same_image)
    masks = {"mask_same_image": mask_same_image, "mask_same_text": True}
    np.testing.assert_array_equal(pairing.counted(**masks), want)
    plain = np.asarray(pairing.counted(mask_same_image=mask_same_image))
    assert (plain & ~want).any()
    negative = want & (np.arange(7)[:, None] != row)
    np.testing.assert_array_equal(pairing.negative(np.arange(7), **masks), negative)
    columns = np.array([3, 0, 7])
    np.testing.assert_array_equal(pairing.negative(np.array([4, 1]), columns, **masks), negative[[4, 1]][:, columns])


@pytest.mark.parametrize("options", [{"margin": 0.3, "hardness": 1}, {"margin": 0.3, "hardness": 0}])
def test_chunks_mask_the_same_pairs(options):
    pairing, random = pairing_of(1), np.random.default_rng(1)
    image, text = (random.normal(size=(n, 5)).astype(np.float32) for n in (7, 12))

    def score(image, text):
        return image @ text.T

    pairs = chunked.Pairs(score, image, text, pairing, 3, mask_same_text=True)
    where = pairing.counted(mask_same_image=False, mask_same_text=True)
    want = losses.triplet(score(image, text), pairing.positive(), where, **options)
    got = jax.jit(lambda: chunked.triplet(pairs, **options).loss)()
    assert float(got) == pytest.approx(float(want), rel=1e-5)


def shop(folder):
    """24 products a split under 6 titles, told apart by their features."""

    def items(split):
        for i in range(24):
            region = np.repeat(3 * np.eye(6)[None, i % 6], 2, axis=0) + 0.05 * np.random.default_rng(i).normal(size=6)
            yield Item(f"{split}-{i}", [TITLES.split("|")[i % 6]], {"region": region.astype("f4")}, None, (0, 0), None)

    writer.write(folder, {split: items(split) for split in ("train", "dev", "test")}, name="shop", source={})
    return folder


def test_a_shop_of_few_titles_is_learnt_and_judged_right(tmp_path, capsys):
    data, run, target = shop(tmp_path / "data"), tmp_path / "run", tmp_path / "t.json"
    assert text_ids(open_dataset(data).split("test")).tolist() == [i % 6 for i in range(24)]
    argv = ["train", "--config", "vse.py:vsepp,tiny", f"--config.data.dir={data}", "--workdir", str(run)]
    argv += [
        "--config.model.feature=region",
        "--config.epochs=12",
        "--config.optim.lr=1e-2",
        "--config.log.every_steps=1",
    ]
    assert cli.run([*argv, "--config.loss.mask_same_text=True", "--config.eval.every_epochs=12"]) == 0
    assert read(run / "metrics.jsonl")[-2]["loss"] < 1  # with equal captions as negatives at least 0.2 a pair stay
    capsys.readouterr()
    recall = {}
    for kind in ("separate", "shared"):
        assert cli.run(["eval", "--workdir", str(run), "--duplicates", kind, "--json", str(target)]) == 0
        assert f"(duplicates: {kind})" in capsys.readouterr().out
        content = json.loads(target.read_text())
        recall[kind] = content["i2t"]["r1"]
        assert content["equal_captions"] == 24
    assert recall == {"separate": 0, "shared": 100}
    names = {re.sub(r"test-\d+-?", "", path.stem) for path in (run / "eval").glob("*.json")}
    assert names == {"", "shared"}  # a figure of another kind does not take the place of the usual one
    pair, kept = ["eval", "--ensemble", str(run), str(run), "--json", str(target)], target.with_suffix(".ranks.npz")
    assert cli.run(pair) == 0 and kept.is_file()
    assert cli.run([*pair, "--duplicates", "shared"]) == 0 and json.loads(target.read_text())["i2t"]["r1"] == 100
    assert not kept.exists()  # ranks of another kind are compared with none
