"""Names of splits: the words that sources use for train, dev and test."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from xmodal_jax.data.sources.common import Report

WORDS = {
    "train": ("train", "training", "trn"),
    "dev": ("dev", "devel", "development", "val", "valid", "validate", "validation"),
    "test": ("test", "testing", "tst"),
}
ORDER = tuple(WORDS)
MISSING = {
    "train": "nothing can be trained on this set",
    "dev": "a training run wants one to choose its best step by",
}


def split_name(name: str, restval_to_train: bool = False) -> str:
    """train, dev or test for any word for them, in any case and with a year, as ``val2014``; others stay as they are.

    ``restval``, the part of COCO's validation images that Karpathy's splits set free, is train where that is wanted.
    """
    plain = re.fullmatch(r"([a-z]+)[ _-]*(?:20\d\d)?", name.strip().lower())
    word = plain[1] if plain else ""
    if word == "restval":
        return "train" if restval_to_train else "restval"
    return next((split for split, words in WORDS.items() if word in words), name.strip())


def order_splits(names: Iterable[str]) -> list[str]:
    """train, dev, test, then the others by name."""
    return sorted(set(names), key=lambda name: ((*ORDER, name).index(name), name))


def say_splits(names: Mapping[str, str], report: Report) -> None:
    """Which ``names`` of the source became which splits, where they are not the same word."""
    changed = [f'"{name}" is {split}' for name, split in names.items() if name != split]
    if changed:
        report.say(f"splits: {', '.join(changed)}")
    if "restval" in names.values():
        report.say('split "restval" stays as it is; --restval-to-train adds it to train')


def missing(names: Iterable[str]) -> list[str]:
    """A sentence for each split that a data set ought to have and has not."""
    there = set(names)
    return [f'there is no split "{split}": {why}' for split, why in MISSING.items() if split not in there]
