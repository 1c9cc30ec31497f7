"""Which regions the words of a caption look at, or a system's steps: pictures, and how often words are right."""

from __future__ import annotations

import argparse
import difflib
import importlib
import json
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from xmodal_jax import models
from xmodal_jax.data.pipeline import Captions
from xmodal_jax.data.records import Dataset, Split, open_dataset
from xmodal_jax.errors import PICTURES, DataError, UsageError, check_output
from xmodal_jax.evaluation.run import Run
from xmodal_jax.inference import Bundle, load
from xmodal_jax.matcher import Matcher, implements
from xmodal_jax.text.vocabulary import UNKNOWN
from xmodal_jax.types import Repr
from xmodal_jax.verbs.looks import Pair, draw


def with_attention() -> list[str]:
    """Names of the models that have an attention to show."""
    names = [module.name for module in pkgutil.iter_modules(models.__path__)]
    found = {name: importlib.import_module(f"{models.__name__}.{name}").Model for name in names}
    alone = {name: model for name, model in found.items() if model.has is Matcher.has}  # not what another has within it
    return [name for name, model in alone.items() if any(implements(model, way) for way in ("attention", "glimpses"))]


def check(run: Run) -> None:
    """Raise unless the run's model attends to regions and its data set knows where those are."""
    name = run.config.model.name
    if not (run.model.has("attention") or run.model.has("glimpses")):
        raise UsageError(
            f'The model "{name}" of {run.workdir} has no attention between words and regions; '
            f"these have: {', '.join(with_attention())}."
        )
    check_boxes(run.dataset, run.inputs.image, str(run.workdir))


def check_boxes(dataset: Dataset, names: Sequence[str], reader: str) -> None:
    """Raise unless the data set knows where the regions of the features ``names`` are, which ``reader`` reads."""
    if not dataset.manifest["boxes"]:
        raise DataError(
            f"{dataset.directory} carries no boxes, so nobody knows where its regions are; import it again with "
            "SPLIT_boxes.npy beside the features (precomp) or from a bottom-up-attention file (butd)."
        )
    if not any("regions" in dataset.features.get(name, {}) for name in names):
        raise UsageError(
            f"{reader} reads the feature {', '.join(names)}, which has no regions; "
            "train with --config.model.feature=region."
        )


def find_image(dataset: Dataset, id_: str, name: str | None = None) -> tuple[Split, int]:
    """The split (``name`` or any) that holds the image ``id_``, and its row there."""
    splits = [dataset.split(part) for part in ([name] if name else dataset.splits)]
    for split in splits:
        if id_ in split.ids:
            return split, split.ids.index(id_)
    known = [part for split in splits for part in split.ids]
    near = difflib.get_close_matches(id_, known, n=3)
    where = f'split "{name}" of {dataset.directory}' if name else f"{dataset.directory}"
    hint = f"near to it: {', '.join(near)}" if near else f"the first are {', '.join(known[:3])}"
    raise UsageError(f'No image "{id_}" in {where}; {hint}.')


def look(run: Run, variables: Any, split: Split, row: int, caption: str) -> Pair:
    """One image and one caption as the run's model sees them.

    Raises:
        UsageError: a caption without a word.
    """
    vocabulary = run.vocabulary
    assert vocabulary is not None  # a system of words is what attends
    words = vocabulary.split(caption)
    if not words:
        raise UsageError('The caption has no word; give one: --caption "two red squares".')
    reader = run.reader(split.name, boxes=True)
    first = np.zeros(1, np.int64)
    images = reader.images(next(iter(reader.stream(0, 1, lambda _: first + row))), first + row)
    captions = Captions([[caption]], vocabulary, run.config.data.lengths)
    words = words[: captions.lengths[0] - 2]
    if captions.cut:
        print(f"The caption is longer than {max(run.config.data.lengths)} tokens and was cut after {len(words)} words.")
    texts = captions.texts(first, first)
    image = run.evaluator.encode_image(variables, images)
    text = run.evaluator.encode_text(variables, texts)
    score = float(run.evaluator.score(variables, image, text)[0, 0])
    real, spoken = np.asarray(images.mask)[0], slice(1, 1 + len(words))  # between <start>, and <end> and padding
    if run.model.has("attention"):
        weight = np.asarray(run.model.apply(variables, image, text, method="attention"))[0, 0][real, spoken]
        steps = None
    else:
        sides: Any = run.model.apply(variables, images, texts, method="glimpses")
        regions, steps = (np.asarray(side)[0, 0] for side in sides)
        weight, steps = regions[:, real].T, steps[:, spoken]
    known = [token != UNKNOWN for token in vocabulary.encode(caption)[1 : 1 + len(words)]]
    return Pair(
        split.ids[row],
        caption,
        score,
        words,
        known,
        weight,
        np.asarray(images.box)[0][real],
        split.pictures[row],
        tuple(split.sizes[row].tolist()),
        steps,
    )


