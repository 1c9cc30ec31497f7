"""Caption metrics against values of the original code, values by hand, and loops that spell the definitions out."""

import collections
import itertools
import math

import numpy as np
import pytest
from conftest import GOLDEN

from xmodal_jax.errors import DataError, UsageError
from xmodal_jax.evaluation.captions import Corpus, bleu, cider, normalise, rouge_l, score

SETS = ("all", "first10", "one", "empty_only", "no_empty")


def random_captions(rng, images=40, most=7):
    """Candidates and references of few different words, any number of references, some captions long, some empty."""

    def caption():
        return " ".join(rng.choice(list("abcdef"), rng.choice([0, 1, 2, 3, 5, 9, 80])))

    references = [[caption() for _ in range(rng.integers(1, most + 1))] for _ in range(images)]
    return [caption() for _ in range(images)], references


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "caption_metrics.npz")


def golden_set(golden, name):
    index = golden[f"{name}/index"]
    references = [golden["in/reference"][i, : golden["in/reference_count"][i]].tolist() for i in index]
    return golden["in/candidate"][index].tolist(), references


@pytest.mark.parametrize("name", SETS)
def test_values_of_the_original(golden, name):
    def close(got, key):
        np.testing.assert_allclose(got, golden[f"{name}/{key}"], rtol=0, atol=1e-6, err_msg=key)

    captions = golden_set(golden, name)
    scores = score(*captions)
    plain = cider(Corpus.of(*captions), clipped=False)
    for metric in ("bleu", "rouge_l", "cider_d"):
        close(getattr(scores, metric), f"{metric}/corpus")
        close(getattr(scores.items, metric), f"{metric}/sentence")
    close(plain, "cider/sentence")
    close(plain.mean(), "cider/corpus")


def test_kinds(golden):
    scores = score(*golden_set(golden, "all"))
    assert [type(value) for value in (*scores.bleu, *scores[1:3])] == [float] * 6
    assert [array.shape for array in scores.items] == [(60, 4), (60,), (60,)]


def ngrams(words, n):
    return collections.Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def bleu_by_loops(candidates, references):
    correct, guessed, length, reference_length = [0] * 4, [0] * 4, 0, 0
    for candidate, captions in zip(candidates, references, strict=True):
        words, others = candidate.split(), [caption.split() for caption in captions]
        length += len(words)
        reference_length += min((abs(len(other) - len(words)), len(other)) for other in others)[1]
        for n in range(4):
            for gram, count in ngrams(words, n + 1).items():
                correct[n] += min(count, max(ngrams(other, n + 1)[gram] for other in others))
                guessed[n] += count
    precision = np.cumprod([(c + 1e-15) / (g + 1e-9) for c, g in zip(correct, guessed, strict=True)])
    brevity = math.exp(min(0, 1 - (reference_length + 1e-9) / (length + 1e-15)))
    return precision ** (1 / np.arange(1, 5)) * brevity


@pytest.mark.parametrize("seed", range(3))
def test_bleu_is_that_of_plain_loops(seed):
    candidates, references = random_captions(np.random.default_rng(seed))
    scores = score(candidates, references)
    np.testing.assert_allclose(scores.bleu, bleu_by_loops(candidates, references), rtol=1e-9)
    alone = [bleu_by_loops([c], [r]) for c, r in zip(candidates, references, strict=True)]
    np.testing.assert_allclose(scores.items.bleu, alone, rtol=1e-9, atol=1e-15)


def rouge_by_table(candidate, references):
    candidate, precision, recall = candidate.split(), [], []
    for reference in map(str.split, references):
        table = np.zeros((len(candidate) + 1, len(reference) + 1), int)
        for i, j in itertools.product(range(len(candidate)), range(len(reference))):
            same = candidate[i] == reference[j]
            table[i + 1, j + 1] = table[i, j] + 1 if same else max(table[i, j + 1], table[i + 1, j])
        precision.append(table[-1, -1] / max(len(candidate), 1))
        recall.append(table[-1, -1] / max(len(reference), 1))
    p, r = max(precision), max(recall)
    return (1 + 1.2**2) * p * r / (r + 1.2**2 * p) if p and r else float(not candidate and "" in references)


def test_rouge_l_is_that_of_the_table():
    """Captions of more than 64 words too, and of none: an empty candidate equals an empty reference only."""
    captions = random_captions(np.random.default_rng(3))
    captions[0][:2], captions[1][:2] = ["", ""], [["a b", ""], ["a"]]
    expected = [rouge_by_table(*pair) for pair in zip(*captions, strict=True)]
    assert expected[:2] == [1, 0]
    np.testing.assert_allclose(rouge_l(Corpus.of(*captions)), expected, rtol=1e-12)


def cider_by_loops(candidates, references, clipped):
    """The mean over lengths 1 to 4 and over references of the weighted cosines, by dictionaries."""
    total = np.zeros(len(candidates))
    for n in range(1, 5):
        counts = [[ngrams(caption.split(), n) for caption in captions] for captions in references]
        frequency = collections.Counter(gram for image in counts for gram in set().union(*image))
        weight = collections.defaultdict(lambda: math.log(len(candidates)))
        weight |= {gram: math.log(len(candidates) / count) for gram, count in frequency.items()}
        for i, captions in enumerate(references):
            hypothesis = {gram: c * weight[gram] for gram, c in ngrams(candidates[i].split(), n).items()}
            for caption, count in zip(captions, counts[i], strict=True):
                other = collections.defaultdict(float, {gram: c * weight[gram] for gram, c in count.items()})
                product = sum((min(h, other[g]) if clipped else h) * other[g] for g, h in hypothesis.items())
                norm = math.hypot(*hypothesis.values()) * math.hypot(*other.values())
                bigrams = ngrams(candidates[i].split(), 2).total() - ngrams(caption.split(), 2).total()
                penalty = math.exp(-(bigrams**2) / 72) if clipped else 1
                total[i] += 10 / 4 * penalty * product / norm / len(captions) if norm else 0
    return total


