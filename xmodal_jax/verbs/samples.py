"""Samples of a system that speaks: of a few pictures, what it says, what it retrieves, and what people wrote."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from xmodal_jax import digest
from xmodal_jax.data.pipeline import Captions
from xmodal_jax.evaluation.run import Run
from xmodal_jax.evaluation.speak import speaks_of
from xmodal_jax.evaluation.vote import Member
from xmodal_jax.report.page import example
from xmodal_jax.text.generation import Decoding
from xmodal_jax.verbs import sections
from xmodal_jax.verbs.search import printable

SHOWN, PARAPHRASED = 3, 2  # retrieved captions, and captions of the ground truth that are put in other words
SIDE = 480  # pixels of a picture on the page
STYLE = """
article { display: grid; grid-template-columns: 15rem minmax(0, 1fr); gap: .5rem 1.5rem; padding: 1.2rem 0;
  border-top: 1px solid var(--line) }
article h2 { grid-column: 1 / -1; margin: 0 } article img { width: 100%; border-radius: 6px }
dl, dd, dl ul, dl ol { margin: 0 } dl ul, dl ol { padding-left: 1.3rem }
dt { color: var(--soft); font-size: .85rem; margin-top: .7rem } dt:first-child { margin-top: 0 }
dd { overflow-wrap: anywhere } dd.said { font-size: 1.15rem; font-weight: 600 }
li.own { color: var(--mark); font-weight: 600 }
@media (max-width: 40rem) { article { grid-template-columns: minmax(0, 1fr) } }
"""


class Sample(NamedTuple):
    """One picture: what is said and found of it, and what people wrote."""

    id: str
    picture: Path | None
    said: str  # the generated caption; empty of a system that speaks of captions alone
    paraphrases: list[tuple[str, str]]  # (a caption of the ground truth, that in other words)
    retrieved: list[tuple[str, bool]]  # the best captions of the split, and whether they are of this picture
    truth: Sequence[str]


def collect(
    run: Run, step: int, split: str, decoding: Decoding, *, count: int, seed: int, member: Member | None = None
) -> list[Sample]:
    """``count`` random pictures of a split; ``member``, the stacks of the split where they are known already.

    Raises:
        UsageError: the run's system does not speak.
    """
    run.check_speaks()
    member = member or run.member(step, split)[0]
    rows = run.dataset.split(split)
    chosen = np.sort(np.random.default_rng(seed).choice(len(rows), min(count, len(rows)), replace=False))
    speaker, reader, captions = run.speaker(decoding), run.reader(split), run.captions(split)
    images = reader.images(next(iter(reader.stream(0, 1, lambda _: chosen))), chosen)
    said = [""] * len(chosen)
    if speaks_of(run.model, member.variables, images):
        said = speaker.say(member.variables, images, seed)
    asked = [text for row in chosen for text in rows.captions[row][:PARAPHRASED]]
    few = Captions([[text] for text in asked], run.vocabulary, run.config.data.lengths)
    answers: dict[str, str] = {}
    if speaks_of(run.model, member.variables, few.texts(np.arange(1), np.zeros(1, int))):
        answers = dict(zip(asked, speaker.texts(member.variables, few, quiet=True), strict=True))
    texts = [text for group in rows.captions for text in group]
    picked = jax.tree.map(lambda leaf: leaf[chosen], member.images)
    scores = np.asarray(run.evaluator.score(member.variables, picked, member.texts))
    samples = []
    for row, sentence, score in zip(map(int, chosen), said, scores, strict=True):
        found = example(row, score, captions.image == row, SHOWN)
        retrieved = [(texts[c], bool(own)) for c, own in zip(found.answers, found.right, strict=True)]
        pairs = [(text, answers[text]) for text in rows.captions[row][:PARAPHRASED] if text in answers]
        samples.append(Sample(rows.ids[row], rows.pictures[row], sentence, pairs, retrieved, rows.captions[row]))
    return samples


def to_html(title: str, samples: Sequence[Sample]) -> str:
    """One file that needs no other: the pictures are in it."""
    lead = "What the system says of each picture, and which captions it ranks first. Green: written for this picture."
    return sections.page_of(title, lead, [f"<style>{STYLE}</style>", *map(article, samples)])


def article(sample: Sample) -> str:
    """A picture with all that is said of it."""

    def entry(term: str, body: str, kind: str = "") -> str:
        return f"<dt>{html.escape(term)}</dt><dd{kind}>{body}</dd>" if body else ""

    def items(lines: Sequence[tuple[str, bool]], tag: str) -> str:
        marks = "".join(f"<li{' class=own' if own else ''}>{html.escape(text)}</li>" for text, own in lines)
        return f"<{tag}>{marks}</{tag}>" if lines else ""

    paraphrases = [(f"{text} → {said}", False) for text, said in sample.paraphrases]
    parts = [
        entry("generated caption", html.escape(sample.said), " class=said"),
        entry("paraphrases: a caption of the ground truth → in the system's words", items(paraphrases, "ul")),
        entry("retrieved captions, best first", items(sample.retrieved, "ol")),
        entry("ground truth", items([(text, False) for text in sample.truth], "ul")),
    ]
    picture = sections.embedded(sample.picture, SIDE) or "<p>no picture</p>"
    return f"<article><h2>{html.escape(sample.id)}</h2><div>{picture}</div><dl>{''.join(parts)}</dl></article>"


def to_text(samples: Sequence[Sample]) -> list[str]:
    """A line a picture for a terminal."""
    return [f"{printable(sample.id)}\t{printable(sample.said)}" for sample in samples]


def to_markdown(samples: Sequence[Sample], root: Path) -> str:
    """A table for a page in the folder ``root``, with the pictures that lie under it."""
    rows = ["| picture | generated caption | retrieved first | a caption of it | in other words |", "|" + 5 * "---|"]
    for sample in samples:
        near = sample.picture is not None and sample.picture.resolve().is_relative_to(root.resolve())
        name = sections.escaped(sample.id)
        if near and sample.picture is not None:
            name = f"![{name}](<{sample.picture.resolve().relative_to(root.resolve()).as_posix()}>)"
        first = next(iter(sample.paraphrases), (sample.truth[0], ""))
        cells = (sample.said, sample.retrieved[0][0], *first)
        rows.append(f"| {name} | {' | '.join(map(sections.escaped, cells))} |")
    return "\n".join(rows)


def make(run: Run, step: int, split: str, path: Path, decoding: Decoding, **options: Any) -> list[Sample]:
    """Write the page ``path``; options as of :func:`collect`."""
    samples = collect(run, step, split, decoding, **options)
    title = f"{run.config.model.name}: {len(samples):,} pictures of {run.title} {split}, step {step:,}"
    digest.write(path, to_html(title, samples))
    return samples
