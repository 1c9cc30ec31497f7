"""The recall table of a bundle, from the functions that a program would call."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from xmodal_jax.data.pipeline import Captions, text_ids
from xmodal_jax.data.records import Split, open_dataset
from xmodal_jax.evaluation import table
from xmodal_jax.evaluation.vote import Member, rank_table
from xmodal_jax.inference.bundle import Bundle, Embedding
from xmodal_jax.inference.index import items_of
from xmodal_jax.progress import Progress
from xmodal_jax.text import unknown


def recall_of(
    bundle: Bundle,
    data: Path,
    split: str,
    *,
    protocol: str = "auto",
    shared: bool = False,
    allow_unknown: bool = False,
    draws: int = 1000,
) -> table.Table:
    """Recall on a split of a prepared data set; arguments as of :func:`xmodal_jax.evaluation.recall`.

    Raises:
        UsageError: data without what the bundle reads, or a bundle that takes no sentences.
        DataError: captions of which the vocabulary knows too little, unless ``allow_unknown``.
    """
    records = open_dataset(data).split(split)
    captions = Captions(records.captions, bundle.vocabulary, bundle.lengths)
    if captions.coverage:
        most = 1.0 if allow_unknown else unknown.REFUSE
        remedy = "name data in the language that the bundle was trained on, or give --allow-unknown"
        print(*unknown.judge({split: captions.coverage}, most=most, remedy=remedy), sep="\n", file=sys.stderr)
    if captions.cut:
        print(f"{captions.cut:,} captions are longer than {max(bundle.lengths)} tokens and were cut.")
    images = embed_split(bundle, data, split)
    texts = embed_captions(bundle, records, captions.sentences)
    member = Member(lambda _, image, text: bundle.score(image, text), None, images, texts, captions.read_id)
    options = {"text_id": text_ids(records), "shared": shared, "draws": draws}
    return rank_table([member], captions.image, len(records), protocol=protocol, weights="exported", **options)


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
