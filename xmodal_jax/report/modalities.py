"""Where the images and captions of a run lie: t-SNE of both as a picture, with how far the two modalities are apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from xmodal_jax import digest
from xmodal_jax.errors import DataError, UsageError, require
from xmodal_jax.evaluation.run import Run
from xmodal_jax.losses import modality
from xmodal_jax.report.curves import BLUE, INK, ORANGE, PAPER

MOST, JOINED, LEAST = 1000, 40, 10  # images drawn, each with one caption; pairs joined; images that a map needs
FOLDS = 5


class Distance(NamedTuple):
    """How far images and captions are apart in their own space."""

    gap: float  # between the means
    mmd: float  # squared maximum mean discrepancy
    probe: float  # share of held-out items whose modality a linear classifier tells; 0.5 is chance


def vectors(representation: Any, run: Run) -> Float[np.ndarray, "n d"]:
    """The one vector of each item. Raises a UsageError where a system gives more."""
    leaves = jax.tree.leaves(representation)
    if len(leaves) != 1 or leaves[0].ndim != 2:
        raise UsageError(
            f'The system "{run.config.model.name}" of {run.workdir} gives an item more than one vector; --modalities '
            "draws systems of one vector an image and a caption."
        )
    return np.asarray(leaves[0], np.float32)


def chosen_pairs(owner: Int[np.ndarray, " c"], seed: int, most: int = MOST) -> tuple[np.ndarray, np.ndarray]:
    """(images, a caption of each): at most ``most`` images that have captions, at random."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(owner))
    images, first = np.unique(owner[order], return_index=True)
    keep = np.sort(random.permutation(len(images))[:most])
    return images[keep], order[first[keep]]


def distance(image: Float[np.ndarray, "n d"], text: Float[np.ndarray, "n d"], seed: int) -> Distance:
    """The three measures of as many images as captions; the probe is a cross-validated logistic regression."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    real = np.ones(len(image), bool)
    gap, mmd = (float(measure(image, text, real, real)) for measure in (modality.gap, modality.mmd))
    both, label = np.concatenate([image, text]), np.repeat([1, 0], len(image))
    pair = np.tile(np.random.default_rng(seed).permutation(len(image)), 2)  # of which none is split between the folds
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    right = cross_val_score(probe, both, label, groups=pair, cv=GroupKFold(FOLDS))
    return Distance(gap, mmd, float(right.mean()))


def places(both: Float[np.ndarray, "n d"], seed: int) -> Float[np.ndarray, "n 2"]:
    """t-SNE (van der Maaten and Hinton, JMLR 9, 2008) of both modalities together, by cosine distance."""
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(both) - 1) / 3)
    options = {"metric": "cosine", "init": "random", "learning_rate": "auto", "random_state": seed}
    return TSNE(2, perplexity=perplexity, **options).fit_transform(both)


def draw(run: Run, step: int, split: str, path: Path, *, seed: int = 0) -> Distance:
    """Write the picture to ``path`` and its numbers beside it, as JSON.

    Raises:
        UsageError: a system without one vector an item, or scikit-learn or Matplotlib is not installed.
        DataError: the split has too few images with captions.
    """
    require("matplotlib", "train")
    require("sklearn", "fisher")
    member, owner, _ = run.member(step, split)
    image_of, text_of = chosen_pairs(owner, seed)
    if len(image_of) < LEAST:
        raise DataError(f"{split} has {len(image_of)} images with captions; --modalities needs {LEAST} of them.")
    image, text = vectors(member.images, run)[image_of], vectors(member.texts, run)[text_of]
    found, place = distance(image, text, seed), places(np.concatenate([image, text]), seed)
    about = f"{run.workdir.name}, step {step:,}, {split}"
    picture(place, found, path, about=about, seed=seed)
    ids = run.dataset.split(split).ids
    content = {
        "workdir": str(run.workdir),
        "step": step,
        "split": split,
        "seed": seed,
        **found._asdict(),
        "images": [ids[i] for i in image_of],
        "captions": text_of.tolist(),
        "image_places": np.round(place[: len(image)], 4).tolist(),
        "caption_places": np.round(place[len(image) :], 4).tolist(),
    }
    digest.write(path.with_suffix(".json"), json.dumps(content, indent=1, allow_nan=False) + "\n")
    return found


def picture(place: Float[np.ndarray, "n 2"], found: Distance, path: Path, *, about: str, seed: int) -> None:
    """Images and captions in two colours, in random order so that neither covers the other; some pairs joined."""
    from matplotlib.figure import Figure

    count, random = len(place) // 2, np.random.default_rng(seed)
    colours, order = np.repeat([BLUE, ORANGE], count), random.permutation(len(place))
    joined = np.sort(random.permutation(count)[: min(JOINED, count // 4)])
    figure = Figure(figsize=(8, 8), layout="constrained", facecolor=PAPER)
    axes = figure.subplots()
    axes.scatter(*place[order].T, s=9, c=colours[order], alpha=0.55, linewidths=0)
    for number, pair in enumerate(joined):
        ends = place[[pair, pair + count]]
        label = f"an image and its caption, {len(joined)} of {count:,}" if number == 0 else None
        axes.plot(*ends.T, color=INK, linewidth=0.9, alpha=0.75, label=label, zorder=3)
    for colour, name, offset in ((BLUE, "images", 0), (ORANGE, "captions", count)):
        ends = place[joined + offset]
        axes.scatter(*ends.T, s=34, c=colour, edgecolors=INK, linewidths=0.8, zorder=4, label=f"{count:,} {name}")
    numbers = f"modality gap {found.gap:.3f}, MMD {found.mmd:.4f}, linear probe {100 * found.probe:.1f} % (chance 50)"
    axes.set_title(f"{about}\n{numbers}", fontsize=11, color=INK)
    axes.set(xticks=[], yticks=[], aspect="equal")
    axes.spines[:].set_color("#c9d1da")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.005), ncols=3, frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)
