"""From a config to the parts of a run: one function, :func:`setup`, read from top to bottom."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from xmodal_jax import config as configs
from xmodal_jax import losses
from xmodal_jax.data import pixels
from xmodal_jax.data.order import Sampler
from xmodal_jax.data.pipeline import Captions, FeatureReader, TrainPipeline
from xmodal_jax.data.records import Dataset, Split, open_dataset
from xmodal_jax.errors import CheckpointError, DataError, UsageError, XmodalError
from xmodal_jax.layers.backbones import weights
from xmodal_jax.losses import chunked
from xmodal_jax.matcher import Matcher
from xmodal_jax.similarity.pairwise import Block
from xmodal_jax.text import ngrams, unknown
from xmodal_jax.text.vectors import load_word_vectors
from xmodal_jax.text.vocabulary import Vocabulary
from xmodal_jax.training import bundle, checks, folder, memory, processes, schedules, trackers
from xmodal_jax.training.checkpoint import Checkpoints, flat, warm_start
from xmodal_jax.training.groups import start_groups
from xmodal_jax.training.lock import Lock
from xmodal_jax.training.model import example_batch, facts_of, inputs_of, make_model
from xmodal_jax.training.optim import make_optimiser, path_name
from xmodal_jax.training.parallel import Runner, make_runner
from xmodal_jax.training.step import Initial, Objective, check_weights, initialise
from xmodal_jax.types import Config, Facts, Inputs


class Stage(NamedTuple):
    """One stage of the config: it trains from step ``start`` to before ``stop`` on batches of its own pipeline."""

    config: Config
    start: int
    stop: int
    pipeline: TrainPipeline
    first_epoch: int  # epochs that the stages before it began

    def epoch(self, step: int) -> float:
        """Epochs done after ``step`` steps of the run, those of earlier stages included."""
        return self.first_epoch + (step - self.start) / self.pipeline.steps_per_epoch


class Parts(NamedTuple):
    """All that a run is made of, in the order in which it is made."""

    config: Config
    workdir: Path
    dataset: Dataset
    vocabulary: Vocabulary | None  # None where the system reads no tokens
    facts: Facts
    model: Matcher
    stages: list[Stage]
    runner: Runner
    initial: Initial
    dev: FeatureReader
    dev_captions: Captions
    checkpoints: Checkpoints
    resumed: bool  # a step is saved; ``initial`` is then without word vectors and the parameters of another run
    held: Lock | None

    def close(self) -> None:
        """Finish what is being saved, and let other processes into the folder."""
        try:
            self.checkpoints.close()
        finally:
            if self.held:
                self.held.release()


def setup(config: Config, workdir: Path) -> Parts:
    """The parts of the run of ``config`` in ``workdir``, a new folder or one that holds a run of the same config.

    Raises:
        UsageError: something in the config that does not exist or does not go together.
        DataError: the data cannot give what the system reads, or has changed since the run was started.
        CheckpointError: the folder holds a run of another config, or something else.
    """
    checks.check(config)
    trackers.check(config)
    dataset = open_dataset(config.data.dir)
    inputs = inputs_of(config)
    vocabulary = folder.open_vocabulary(workdir, config, dataset, inputs)
    facts = facts_of(dataset, inputs, config, vocabulary)
    model = make_model(config, facts)
    example = example_batch(inputs, facts)

    train = dataset.split("train")
    captions = make_captions(train, inputs, vocabulary, config)
    names = (*inputs.image, *inputs.further)
    reading = [pixels.reading_of(config, names, train=train) for train in (True, False)]
    stages = make_stages(config, FeatureReader(train, names, reading=reading[0]), captions, inputs)
    sizes = [stage.config.data.batch_size for stage in stages]
    runner = make_runner(config.parallel, sizes, sharded=model.sharded)
    objectives = [make_objective(stage.config, stage.pipeline.steps_per_epoch) for stage in stages]
    try:
        memory.check(model, example, config, runner.mesh.size if runner.mesh else 1)
        initial = with_ngrams(initialise(model, example, config.seed), captions)
        for objective in objectives:
            check_weights(model, objective, {"params": initial.params, **initial.model_state}, example)
    except XmodalError:
        raise
    except Exception as error:  # whatever a model raises is about its file or the values it was given
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise UsageError(f'The model "{config.model.name}" cannot be built ({reason}); see config.model.') from error

    dev = FeatureReader(dataset.split("dev"), inputs.image, limit=config.data.dev_images, reading=reading[1])
    dev_captions = make_captions(dev.split, inputs, vocabulary, config, dev.count)
    for stage in stages:
        stage_optimiser(stage, initial.params)
    resumed = folder.begun(workdir)
    tell_captions(config, {"train": captions, "dev": dev_captions}, vocabulary, refuse=not resumed)
    if not resumed:
        initial = start_values(config, model, vocabulary, initial)
        initial = start_groups(initial, model, stages[0].pipeline.reader, config.seed)

    for split in (train, dev.split):
        split.check_files()
    held = folder.claim(workdir, config, dataset, inputs, facts, vocabulary)
    try:
        checkpoints = Checkpoints(workdir, keep=config.checkpoint.keep)
    except BaseException:
        if held:
            held.release()
        raise
    return Parts(
        config,
        workdir,
        dataset,
        vocabulary,
        facts,
        model,
        stages,
        runner,
        initial,
        dev,
        dev_captions,
        checkpoints,
        resumed,
        held,
    )


# The data


def make_captions(
    split: Split, inputs: Inputs, vocabulary: Vocabulary | None, config: Config, limit: int = 0
) -> Captions:
    """The captions of a split as the model reads them, of its first ``limit`` images where positive."""
    captions = split.captions[:limit] if limit else split.captions
    if not any(captions):
        raise DataError(f'{split.dataset.directory}: split "{split.name}" has no captions.')
    dense = {name: split.text_feature(name) for name in inputs.text if name != "token"}
    return Captions(captions, vocabulary, config.data.lengths, dense)


def tell_captions(
    config: Config, parts: Mapping[str, Captions], vocabulary: Vocabulary | None, *, refuse: bool
) -> None:
    """Print how much of the captions the system reads. Raises DataError where ``refuse`` and that is too little."""
    known = {name: captions.coverage for name, captions in parts.items() if captions.coverage}
    if vocabulary is None or not known:
        return
    remedy = (
        "give more captions or --config.data.minimum_count=1, or train all the same with --config.data.most_unknown=1"
    )
    lines = unknown.judge(known, most=config.data.most_unknown if refuse else 1.0, remedy=remedy)
    lines += [
        f"captions of {name}: {captions.cut:,} of {len(captions):,} are longer than {max(config.data.lengths)} tokens "
        "and are cut (--config.data.lengths)"
        for name, captions in parts.items()
        if captions.cut
    ]
    if processes.first():
        print(f"vocabulary: {len(vocabulary):,} {vocabulary.tokens}", *lines, sep="\n")


# The stages


def make_stages(config: Config, reader: FeatureReader, captions: Captions, inputs: Inputs) -> list[Stage]:
    """The stages with their batches and steps; ``steps`` counts where positive, else ``epochs``."""
    stages: list[Stage] = []
    captions.mark = any(stage.loss.get("mask_same_text") for stage in configs.stages(config))
    hosts = {"process_index": jax.process_index(), "process_count": jax.process_count()}
    for stage in configs.stages(config):
        data = stage.data
        sampler = Sampler(
            captions.counts,
            captions.lengths,
            sampler=data.sampler,
            batch_size=data.batch_size,
            seed=config.seed,
            captions_per_image=data.captions_per_image,
            drop_last=data.drop_last,
            roles=inputs.captions,
        )
        last = stages[-1] if stages else None
        start = last.stop if last else 0
        epoch = -int(-last.epoch(last.stop) // 1) if last else 0
        pipeline = TrainPipeline(reader, captions, sampler, first_step=start, first_epoch=epoch, **hosts)
        steps = stage.steps or round(stage.epochs * pipeline.steps_per_epoch)
        stages.append(Stage(stage, start, start + max(steps, 1), pipeline, epoch))
    return stages


def make_objective(config: Config, per_epoch: int, mesh: Mesh | None = None) -> Objective:
    """Rank loss, its scheduled options and the weights of all losses for one stage."""
    if config.loss.name not in losses.LOSSES:
        known = ", ".join(losses.LOSSES)
        raise UsageError(f'No loss "{config.loss.name}" (config.loss.name); there are {known}.')
    rank_loss = losses.LOSSES[config.loss.name]
    options = schedules.loss_options(config.loss, per_epoch=per_epoch)
    parameters = inspect.signature(rank_loss).parameters
    options = {name: value for name, value in options.items() if name in parameters}
    try:
        block = Block(*map(int, config.block)) if config.block else None
    except TypeError:
        raise UsageError(f"config.block takes (images, captions, pairs), not {tuple(config.block)}.") from None
    if config.chunk:
        if config.loss.name not in chunked.LOSSES:
            known = ", ".join(chunked.LOSSES)
            raise UsageError(f'The loss "{config.loss.name}" cannot be taken in chunks (config.chunk), only {known}.')
        rank_loss = chunked.LOSSES[config.loss.name]
    weights = schedules.weights(config, per_epoch=per_epoch)
    masks = bool(config.loss.mask_same_image), bool(config.loss.get("mask_same_text"))
    extras = tuple(name for name in ("pairing", "image_scores", "text_scores") if name in parameters)
    return Objective(rank_loss, options, weights, *masks, block, mesh, extras, config.chunk)


def schedule_of(stage: Stage) -> optax.Schedule:
    """The learning rate of a stage by the steps that its optimiser has done."""
    steps, per_epoch = stage.stop - stage.start, stage.pipeline.steps_per_epoch
    return schedules.learning_rate(stage.config.optim, steps=steps, per_epoch=per_epoch)


def stage_optimiser(stage: Stage, params: Any) -> Any:
    """The optax transform of a stage. Raises UsageError for rules that do not fit the parameters."""
    return make_optimiser(stage.config.optim, params, schedule_of(stage))


# Initial values


def start_values(config: Config, model: Matcher, vocabulary: Vocabulary | None, initial: Initial) -> Initial:
    """``initial`` with word vectors, weights of an image network and what another run learned, where the config asks
    for them. Running statistics of another run come along as far as it has them.

    Raises:
        UsageError: a system without words or image network, or an image network without weights.
        DataError: word vectors that are missing or do not fit.
        CheckpointError: the other run or bundle, or a file of weights, is missing, damaged, or does not fit.
    """
    if config.data.word_vectors:
        params = with_word_vectors(initial.params, config.data.word_vectors, vocabulary, model.word_tables)
        initial = initial._replace(params=params)
    initial, source = with_backbone(initial, config), config.init.workdir
    if not source:
        return initial
    other = Path(source)
    theirs = folder.words_of(other)
    if theirs and vocabulary and theirs.words != vocabulary.words and not config.init.skip:
        raise CheckpointError(
            f"{other} was trained with vocabulary {theirs.sha256[:8]} ({len(theirs):,} words), this run has "
            f"{vocabulary.sha256[:8]} ({len(vocabulary):,}); keep its words with --config.init.vocabulary=True, or "
            "name the embedding in --config.init.skip to leave it at its initial value."
        )
    if bundle.is_bundle(other):
        values, statistics = bundle.read_parameters(other)
    else:
        checkpoints = Checkpoints(other, read_only=True)
        tree = checkpoints.restore_model(checkpoints.best())
        values, statistics = tree["ema"] if configs.read(other).ema else tree["params"], flat(tree["model_state"])
    params = warm_start(initial.params, values, skip=config.init.skip, where=source)
    kept = {name for name in statistics if name.startswith("batch_stats/")}
    absent = [re.escape(name) for name in flat(initial.model_state) if name not in kept]
    state = warm_start(initial.model_state, statistics, skip=[*config.init.skip, *absent], where=source)
    return Initial(params, state)


def with_ngrams(initial: Initial, captions: Captions) -> Initial:
    """``initial`` whose collection "ngrams", where the model has one, counts those of the training captions."""
    if "ngrams" not in initial.model_state:
        return initial
    assert captions.flat is not None  # a system that says words reads them
    words = [
        captions.flat[first + 1 : first + n - 1] for first, n in zip(captions.first, captions.lengths, strict=False)
    ]
    table = ngrams.count(words, captions.image)
    state = {name: jax.numpy.asarray(value) for name, value in table._asdict().items()}
    return initial._replace(model_state={**initial.model_state, "ngrams": state})


def with_backbone(initial: Initial, config: Config) -> Initial:
    """``initial`` with the weights ``config.init.backbone`` in its image network, if it has one.

    Raises:
        UsageError: weights for a system without such a network, or none for one that has it and starts from no run.
        CheckpointError: weights that are missing, damaged, or of another network.
    """
    source, network = config.init.backbone, config.model.get("network", "")
    params, state = (flatten_dict(dict(tree)) for tree in initial)
    here = {path[: path.index("backbone") + 1] for path in params if "backbone" in path}
    if not here and source:
        raise UsageError("This system has no image network, so --config.init.backbone has nothing to fill.")
    if not here or source == "random":
        return initial
    if not source:
        if config.init.workdir:
            return initial
        raise UsageError(
            f"The image network {network} has no weights to start from: name a file with --config.init.backbone=FILE, "
            'or "package" for those of its Python package, or "random" to train it from nothing.'
        )
    loaded = weights.load(network, source)
    for place in here:
        params |= {place + path: value for path, value in flatten_dict(loaded["params"]).items()}
        state |= {("batch_stats", *place, *path): v for path, v in flatten_dict(loaded["batch_stats"]).items()}
    print(f"weights of {network} from {source}")
    return jax.tree.map(jax.numpy.asarray, Initial(unflatten_dict(params), unflatten_dict(state)))


def with_word_vectors(params: Any, source: str, vocabulary: Vocabulary | None, tables: str) -> Any:
    """``params`` with the rows of the word tables set where ``source`` has the word.

    Args:
        tables: regular expression of the names of the tables, :attr:`xmodal_jax.matcher.Matcher.word_tables`.
    """
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    targets = [name for name in names if tables and re.fullmatch(tables, name)]
    if vocabulary is None or not targets:
        raise UsageError("This system has no table of words, so --config.data.word_vectors has nothing to fill.")
    vectors, found = load_word_vectors(source, vocabulary)

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
