"""Systems that speak, on a whole split: captions of its images, paraphrases of its captions, and how good they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from xmodal_jax.data.pipeline import Captions, FeatureReader, image_batches, text_batches
from xmodal_jax.errors import UsageError
from xmodal_jax.evaluation.captions import Scores, normalise, score
from xmodal_jax.matcher import Matcher
from xmodal_jax.progress import Progress
from xmodal_jax.text.generation import Decoding, generate
from xmodal_jax.text.vocabulary import Vocabulary
from xmodal_jax.types import Images, Texts

METRICS = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-D")


class Said(NamedTuple):
    """Sentences of one kind, their scores, and from what they were said."""

    kind: str  # "captioning" or "paraphrasing"
    sentences: list[str]
    scores: Scores
    decoding: Decoding

    def figures(self) -> dict[str, float]:
        """The metrics by name."""
        return dict(zip(METRICS, (*self.scores.bleu, self.scores.rouge_l, self.scores.cider_d), strict=True))


class Speaker:
    """The sentences of one model; the decoding is one compiled program for each shape."""

    def __init__(self, model: Matcher, vocabulary: Vocabulary, decoding: Decoding, *, batch_size: int):
        def say(variables: Any, source: Images | Texts, key: jax.Array) -> Any:
            def begin(source: Any) -> Any:
                return model.apply(variables, source, method="begin")

            def word(carry: Any, token: jax.Array) -> Any:
                return model.apply(variables, carry, token, method="word")

            return generate(begin, word, source, decoding, key)

        self.model, self.vocabulary, self.decoding, self.batch_size = model, vocabulary, decoding, batch_size
        self._say: Callable[..., Any] = jax.jit(say)

    def say(self, variables: Any, source: Images | Texts, seed: int = 0) -> list[str]:
        """A sentence for each image or caption; ``seed`` matters to sampling alone."""
        token = np.asarray(self._say(variables, source, jax.random.key(seed)).token)
        return [self.vocabulary.decode(row) for row in token.tolist()]

    def images(self, variables: Any, reader: FeatureReader, *, quiet: bool = False) -> list[str]:
        """A caption of each image of a split."""
        batches = image_batches(reader, self.batch_size)
        return self._all(variables, batches, reader.count, f"caption {reader.split.name}", quiet)

    def texts(self, variables: Any, captions: Captions, *, quiet: bool = False) -> list[str]:
        """A paraphrase of each caption of a split."""
        batches = text_batches(captions, self.batch_size)
        return self._all(variables, batches, len(captions), "paraphrase", quiet)

    def _all(self, variables: Any, batches: Iterator[Any], count: int, task: str, quiet: bool) -> list[str]:
        said = [""] * count
        with Progress(task, count, unit="sentences", quiet=quiet) as progress:
            for number, batch in enumerate(batches):
                ids = np.asarray(batch.id)
                for place, sentence in zip(ids, self.say(variables, batch, number), strict=True):
                    if place >= 0:
                        said[place] = sentence
                progress.advance(int((ids >= 0).sum()))
        return said


def speaks_of(model: Matcher, variables: Any, source: Images | Texts) -> bool:
    """Whether the model has something to say of images, or of captions."""
    if not model.has("begin"):
        return False
    try:
        jax.eval_shape(lambda v, x: model.apply(v, x, method="begin"), variables, source)
    except UsageError:
        return False
    return True


def judge_captions(said: Sequence[str], references: Sequence[Sequence[str]], decoding: Decoding) -> Said:
    """Captions against all captions of their image."""
    normal = [[normalise(text) for text in texts] for texts in references]
    return Said("captioning", list(said), score([normalise(text) for text in said], normal), decoding)


def judge_paraphrases(said: Sequence[str], references: Sequence[Sequence[str]], decoding: Decoding) -> Said:
    """Paraphrases of all captions, each against the other captions of its image (four, of five); captions without any
    are left out."""
    candidates: list[str] = []
    others: list[list[str]] = []
    sentences = iter(said)
    for texts in references:
        normal = [normalise(text) for text in texts]
        for index, sentence in zip(range(len(texts)), sentences, strict=False):
            if len(texts) > 1:
                candidates.append(normalise(sentence))
                others.append(normal[:index] + normal[index + 1 :])
    return Said("paraphrasing", list(said), score(candidates, others), decoding)


def speech(
    model: Matcher,
    variables: Any,
    vocabulary: Vocabulary,
    reader: FeatureReader,
    captions: Captions,
    decoding: Decoding,
    *,
    batch_size: int,
) -> list[Said]:
    """What a model says of a split, with scores: captions, paraphrases, whichever it can."""
    speaker = Speaker(model, vocabulary, decoding, batch_size=batch_size)
    references = reader.split.captions[: reader.count]
    said = []
    if speaks_of(model, variables, next(image_batches(reader, 1))):
        said.append(judge_captions(speaker.images(variables, reader), references, decoding))
    if speaks_of(model, variables, next(text_batches(captions, 1))):
        said.append(judge_paraphrases(speaker.texts(variables, captions), references, decoding))
    return said


def to_lines(said: Sequence[Said]) -> list[str]:
    """The scores as a table for the screen."""
    lines = [f"{'':14}" + "".join(f"{name:>9}" for name in METRICS)]
    lines += [f"{s.kind:14}" + "".join(f"{value:>9.3f}" for value in s.figures().values()) for s in said]
    return [f"sentences ({said[0].decoding.method}), words of our own tokeniser, not coco-caption's", *lines]


def to_markdown(said: Sequence[Said]) -> str:
    """The same as a Markdown table."""
    rows = [["", *METRICS], ["---", *["---:"] * len(METRICS)]]
    rows += [[s.kind, *(f"{value:.3f}" for value in s.figures().values())] for s in said]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"
