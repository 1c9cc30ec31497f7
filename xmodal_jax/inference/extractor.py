"""An image network as what makes the features of pictures, for data sets, bundles and the service alike."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, UInt8

from xmodal_jax.data import pixels
from xmodal_jax.data.pixels import Transform
from xmodal_jax.data.records import BACKBONE, DTYPES
from xmodal_jax.digest import sha256
from xmodal_jax.errors import CheckpointError
from xmodal_jax.layers.backbones import BACKBONES, Backbone, map_shape
from xmodal_jax.similarity import AnyArray

VIEWS = {"one": 1, "mirror": 2, "ten": 10}  # pictures made of one, over which the map is averaged
FEATURES = ("global", "region")


class Recipe(NamedTuple):
    """How features are made of pictures: what data sets and bundles keep of it.

    "global" [F] is the mean of the network's last map over its places, "region" [h * w, F] the map itself, row by row,
    each place with its cell of the picture as box. With the views "mirror" the map is the mean of that of the picture
    and that of its mirror image, turned back; with "ten" the global feature is the mean over ten crops.
    """

    network: str  # name in xmodal_jax.layers.backbones.BACKBONES
    weights: str  # SHA-256 of the file of its parameters and running statistics
    origin: str  # where the weights came from, for people
    features: tuple[str, ...]
    views: str
    transform: Transform
    dtype: str

    def manifest(self) -> dict[str, Any]:
        """What is kept of it, as JSON has it."""
        return {**self._asdict(), "features": list(self.features), "transform": self.transform.manifest()}

    @property
    def place(self) -> tuple[int, int, int]:
        """(h, w, F) of the map."""
        return map_shape(self.network, self.transform.side)

    def shape(self, feature: str) -> tuple[int, ...]:
        """Of one picture's feature."""
        height, width, channels = self.place
        return (channels,) if feature == "global" else (height * width, channels)

    def boxes(self) -> Float[np.ndarray, "r 4"]:
        """Cells of the map in the whole picture: x1, y1, x2, y2 from 0 to 1.

        Of the views "squash" that is exact; of "centre" they are cells of the crop.
        """
        height, width, _ = self.place
        top, left = (axis.ravel() for axis in np.mgrid[:height, :width])
        corners = (left / width, top / height, (left + 1) / width, (top + 1) / height)
        return np.stack(corners, axis=1).astype(np.float32)

    def read(self, source: Any, most: int) -> UInt8[np.ndarray, "v s s 3"]:
        """The views of a picture. Raises DataError as :func:`xmodal_jax.data.pixels.read`."""
        if self.views == "ten":
            return pixels.ten_crops(source, self.transform, most)
        picture = pixels.read(source, self.transform, most=most)
        return np.stack([picture, picture[:, ::-1]] if self.views == "mirror" else [picture])


def recipe_in(manifest: Mapping[str, Any]) -> Recipe:
    """The recipe that a manifest keeps. Raises CheckpointError where it is none."""
    try:
        recipe = Recipe(**{name: manifest[name] for name in Recipe._fields})
        transform = pixels.transform_in({pixels.NAME: manifest["transform"]})
        recipe = recipe._replace(features=tuple(recipe.features), transform=transform)
        sound = recipe.network in BACKBONES and recipe.views in VIEWS and recipe.dtype in DTYPES
        if not sound or not recipe.features or set(recipe.features) - set(FEATURES):
            raise ValueError(str(dict(manifest)))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"It is not known how the features were made of pictures ({error}).") from None
    return recipe


def features(recipe: Recipe, variables: Any, views: UInt8[AnyArray, "b v s s 3"]) -> dict[str, Float[Array, "b ..."]]:
    """Features of B pictures by name, float32; pure."""
    count, number = views.shape[:2]
    maps = Backbone(recipe.network).apply(variables, jnp.reshape(views, (count * number, *views.shape[2:])))
    assert not isinstance(maps, tuple)
    maps = jnp.reshape(maps, (count, number, *maps.shape[1:]))
    if recipe.views == "mirror":
        maps = maps.at[:, 1].set(maps[:, 1, :, ::-1])
    mean = jnp.mean(maps, axis=1)
    made = {"global": jnp.mean(mean, axis=(1, 2)), "region": jnp.reshape(mean, (count, -1, mean.shape[-1]))}
    return {name: made[name] for name in recipe.features}


class Extractor:
    """Makes the features of pictures.

    Args:
        variables: of :class:`xmodal_jax.layers.backbones.Backbone`.
    """

    def __init__(self, recipe: Recipe, variables: Any):
        self.recipe = recipe
        self.variables = jax.tree.map(jnp.asarray, variables)
        self._features = jax.jit(partial(features, recipe))

    def __call__(self, views: UInt8[np.ndarray, "b v s s 3"]) -> dict[str, np.ndarray]:
        """Features of B pictures by name, in the recipe's dtype."""
        made = self._features(self.variables, views)
        return {name: np.asarray(array).astype(DTYPES[self.recipe.dtype]) for name, array in made.items()}


def save(variables: Any, path: Path) -> str:
    """Write the parameters of a network; returns the SHA-256 of the file."""
    from safetensors.numpy import save_file

    flat = {name: np.ascontiguousarray(value) for name, value in flatten_dict(variables, sep="/").items()}
    save_file(dict(sorted(flat.items())), path)
    return sha256(path)


def load(folder: Path, manifest: Mapping[str, Any]) -> Extractor:
    """The extractor whose parameters lie in ``folder``.

    Raises:
        CheckpointError: they are missing, or not those of the recipe.
    """
    from safetensors.numpy import load_file

    recipe, path = recipe_in(manifest), folder / BACKBONE
    if not path.is_file() or sha256(path) != recipe.weights:
        raise CheckpointError(f"{path} is missing or damaged; extract the features again.")
    variables = unflatten_dict(load_file(path), sep="/")
    return Extractor(recipe, {"params": {}, "batch_stats": {}, **variables})


def random_variables(network: str, seed: int = 0) -> Any:
    """Initial parameters, for trials: their features tell little."""
    picture = np.zeros((1, BACKBONES[network].side, BACKBONES[network].side, 3), np.uint8)
    return jax.jit(Backbone(network).init)(jax.random.key(seed), picture)
