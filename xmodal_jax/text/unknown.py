"""Captions that a vocabulary does not know: from which share on that is said, and from which it is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from xmodal_jax.errors import DataError
from xmodal_jax.text.vocabulary import SPECIAL, Coverage, Vocabulary

WARN, REFUSE = 0.1, 0.5  # shares of unknown tokens
FEW = 100  # tokens: the share among fewer says nothing of a set


def train_vocabulary(captions: Iterable[str], minimum: int) -> Vocabulary:
    """The vocabulary that a training on ``captions`` would have: empty where no word occurs ``minimum`` times."""
    try:
        return Vocabulary.build(captions, minimum)
    except DataError:
        return Vocabulary(SPECIAL)


def level(coverage: Coverage, most: float = REFUSE) -> str:
    """``errors`` from the share ``most`` of unknown tokens on (never where it is 1), ``warnings`` from a tenth on, else
    ``""``."""
    if coverage.tokens < FEW:
        return ""
    if most < 1 and coverage.share >= most:
        return "errors"
    return "warnings" if coverage.share >= WARN else ""


def sentence(coverage: Coverage, noun: str = "tokens") -> str:
    """``12.3 % of 4,000 tokens are unknown, 3 of 800 captions have none that is known``."""
    words = f"{100 * coverage.share:.1f} % of {coverage.tokens:,} {noun} are unknown"
    if not coverage.blank:
        return words
    return f"{words}, {coverage.blank:,} of {coverage.captions:,} captions have none that is known"


def judge(parts: Mapping[str, Coverage], *, most: float, remedy: str) -> list[str]:
    """A line for each part of the captions, by name, with a warning where much of it is unknown.

    Raises:
        DataError: the share ``most`` of a part or more is unknown; ``remedy`` says what to do.
    """
    lines = []
    for name, coverage in parts.items():
        judged = level(coverage, most)
        if judged == "errors":
            raise DataError(f"Captions of {name}: {sentence(coverage)}, which leaves little to go by; {remedy}.")
        lines.append(f"{'warning: ' if judged else ''}captions of {name}: {sentence(coverage)}")
    return lines
