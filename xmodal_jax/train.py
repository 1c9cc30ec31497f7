"""The training loop. Order of a step, always: next batch, update, account for the step before, evaluate, save."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from xmodal_jax import config as configs
from xmodal_jax import digest
from xmodal_jax.errors import SAVED_ON_SIGNAL, NumericError
from xmodal_jax.evaluation.encode import Evaluator
from xmodal_jax.progress import Progress
from xmodal_jax.training import processes, setup
from xmodal_jax.training.groups import start_groups
from xmodal_jax.training.log import FINISHED, METRICS, CollapseDetector, Log, read
from xmodal_jax.training.optim import live_leaves
from xmodal_jax.training.parallel import local
from xmodal_jax.training.step import TrainState, make_state, train_step


class Trainer:
    """The loop over the parts of a run; :meth:`run` is all there is to it."""

    def __init__(self, parts: setup.Parts):
        self.parts, self.config, self.workdir = parts, parts.config, parts.workdir
        self.stages, self.runner, self.initial = parts.stages, parts.runner, parts.initial
        self.checkpoints = parts.checkpoints
        self.evaluator = Evaluator(parts.model, batch_size=parts.config.eval.batch_size)
        self.signal: int | None = None  # that this process was sent
        self.stop = False  # a signal was sent, to this process or another, and all know of it

    def optimiser(self, stage: setup.Stage) -> Any:
        return setup.stage_optimiser(stage, self.initial.params)

    def compile(self, stage: setup.Stage) -> Any:
        """The device step of a stage."""
        objective = setup.make_objective(stage.config, stage.pipeline.steps_per_epoch, self.runner.mesh)
        options = {"model": self.parts.model, "objective": objective, "optimiser": self.optimiser(stage)}
        live = live_leaves(stage.config.optim, self.initial.params)
        step = partial(train_step, **options, live=live, stage_start=stage.start, ema_decay=self.config.ema)
        return self.runner.compile(step)

    def stage_of(self, step: int) -> setup.Stage:
        """The stage that performed (or, at 0, will perform) the update which led to ``step``."""
        return next((s for s in self.stages if step <= s.stop), self.stages[-1])

    def restore(self) -> TrainState:
        """The newest good checkpoint, or the initial state with its warm start."""
        step = self.checkpoints.latest_good()
        stage = self.stage_of(step or 0)
        initial = self.initial
        if step is None and self.parts.resumed:
            initial = setup.start_values(self.config, self.parts.model, self.parts.vocabulary, initial)
            initial = start_groups(initial, self.parts.model, stage.pipeline.reader, self.config.seed)
        state = make_state(initial, self.optimiser(stage), self.config.seed, self.config.ema)
        if step is None:
            return state
        state = self.checkpoints.restore_training(step, state)
        print(f"resumed step {step:,} (epoch {stage.epoch(step):.2f}): nothing repeated, nothing skipped")
        return state

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """Recall on dev of the averaged weights where there are any."""
        local_state = local(self.runner.get_state(state))
        weights = "ema" if self.config.ema else "raw"
        variables = {"params": local_state.ema if self.config.ema else local_state.params, **local_state.model_state}
        result = self.evaluator.table(
            variables, self.parts.dev, self.parts.dev_captions, protocol="full", weights=weights, quiet=True, draws=0
        )
        sides = (("i2t", result.i2t), ("t2i", result.t2i))
        flat = {f"{way}_r{k}": getattr(side, f"r{k}") for way, side in sides for k in (1, 5, 10)}
        values = {"rsum": result.rsum, **flat, "images": self.parts.dev.count}
        # The first process decides: on other hardware, scores may differ in their last bits.
        return dict(zip(values, processes.agree(list(values.values())).tolist(), strict=True))

    def due(self, step: int, every: int, stage: setup.Stage) -> bool:
        return step > stage.start and (step == stage.stop or (every > 0 and step % every == 0))

    def run(self) -> int:
        """Train to the end, or until a signal asks to stop. Returns the exit code."""
        state = self.restore()
        first, last = int(state.step), self.stages[-1].stop
        collapse = CollapseDetector(self.config)
        with (
            Log(self.workdir, self.config, first, self.initial.params, active=processes.first()) as log,
            Progress("train", last, unit="steps", start=first) as progress,
            caught_signals(self),
        ):
            device = self.runner.put_state(state)
            for stage in self.stages:
                if first >= stage.stop:
                    continue
                if stage.start > 0 and first <= stage.start and not stage.config.keep_optimiser:
                    fresh = self.optimiser(stage).init(self.runner.get_state(device).params)
                    device = self.runner.put_state(self.runner.get_state(device)._replace(opt_state=fresh))
                update, per_epoch = self.compile(stage), stage.pipeline.steps_per_epoch
                evaluate_every = self.config.eval.every_steps or max(
                    round(self.config.eval.every_epochs * per_epoch), 1
                )
                batches = self.batches(stage, max(first, stage.start))
                pending: tuple[int, Any, Any] | None = None
                for step in range(max(first, stage.start), stage.stop):
                    device, metrics = update(device, next(batches))
                    stop = processes.anyone(self.signal is not None)
                    if pending is not None:
                        self.account(stage, pending, log, progress, collapse)
                    pending = (step + 1, metrics, stop)
                    self.checkpoints.poll()
                    evaluated = None
                    due = self.due(step + 1, evaluate_every, stage)
                    if due:
                        self.account(stage, pending, log, progress, collapse)
                        pending = None
                    learns = any(stage.config.weights.get(name) for name in self.parts.model.rank_terms)
                    if due and learns:  # what does not rank has no recall to choose by
                        evaluated = self.evaluate(device)
                        log.write(step + 1, {f"dev_{name}": value for name, value in evaluated.items()})
                        progress.note(f"dev rsum {evaluated['rsum']:.1f} on {self.parts.dev.count:,} images")
                    if self.stop or due or self.due(step + 1, self.config.checkpoint.every_steps, stage):
                        if pending is not None:
                            self.account(stage, pending, log, progress, collapse)
                            pending = None
                        self.checkpoints.save(self.runner.get_state(device), evaluated)
                    if self.stop:
                        self.checkpoints.wait()
                        print(f"asked to stop: saved step {step + 1:,}; run the same command again to go on")
                        return SAVED_ON_SIGNAL
            self.checkpoints.wait()
        if processes.first():
            ended = {"step": last, "lines": len(read(self.workdir / METRICS))}
            digest.write(self.workdir / FINISHED, json.dumps(ended) + "\n")
        return 0

    def batches(self, stage: setup.Stage, start: int) -> Iterator[Any]:
        """Device batches of the rest of a stage, one ahead of the step so that the copy overlaps the computation."""
        ahead: list[Any] = []
        for batch in stage.pipeline.batches(start, stage.stop):
            ahead.append(self.runner.put_batch(batch))
            if len(ahead) > 1:
                yield ahead.pop(0)
        yield from ahead

    def account(
        self,
        stage: setup.Stage,
        pending: tuple[int, Any, Any],
        log: Log,
        progress: Progress,
        collapse: CollapseDetector,
    ) -> None:
        """Read the metrics of a step, write them, and stop on what cannot be trained further."""
        step, metrics = pending[0], {name: float(value) for name, value in self.runner.read(pending[1]).items()}
        self.stop = bool(pending[2])
        progress.advance(1, f"loss {metrics['loss']:.3f}")
        if not metrics["finite"]:
            pipeline = stage.pipeline
            ids = [pipeline.reader.split.ids[i] for i in pipeline.plan(step - 1).image[:3]]
            raise NumericError(
                f"Loss or gradient of step {step:,} is not finite (loss {metrics['loss']}, gradient norm "
                f"{metrics['grad_norm']}; its batch begins with images {', '.join(ids)}); parameters were left as "
                "before it. Check the features with `xmodal data check`, or use a lower rate (--config.optim.lr)."
            )
        collapse.see(step, metrics)
        if step % self.config.log.every_steps == 0:
            extra = {"lr": self.rate(stage, step), "waited_s": stage.pipeline.waited, "epoch": stage.epoch(step)}
            if skipped := stage.pipeline.reader.skipped:
                extra["skipped"] = len(skipped)
            log.write(step, {**metrics, **extra})

    def rate(self, stage: setup.Stage, step: int) -> float:
        """The learning rate of the update that led to ``step``; rules multiply it."""
        fresh = [s.start for s in self.stages if s.start <= stage.start and not (s.start and s.config.keep_optimiser)]
        rate: Any = setup.schedule_of(stage)(step - 1 - fresh[-1])
        return float(rate)


class caught_signals:
    """While active, SIGTERM and SIGINT only note themselves in ``trainer.signal``; the loop then saves and leaves.

    Schedulers send SIGTERM more than once; only a second SIGINT interrupts.
    """

    def __init__(self, trainer: Trainer):
        self.trainer, self.before = trainer, {}

    def __enter__(self) -> None:
        def note(number: int, _: Any) -> None:
            if number == self.trainer.signal == signal.SIGINT:
                raise KeyboardInterrupt  # asked twice at the keyboard: the user does not want to wait
            if self.trainer.signal is None:
                print(f"signal {number}: saving after this step ...", file=sys.stderr, flush=True)
            self.trainer.signal = number

        for number in (signal.SIGTERM, signal.SIGINT):
            self.before[number] = signal.signal(number, note)

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def main(args: argparse.Namespace) -> int:
    """`xmodal train`: start a run, or go on with the one in ``--workdir``; alone or as one of several processes."""
    processes.join(args.distributed)
    with processes.together():
        return train(args)


def train(args: argparse.Namespace) -> int:
    """`xmodal train` in one process."""
    config = configs.load(args.config, args.overrides, args.data)
    began = time.monotonic()
    parts = setup.setup(config, Path(args.workdir))
    try:
        trainer = Trainer(parts)
        code = trainer.run()
    finally:
        parts.close()
    skipped = len(parts.stages[0].pipeline.reader.skipped)
    if skipped:
        print(f"{skipped:,} picture{'s' * (skipped > 1)} of the training {'were' if skipped > 1 else 'was'} skipped")
    if code == 0 and processes.first():
        best = trainer.checkpoints.best()
        chosen = trainer.checkpoints.reached(best)
        ended = f"finished step {trainer.stages[-1].stop:,} in {time.monotonic() - began:.0f} s"
        print(f"{ended}; {f'best {chosen}' if chosen else 'nothing ranked'}")
        print(f"next: xmodal eval --workdir {args.workdir} --split test")
    return code
