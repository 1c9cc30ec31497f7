"""A run folder opened for use after training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from xmodal_jax import config as configs
from xmodal_jax.data.records import Dataset, open_dataset
from xmodal_jax.errors import CheckpointError
from xmodal_jax.evaluation import table
from xmodal_jax.evaluation.encode import Evaluator
from xmodal_jax.evaluation.vote import Member, rank_table
from xmodal_jax.text.vocabulary import Vocabulary
from xmodal_jax.training.checkpoint import Checkpoints
from xmodal_jax.training.setup import make_captions, make_model, make_reader
from xmodal_jax.types import Config


class Run:
    """A run folder opened for evaluation: config, vocabulary, data, model, checkpoints."""

    def __init__(self, workdir: Path, data: str | None = None):
        self.workdir = workdir
        self.config: Config = configs.read(workdir)
        self.vocabulary = Vocabulary.load(workdir / "vocabulary.json")
        self.dataset: Dataset = open_dataset(data or self.config.data.dir)
        self.model = make_model(self.config, self.vocabulary)
        self.checkpoints = Checkpoints(workdir, read_only=True)
        self.evaluator = Evaluator(self.model, batch_size=self.config.eval.batch_size)

    def step(self, wanted: int | None) -> int:
        """The step ``wanted``, the best one by default."""
        steps = self.checkpoints.steps()
        if wanted is not None and wanted not in steps:
            known = ", ".join(f"{step}" for step in steps) or "none"
            raise CheckpointError(f"{self.workdir} has no checkpoint of step {wanted}; there are: {known}.")
        return self.checkpoints.best() if wanted is None else wanted

    def variables(self, step: int) -> tuple[dict[str, Any], str]:
        """Parameters and statistics of a step, and whether they are the averaged ("ema") or the "raw" weights."""
        tree = self.checkpoints.restore_model(step)
        weights = "ema" if self.config.ema else "raw"
        params = tree["ema"] if self.config.ema else tree["params"]
        return {"params": params, **tree["model_state"]}, weights

    def member(self, step: int, split: str) -> tuple[Member, np.ndarray, str]:
        """A step with its stacks of a split, the image of each caption, and which weights they are."""
        own = self.dataset.split(split)
        captions = make_captions(own, self.vocabulary, self.config)
        if captions.cut:
            print(f"{captions.cut:,} captions are longer than {max(self.config.data.lengths)} tokens and were cut.")
        variables, weights = self.variables(step)
        stacks = self.evaluator.representations(variables, make_reader(own, self.config), captions, quiet=False)
        return Member(self.evaluator.score, variables, *stacks), captions.image, weights

    def vote(self, split: str) -> tuple[Member, np.ndarray, str]:
        """The best step as a member of an ensemble, as :meth:`member` gives it."""
        return self.member(self.checkpoints.best(), split)

    def __str__(self) -> str:
        return f"{self.workdir} step {self.checkpoints.best():,}"

    def table(self, step: int, split: str, protocol: str) -> table.Table:
        """The recall table of one step."""
        member, owner, weights = self.member(step, split)
        return rank_table([member], owner, len(self.dataset.split(split)), protocol=protocol, weights=weights)
