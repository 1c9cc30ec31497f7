"""A run folder opened for use after training."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from xmodal_jax import config as configs
from xmodal_jax.data import pixels
from xmodal_jax.data.pipeline import Captions, FeatureReader, text_ids
from xmodal_jax.data.records import Dataset, open_dataset
from xmodal_jax.errors import CheckpointError, DataError, UsageError
from xmodal_jax.evaluation.encode import Evaluator
from xmodal_jax.evaluation.speak import Said, Speaker, speech
from xmodal_jax.evaluation.vote import Member, Ranking, rank_split
from xmodal_jax.text import unknown
from xmodal_jax.text.generation import Decoding
from xmodal_jax.text.vocabulary import Coverage
from xmodal_jax.training import checks, folder
from xmodal_jax.training.checkpoint import Checkpoints, flat
from xmodal_jax.training.model import example_batch, facts_of, inputs_of, make_model
from xmodal_jax.training.setup import make_captions
from xmodal_jax.types import Config


def run_and_step(path: Path) -> tuple[Path, int | None]:
    """``RUN@STEP`` as a folder and a step; what is there under the whole name is that, with no step."""
    name, _, step = str(path).rpartition("@")
    if path.exists() or not (name and step.isdecimal()):
        return path, None
    return Path(name), int(step)


class Run:
    """A run folder opened for evaluation: config, vocabulary, data, model, checkpoints.

    Args:
        workdir: the folder.
        data: a data set in place of that which it was trained on.
        allow_unknown: take captions of which the vocabulary knows too little, too.
        voting: the step that is a member of an ensemble; the best one by default.
    """

    def __init__(
        self,
        workdir: Path,
        data: str | Path | None = None,
        *,
        allow_unknown: bool = False,
        voting: int | None = None,
    ):
        self.workdir, self.allow_unknown, self.voting = workdir, allow_unknown, voting
        self.coverage: Coverage | None = None  # of the captions that were read last
        self.config: Config = configs.read(workdir)
        try:
            checks.check(self.config)
        except UsageError as error:
            raise CheckpointError(f"{workdir / configs.FILE} is not that of a run: {error}") from None
        try:  # hashes tell damage; a stranger seals any config
            self._open(workdir, data)
        except (KeyError, TypeError, AttributeError, ValueError, IndexError, OverflowError) as error:
            reason = f"{type(error).__name__}: {str(error)[:200]}"
            raise CheckpointError(
                f"{workdir / configs.FILE} does not describe a run ({reason}); restore it from a copy."
            ) from error

    def _open(self, workdir: Path, data: str | Path | None) -> None:
        self.inputs = inputs_of(self.config)
        self.record = folder.read_record(workdir)
        if data is None and not Path(self.config.data.dir).is_dir():
            raise DataError(
                f"{workdir} was trained on {self.config.data.dir}, which is not there; say where it is now by --data."
            )
        self.dataset: Dataset = open_dataset(data or self.config.data.dir)
        if data is None:
            remedy = "name it with --data, which keeps its figures apart"
            folder.check_same_data(workdir, self.dataset, self.inputs, self.config, remedy)
        # Whether these are the data that the run was trained on, wherever they lie now
        self.home = data is None or folder.same_data(workdir, self.dataset, self.inputs, self.config)
        if not self.home:
            folder.check_shapes(workdir, self.dataset, self.inputs)
        self.vocabulary = folder.read_vocabulary(workdir)
        if "token" in self.inputs.text and self.vocabulary is None:
            raise CheckpointError(f"{workdir} has no vocabulary, but its system reads tokens; restore its run.json.")
        read = self.inputs._replace(further=())  # what training alone reads nobody asks for here
        self.facts = facts_of(self.dataset, read, self.config, self.vocabulary)
        if not self.home and "facts" in self.record:  # parameters have the size of what was trained on
            self.facts = self.facts._replace(classes=self.record["facts"]["classes"])
        self.model = make_model(self.config, self.facts)
        self.checkpoints = Checkpoints(workdir, read_only=True)
        self.evaluator = Evaluator(self.model, batch_size=self.config.eval.batch_size)

    @property
    def title(self) -> str:
        """The data by name, and what the run was trained on where that was other data."""
        name = self.dataset.manifest["name"]
        if self.home:
            return name
        return f"{name} (manifest {self.dataset.identity[:8]}; trained on {self.record.get('name', 'other data')})"

    @property
    def about(self) -> dict[str, Any]:
        """What a record of an evaluation says of run and data."""
        known = {"workdir": str(self.workdir), "data": self.dataset.manifest["name"], "identity": self.dataset.identity}
        return known if self.home else {**known, "trained_on": self.record.get("name", self.record["data"])}

    @property
    def evaluations(self) -> Path:
        """Where records of evaluations are kept: "eval" in the run folder, or a folder in there for other data."""
        name = re.sub(r"[^\w.-]", "_", self.dataset.manifest["name"])
        return self.workdir / "eval" / ("" if self.home else f"{name}-{self.dataset.identity[:8]}")

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
        if not self.home:
            self._check_sizes(params)
        return {"params": params, **tree["model_state"]}, weights

    def _check_sizes(self, params: Any) -> None:
        """Raise a DataError where a system for this data has parameters of other shapes."""
        example = example_batch(self.inputs, self.facts)
        wanted = jax.eval_shape(self.model.init, {"params": jax.random.key(0), "dropout": jax.random.key(0)}, example)
        here = {name: leaf.shape for name, leaf in flat(wanted["params"]).items()}
        other = [name for name, leaf in flat(params).items() if here.get(name) != np.shape(leaf)]
        if other:
            raise DataError(
                f"{self.workdir} was trained on data of other shapes than {self.dataset.directory}: {other[0]} is "
                f"{list(np.shape(flat(params)[other[0]]))} there, {list(here.get(other[0], ()))} for these."
            )

    def reader(self, split: str, *, boxes: bool = False) -> FeatureReader:
        """Reader of what the model reads of the images of a split."""
        reading = pixels.reading_of(self.config, self.inputs.image)
        return FeatureReader(self.dataset.split(split), self.inputs.image, boxes=boxes, reading=reading)

    def captions(self, split: str) -> Captions:
        """The captions of a split as the model reads them."""
        return make_captions(self.dataset.split(split), self.inputs, self.vocabulary, self.config)

    def check_speaks(self) -> None:
        """Raise a UsageError unless the run's system says something."""
        if not self.model.has("begin"):
            system = f'The system "{self.config.model.name}" of {self.workdir}'
            raise UsageError(f"{system} does not speak; STT, SCO and GXN do.")

    def speaker(self, decoding: Decoding) -> Speaker:
        """What says sentences with the run's model."""
        assert self.vocabulary is not None  # what speaks has words
        return Speaker(self.model, self.vocabulary, decoding, batch_size=self.config.eval.batch_size)

    def speech(self, step: int, split: str, decoding: Decoding) -> list[Said]:
        """The sentences of one step on a split, with scores; none of a system that does not speak."""
        if not self.model.has("begin") or self.vocabulary is None:
            return []
        variables, _ = self.variables(step)
        parts = (self.vocabulary, self.reader(split), self.captions(split), decoding)
        return speech(self.model, variables, *parts, batch_size=self.config.eval.batch_size)

    def member(self, step: int, split: str) -> tuple[Member, Int[np.ndarray, " c"], str]:
        """A step with its stacks of a split, the image of each caption, and which weights they are."""
        reader, captions = self.reader(split), self.captions(split)
        if captions.cut:
            print(f"{captions.cut:,} captions are longer than {max(self.config.data.lengths)} tokens and were cut.")
        self.coverage = captions.coverage
        if captions.coverage:
            remedy = "name data in the language of the run's captions, or give --allow-unknown"
            most = 1.0 if self.allow_unknown else unknown.REFUSE
            print(*unknown.judge({split: captions.coverage}, most=most, remedy=remedy), sep="\n", file=sys.stderr)
        variables, weights = self.variables(step)
        return self.evaluator.member(variables, reader, captions, quiet=False), captions.image, weights

    def vote(self, split: str) -> tuple[Member, Int[np.ndarray, " c"], str]:
        """The step ``voting`` as a member of an ensemble, as :meth:`member` gives it."""
        return self.member(self.step(self.voting), split)

    def __str__(self) -> str:
        return f"{self.workdir} step {self.step(self.voting):,}"

    def rank(self, step: int, split: str, protocol: str = "auto", *, shared: bool = False) -> tuple[Member, Ranking]:
        """What a step makes of a split and its ranks; ``shared``: equal captions are positives of all their images."""
        member, owner, weights = self.member(step, split)
        rows = self.dataset.split(split)
        options = {"protocol": protocol, "weights": weights, "text_id": text_ids(rows), "shared": shared}
        return member, rank_split([member], owner, len(rows), **options)
