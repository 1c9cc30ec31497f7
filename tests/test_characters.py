"""Characters as tokens against ids of the original code; characters replaced at random, and the picture of it."""

import numpy as np
import pytest
from conftest import GOLDEN

from xmodal_jax.errors import UsageError
from xmodal_jax.evaluation import noise
from xmodal_jax.text import characters
from xmodal_jax.text.noise import char_noise, noisy

CAPTION = "A black dog is running after a white dog in the snow ."


def test_ids_are_those_of_the_original():
    arrays = np.load(GOLDEN / "chain.npz")
    texts = [str(text) for text in arrays["tok/string"]]
    assert len(texts) == 60
    for text, ids, length in zip(texts, arrays["tok/id"], arrays["tok/length"], strict=True):
        assert [characters.START, *characters.ids(text), characters.END] == ids[:length].tolist(), text


def test_the_table_has_75_symbols_and_uses_74():
    assert len(characters.SYMBOLS) == 75
    printable = "".join(characters.SYMBOLS[3:])
    assert sorted(characters.ids(f"a{printable}a")[1:-1]) == sorted([*range(3, 40), 65, *range(41, 75)])
    assert characters.SYMBOLS.index("-") == 40  # the first of its two places, which no text gets


def test_characters_are_the_symbols_of_their_ids():
    for text in ("Two DOGS, 3 cats", "naïve – 50 % off!", ""):
        assert [characters.SYMBOLS[number] for number in characters.ids(text)] == characters.characters(text)


def test_unknown_are_the_characters_that_were_lost():
    assert characters.unknown("a b\tc\u00a0d, naïve") == []
    assert characters.unknown("straße – 5 €\u200b") == ["ß", "–", "€", "\u200b"]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_noise_replaces_the_share_and_nothing_else(share):
    n = 4000
    text = (CAPTION * 100)[:n]
    changed = char_noise(text, share, np.random.default_rng(0))
    assert len(changed) == n
    assert sum(a != b for a, b in zip(text, changed, strict=True)) == share * n
    assert all(
        b in "abcdefghijklmnopqrstuvwxyz" and b != a.lower() for a, b in zip(text, changed, strict=True) if a != b
    )


def test_noise_has_the_share_on_average_in_short_captions_too():
    changed = [char_noise("a cat", 0.1, np.random.default_rng(seed)) for seed in range(4000)]
    assert np.mean([sum(a != b for a, b in zip("a cat", x, strict=True)) for x in changed]) == pytest.approx(
        0.5, abs=0.03
    )


def test_a_larger_share_changes_more_of_the_same():
    few, many = (char_noise(CAPTION, share, np.random.default_rng(3)) for share in (0.1, 0.4))
    touched = [place for place, (a, b) in enumerate(zip(CAPTION, few, strict=True)) if a != b]
    assert touched
    assert all(many[place] == few[place] for place in touched)


def test_noise_depends_on_seed_and_caption_alone():
    captions = [[CAPTION, CAPTION], [CAPTION]]
    first = noisy(captions, 0.2, 7)
    assert [len(texts) for texts in first] == [2, 1]
    assert first == noisy(captions, 0.2, 7) != noisy(captions, 0.2, 8)
    assert len({text for texts in first for text in texts}) == 3
    assert noisy([["x", CAPTION]], 0.2, 7)[0][1] == first[0][1]
    assert noisy([[""]], 0.2, 7) == [[""]]


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_outside_0_and_1_is_refused(share):
    with pytest.raises(UsageError, match="from 0 to 1"):
        char_noise("a", share, np.random.default_rng(0))


def test_the_picture_of_noise(tmp_path):
    from PIL import Image

    def result(share, best):
        return {"char_noise": share, **{way: {"r1": best * (1 - share), "r10": best} for way in ("i2t", "t2i")}}

    curves = {"words": [result(0.2, 50.0), result(0.0, 50.0)], "characters": [result(0.0, 40.0), result(0.2, 38.0)]}
    noise.draw(curves, tmp_path / "noise.png")
    with Image.open(tmp_path / "noise.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for colour in noise.COLOURS[:2]:
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels - np.array(wanted)).max(axis=1) < 4).sum() > 100
    with pytest.raises(UsageError, match="char-noise"):
        noise.draw({"words": [{"i2t": {}, "t2i": {}}]}, tmp_path / "none.png")
