"""What a run says: JSONL always, TensorBoard and a tracker where asked, the parameter overview, collapse in words."""

from __future__ import annotations

import json
import sys
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xmodal_jax import digest
from xmodal_jax.errors import CheckpointError, NumericError
from xmodal_jax.training.trackers import Tracker
from xmodal_jax.types import Config

METRICS, CHECK = "metrics.jsonl", "crc"  # the file, and the key of the checksum of a line
FINISHED = "finished.json"  # beside it, once the run has ended: its last step, and how many lines the log has then


class Log:
    """Metrics of a run, one JSON object a line in ``workdir/metrics.jsonl``; use as a context manager.

    On resume, lines later than the step that the run goes on from are dropped: those steps are run again. A log that is
    not ``active`` reads and writes nothing: one of several processes is enough.
    """

    def __init__(self, workdir: Path, config: Config, start: int, params: Any, *, active: bool = True):
        self.path = workdir / METRICS
        self.began, self.first, self.last = time.monotonic(), start, (start, time.monotonic())
        self.active, self.writer, self.tracker = active, None, None
        if not active:
            return
        kept = [line for line in read(self.path) if line["step"] <= start]
        digest.write(self.path, "".join(map(text_of, kept)))
        self.began -= kept[-1].get("wall_s", 0.0) if kept else 0.0  # the clock of a resumed run goes on
        if start == 0:
            overview(params, workdir / "parameters.txt")
        if config.log.tensorboard:
            from clu import metric_writers

            self.writer = metric_writers.SummaryWriter(str(workdir / "tensorboard"))
        self.tracker = Tracker(workdir, config, start)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.writer is not None:
            self.writer.close()
        if self.tracker is not None:
            self.tracker.close(failed=kind is not None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append a line with the step, the wall time and the mean time of the steps since the last line."""
        if not self.active:
            return
        now = time.monotonic()
        extra = {"wall_s": round(now - self.began, 3)}
        if step > self.last[0]:
            extra["step_s"] = round((now - self.last[1]) / (step - self.last[0]), 5)
            self.last = (step, now)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text_of({"step": step, **extra, **values}))
        except OSError as error:
            raise digest.refused(self.path, error) from error
        if self.writer is not None:
            self.writer.write_scalars(step, {**extra, **values})
        if self.tracker is not None:
            self.tracker.write(step, {**extra, **values})


def text_of(line: Mapping[str, Any]) -> str:
    """A line of a metrics file, with the CRC-32 of the rest of it: a digit that flips is another figure otherwise."""
    return json.dumps({**line, CHECK: zlib.crc32(json.dumps(line).encode())}) + "\n"


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a last line that a kill cut short is left out.

    Raises:
        CheckpointError: another line is damaged, or a run that has finished had more of them.
    """
    texts = path.read_bytes().split(b"\n") if path.is_file() else []
    lines = []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
            check = line.pop(CHECK, None)  # lines of an earlier version have none
            if check is not None and check != zlib.crc32(json.dumps(line).encode()):
                raise ValueError
            lines.append({**line, "step": int(line["step"])})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
            if number < len(texts):
                raise CheckpointError(
                    f"{path} is damaged in line {number:,}; remove the line, or restore the file from a copy."
                ) from None
    if (known := finished_lines(path.with_name(FINISHED))) > len(lines):
        raise CheckpointError(
            f"{path} has {len(lines):,} of the {known:,} lines that it had when the run ended; restore it from a copy, "
            f"or remove {FINISHED} to go on without them."
        )
    return lines


def finished_lines(path: Path) -> int:
    """How many lines the log of a run had when that ended; 0 before, and of an earlier version."""
    try:
        return int(json.loads(path.read_bytes()).get("lines", 0)) if path.is_file() else 0
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, OverflowError):
        raise CheckpointError(f"{path} is damaged; train again in its folder, which takes no time.") from None


def overview(params: Any, path: Path) -> None:
    """Write clu's table of parameters to ``path`` and print their number."""
    import jax

    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{total:,} parameters in {len(jax.tree.leaves(params))} arrays, listed in {path}")
    try:
        from clu import parameter_overview
    except ImportError:  # clu is in the extra "train"; the table is a convenience
        return
    digest.write(path, parameter_overview.get_parameter_overview(params) + "\n")


def plateau(loss: Mapping[str, Any]) -> float:
    """What a pair costs where all scores are equal and the hardest negatives count: one hinge of the margin each way,
    2 * margin ** hinge_power."""
    return 2.0 * loss["margin"] ** loss.get("hinge_power", 1.0)


class CollapseDetector:
    """Watches for the plateau of hardest-negative training, where all scores are equal, see :func:`plateau`.

    Margin and power are those of the step, as stages may change them, or of the config where the step has none. Warns
    after ``collapse.warn_steps`` steps within 0.1 % of it, once, and stops after ``collapse.stop_steps``.
    """

    def __init__(self, config: Config):
        self.warn, self.stop = config.collapse.warn_steps, config.collapse.stop_steps
        self.loss, self.stuck, self.warned = dict(config.loss), 0, False

    def see(self, step: int, metrics: Mapping[str, float]) -> None:
        """Count a step. Raises NumericError where training has not left the plateau for ``stop_steps``."""
        loss = {**self.loss, **metrics}
        level, power = plateau(loss), loss.get("hinge_power", 1.0)
        per_pair = metrics.get("loss_per_pair")
        on_it = per_pair is not None and abs(per_pair - level) <= 1e-3 * level and metrics.get("hardness") == 1.0
        self.stuck = self.stuck + 1 if on_it else 0
        text = (
            f"Loss has been within 0.1 % of 2 * margin{'' if power == 1 else f' ** {power:g}'} a pair for "
            f"{self.stuck:,} steps (step {step:,}): embeddings have collapsed (own pairs score "
            f"{metrics.get('score_positive', 0):.4f}, hardest negatives {metrics.get('score_hardest', 0):.4f}). Try "
            "--config.loss.warmup_epochs=1 (sum of hinges first) or a lower rate."
        )
        if self.stop and self.stuck >= self.stop:
            raise NumericError(text)
        if self.warn and self.stuck >= self.warn and not self.warned:
            self.warned = True
            print(f"warning: {text}", file=sys.stderr)
