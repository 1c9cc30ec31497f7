"""The exported functions of a bundle, and the arrays that go between them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from xmodal_jax.errors import CheckpointError, UsageError
from xmodal_jax.inference import layout, screening
from xmodal_jax.inference.shapes import rounded

Embedding = Any  # an array [N, D], or {name: array [N, ...]} where an item has several parts


class Functions:
    """What a bundle can compute, as its manifest lists it.

    Args:
        path: the bundle's folder.
        manifest: of the bundle.
        parameters: the arrays of its system by name.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any], parameters: Mapping[str, Any]):
        self.path, self.about, self.parameters = path, manifest["functions"], parameters
        self.jax_version = manifest["made_with"]["jax"]

    def __contains__(self, name: str) -> bool:
        return name in self.about

    def leaves(self, side: str, embedding: Embedding) -> list[np.ndarray]:
        """The arrays of an embedding in the order of the exported functions; ``side`` is "image" or "text".

        Raises:
            UsageError: it is not an embedding of this side.
        """
        gives = self.about[f"encode_{side}"]["gives"]
        parts = embedding if isinstance(embedding, Mapping) else {"embedding": embedding}
        if set(parts) != {give["name"] for give in gives}:
            raise UsageError(f"This is no {side} embedding of {self.path}; make it with embed_{side}s.")
        leaves = [np.asarray(parts[give["name"]]) for give in gives]
        if len({len(leaf) for leaf in leaves}) > 1 or any(
            leaf.ndim != len(give["shape"]) for leaf, give in zip(leaves, gives, strict=True)
        ):
            raise UsageError(f"This is no {side} embedding of {self.path}; make it with embed_{side}s.")
        return [leaf.astype(give["dtype"], copy=False) for leaf, give in zip(leaves, gives, strict=True)]

    @functools.cached_property
    def cuts(self) -> list[int]:
        """Which arrays of a text have a word axis (always their second)."""
        gives = self.about["encode_text"]["gives"]
        return [i for i, give in enumerate(gives) if len(give["shape"]) > 1 and give["shape"][1] == "w"]

    def words(self, text: list[np.ndarray]) -> np.ndarray:
        """[C] number of tokens of each caption, from the masks among its arrays; 1 without."""
        masks = [text[i] for i in self.cuts if text[i].dtype == bool]
        if not masks:
            return np.full(len(text[0]), max((text[i].shape[1] for i in self.cuts), default=1))
        return np.max(np.arange(1, masks[0].shape[1] + 1) * masks[0], axis=1)

    def cut(self, text: list[np.ndarray], rows: np.ndarray) -> list[np.ndarray]:
        """The captions ``rows`` (-1 repeats some caption), cut to their longest."""
        leaves = [leaf[rows] for leaf in text]
        if not self.cuts:
            return leaves
        most = leaves[self.cuts[0]].shape[1]
        width = rounded(int(self.words(leaves).max(initial=1)), max(most, 1))
        return [leaf[:, :width] if i in self.cuts else leaf for i, leaf in enumerate(leaves)]

    @functools.cache  # noqa: B019  (a bundle lives as long as its program)
    def call(self, name: str) -> Callable[..., Any]:
        """An exported function with its parameters in place, compiled once for each shape."""
        about = self.about[name]
        path = self.path / layout.file_of(name)
        if path.stat().st_size > screening.LARGEST:
            raise CheckpointError(f"{path} has more than {screening.LARGEST:,} bytes, which no exported system needs.")
        try:
            exported = jax.export.deserialize(bytearray(path.read_bytes()))
            screening.screen(exported, path)
        except CheckpointError:
            raise
        except Exception as error:  # whatever the deserialiser says, the user can do one thing
            raise CheckpointError(
                f"{path} cannot be read by JAX {jax.__version__} ({_first_line(error)}); it was made with "
                f"{self.jax_version}: export the run again."
            ) from None
        if lacking := [key for key in about["parameters"] if key not in self.parameters]:
            raise CheckpointError(f"{path.with_name(layout.PARAMETERS)} lacks {lacking[0]}; export the run again.")
        parameters = [self.parameters[key] for key in about["parameters"]]
        call = jax.jit(exported.call)

        def run(*args: Any) -> Any:
            try:
                return call(parameters, *args)
            except (TypeError, ValueError) as error:  # of a function that is not what the manifest says
                raise CheckpointError(
                    f"{path} does not take what its manifest says ({_first_line(error)}); export the run again."
                ) from None

        return run

    def collect(self, name: str, pieces: list[Any], order: np.ndarray) -> Embedding:
        """One embedding of batches that hold the items ``order``, its parts padded to the widest."""
        gives = self.about[name]["gives"]
        leaves = []
        for index, give in enumerate(gives):
            parts = [np.asarray(piece[index]) for piece in pieces]
            widest = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
            if not parts:
                widest = [int(size) if size.isdigit() else 1 for size in give["shape"][1:]]
            whole = np.zeros((len(order), *widest), give["dtype"])
            done = 0
            for part in parts:
                rows = order[done : done + len(part)]
                whole[(rows, *(slice(size) for size in part.shape[1:]))] = part[: len(rows)]
                done += len(rows)
            leaves.append(whole)
        named = {give["name"]: leaf for give, leaf in zip(gives, leaves, strict=True)}
        return named["embedding"] if list(named) == ["embedding"] else named


def take(embedding: Embedding, rows: Any) -> Embedding:
    """The items ``rows`` of an embedding."""
    if isinstance(embedding, Mapping):
        return {name: leaf[rows] for name, leaf in embedding.items()}
    return embedding[rows]


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:300]
