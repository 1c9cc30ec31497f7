"""Words, cased words, characters: each with its vocabulary file, its way back to text, its unknown tokens."""

import pytest

from xmodal_jax.data.pipeline import Captions
from xmodal_jax.errors import UsageError
from xmodal_jax.text import characters
from xmodal_jax.text.tokens import cased, tokenize, words
from xmodal_jax.text.vocabulary import SPECIAL, Vocabulary


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("两只狗run在海滩上。", ["两", "只", "狗", "run", "在", "海", "滩", "上", "。"]),
        ("ひろいカタカナ", list("ひろいカタカナ")),
        ("น้ำ", ["น้", "ำ"]),  # a mark stands with its letter
        ("Two dogs don't run.", ["two", "dogs", "do", "n't", "run", "."]),
        ("고양이 두 마리", ["고양이", "두", "마리"]),  # Korean has spaces
    ],
)
def test_words_cut_what_has_no_spaces_into_characters(text, tokens):
    assert words(text) == tokens


def test_words_are_the_tokens_of_the_field_where_there_are_spaces():
    for text in ("A man's dog can't run.", '"Go," he said ("now").', "café 1,000.5 kg at 3:30"):
        assert words(text) == tokenize(text)


def test_cased_words_keep_their_case():
    assert cased("Paris isn't a Dog's city") == ["Paris", "is", "n't", "a", "Dog", "'s", "city"]
    assert [token.lower() for token in cased("IT'S Mary's")] == words("IT'S Mary's")


CAPTIONS = ["A Dog runs", "a dog sees 两只狗", "a cat"]


@pytest.mark.parametrize("kind", ["words", "cased", "characters"])
def test_a_vocabulary_of_each_kind_comes_back_from_its_file(kind, tmp_path):
    vocabulary = Vocabulary.build(CAPTIONS, 1, kind)
    vocabulary.save(tmp_path / "v.json")
    again = Vocabulary.load(tmp_path / "v.json")
    assert (again.words, again.tokens, again.sha256) == (vocabulary.words, kind, vocabulary.sha256)
    for text in CAPTIONS:
        assert again.encode(text) == vocabulary.encode(text)
    assert len({Vocabulary.build(CAPTIONS, 1, other).sha256 for other in ("words", "cased", "characters")}) == 3


def test_ids_go_back_to_text():
    known = Vocabulary.build(CAPTIONS, 1)
    assert known.decode([1, *known.encode("a dog runs")[1:-1], 2, 5]) == "a dog runs"
    assert known.decode([*known.encode("a zebra runs")]) == "a runs"  # what is unknown is left out
    symbols = Vocabulary.build([], 1, "characters")
    assert len(symbols) == len(characters.SYMBOLS) == 75
    assert symbols.decode(symbols.encode("a dog-run 5")) == "a dog-run 5"


def test_coverage_counts_unknown_tokens_and_captions_of_nothing_else():
    vocabulary = Vocabulary([*SPECIAL, "a", "dog"])
    coverage = vocabulary.coverage(["a dog runs", "zebra quagga", "a a"])
    assert (coverage.tokens, coverage.unknown, coverage.captions, coverage.blank) == (7, 3, 3, 1)
    assert coverage.share == pytest.approx(3 / 7)
    assert vocabulary.unknown("a zebra") == ["zebra"]
    symbols = Vocabulary.build([], 1, "characters")
    assert symbols.unknown("Straße 5 €") == ["ß", "€"]
    assert symbols.coverage(["ab€"]).unknown == 1


def test_characters_make_captions_of_symbols():
    symbols = Vocabulary.build([], 1, "characters")
    captions = Captions([["ab", "a longer one"]], symbols, (8, 16))
    assert captions.lengths.tolist() == [4, 14]
    assert captions.cut == 0


def test_an_unknown_kind_is_refused():
    with pytest.raises(UsageError, match='No tokeniser "bytes"; there are words, cased, characters'):
        Vocabulary.build(CAPTIONS, 1, "bytes")
    with pytest.raises(ValueError, match="not the 75"):
        Vocabulary([*SPECIAL, "a"], "characters")
