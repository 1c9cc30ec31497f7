"""Caption metrics as coco-caption computes them: BLEU-1 to 4, ROUGE-L, CIDEr-D; and plain CIDEr.

The values are those of the field's evaluation code (Chen et al., "Microsoft COCO Captions", 2015, released code in
tylin/coco-caption and its Python 3 version salaniz/pycocoevalcap; plain CIDEr: vrama91/cider), including its choices
where the papers leave one. :func:`score` gives what an evaluation reports; the metrics take a :class:`Corpus`.

Captions are strings of words with blanks between them, compared as they are: :func:`normalise` both sides first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from xmodal_jax.errors import DataError, UsageError
from xmodal_jax.text.tokens import tokenize

HIGHEST = 4  # longest n-gram of BLEU and CIDEr, in words
BETA = 1.2  # weight of the recall in ROUGE-L
SIGMA = 6.0  # of CIDEr-D's penalty on a difference in length
TINY, SMALL = 1e-15, 1e-9  # what the original adds to numerators and denominators of BLEU
PUNCTUATION = frozenset("'`\".,:;?!-…‒–—―()[]{}«»“”‘’„")


def normalise(text: str) -> str:
    """``text`` in lower case, its words with single blanks between them, no punctuation.

    The usual stand-in in pure Python for the Java tokenizer of coco-caption (Stanford's PTBTokenizer), made of
    :func:`tokenize`. Figures are comparable with those of coco-caption only where both give the same words: the
    Java tokenizer also cuts at the end of a sentence inside a caption, for example, and keeps brackets as words.
    """
    return " ".join(token for token in tokenize(text) if not PUNCTUATION.issuperset(token))


class Order(NamedTuple):
    """The n-grams of one length, each listed once for every caption that has it: A in candidates, E in references.

    Attributes:
        candidate: [A] index of the candidate, ascending; it is that of its image.
        candidate_gram: [A] id of the n-gram.
        candidate_count: [A] how often the candidate has it.
        reference: [E] index of the reference.
        reference_gram: [E] id of the n-gram.
        reference_count: [E] how often the reference has it.
        partner: [E] which of the A is the same n-gram in the candidate of the same image; A where there is none.
        frequency: [G] in the references of how many images each n-gram occurs, 0 for those of candidates alone.
    """

    candidate: Int[np.ndarray, " a"]
    candidate_gram: Int[np.ndarray, " a"]
    candidate_count: Int[np.ndarray, " a"]
    reference: Int[np.ndarray, " e"]
    reference_gram: Int[np.ndarray, " e"]
    reference_count: Int[np.ndarray, " e"]
    partner: Int[np.ndarray, " e"]
    frequency: Int[np.ndarray, " g"]


class Corpus(NamedTuple):
    """N candidates, one an image, and R references, as words and as counts of their n-grams.

    Attributes:
        candidates: words of each candidate.
        references: words of the references of each image.
        image: [R] the image of each reference, ascending, every image at least once.
        length: [N] words in each candidate.
        reference_length: [R] words in each reference.
        orders: n-grams of 1 to :data:`HIGHEST` words.
    """

    candidates: list[list[str]]
    references: list[list[list[str]]]
    image: Int[np.ndarray, " r"]
    length: Int[np.ndarray, " n"]
    reference_length: Int[np.ndarray, " r"]
    orders: list[Order]

    @classmethod
    def of(cls, candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Corpus:
        """Count the n-grams of one candidate an image and of its references, any number >= 1 that may differ.

        Raises:
            UsageError: a single string where a list of captions should be.
            DataError: there are no candidates, the two sequences differ in length, or an image has no reference.
        """
        single = next((item for item in (candidates, references, *references) if isinstance(item, str)), None)
        if single is not None:
            raise UsageError(
                f"Caption metrics need a list of candidates and a list of references for each of them, but "
                f"{single[:60]!r} is a single string; put it into a list."
            )
        if not len(candidates):
            raise DataError("There are no candidate captions, so there is nothing to score; give at least one.")
        if len(candidates) != len(references):
            raise DataError(
                f"There are {len(candidates):,} candidate captions but {len(references):,} lists of references; give "
                "one list for each candidate, in the same order."
            )
        counts = np.array([len(captions) for captions in references])
        if not counts.all():
            raise DataError(
                f"Image {int(counts.argmin())} has no reference caption ({np.sum(counts == 0):,} such images); "
                "leave such images out or give their references."
            )
        words = [caption.split() for caption in candidates]
        reference_words = [[caption.split() for caption in captions] for captions in references]
        flat = [caption for captions in reference_words for caption in captions]
        image = np.repeat(np.arange(len(words)), counts)
        length = np.array([len(caption) for caption in words])
        reference_length = np.array([len(caption) for caption in flat])
        return cls(words, reference_words, image, length, reference_length, _orders(words + flat, image))


def _orders(captions: list[list[str]], image: Int[np.ndarray, " r"]) -> list[Order]:
    """The :class:`Order` of every length, from the words of all candidates followed by those of all references."""
    n_images = len(captions) - len(image)
    ids: dict[str, int] = {}
    word = np.array([ids.setdefault(word, len(ids)) for caption in captions for word in caption], np.int64)
    caption_of = np.repeat(np.arange(len(captions)), [len(caption) for caption in captions])
    gram, orders = word, []
    for n in range(1, HIGHEST + 1):
        if n > 1:  # the id of an n-gram: that of its first n - 1 words and its last word, numbered anew
            gram = np.unique(gram[:-1] * len(ids) + word[n - 1 :], return_inverse=True)[1]
        n_grams = int(gram.max(initial=0)) + 1
        inside = caption_of[: len(gram)] == caption_of[n - 1 :]  # n-grams across two captions are left out
        key, count = np.unique(caption_of[: len(gram)][inside] * n_grams + gram[inside], return_counts=True)
        split = np.searchsorted(key, n_images * n_grams)
        reference, reference_gram = np.divmod(key[split:], n_grams)
        reference -= n_images
        wanted = image[reference] * n_grams + reference_gram
        partner = np.searchsorted(key[:split], wanted)
        partner[np.append(key[:split], -1)[partner] != wanted] = split
        candidate = np.divmod(key[:split], n_grams)
        wanted.sort()
        frequency = np.bincount(wanted[np.diff(wanted, prepend=-1) > 0] % n_grams, minlength=n_grams)
        orders.append(Order(*candidate, count[:split], reference, reference_gram, count[split:], partner, frequency))
    return orders


def bleu(corpus: Corpus) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "n k"]]:
    """BLEU-1 to 4 of the corpus [4] and of each candidate [N, 4] (Papineni et al., ACL 2002).

    The corpus value comes from counts and lengths summed over the candidates, it is no mean. Of the references'
    lengths the closest counts, the shorter of two equally close. Without a common n-gram the original's constants
    stand in, so a candidate's BLEU-4 is then small but not zero.
    """
    n_images = len(corpus.length)
    distance = np.abs(corpus.reference_length - corpus.length[corpus.image])
    closest_first = np.lexsort((corpus.reference_length, distance, corpus.image))
    length = corpus.length
    reference_length = corpus.reference_length[closest_first[np.searchsorted(corpus.image, np.arange(n_images))]]
    correct, guessed = np.zeros((n_images, HIGHEST)), np.zeros((n_images, HIGHEST))
    for n, order in enumerate(corpus.orders):
        common = np.minimum(np.append(order.candidate_count, 0)[order.partner], order.reference_count)
        clipped = np.zeros(len(order.candidate) + 1, np.int64)
        np.maximum.at(clipped, order.partner, common)
        correct[:, n] = np.bincount(order.candidate, clipped[:-1], minlength=n_images)
        guessed[:, n] = np.maximum(length - n, 0)
    total = _bleu(correct.sum(0), guessed.sum(0), length.sum(), reference_length.sum())
    return total, _bleu(correct, guessed, length, reference_length)


def _bleu(correct, guessed, length, reference_length) -> np.ndarray:
    """Geometric means of the precisions over the last axis, times the brevity penalty."""
    mean = np.cumprod((correct + TINY) / (guessed + SMALL), axis=-1) ** (1 / np.arange(1, HIGHEST + 1))
    ratio = (length + TINY) / (reference_length + SMALL)
    return mean * np.exp(np.minimum(1 - 1 / ratio, 0))[..., None]


def rouge_l(corpus: Corpus) -> Float[np.ndarray, " n"]:
    """ROUGE-L of each candidate (Lin, "ROUGE", 2004), the corpus value is the mean.

    The best precision and the best recall may come from different references, and recall weighs ``BETA`` squared.
    An empty caption counts as one empty word, as in the original: it equals an empty reference.
    """
    precision, recall = np.zeros(len(corpus.length)), np.zeros(len(corpus.length))
    for image, (candidate, references) in enumerate(zip(corpus.candidates, corpus.references, strict=True)):
        candidate, references = candidate or [""], [words or [""] for words in references]
        places = _places(candidate)
        common = [_common_subsequence(places, len(candidate), words) for words in references]
        precision[image] = max(common) / len(candidate)
        recall[image] = max(length / len(words) for length, words in zip(common, references, strict=True))
    weighted = recall + BETA**2 * precision
    return np.divide((1 + BETA**2) * precision * recall, weighted, out=np.zeros_like(recall), where=weighted > 0)


def _places(words: list[str]) -> dict[str, int]:
    """For each word the bits of the positions where it stands."""
    places: dict[str, int] = {}
    for position, word in enumerate(words):
        places[word] = places.get(word, 0) | 1 << position
    return places


def _common_subsequence(places: dict[str, int], length: int, words: list[str]) -> int:
    """Length of the longest common subsequence of ``words`` and a caption of ``length`` words given by its places.

    One row of the usual table at a time, as the bits of an integer (Hyyrö, "Bit-parallel LCS-length computation
    revisited", 2004): a zero stands where the row grows by one.
    """
    row = everything = (1 << length) - 1
    for word in words:
        hit = row & places.get(word, 0)
        row = ((row + hit) | (row - hit)) & everything
    return length - row.bit_count()


def cider(corpus: Corpus, *, clipped: bool = True) -> Float[np.ndarray, " n"]:
    """CIDEr-D, or plain CIDEr, of each candidate, 0 to 10 (Vedantam et al., CVPR 2015); the corpus value is the mean.

    Cosine of the counts, weighted by log(N / images whose references have the n-gram), mean over the lengths of
    n-grams and over the references, times 10. The document frequency is that of the references in ``corpus``, so
    all values depend on the set scored, and a set of one image has value 0.

    Args:
        clipped: CIDEr-D, which coco-caption prints as "CIDEr": a candidate's weight counts up to the reference's, and
            a difference in length is penalised. The released code takes the number of bigrams for the length, which
            differs by as much as the number of words. Otherwise CIDEr.
    """
    n_images, n_references, image = len(corpus.length), len(corpus.image), corpus.image
    cosine = np.zeros(n_references)
    for order in corpus.orders:
        weight = np.log(n_images) - np.log(np.maximum(order.frequency, 1))
        candidate = order.candidate_count * weight[order.candidate_gram]
        reference = order.reference_count * weight[order.reference_gram]
        common = np.append(candidate, 0.0)[order.partner]
        if clipped:
            common = np.minimum(common, reference)
        product = np.bincount(order.reference, common * reference, minlength=n_references)
        square = np.bincount(order.candidate, candidate**2, minlength=n_images)[image]
        square = square * np.bincount(order.reference, reference**2, minlength=n_references)
        cosine += np.divide(product, np.sqrt(square), out=np.zeros(n_references), where=square > 0)
    if clipped:
        difference = corpus.length[image] - corpus.reference_length
        cosine *= np.exp(-(difference**2) / (2 * SIGMA**2))
    return 10 / HIGHEST * np.bincount(image, cosine) / np.bincount(image)


class ItemScores(NamedTuple):
    """The metrics of each candidate: BLEU-1 to 4 [N, 4], ROUGE-L [N], CIDEr-D [N]."""

    bleu: Float[np.ndarray, "n k"]
    rouge_l: Float[np.ndarray, " n"]
    cider_d: Float[np.ndarray, " n"]


class Scores(NamedTuple):
    """The metrics of a corpus: BLEU-1 to 4 and ROUGE-L as fractions, CIDEr-D from 0 to 10; and those of each item."""

    bleu: tuple[float, ...]
    rouge_l: float
    cider_d: float
    items: ItemScores


def score(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    """BLEU-1 to 4, ROUGE-L and CIDEr-D of one candidate an image against its references.

    Args:
        candidates: N captions, words with blanks between them (:func:`normalise`); an empty one is allowed.
        references: N lists of at least one caption, in the candidates' order.

    Raises:
        UsageError, DataError: as :meth:`Corpus.of`.
    """
    corpus = Corpus.of(candidates, references)
    total, by_item = bleu(corpus)
    items = ItemScores(by_item, rouge_l(corpus), cider(corpus))
    return Scores(tuple(total.tolist()), float(items.rouge_l.mean()), float(items.cider_d.mean()), items)
