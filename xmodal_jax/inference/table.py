"""A bundle on a prepared data set, from the functions that a program would call: its ranks, and its vote."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from xmodal_jax.data.pipeline import Captions, text_ids
from xmodal_jax.data.records import Dataset, Split
from xmodal_jax.evaluation.vote import Member, Ranking, rank_split
from xmodal_jax.inference.bundle import Bundle, Embedding
from xmodal_jax.inference.index import items_of
from xmodal_jax.progress import Progress
from xmodal_jax.text import unknown


class Measured(NamedTuple):
    """A bundle on a data set, which may vote in `xmodal eval --ensemble`."""

    workdir: Path  # of the bundle
    bundle: Bundle
    dataset: Dataset
    allow_unknown: bool = False

    def vote(self, split: str) -> tuple[Member, Int[np.ndarray, " c"], str]:
        """A member of an ensemble, the image of each caption, and which weights it has.

        Raises:
            UsageError: data without what the bundle reads, or a bundle that takes no sentences.
            DataError: captions of which the vocabulary knows too little, unless ``allow_unknown``.
        """
        bundle, records = self.bundle, self.dataset.split(split)
        captions = Captions(records.captions, bundle.vocabulary, bundle.lengths)
        if captions.coverage:
            most = 1.0 if self.allow_unknown else unknown.REFUSE
            remedy = "name data in the language that the bundle was trained on, or give --allow-unknown"
            print(*unknown.judge({split: captions.coverage}, most=most, remedy=remedy), sep="\n", file=sys.stderr)
        if captions.cut:
            print(f"{captions.cut:,} captions are longer than {max(bundle.lengths)} tokens and were cut.")
        images = embed_split(bundle, self.dataset.directory, split)
        texts = embed_captions(bundle, records, captions.sentences)
        member = Member(lambda _, image, text: bundle.score(image, text), None, images, texts, captions.read_id)
        return member, captions.image, "exported"

    def rank(self, split: str, protocol: str = "auto", *, shared: bool = False) -> Ranking:
        """The ranks of all queries of a split; ``shared``: equal captions are positives of all their images.

        Raises as :meth:`vote`.
        """
        (member, owner, weights), rows = self.vote(split), self.dataset.split(split)
        options = {"protocol": protocol, "weights": weights, "text_id": text_ids(rows), "shared": shared}
        return rank_split([member], owner, len(rows), **options)

    def __str__(self) -> str:
        return f"{self.workdir} ({self.bundle.system}, exported)"


def embed_split(bundle: Bundle, data: Path, split: str) -> Embedding:
    """All images of a split."""
    items = items_of(data, split, list(bundle.features), bundle.reading)
    bundle.check_regions(items.regions)
    regional = any(len(shape) == 2 for shape in bundle.features.values())
    parts = []
    with Progress(f"embed {split}", len(items.ids), unit="images") as progress:
        for features, mask, _ in items.read(0):
            parts.append(bundle.embed_images(features, mask if regional else None))
            progress.advance(len(mask))
    return _joined(parts)


def embed_captions(bundle: Bundle, records: Split, sentences: Sequence[str]) -> Embedding:
    """All captions of a split; the vectors of the data set where the bundle cannot make those that it reads."""
    computed = set(bundle.vectors) <= set(bundle.manifest["text_models"])
    if computed or "token" in bundle.manifest["text"]:
        return bundle.embed_texts(sentences)
    return bundle.embed_vectors({name: records.text_feature(name) for name in bundle.vectors})


def _joined(parts: Sequence[Embedding]) -> Embedding:
    if isinstance(parts[0], Mapping):
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return np.concatenate(parts)
