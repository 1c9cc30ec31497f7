"""Fewer classes than training images: images are grouped by k-means of their features (Zheng et al., section 5)."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from xmodal_jax.data.pipeline import FeatureReader, image_batches
from xmodal_jax.errors import UsageError
from xmodal_jax.matcher import Matcher
from xmodal_jax.training.step import Initial

ROUNDS = 20
BLOCK = 4096  # items whose distances to all centres are held at a time


def start_groups(initial: Initial, model: Matcher, reader: FeatureReader, seed: int) -> Initial:
    """``initial`` whose collection "groups", where the model has one, says the group of each training image.

    It is saved with every step, so that a run which goes on has the same groups.

    Raises:
        UsageError: a system within another, or fewer images than groups.
    """
    if "groups" not in initial.model_state:
        return initial
    count, images = int(getattr(model, "groups", 0)), reader.count
    if count < 1:
        raise UsageError("Images are grouped for no system within another; set groups of that one to 0.")
    if count > images:
        raise UsageError(f"model.groups {count:,} is more than the {images:,} training images; give fewer.")
    variables = {"params": initial.params, **initial.model_state}
    vector: Any = jax.jit(partial(model.apply, variables, method="vector"))
    rows, feature = [], []
    for batch in image_batches(reader, 256):
        real = np.asarray(batch.id) >= 0  # a picture that is skipped has no row
        rows.append(np.asarray(batch.id)[real])
        feature.append(np.asarray(vector(batch))[real])
    print(f"{images:,} training images are grouped into {count:,} classes")
    of_image = np.zeros(images, np.int32)
    of_image[np.concatenate(rows)] = k_means(np.concatenate(feature), count, seed)
    return initial._replace(model_state={**initial.model_state, "groups": {"of_image": jnp.asarray(of_image)}})


@jax.jit
def _nearest(feature: jax.Array, centre: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The nearest centre of each item, and half its squared distance, less what all centres share."""
    far = 0.5 * jnp.sum(jnp.square(centre), axis=1) - feature @ centre.T
    return jnp.argmin(far, axis=1), jnp.min(far, axis=1)


def k_means(feature: Float[np.ndarray, "n f"], count: int, seed: int) -> Int[np.ndarray, " n"]:
    """Groups of items, numbered from 0 and none of them empty, by Lloyd's algorithm from ``count`` random items."""
    random = np.random.default_rng(seed)
    centre = feature[random.choice(len(feature), count, replace=False)]
    group = np.zeros(len(feature), np.int32)
    for _ in range(ROUNDS):
        blocks = [_nearest(feature[i : i + BLOCK], centre) for i in range(0, len(feature), BLOCK)]
        new, far = (np.concatenate([np.asarray(block[part]) for block in blocks]) for part in (0, 1))
        far = far + 0.5 * np.square(feature).sum(1)
        size = np.bincount(new, minlength=count)
        for empty in np.flatnonzero(size == 0):  # takes the item that fits its own group least, but for lone ones
            item = int(np.argmax(np.where(size[new] > 1, far, -np.inf)))
            size[new[item]] -= 1
            new[item], size[empty], far[item] = empty, 1, 0.0
        if np.array_equal(new, group):
            break
        group = new.astype(np.int32)
        total = np.zeros_like(centre)
        np.add.at(total, group, feature)
        centre = total / size[:, None].astype(np.float32)
    return group
