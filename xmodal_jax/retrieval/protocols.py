"""Which images are ranked together: the whole split, or five folds of 1,000 images as on COCO."""

from __future__ import annotations

import numpy as np

from xmodal_jax.errors import UsageError

FOLDS, FOLD = 5, 1000


def choose(protocol: str, n_images: int) -> tuple[list[np.ndarray], str]:
    """Image rows of every gallery to rank, and a sentence that says what was chosen and why.

    ``fold5`` is the mean over five consecutive folds of 1,000 images with their own captions (COCO "1K"); ``full``
    ranks the whole split (COCO "5K"); ``auto`` takes fold5 exactly when the split has 5,000 images.

    Raises:
        UsageError: fold5 on a split of another size, or an unknown protocol.
    """
    everything = [np.arange(n_images)]
    needed = FOLDS * FOLD
    folds = [np.arange(start, start + FOLD) for start in range(0, needed, FOLD)]
    if protocol == "full":
        return everything, f"full: all {n_images:,} images ranked together, as asked"
    if protocol == "fold5":
        if n_images != needed:
            raise UsageError(f"fold5 needs {needed:,} images, this split has {n_images:,}; use --protocol full.")
        return folds, f"fold5: mean over {FOLDS} folds of {FOLD:,} images, as asked"
    if protocol != "auto":
        raise UsageError(f'No protocol "{protocol}"; there are auto, full, fold5.')
    if n_images == needed:
        return folds, f"fold5: mean over {FOLDS} folds of {FOLD:,} images, chosen because the split has {needed:,}"
    return everything, f"full: all {n_images:,} images ranked together, chosen because the split is not of {needed:,}"
