"""From a run to what can be searched: its bundle, and a split indexed with it."""

from __future__ import annotations

import shutil
from pathlib import Path

from xmodal_jax.evaluation.run import Run
from xmodal_jax.export.run import export_run
from xmodal_jax.inference import index, load
from xmodal_jax.training.bundle import MANIFEST

BUNDLE, GALLERY = "bundle", "gallery"


def make(run: Run, step: int, split: str, root: Path) -> Path:
    """Export a step of a run to ``root/bundle`` and index a split in ``root/gallery``, whose path is returned.

    What an earlier call made there is replaced.
    """
    for name in (BUNDLE, GALLERY, f"{GALLERY}.partial"):
        shutil.rmtree(root / name, ignore_errors=True)
    export_run(run, step, root / BUNDLE)
    bundle = load(root / BUNDLE)
    items = index.items_of(run.dataset.directory, split, list(bundle.features), bundle.reading)
    index.build(root / GALLERY, bundle, items)
    return root / GALLERY


def of_run(workdir: Path, split: str | None = None) -> Path:
    """The gallery of a run's best step and a split, by default "test" where there is one; made on the first call.

    It lies in ``workdir/served``.

    Raises:
        UsageError, DataError, CheckpointError: the folder is no run that can be evaluated, or lacks the split.
    """
    run = Run(workdir)
    step = run.checkpoints.best()
    split = split or ("test" if "test" in run.dataset.splits else run.dataset.splits[-1])
    run.dataset.split(split)
    root = workdir / "served" / f"{split}-{step}"
    if not (root / GALLERY / MANIFEST).is_file():
        root.mkdir(parents=True, exist_ok=True)
        print(f"serve: exporting step {step:,} of {workdir} and indexing {split}, once", flush=True)
        make(run, step, split, root)
    return root / GALLERY
