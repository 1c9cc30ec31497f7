"""Checkpoints: Orbax for the arrays, a SHA-256 manifest beside each, readable errors, warm start.

A step counts only when its manifest stands, and that is written last: a flipped bit restores silently otherwise.
Of several processes all take part in a save and in restoring; the first one writes manifests and judges them.
"""

from __future__ import annotations

import hashlib
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

from xmodal_jax import digest
from xmodal_jax.errors import CheckpointError
from xmodal_jax.training import processes
from xmodal_jax.training.optim import path_name
from xmodal_jax.training.step import TrainState

METRICS = "metrics/metrics"  # of a step: what it reached on dev
REMOVED = "removed"  # where steps go first: a rename is whole, and a kill while one is deleted leaves no half of it
NUMBER = re.compile(r"0|[1-9][0-9]*")


class Checkpoints:
    """The checkpoints of one run, under ``workdir/checkpoints``; saved in the background.

    Args:
        workdir: folder of the run.
        keep: how many of the latest to keep; the best by dev rsum is kept as well.
    """

    def __init__(self, workdir: Path, *, keep: int = 2, read_only: bool = False):
        self.folder = workdir.absolute() / "checkpoints"
        self.manifests = workdir.absolute() / "manifests"
        self.unsealed: int | None = None
        self.manager: Any = None
        if read_only:  # without Orbax's manager, which would start threads
            if not self.folder.is_dir():
                raise CheckpointError(f"{workdir} holds no checkpoints yet; train there first.")
            return
        try:
            self.folder.mkdir(exist_ok=True)
            self.manifests.mkdir(exist_ok=True)
        except OSError as error:
            raise digest.refused(Path(error.filename), error) from error
        self._clean()
        latest = LatestN(n=max(keep, 1))
        best = BestN(n=1, get_metric_fn=lambda m: m["rsum"], keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy([latest, best]),
            best_fn=lambda metrics: metrics["rsum"],  # without it Orbax does not write the metrics at all
            create=True,
            enable_async_checkpointing=True,
            todelete_subdir=REMOVED,
            cleanup_tmp_directories=False,  # its thread may outlive a start that is refused
        )
        names = ("model", "training", "metrics")
        self.manager = ocp.CheckpointManager(self.folder, options=options, item_names=names)

    def _clean(self) -> None:
        """Remove what a kill left of a save, and steps of damaged metrics: the choice of the best hangs on them."""
        if processes.first() and self.folder.is_dir():
            for folder in (*self.folder.glob("*.orbax-checkpoint-tmp*"), self.folder / REMOVED):
                shutil.rmtree(folder, ignore_errors=True)
            for step in self._present():
                try:
                    self.metrics(step)
                except CheckpointError as error:
                    print(f"checkpoint: step {step:,} is removed: {error}", file=sys.stderr)
                    digest.remove(self.manifests / f"{step}.json")
                    shutil.rmtree(self.folder / str(step), ignore_errors=True)
        processes.wait("checkpoints cleaned")

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
        if processes.first():
            for old in self._sealed() - set(self.manager.all_steps()):
                digest.remove(self.manifests / f"{old}.json")
            shutil.rmtree(self.folder / REMOVED, ignore_errors=True)

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
        reason = digest.full(error) or (str(error).strip() or type(error).__name__).splitlines()[0]
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
        content = {name: digest.sha256(path) for name, path in self._files(step).items()}
        digest.write(self.manifests / f"{step}.json", json.dumps({"step": step, "files": content}, indent=1))

    def _sealed(self) -> set[int]:
        return {int(path.stem) for path in self.manifests.glob("*.json") if NUMBER.fullmatch(path.stem)}

    def _present(self) -> set[int]:
        return {int(path.name) for path in self.folder.iterdir() if NUMBER.fullmatch(path.name) and path.is_dir()}

    # Restoring

    def steps(self) -> list[int]:
        """Saved steps with a manifest, ascending (files written by another process are seen)."""
        return sorted(self._present() & self._sealed())

    def best(self) -> int:
        """The step with the highest dev rsum (the latest where none was evaluated).

        Raises:
            CheckpointError: no step is saved, or the metrics of one are damaged.
        """
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"{self.folder.parent} holds no finished checkpoint yet; train there first.")
        try:
            rated = [(self.rsum(step), step) for step in steps]
        except CheckpointError as error:
            raise CheckpointError(
                f"{self.folder}: the best step is not known, {error}; name a sound step with --step."
            ) from None
        known = [(rsum, step) for rsum, step in rated if rsum is not None]
        return max(known)[1] if known else steps[-1]

    def rsum(self, step: int) -> float | None:
        """Dev rsum saved with a step, if it was evaluated."""
        return self.metrics(step).get("rsum")

    def reached(self, step: int) -> str:
        """``dev rsum 312.4 on 1,000 images``; empty where the step was not evaluated."""
        metrics = self.metrics(step)
        where = f" on {metrics['images']:,.0f} images" if "images" in metrics else ""
        return f"dev rsum {metrics['rsum']:.1f}{where}" if metrics else ""

    def metrics(self, step: int) -> dict[str, float]:
        """What a step reached on dev, {} where it was not evaluated.

        Raises:
            CheckpointError: its metrics or its manifest are damaged.
        """
        wanted, path = self._manifest(step).get(METRICS), self.folder / str(step) / METRICS
        try:
            raw = path.read_bytes() if path.is_file() else None
        except OSError as error:  # a training may have removed it meanwhile
            raise CheckpointError(f"{METRICS} of step {step:,} cannot be read ({error.strerror})") from None
        if (None if raw is None else hashlib.sha256(raw).hexdigest()) != wanted:
            raise CheckpointError(f"{METRICS} of step {step:,} differs in SHA-256")
        return json.loads(raw) if raw is not None else {}

    def _manifest(self, step: int) -> dict[str, str]:
        """SHA-256 by name of the files of a step. Raises CheckpointError where its manifest is damaged or another's."""
        try:
            content = json.loads((self.manifests / f"{step}.json").read_text())
            whose, files = content["step"], dict(content["files"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(f"the manifest of step {step:,} cannot be read ({type(error).__name__})") from None
        if whose != step:
            raise CheckpointError(f"the manifest of step {step:,} belongs to step {whose}")
        return files

    def problem(self, step: int) -> str | None:
        """What is wrong with a step's files, None if they match the manifest."""
        try:
            wanted, files = self._manifest(step), self._files(step)
            if missing := sorted(set(wanted) - set(files)):
                return f"{missing[0]} is missing"
            differing = [name for name, known in wanted.items() if digest.sha256(files[name]) != known]
        except CheckpointError as error:
            return str(error)
        except OSError as error:  # a training may have removed it meanwhile
            return f"{error.filename} cannot be read ({error.strerror})"
        return f"{differing[0]} differs in SHA-256" if differing else None

    def latest_good(self) -> int | None:
        """The newest step that matches its manifest, None where none does; newer ones are removed with a warning."""
        good = None
        for step in sorted(self._present(), reverse=True) if processes.first() else ():
            problem = self.problem(step)
            if problem is None:
                good = step
                break
            print(f"checkpoint: step {step:,} is not used: {problem}", file=sys.stderr)
        newest = int(processes.agree(-1 if good is None else good)[0])
        for step in self.manager.all_steps() if self.manager else ():
            if step > newest:
                self.manager.delete(step)
                if processes.first():
                    digest.remove(self.manifests / f"{step}.json")
        return None if newest < 0 else newest

    def restore_training(self, step: int, like: TrainState) -> TrainState:
        """The whole state of a step, with the structure, dtypes and shardings of ``like``."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        model = {"params": abstract.params, "ema": abstract.ema, "model_state": abstract.model_state}
        training = {"step": abstract.step, "rng": abstract.rng, "opt_state": abstract.opt_state}
        args = ocp.args.Composite(model=ocp.args.StandardRestore(model), training=ocp.args.StandardRestore(training))
        try:
            out = self.manager.restore(step, args=args)
        except Exception as error:  # Orbax raises what it likes on a tree of another shape
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CheckpointError(f"{self.folder}: step {step:,} is not of this system ({reason}).") from error
        m, t = out["model"], out["training"]
        return TrainState(t["step"], m["params"], m["model_state"], t["opt_state"], m["ema"], t["rng"])

    def restore_plain(self, step: int, item: str) -> Any:
        """The ``model`` or ``training`` part of a step as nested dicts and lists of host arrays.

        Raises:
            CheckpointError: the files do not match their manifest, or a training removes them while they are read.
        """
        problem = self.problem(step)
        if problem:
            raise CheckpointError(f"{self.folder}: step {step:,} cannot be used: {problem}; choose another --step.")
        path = self.folder / str(step) / item
        try:
            with ocp.StandardCheckpointer() as reader:
                metadata: Any = reader.metadata(path).item_metadata
                like = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), metadata.tree)
                return reader.restore(path, like)
        except Exception as error:  # Orbax raises what it likes where files go while it reads them
            if (now := self.problem(step)) is None:
                raise
            raise CheckpointError(
                f"{self.folder}: step {step:,} was removed while it was read ({now}); choose another --step."
            ) from error

    def restore_model(self, step: int) -> dict[str, Any]:
        """``{"params", "ema", "model_state"}`` of a step; see :meth:`restore_plain`."""
        return {"ema": {}, "model_state": {}, **self.restore_plain(step, "model")}

    def close(self) -> None:
        """Finish what is under way and release threads."""
        try:
            self.wait()
        finally:
            if self.manager:
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
