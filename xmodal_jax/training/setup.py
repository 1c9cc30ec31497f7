"""From a config to the parts of a run: folder, data, vocabulary, model, objective."""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from xmodal_jax import config as configs
from xmodal_jax import losses
from xmodal_jax.data.pipeline import Captions, FeatureReader
from xmodal_jax.data.records import Dataset, Split
from xmodal_jax.errors import CheckpointError, DataError, UsageError
from xmodal_jax.losses import chunked
from xmodal_jax.matcher import Matcher
from xmodal_jax.similarity.pairwise import Block
from xmodal_jax.text.vectors import load_word_vectors
from xmodal_jax.text.vocabulary import Vocabulary
from xmodal_jax.training import processes, schedules
from xmodal_jax.training.optim import path_name
from xmodal_jax.training.step import Objective
from xmodal_jax.types import Batch, Config, Images, Texts


class Stage(NamedTuple):
    """One stage of the config: it trains from step ``start`` to before ``stop``."""

    config: Config
    start: int
    stop: int


def make_stages(config: Config, per_epoch: int) -> list[Stage]:
    """The stages with their steps; ``steps`` counts where positive, else ``epochs``."""
    stages: list[Stage] = []
    for own in configs.stages(config):
        start = stages[-1].stop if stages else 0
        stages.append(Stage(own, start, start + max(own.steps or round(own.epochs * per_epoch), 1)))
    return stages


def make_model(config: Config, vocabulary: Vocabulary) -> Matcher:
    """The model of ``config.model``: class ``Model`` of ``xmodal_jax.models.<name>``, fields from the config.

    Raises:
        UsageError: no such model, or a field that it does not have.
    """
    fields = dict(config.model)
    name = fields.pop("name")
    try:
        module = importlib.import_module(f"xmodal_jax.models.{name}")
    except ModuleNotFoundError as error:
        raise UsageError(f'No model "{name}" (config.model.name): {error}.') from error
    try:
        return module.Model(vocabulary=len(vocabulary), **fields)
    except TypeError as error:
        raise UsageError(f"config.model: {error}.") from error


def make_objective(config: Config, per_epoch: int, mesh: Mesh | None = None) -> Objective:
    """Rank loss, its scheduled options and the weights of all losses for one stage."""
    rank_loss = getattr(losses, config.loss.name, None)
    if rank_loss is None:
        raise UsageError(f'No loss "{config.loss.name}" in xmodal_jax.losses (config.loss.name).')
    options = schedules.loss_options(config.loss, per_epoch=per_epoch)
    known = inspect.signature(rank_loss).parameters
    options = {name: value for name, value in options.items() if name in known}
    try:
        block = Block(*map(int, config.block)) if config.block else None
    except TypeError:
        raise UsageError(f"config.block takes (images, captions, pairs), not {tuple(config.block)}.") from None
    if config.chunk:
        rank_loss = getattr(chunked, config.loss.name)
    weights, mask = dict(config.weights), config.loss.mask_same_image
    return Objective(rank_loss, options, weights, mask, block, mesh, config.chunk)


def features_of(config: Config) -> list[str]:
    """Names of the image features that a model reads: its ``feature`` field, one name or several joined by "+"."""
    return config.model.feature.split("+")


def make_captions(split: Split, vocabulary: Vocabulary, config: Config, limit: int = 0) -> Captions:
    """Tokens of the captions of a split, of its first ``limit`` images where positive."""
    captions = split.captions[:limit] if limit else split.captions
    if not any(captions):
        raise DataError(f'{split.dataset.directory}: split "{split.name}" has no captions.')
    return Captions(captions, vocabulary, config.data.lengths)


def make_reader(split: Split, config: Config, limit: int = 0) -> FeatureReader:
    """Reader of the features the model asks for, of the first ``limit`` images where positive."""
    return FeatureReader(split, features_of(config), boxes=config.data.boxes, limit=limit)


