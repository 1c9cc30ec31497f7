"""Services that show the metrics of runs beside their log, by ``config.log.tracker``; imported only where asked for."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from xmodal_jax import config as configs
from xmodal_jax import digest
from xmodal_jax.errors import UsageError, require
from xmodal_jax.types import Config

PROJECT = "xmodal_jax"  # where WANDB_PROJECT names no other
FILE = "tracker.json"  # of a run folder: the id that a resumed run goes on with


class Wandb:
    """Weights & Biases. A run keeps its id when it is resumed; steps that are run again are not sent again."""

    def __init__(self, workdir: Path, config: Config, start: int):
        wandb: Any = importlib.import_module("wandb")
        path, known = workdir / FILE, {}
        if start > 0 and path.is_file():
            try:
                known = {"id": json.loads(path.read_text(encoding="utf-8"))["wandb"], "resume": "allow"}
            except (ValueError, KeyError, TypeError, RecursionError):
                print(f"{path} is damaged; the run goes on under a new id.", file=sys.stderr)
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        flat = configs.flatten(config)
        try:
            self.run: Any = wandb.init(project=project, name=workdir.name, dir=str(workdir), config=flat, **known)
        except Exception as error:  # no network, no key, a service that says no: wandb has errors of many types
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UsageError(
                f"wandb cannot start ({reason}); run `wandb login`, set WANDB_MODE=offline, or leave out "
                "--config.log.tracker."
            ) from error
        digest.write(path, json.dumps({"wandb": self.run.id}) + "\n")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


TRACKERS: Mapping[str, Callable[[Path, Config, int], Wandb]] = {"wandb": Wandb}


def check(config: Config) -> None:
    """Raise a UsageError where the tracker is asked for and its package is missing."""
    if name := config.log.get("tracker", ""):
        require(name, name)


class Tracker:
    """The tracker of a run, or nothing. What goes wrong after the start is said once and does not stop the training."""

    def __init__(self, workdir: Path, config: Config, start: int):
        name = config.log.get("tracker", "")
        self.service = TRACKERS[name](workdir, config, start) if name else None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._try(lambda service: service.write(step, values))

    def close(self, failed: bool) -> None:
        self._try(lambda service: service.close(failed))

    def _try(self, act: Callable[[Wandb], None]) -> None:
        if self.service is None:
            return
        try:
            act(self.service)
        except Exception as error:
            self.service = None
            print(f"warning: tracking ends ({error}); metrics.jsonl has all of it.", file=sys.stderr)
