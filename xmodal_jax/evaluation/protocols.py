"""Which images are ranked together: the whole split, or COCO's five folds of 1,000 images."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from xmodal_jax.errors import UsageError

FOLDS = 5


def choose(protocol: str, n_images: int, *, fold: int = 1000) -> tuple[list[Int[np.ndarray, " n"]], str]:
    """The image indices of each fold, in order, and a sentence on what was chosen and why.

    ``full`` is one fold of all images. ``fold5`` is "COCO 1K" as VSE++ and its followers report it: five consecutive
    folds of ``fold`` images, each with its own captions, whose metrics are averaged. ``auto`` takes ``fold5`` exactly
    where the split has five folds of images.

    Raises:
        UsageError: an unknown protocol, or ``fold5`` on a split of another size.
    """
    needed = FOLDS * fold
    if protocol not in ("auto", "full", "fold5"):
        raise UsageError(f'No protocol "{protocol}"; choose auto, full or fold5.')
    if protocol == "fold5" and n_images != needed:
        raise UsageError(
            f"Protocol fold5 needs exactly {needed:,} images ({FOLDS} folds of {fold:,}), this split has {n_images:,}; "
            "use full, or another split."
        )
    asked = "as asked"
    if protocol == "auto":
        protocol = "fold5" if n_images == needed else "full"
        asked = f"auto, which takes five folds exactly where a split has {needed:,} images"
    if protocol == "fold5":
        folds = list(np.arange(n_images).reshape(FOLDS, fold))
        return folds, f"fold5: mean over {FOLDS} consecutive folds of {fold:,} images ({asked})"
    return [np.arange(n_images)], f"full: all {n_images:,} images ranked together ({asked})"
