"""Checkpoints: Orbax for the arrays, a SHA-256 manifest beside each, readable errors, warm start.

A step counts only when its manifest stands, and that is written last: a flipped bit restores silently otherwise.
Of several processes all take part in a save and in restoring; the first one writes manifests and judges them.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from xmodal_jax.digest import sha256
from xmodal_jax.errors import CheckpointError
from xmodal_jax.training import processes
from xmodal_jax.training.optim import path_name
from xmodal_jax.training.step import TrainState


class Checkpoints:
    """The checkpoints of one run, under ``workdir/checkpoints``; saved in the background.

    Args:
        workdir: folder of the run.
        keep: how many of the latest to keep; the best by dev rsum is kept as well.
    """

    def __init__(self, workdir: Path, *, keep: int = 2, read_only: bool = False):
        self.folder = workdir.absolute() / "checkpoints"
        self.manifests = workdir.absolute() / "manifests"
        latest = LatestN(n=max(keep, 1))
        best = BestN(n=1, get_metric_fn=lambda m: m["rsum"], keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy([latest, best]),
            best_fn=lambda metrics: metrics["rsum"],  # without it Orbax does not write the metrics at all
            create=not read_only,
            read_only=read_only,
            enable_async_checkpointing=not read_only,
            cleanup_tmp_directories=not read_only,
        )
        if read_only and not self.folder.is_dir():
            raise CheckpointError(f"{workdir} holds no checkpoints yet; train there first.")
        names = ("model", "training", "metrics")
        self.manager = ocp.CheckpointManager(self.folder, options=options, item_names=names)
        self.unsealed: int | None = None

    # Saving

    def save(self, state: TrainState, metrics: Mapping[str, float] | None = None) -> None:
        """Start saving ``state`` as its step. Raises CheckpointError where the disk refuses."""
        self.wait()
        step = int(state.step)
        model = {"params": state.params, "ema": state.ema, "model_state": state.model_state}
        training = {"step": state.step, "rng": state.rng, "opt_state": state.opt_state}
        args = ocp.args.Composite(model=ocp.args.StandardSave(model), training=ocp.args.StandardSave(training))
        try:
            self.manager.save(step, args=args, metrics=dict(metrics) if metrics else None, force=True)
        except Exception as error:  # Orbax wraps the file system's errors in many types
            raise self._failed(step, error) from error
        self.unsealed = step

    def wait(self) -> None:
        """Wait for the save under way and seal it with its manifest."""
        if self.unsealed is None:
            return
        step, self.unsealed = self.unsealed, None
        try:
            self.manager.wait_until_finished()
            self.manager.check_for_errors()
            self._seal(step)
        except Exception as error:
            raise self._failed(step, error) from error

    def poll(self) -> None:
        """Seal a save that has finished meanwhile, without waiting for one that has not."""
        if self.unsealed is not None and not self.manager.is_saving_in_progress():
            self.wait()

    def _failed(self, step: int, error: Exception) -> CheckpointError:
        # Other parts of the same save may still be writing in the background.
        for _ in range(20 if processes.first() else 0):
            left = [self.folder / str(step), *self.folder.glob(f"{step}.orbax-checkpoint-tmp*")]
            for folder in left:
                shutil.rmtree(folder, ignore_errors=True)
            time.sleep(0.1)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        safe = [s for s in sorted(self._sealed()) if s != step]
        last = f"step {safe[-1]:,} is the last good one" if safe else "no earlier step is saved"
        return CheckpointError(
            f"Saving step {step:,} to {self.folder} failed ({reason}); {last}. "
            "Free some space or choose another --workdir, then run the same command again."
        )

    def _files(self, step: int) -> dict[str, Path]:
        root = self.folder / str(step)
        return {str(path.relative_to(root)): path for path in sorted(root.rglob("*")) if path.is_file()}

    def _seal(self, step: int) -> None:
        if not processes.first():
            return
        self.manifests.mkdir(exist_ok=True)
        content = {name: sha256(path) for name, path in self._files(step).items()}
        target = self.manifests / f"{step}.json"
        partial = target.with_suffix(".tmp")
        partial.write_text(json.dumps({"step": step, "files": content}, indent=1))
        partial.rename(target)
        alive = set(self.manager.all_steps())
        for path in self.manifests.glob("*.json"):
            if int(path.stem) not in alive:
                path.unlink()

    def _sealed(self) -> set[int]:
        return {int(path.stem) for path in self.manifests.glob("*.json") if path.stem.isdigit()}

    # Restoring

    def steps(self) -> list[int]:
        """Saved steps with a manifest, ascending (files written by another process are seen)."""
        self.manager.reload()
        return sorted(set(self.manager.all_steps()) & self._sealed())

    def best(self) -> int:
        """The step with the highest dev rsum (the latest where none was evaluated).

        Raises:
            CheckpointError: no step is saved.
        """
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"{self.folder.parent} holds no finished checkpoint yet; train there first.")
        rated = [(self.rsum(step), step) for step in steps]
        known = [(rsum, step) for rsum, step in rated if rsum is not None]
        return max(known)[1] if known else steps[-1]

    def rsum(self, step: int) -> float | None:
        """Dev rsum saved with a step, if it was evaluated."""
        path = self.folder / str(step) / "metrics" / "metrics"
        return json.loads(path.read_text())["rsum"] if path.is_file() else None

    def problem(self, step: int) -> str | None:
        """What is wrong with a step's files, None if they match the manifest."""
        try:
            wanted = json.loads((self.manifests / f"{step}.json").read_text())["files"]
        except (OSError, ValueError, KeyError) as error:
            return f"its manifest cannot be read ({type(error).__name__})"
        files = self._files(step)
        if missing := sorted(set(wanted) - set(files)):
            return f"{missing[0]} is missing"
        differing = [name for name, digest in wanted.items() if sha256(files[name]) != digest]
        return f"{differing[0]} differs in SHA-256" if differing else None

    def latest_good(self) -> int | None:
        """The newest step that matches its manifest; newer ones that do not are removed with a warning.

        Raises:
            CheckpointError: there are steps but none is good.
        """
        good = None
        for step in sorted(self.manager.all_steps(), reverse=True) if processes.first() else ():
            problem = self.problem(step)
            if problem is None:
                good = step
                break
            print(f"checkpoint: step {step:,} is not used: {problem}", file=sys.stderr)
        newest = int(processes.agree(-1 if good is None else good)[0])
        for step in self.manager.all_steps():
            if step > newest:
                self.manager.delete(step)
                if processes.first():
                    (self.manifests / f"{step}.json").unlink(missing_ok=True)
        return None if newest < 0 else newest

    def restore_training(self, step: int, like: TrainState) -> TrainState:
        """The whole state of a step, with the structure, dtypes and shardings of ``like``."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        model = {"params": abstract.params, "ema": abstract.ema, "model_state": abstract.model_state}
        training = {"step": abstract.step, "rng": abstract.rng, "opt_state": abstract.opt_state}
        out = self.manager.restore(
            step,
            args=ocp.args.Composite(model=ocp.args.StandardRestore(model), training=ocp.args.StandardRestore(training)),
        )
        m, t = out["model"], out["training"]
        return TrainState(t["step"], m["params"], m["model_state"], t["opt_state"], m["ema"], t["rng"])

    def restore_plain(self, step: int, item: str) -> Any:
        """The ``model`` or ``training`` part of a step as nested dicts and lists of host arrays.

        Raises:
            CheckpointError: the files do not match their manifest.
        """
        problem = self.problem(step)
        if problem:
            raise CheckpointError(f"{self.folder}: step {step:,} cannot be used: {problem}; choose another --step.")
        reader = ocp.StandardCheckpointer()
        path = self.folder / str(step) / item
        metadata: Any = reader.metadata(path).item_metadata
        like = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), metadata.tree)
        return reader.restore(path, like)

    def restore_model(self, step: int) -> dict[str, Any]:
        """``{"params", "ema", "model_state"}`` of a step; see :meth:`restore_plain`."""
        return {"ema": {}, "model_state": {}, **self.restore_plain(step, "model")}

    def close(self) -> None:
        """Finish what is under way and release threads."""
        self.wait()
        self.manager.close()


def flat(tree: Any) -> dict[str, Any]:
    """Leaves by name, ``text_encoder/embed/embedding``."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def warm_start(params: Any, source: Any, *, skip: Sequence[str] = (), where: str = "") -> Any:
    """``params`` with every leaf taken from ``source`` by name, except those that a regex in ``skip`` matches.

    Raises:
        CheckpointError: a parameter that is missing there or has another shape; the message lists all of them.
    """
    have, wanted = flat(source), flat(params)
    keep = {name for name in wanted if any(re.fullmatch(pattern, name) for pattern in skip)}
    problems = [f"{name}: not in the checkpoint" for name in wanted if name not in have and name not in keep]
    problems += [
        f"{name}: {list(np.shape(have[name]))} in the checkpoint, {list(np.shape(leaf))} here"
        for name, leaf in wanted.items()
        if name in have and name not in keep and np.shape(have[name]) != np.shape(leaf)
    ]
    if problems:
        raise CheckpointError(
            f"Cannot start from {where or 'the checkpoint'}: {'; '.join(problems)}. "
            "Leave such parameters at their initial values with --config.init.skip, or match the model's sizes."
        )
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if path_name(path) in keep else jax.numpy.asarray(have[path_name(path)], leaf.dtype),
        params,
    )
