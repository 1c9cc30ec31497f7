"""Captions without a decoder: those of the nearest training images, and for a paraphrase the nearest training caption.

After Devlin, Gupta, Girshick, Mitchell, Zitnick, "Exploring Nearest Neighbor Approaches for Image Captioning" (arXiv
1505.04467, 2015): of all captions of the k nearest images the one that agrees most with the others is said. Images are
compared by the cosine of the vectors of :mod:`xmodal_jax.baselines.cca`, captions by that of their tf-idf bags, where
the paper has CIDEr or BLEU; k is chosen on the dev split. It is the floor for a system that speaks: it copies.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse
from jaxtyping import Int

from xmodal_jax import digest
from xmodal_jax.baselines.cca import Words, read_images
from xmodal_jax.data.records import Split, open_dataset
from xmodal_jax.evaluation.speak import Said, judge_captions, judge_paraphrases, to_lines
from xmodal_jax.progress import Progress
from xmodal_jax.text.generation import Decoding
from xmodal_jax.text.tokens import tokenize

NEIGHBOURS = (1, 4, 16, 48, 96)  # what is tried; the paper has 90 of a larger set
COPIED = Decoding("greedy")
BLOCK = 500  # captions that are compared with all training captions at a time


def bags_of(split: Split) -> list[Counter[str]]:
    return [Counter(tokenize(text)) for texts in split.captions for text in texts]


def unit(bags: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    """Rows of length 1; a row of zeros stays one."""
    norm = np.sqrt(bags.multiply(bags).sum(axis=1))
    return scipy.sparse.csr_array(scipy.sparse.diags_array(1 / np.maximum(norm, 1e-12)) @ bags)


def consensus(
    near: np.ndarray, captions: Sequence[Sequence[str]], first: np.ndarray, bags: scipy.sparse.csr_array, count: int
) -> list[str]:
    """For each row of ``near`` [N, K], training images by falling similarity: the caption of the first ``count`` of
    them whose mean cosine with all those captions is the highest."""
    said = []
    for row in near[:, :count]:
        pool = np.concatenate([np.arange(int(first[image]), int(first[image + 1])) for image in row])
        vectors = bags[pool]
        agreement = vectors @ np.asarray(vectors.mean(axis=0)).ravel()
        place = pool[int(np.argmax(agreement))]
        image = int(np.searchsorted(first, place, side="right")) - 1
        said.append(captions[image][place - first[image]])
    return said


def paraphrases(train: Split, bags: scipy.sparse.csr_array, asked: scipy.sparse.csr_array) -> list[str]:
    """The nearest training caption of each row of ``asked``."""
    texts = [text for captions in train.captions for text in captions]
    said: list[str] = []
    rows: Any = asked.tocsr()
    transposed, count = scipy.sparse.csr_array(bags.T), rows.shape[0]
    with Progress("paraphrase", count, unit="captions") as progress:
        for start in range(0, count, BLOCK):
            cosine: np.ndarray = (rows[start : start + BLOCK] @ transposed).toarray()
            said += [texts[index] for index in np.argmax(cosine, axis=1)]
            progress.advance(len(cosine))
    return said


def main(args: argparse.Namespace) -> int:
    """`xmodal baseline nearest`: choose k on dev, print the scores of ``--split``."""
    dataset = open_dataset(args.data)
    train, dev, test = (dataset.split(name) for name in ("train", "dev", args.split))
    counts = bags_of(train)
    words = Words(counts)
    bags = unit(words(counts))
    first = np.concatenate([[0], np.cumsum([len(texts) for texts in train.captions])])
    known, *others = (read_images(split, args.features) for split in (train, dev, test))
    near = [np.argsort(-(images @ known.T), axis=1)[:, : max(NEIGHBOURS)] for images in others]

    def captions(rows: Int[np.ndarray, "b k"], split: Split, count: int) -> Said:
        return judge_captions(consensus(rows, train.captions, first, bags, count), split.captions, COPIED)

    count = max(NEIGHBOURS, key=lambda k: captions(near[0], dev, k).scores.cider_d)
    said = [captions(near[1], test, count)]
    said.append(judge_paraphrases(paraphrases(train, bags, unit(words(bags_of(test)))), test.captions, COPIED))
    print(f"nearest captions on {dataset.manifest['name']} {args.split}, {' + '.join(args.features)} features")
    print(f"{count} nearest images, by CIDEr-D on dev", *to_lines(said)[1:], sep="\n")
    if args.json:
        facts = {"method": "nearest", "data": str(args.data), "split": args.split, "features": args.features}
        content = {**facts, "neighbours": count, "sentences": {part.kind: part.figures() for part in said}}
        digest.write(args.json, json.dumps(digest.sealed(content), indent=1) + "\n")
    return 0
