"""`xmodal data concepts`: how likely each of K words is to be said of an image, added to a prepared data set.

The concepts of SCO (Huang, Wu, Song, Wang, CVPR 2018): the K most frequent semantic words of the training captions, one
logistic classifier each, trained on an image's feature before the matching system and frozen; the loss is
``sum_i sum_c log(1 + exp(-y_ic s_ic))`` with y 1 where a caption of image i has word c and -1 where none has. Of region
features the K scores are the largest over the regions ("multi-regional"). The paper fine-tunes a CNN; here a linear map
of features that exist is trained. [reconstruction]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from xmodal_jax.baselines.text_features import BROKEN, captions_of, locked
from xmodal_jax.data import additions
from xmodal_jax.data.attach import check_feature_name
from xmodal_jax.data.pipeline import FeatureReader
from xmodal_jax.data.records import Dataset, image_file, open_dataset
from xmodal_jax.digest import sha256
from xmodal_jax.errors import DataError, UsageError, check_output
from xmodal_jax.progress import Progress
from xmodal_jax.similarity import AnyArray
from xmodal_jax.similarity.vector import NEVER
from xmodal_jax.text.concepts import Concepts, frequent, read_concepts

COUNT = 256  # concepts [recalled]
BLOCK = 128  # images of a step
RATES = {"vector": (3e-4, 1e-3), "region": (1e-2, 0.0)}  # of Adam, and the share that weights lose in each step
NUMBERS = 1 << 29  # features of a split up to so many numbers are held in memory, others are read anew in each epoch
Params = Mapping[str, Any]  # arrays by name: mean and scale of the feature's numbers, kernel, bias


class Read(NamedTuple):
    """Images of a block: feature [B, F] or [B, R, F], mask [B, R]."""

    feature: Any
    mask: Any


def logits(params: Params, feature: Float[AnyArray, "b *r f"], mask: Bool[AnyArray, "b r"]) -> Float[Array, "b k"]:
    """Scores before the sigmoid; of regions the largest of each concept."""
    scaled = (jnp.asarray(feature, jnp.float32) - params["mean"]) * params["scale"]
    score = jnp.einsum("...f,fk->...k", scaled, params["kernel"]) + params["bias"]
    return score if score.ndim == 2 else jnp.max(jnp.where(mask[..., None], score, NEVER), axis=1)


def concept_loss(score: Float[Array, "b k"], label: Float[AnyArray, "b k"]) -> Float[Array, ""]:
    """``log(1 + exp(-y s))`` summed over concepts, averaged over images; labels are 0 and 1."""
    return jnp.mean(jnp.sum(jax.nn.softplus(jnp.where(label > 0, -score, score)), axis=1))


class ConceptModel:
    """Features to probabilities [N, K]: what `image.NAME.npz` of a data set holds."""

    def __init__(self, about: Mapping[str, Any], params: Params):
        self.about, self.params = dict(about), dict(params)
        self.feature: str = about["feature"]
        self.concepts = Concepts(about["words"])

    def __call__(self, feature: Float[AnyArray, "n *r f"], mask: Bool[AnyArray, "n r"] | None = None) -> np.ndarray:
        """[N, K] float32 of any images; without ``mask`` all regions are real."""
        real = np.ones(feature.shape[:2], bool) if mask is None else mask
        return np.asarray(jax.nn.sigmoid(_logits(self.params, feature, real)))

    def content(self) -> bytes:
        """As a file."""
        buffer = io.BytesIO()
        about = np.frombuffer(json.dumps(self.about).encode(), np.uint8)
        np.savez(buffer, allow_pickle=False, about=about, **{key: np.asarray(x) for key, x in self.params.items()})
        return buffer.getvalue()


def load_concept_model(path: str | os.PathLike[str]) -> ConceptModel:
    """Read `image.NAME.npz` of a data set; needs no other file.

    Raises:
        DataError: the file is missing, damaged or something else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        about = json.loads(arrays.pop("about").tobytes())
        model = ConceptModel(about, {key: arrays[key] for key in ("mean", "scale", "kernel", "bias")})
        if model.params["kernel"].shape[1:] != (len(model.concepts),):
            raise ValueError("words and weights differ in number")
        return model
    except (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, *BROKEN) as error:
        raise DataError(f"{path} is no model of concepts or is damaged ({error}).") from None


_logits = jax.jit(logits)