@pytest.mark.parametrize("clipped", [True, False])
def test_cider_is_that_of_plain_loops(clipped):
    captions = random_captions(np.random.default_rng(4))
    got = cider(Corpus.of(*captions), clipped=clipped)
    np.testing.assert_allclose(got, cider_by_loops(*captions, clipped), rtol=1e-9, atol=1e-12)


def test_identical_captions():
    captions = ["a dog runs on grass", "two men sit at tables"]
    scores = score(captions, [[caption] for caption in captions])
    assert scores.bleu == pytest.approx([1] * 4, abs=1e-8)
    assert (scores.rouge_l, scores.cider_d) == pytest.approx((1, 10))


def test_captions_of_a_word():
    """No n-gram but the word: a quarter of CIDEr is left, and BLEU-4 of what the original's constants give."""
    scores = score(["dog", "cat"], [["dog"], ["cat"]])
    assert scores.bleu[0] == pytest.approx(1, abs=1e-8)
    assert scores.items.bleu[0, 3] == pytest.approx((1e-15 / 1e-9) ** (3 / 4), rel=1e-6)
    assert (scores.rouge_l, scores.cider_d) == pytest.approx((1, 2.5))


@pytest.mark.parametrize("references", [["a dog runs"], ["a dog runs", "dogs run here now"]])
def test_an_empty_candidate_has_no_score(references):
    scores = score(["", "two men sit"], [references, ["two men sit"]])
    assert not any(array[0].any() for array in scores.items)
    assert 0.3 < scores.bleu[0] < math.exp(-0.9)  # all of its words are right, but the corpus is too short
    assert (scores.rouge_l, scores.cider_d) == pytest.approx((1 / 2, 7.5 / 2))


def test_a_corpus_without_words():
    scores = score(["", " "], [[""], ["", ""]])
    assert (scores.bleu, scores.cider_d) == ((0, 0, 0, 0), 0)


def test_bleu_counts_a_word_as_often_as_a_reference_has_it():
    """The example of the paper: 2 of 7; then lengths 2 and 4 are equally close to 3, and the shorter one counts."""
    total, _ = bleu(Corpus.of(["the " * 7], [["the cat is on the mat", "there is a cat on the mat"]]))
    assert total[0] == pytest.approx(2 / 7)
    for references in (["a b", "a b c d"], ["a b c d", "a b"]):
        assert bleu(Corpus.of(["a b c"], [references]))[0][0] == pytest.approx(1, abs=1e-8)
    assert bleu(Corpus.of(["a b c"], [["a b c d"]]))[0][0] == pytest.approx(math.exp(1 - 4 / 3), abs=1e-8)


def test_clipping_and_length_penalty_of_cider_d():
    corpus = Corpus.of(["a a", "b"], [["a"], ["b"]])
    np.testing.assert_allclose(cider(corpus, clipped=False), [2.5, 2.5])
    np.testing.assert_allclose(cider(corpus), [2.5 / 2 * math.exp(-1 / 72), 2.5])


def test_cider_of_a_set_of_one_image_is_zero():
    corpus = Corpus.of(["a dog runs on grass"], [["a dog runs on grass"]])
    assert [cider(corpus, clipped=clipped).item() for clipped in (True, False)] == [0, 0]


def test_order_of_references_and_of_images_does_not_matter(golden):
    candidates, references = golden_set(golden, "all")
    scores = score(candidates, references)
    order = np.random.default_rng(0).permutation(60)
    other = score([candidates[i] for i in order], [references[i][::-1] for i in order])
    np.testing.assert_allclose(other.bleu, scores.bleu, rtol=1e-12)
    np.testing.assert_allclose(other[1:3], scores[1:3], rtol=1e-12)
    for got, expected in zip(other.items, scores.items, strict=True):
        np.testing.assert_allclose(got, expected[order], rtol=1e-12)


def test_normalised_captions():
    assert normalise("\"A man's T-shirt,\" she   said (loudly)... Isn't it 50% off?") == (
        "a man 's t-shirt she said loudly is n't it 50 % off"
    )
    assert normalise("...") == normalise("") == ""
    assert normalise("“Dogs” – and cats!") == "dogs and cats"


@pytest.mark.parametrize(
    ("candidates", "references", "error", "message"),
    [
        ([], [], DataError, "no candidate captions"),
        (["a"], [["a"], ["b"]], DataError, "1 candidate captions but 2 lists"),
        (["a", "b", "c"], [["a"], [], []], DataError, r"Image 1 has no reference caption \(2 such"),
        ("ab", [["a"], ["b"]], UsageError, "'ab' is a single string"),
        (["a", "b"], [["a"], "cd"], UsageError, "'cd' is a single string"),
    ],
)
def test_errors(candidates, references, error, message):
    with pytest.raises(error, match=message):
        score(candidates, references)