def example_batch(dataset: Dataset, config: Config) -> Batch:
    """A batch of one image and one caption with the right shapes and dtypes, to initialise from."""
    features: dict[str, Any] = {}
    regions = 1
    for name in features_of(config):
        spec = dataset.manifest["features"].get(name)
        if spec is None:
            have = ", ".join(dataset.manifest["features"]) or "none"
            raise UsageError(
                f'{dataset.directory} has no feature "{name}", only {have}; set --config.model.feature or import it.'
            )
        shape = (1, spec["regions"][1], spec["shape"][-1]) if "regions" in spec else (1, spec["shape"][-1])
        regions = max(regions, shape[1] if len(shape) == 3 else 1)
        features[name] = np.zeros(shape, np.float32)
    zero = np.zeros(1, np.int32)
    box = np.zeros((1, regions, 4), np.float32) if config.data.boxes else None
    words = int(min(config.data.lengths))
    text = Texts(np.zeros((1, words), np.int32), np.ones((1, words), bool), zero, zero, zero)
    return Batch(Images(features, np.ones((1, regions), bool), zero, box), text)


def open_vocabulary(workdir: Path, config: Config, dataset: Dataset) -> Vocabulary:
    """The vocabulary of a run folder that belongs to this config and data, or a new one from the training captions.

    Raises:
        CheckpointError: the folder holds a run of another config, or something else.
        DataError: the data set has changed since the run was started.
    """
    if (workdir / "config.json").is_file():
        configs.check_same(configs.read(workdir), config, workdir)
        if json.loads((workdir / "run.json").read_text())["data"] != dataset.manifest["sha256"]:
            raise DataError(
                f"{dataset.directory} has changed since {workdir} was started; restore it or start a new --workdir."
            )
        return Vocabulary.load(workdir / "vocabulary.json")
    if workdir.exists() and any(workdir.iterdir()):
        raise CheckpointError(f"{workdir} is not empty and not a run folder; choose another --workdir.")
    captions = dataset.split("train").captions
    return Vocabulary.build((text for own in captions for text in own), config.data.minimum_count)


def claim_workdir(workdir: Path, config: Config, dataset: Dataset, vocabulary: Vocabulary) -> None:
    """Make the run folder, once all of the config has proved usable."""
    target = workdir / "config.json"
    processes.wait("run folder seen")  # by all: in the middle of the making it would look like a stranger's
    if processes.first() and not target.is_file():
        workdir.mkdir(parents=True, exist_ok=True)
        vocabulary.save(workdir / "vocabulary.json")
        identity = {"data": dataset.manifest["sha256"], "vocabulary": vocabulary.sha256}
        (workdir / "run.json").write_text(json.dumps(identity, indent=1) + "\n")
        configs.save(config, target)  # last: a folder with a config has all the rest
    processes.wait("run folder made")
    processes.check_shared(target)


def with_word_vectors(params: Any, source: str, vocabulary: Vocabulary) -> Any:
    """``params`` with the rows of the word tables set where ``source`` has the word."""
    vectors, found = load_word_vectors(source, vocabulary)
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    # A table that is kept for such vectors (ADAPT has one) takes them, and the other is learned from scratch.
    fixed = [name for name in names if name.endswith("embed_fixed/embedding")]
    targets = fixed or [name for name in names if name.endswith("embed/embedding")]

    def fill(path: Any, leaf: Any) -> Any:
        if path_name(path) not in targets:
            return leaf
        if leaf.shape[1] < vectors.shape[1]:
            raise DataError(
                f"{source} has vectors of {vectors.shape[1]} numbers, the model's words {leaf.shape[1]}; "
                f"set --config.model.word_dim to at least {vectors.shape[1]}."
            )
        table = np.array(leaf)
        rows = np.flatnonzero(found)  # a table may have further rows, for a mask token say
        table[rows, : vectors.shape[1]] = vectors[rows]
        return jax.numpy.asarray(table)

    print(f"word vectors for {int(found.sum()):,} of {len(vocabulary):,} words from {source}")
    return jax.tree_util.tree_map_with_path(fill, params)