def look_by(bundle: Bundle, split: Split, row: int, caption: str) -> Pair:
    """One image and one caption as a bundle sees them.

    Raises:
        UsageError: a system without attention in its bundle, data without what it reads, or a caption without a word.
    """
    if not ("attention" in bundle.functions or "glimpses" in bundle.functions):
        raise UsageError(
            f"{bundle.path} has no attention between words and regions; these systems have: "
            f"{', '.join(with_attention())}. A bundle from before they brought it is to be exported again."
        )
    item = split.read([row])[0]
    missing = [name for name in bundle.features if name not in item.features]
    if missing:
        raise UsageError(f'{split.dataset.directory} has no feature "{missing[0]}", which {bundle.path} reads.')
    words = bundle.split(caption)
    if not words:
        raise UsageError('The caption has no word; give one: --caption "two red squares".')
    features = {name: np.asarray(item.features[name])[None] for name in bundle.features}
    image, text = bundle.embed_images(features), bundle.embed_texts([caption])
    words = words[: bundle.length(caption) - 2]
    if bundle.cut(caption):
        print(f"The caption is longer than {max(bundle.lengths)} tokens and was cut after {len(words)} words.")
    strange, boxes = set(bundle.unknown(caption)), np.asarray(item.boxes, np.float32)
    real, spoken = slice(len(boxes)), slice(1, 1 + len(words))
    if "attention" in bundle.functions:
        weight, steps = bundle.attend(image, text)[0, 0][real, spoken], None
    else:
        regions, steps = (side[0, 0] for side in bundle.glimpses(features, [caption]))
        weight, steps = regions[:, real].T, steps[:, spoken]
    return Pair(
        item.id,
        caption,
        float(bundle.score(image, text)[0, 0]),
        words,
        [word not in strange for word in words],
        weight,
        boxes,
        item.picture,
        tuple(split.sizes[row].tolist()),
        steps,
    )


class Accuracy(NamedTuple):
    """Of the words that name an object: how often their most attended region covers such an object."""

    right: float
    chance: float  # of a region drawn at random
    possible: float  # share of the words whose object some region covers
    words: int


def own_attention(run: Run, variables: Any, images: Repr, texts: Repr, owner: np.ndarray) -> np.ndarray:
    """The attention [C, R, W] of each caption with its own image, caption c being that of image ``owner[c]``."""

    @jax.jit
    def every(variables: Any, images: Repr, texts: Repr, owner: Any) -> jax.Array:
        def attend_pair(pair: tuple[jax.Array, Repr]) -> jax.Array:
            image = jax.tree.map(lambda leaf: leaf[pair[0]][None], images)
            text = jax.tree.map(lambda leaf: leaf[None], pair[1])
            weight: Any = run.model.apply(variables, image, text, method="attention")
            return weight[0, 0]

        return jax.lax.map(attend_pair, (owner, texts), batch_size=64)

    return np.asarray(every(variables, images, texts, owner))


def word_accuracy(attention: np.ndarray, truth: Iterable[Mapping[str, Any]]) -> Accuracy:
    """Hold attention [C, R, W] against the truth of the built-in scenes; regions that tie for the most share a word.

    Args:
        attention: of all captions of the images in ``truth``, in their order; column 0 is ``<start>``.
        truth: for each image "regions", the object that each region covers (-1: none), and "words", for each caption
            the pairs (index of the word, object that it names).
    """
    rows: list[tuple[float, float, float]] = []
    caption = 0
    for line in truth:
        covers = np.asarray(line["regions"])
        for named in line["words"]:
            objects: dict[int, list[int]] = {}
            for place, word in named:
                objects.setdefault(place, []).append(word)
            for place, word in objects.items():
                if place + 2 < attention.shape[2]:  # else the caption was cut before this word, and <end> stands here
                    weight, right = attention[caption, : len(covers), place + 1], np.isin(covers, word)
                    rows.append((right[weight == weight.max()].mean(), right.mean(), float(right.any())))
            caption += 1
    right, chance, possible = np.mean(rows or [(0.0, 0.0, 0.0)], axis=0).tolist()
    return Accuracy(right, chance, possible, len(rows))


def read_truth(split: Split) -> list[dict[str, Any]]:
    """The lines of ``SPLIT.truth.jsonl``, which the built-in scenes have."""
    path = split.dataset.directory / f"{split.name}.truth.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main(args: argparse.Namespace) -> int:
    """`xmodal attend`: the picture of one image and one caption."""
    check_output("--out", args.out, PICTURES)

    def find(dataset: Dataset) -> tuple[Split, int, str]:
        split, row = find_image(dataset, args.image, args.split)
        return split, row, next(iter(split.captions[row]), "") if args.caption is None else args.caption

    if args.bundle:
        if args.data is None or args.step is not None:
            raise UsageError("--bundle needs --data, a prepared data set, and has no --step.")
        bundle, dataset = load(args.bundle), open_dataset(args.data)
        check_boxes(dataset, list(bundle.features), str(args.bundle))
        split, row, caption = find(dataset)
        pair, where = look_by(bundle, split, row, caption), ""
    else:
        run = Run(args.workdir, args.data)
        check(run)
        split, row, caption = find(run.dataset)
        step = run.step(args.step)
        pair, where = look(run, run.variables(step)[0], split, row, caption), f" at step {step:,}"
    draw([pair], args.out)
    strange = [word for word, known in zip(pair.words, pair.known, strict=True) if not known]
    if strange:
        print(f"not in the vocabulary of {args.bundle or args.workdir}: {', '.join(strange)}")
    print(f"{args.out}: score {pair.score:.3f}{where}, split {split.name}")
    return 0