class Reader:
    """One feature of a split by blocks of rows, held in memory where it is small."""

    def __init__(self, dataset: Dataset, split: str, feature: str):
        self.reader, self.feature = FeatureReader(dataset.split(split), [feature]), feature
        spec = dataset.features[feature]
        self.width: int = spec["shape"][-1]
        size = self.reader.count * self.width * spec.get("regions", [1, 1])[1]
        self.held: Read | None = None
        if size <= NUMBERS:
            reads = list(self.blocks(np.arange(self.reader.count)))
            self.held = Read(*(np.concatenate(parts) for parts in zip(*reads, strict=True)))

    def blocks(self, rows: np.ndarray) -> Iterator[Read]:
        """``rows`` in their order, BLOCK at a time; the last block may be short."""
        parts = [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
        if self.held is not None:
            yield from (Read(self.held.feature[part], self.held.mask[part]) for part in parts)
            return
        for arrays in self.reader.stream(0, len(parts), parts.__getitem__):
            yield Read(arrays[self.feature], arrays["mask"])


# Training


@jax.jit
def _step(params: Params, state: Any, read: Read, label: Any, rate: Any, decay: Any) -> tuple[Params, Any]:
    def loss(weights: Params) -> Array:
        return concept_loss(logits({**params, **weights}, *read), label)

    weights = {key: params[key] for key in ("kernel", "bias")}
    gradient: Any = jax.grad(loss)(weights)
    update: Any
    update, state = optax.scale_by_adam().update(gradient, state)
    weights["kernel"] *= 1.0 - decay
    return {**params, **{key: weights[key] - rate * update[key] for key in weights}}, state


def start(reader: Reader, rows: np.ndarray, label: np.ndarray) -> dict[str, Any]:
    """Zero weights, biases that answer with the frequency of each word, and the scale of the feature's numbers."""
    width = reader.width
    total, square, count = np.zeros(width), np.zeros(width), 0
    for feature, mask in reader.blocks(rows):
        real = np.asarray(feature, np.float64)
        real = real[mask] if real.ndim == 3 else real
        total, square, count = total + real.sum(0), square + np.square(real).sum(0), count + len(real)
    mean = total / count
    scale = 1 / np.sqrt(np.maximum(square / count - np.square(mean), 1e-6))
    often = (label[rows].sum(0) + 1) / (len(rows) + 2)
    arrays = {"mean": mean, "scale": scale, "kernel": np.zeros((width, label.shape[1]))}
    arrays["bias"] = np.log(often / (1 - often))
    return {key: jnp.asarray(x, jnp.float32) for key, x in arrays.items()}


def train(
    reader: Reader, rows: np.ndarray, label: np.ndarray, epochs: int, options: Mapping[str, Any], progress: Progress
) -> Iterator[Params]:
    """The classifiers after each epoch; Adam, batches drawn from the seed. A last short batch is dropped."""
    params = start(reader, rows, label)
    state = optax.scale_by_adam().init({key: params[key] for key in ("kernel", "bias")})
    random = np.random.default_rng(options["seed"])
    for _ in range(epochs):
        order = rows[random.permutation(len(rows))]
        order = order[: len(order) // BLOCK * BLOCK or None]
        for number, read in enumerate(reader.blocks(order)):
            part = order[number * BLOCK : (number + 1) * BLOCK]
            params, state = _step(params, state, read, label[part], options["lr"], options["decay"])
            progress.advance()
        yield params


def score(params: Params, reader: Reader, rows: np.ndarray) -> Float[np.ndarray, "n k"]:
    """Scores before the sigmoid of ``rows``."""
    return np.concatenate([np.asarray(_logits(params, *read)) for read in reader.blocks(rows)])


def measure(scores: np.ndarray, label: np.ndarray) -> tuple[float, float, int]:
    """(mean average precision, mean area under the ROC curve, concepts that they are means over).

    Only concepts that some images have and some have not are counted. Of equal scores the later row comes first.
    """
    order = np.argsort(scores, axis=0, kind="stable")[::-1]
    hit: Any = np.take_along_axis(label, order, axis=0) > 0
    positive, rank = hit.sum(0), np.arange(1, len(hit) + 1)[:, None]
    counted = (positive > 0) & (positive < len(hit))
    hit, positive = hit[:, counted], positive[counted]
    if not counted.any():
        return float("nan"), float("nan"), 0
    precision = (hit * (hit.cumsum(0) / rank)).sum(0) / positive
    below = (hit * (~hit)[::-1].cumsum(0)[::-1]).sum(0)
    return float(precision.mean()), float((below / (positive * (len(hit) - positive))).mean()), int(counted.sum())


class Fit(NamedTuple):
    """The best classifiers on dev, after which epoch they were, and what they reach there."""

    params: Params
    epoch: int
    dev: dict[str, float]


def fit(dataset: Dataset, readers: Mapping[str, Reader], labels: Mapping[str, Any], options: Mapping[str, Any]) -> Fit:
    """Train on train, keep the epoch of the least loss on dev; where there is no dev, the last."""
    rows, epochs = np.arange(len(labels["train"])), options["epochs"]
    best: Fit | None = None
    with Progress("train", epochs * max(len(rows) // BLOCK, 1), unit="steps") as progress:
        for epoch, params in enumerate(train(readers["train"], rows, labels["train"], epochs, options, progress), 1):
            if "dev" not in readers:
                best = Fit(params, epoch, {})
                continue
            dev = score(params, readers["dev"], np.arange(len(labels["dev"])))
            loss = float(concept_loss(jnp.asarray(dev), labels["dev"]))
            if best is None or loss < best.dev["loss"]:
                precision, area, counted = measure(dev, labels["dev"])
                best = Fit(params, epoch, {"loss": loss, "map": precision, "auc": area, "concepts": counted})
            elif epoch >= best.epoch + options["patience"]:
                break
    assert best is not None
    return best


def train_scores(fit: Fit, reader: Reader, label: np.ndarray, options: Mapping[str, Any]) -> np.ndarray:
    """Scores of the training images: of the classifiers that were trained on them, or, with folds, of others that were
    not, trained on all other folds for as many epochs."""
    rows, folds = np.arange(len(label)), options["folds"]
    if folds == 1:
        return score(fit.params, reader, rows)
    fold = np.random.default_rng(options["seed"]).permutation(len(rows)) % folds
    scores = np.empty_like(label)
    with Progress(
        "folds", folds * fit.epoch * max(len(rows) * (folds - 1) // folds // BLOCK, 1), unit="steps"
    ) as progress:
        for number in range(folds):
            inside, outside = rows[fold != number], rows[fold == number]
            *_, params = train(reader, inside, label, fit.epoch, options, progress)
            scores[outside] = score(params, reader, outside)
    return scores


# The verb


def read_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of the training; UsageError for what cannot be."""
    for key, least in (("count", 1), ("epochs", 1), ("patience", 1), ("folds", 1), ("seed", 0)):
        value = getattr(args, key)
        if value is not None and value < least:
            raise UsageError(f"--{key} must be at least {least}, not {value}.")
    if args.lr is not None and not 0 < args.lr < float("inf"):
        raise UsageError(f"--lr must be above 0, not {args.lr}.")
    if args.decay is not None and not 0 <= args.decay < 1:
        raise UsageError(f"--decay must be at least 0 and below 1, not {args.decay}.")
    if args.words and args.count is not None:
        raise UsageError("--words says how many concepts there are; leave out --count.")
    return {key: getattr(args, key) for key in ("epochs", "patience", "lr", "decay", "folds", "seed")}


def add(dataset: Dataset, name: str, feature: str, concepts: Concepts, options: Mapping[str, Any]) -> dict[str, Any]:
    """Train, score every split and enter the feature ``name``; returns its entry of the manifest."""
    readers = {split: Reader(dataset, split, feature) for split in dataset.splits}
    labels = {split: concepts.of(dataset.split(split).captions) for split in dataset.splits}
    if len(labels["train"]) < 2 * options["folds"]:
        raise UsageError(f"--folds {options['folds']} needs more than {len(labels['train']):,} training images.")
    found = fit(dataset, readers, labels, options)
    scores = {split: score(found.params, readers[split], np.arange(len(labels[split]))) for split in readers}
    scores["train"] = train_scores(found, readers["train"], labels["train"], options)
    arrays = {split: np.asarray(jax.nn.sigmoid(values), np.float32) for split, values in scores.items()}
    entry = {"kind": "concepts", "feature": feature, "words": concepts.forms, "options": dict(options)}
    entry |= {"fitted_on": "train", "epoch": found.epoch, "dev": {key: round(x, 4) for key, x in found.dev.items()}}
    entry["train_scores"] = "of the classifiers trained on them" if options["folds"] == 1 else "out of fold"
    model = ConceptModel(entry, found.params)
    others = {image_file(name): model.content(), image_file(name, ending="words.txt"): concepts.text().encode()}
    additions.add_image_features(dataset.directory, name, entry, arrays, others)
    return entry


def score_with(dataset: Dataset, name: str, path: Path) -> dict[str, Any]:
    """Enter the feature ``name`` as a model of another data set scores it; nothing is trained."""
    model = load_concept_model(path)
    if model.feature not in dataset.features:
        raise DataError(f'{dataset.directory} has no feature "{model.feature}", which {path} reads.')
    width = dataset.features[model.feature]["shape"][-1]
    if width != len(model.params["mean"]):
        raise DataError(
            f'{path} reads {len(model.params["mean"]):,} numbers of "{model.feature}", which in {dataset.directory} '
            f"has {width:,}; train another."
        )
    readers = {split: Reader(dataset, split, model.feature) for split in dataset.splits}
    arrays = {
        split: np.concatenate([model(*read) for read in reader.blocks(np.arange(reader.reader.count))])
        for split, reader in readers.items()
    }
    entry = {**model.about, "model": sha256(path), "fitted_on": "another data set"}
    entry.pop("train_scores", None)
    words = {image_file(name, ending="words.txt"): model.concepts.text().encode(), image_file(name): path.read_bytes()}
    additions.add_image_features(dataset.directory, name, entry, arrays, words)
    return entry


def wanted(args: argparse.Namespace, dataset: Dataset) -> Concepts:
    """The concepts of --words, or the --count most frequent; DataError where one is in no training caption."""
    texts = captions_of(dataset.split("train"))
    if not args.words:
        return frequent(texts, args.count or COUNT)
    concepts = read_concepts(args.words)
    unseen = [name for name, often in zip(concepts.names, concepts.of([texts])[0], strict=True) if not often]
    if unseen:
        raise DataError(f'{args.words}: {len(unseen):,} concepts are in no training caption, "{unseen[0]}" first.')
    return concepts


def main(args: argparse.Namespace) -> int:
    """`xmodal data concepts DIR`."""
    options, dataset = read_options(args), open_dataset(args.directory)
    check_output("--write-words", args.write_words)
    if args.model and (args.words or args.count or args.write_words):
        raise UsageError("--model brings its words; leave out --words, --count and --write-words.")
    concepts = None if args.model else wanted(args, dataset)
    if concepts is not None and args.write_words:
        args.write_words.write_text(concepts.text(), encoding="utf-8")
        print(f"{args.write_words}: {len(concepts):,} concepts; edit it and give it with --words")
        return 0
    if concepts is None:
        job = {"model": sha256(args.model) if args.model.is_file() else None}
    else:
        if args.feature not in dataset.features:
            have = ", ".join(dataset.features) or "none"
            raise UsageError(f'{args.directory} has no feature "{args.feature}", only {have}; choose --feature.')
        rates = RATES["region" if "regions" in dataset.features[args.feature] else "vector"]
        options |= {key: x for key, x in zip(("lr", "decay"), rates, strict=True) if options[key] is None}
        job = {"feature": args.feature, "words": concepts.forms, "options": options}
    known = dataset.manifest.get("image_features", {}).get(args.name)
    if known is not None and all(known.get(key) == value for key, value in job.items()):
        print(f'{args.directory}: the feature "{args.name}" is there already, nothing to do.', file=sys.stderr)
        return 0
    check_feature_name(dataset, args.name)
    try:
        with locked(dataset.directory / f".image.{args.name}.lock"):
            if concepts is None:
                entry = score_with(dataset, args.name, args.model)
            else:
                entry = add(dataset, args.name, args.feature, concepts, options)
    except OSError as error:
        raise DataError(f"{args.directory}: cannot write features there ({error.strerror or error}).") from None
    print_entry(args.directory, args.name, entry)
    return 0


def print_entry(directory: Path, name: str, entry: Mapping[str, Any]) -> None:
    """What was trained and what it reaches, for people."""
    dev = entry["dev"]
    if dev and "model" not in entry:
        reached = f"mean average precision {100 * dev['map']:.1f} %, mean AUC {100 * dev['auc']:.1f} %"
        print(
            f"dev: {reached} over {dev['concepts']:.0f} concepts, loss {dev['loss']:.3f}, after epoch {entry['epoch']}"
        )
    if "train_scores" in entry:
        note = "" if entry["train_scores"] == "out of fold" else "; --folds 5 scores each by others"
        print(f"train: its scores are {entry['train_scores']}{note}")
    words = image_file(name, ending="words.txt")
    print(f'{directory}: feature "{name}", {len(entry["words"]):,} concepts, words in {words}')
    print(f"next: xmodal data check {directory}")
