"""What a bundle gives to a training that starts from it: its parameters and its vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from xmodal_jax import digest
from xmodal_jax.errors import CheckpointError
from xmodal_jax.text.vocabulary import Vocabulary

FORMAT, VERSION = "xmodal_jax bundle", 2
MANIFEST, VOCABULARY, PARAMETERS = "manifest.json", "vocabulary.json", "parameters.safetensors"
PREFIX = "params/"  # of the names of parameters; other arrays are running statistics


def is_bundle(folder: Path) -> bool:
    """Whether a folder looks like a bundle rather than a run."""
    return (folder / MANIFEST).is_file()


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if (manifest["format"], manifest["version"]) != (FORMAT, VERSION):
            raise ValueError(f"it is of {manifest['format']!r} {manifest['version']!r}, not {FORMAT!r} {VERSION}")
        if manifest["sha256"] != digest.digest(manifest):
            raise ValueError("it does not match its own SHA-256")
        wanted = [name for name in (VOCABULARY, PARAMETERS) if name in manifest["files"]]
        for name in wanted:
            if digest.sha256(folder / name) != manifest["files"][name]["sha256"]:
                raise ValueError(f"{name} has changed since it was written")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{folder} is no sound bundle ({error}); export it again with `xmodal export`.") from None
    return manifest


def read_words(folder: Path) -> Vocabulary | None:
    """The vocabulary of a bundle; None where it has none.

    Raises:
        CheckpointError: the bundle is damaged.
    """
    return Vocabulary.load(folder / VOCABULARY) if VOCABULARY in _manifest(folder)["files"] else None


def read_parameters(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and running statistics of a bundle by name: those that encoding and scoring use.

    Raises:
        CheckpointError: the bundle is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    _manifest(folder)
    try:
        arrays = load((folder / PARAMETERS).read_bytes())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{folder / PARAMETERS} cannot be read ({error}); export it again with `xmodal export`."
        ) from None
    params = {name.removeprefix(PREFIX): array for name, array in arrays.items() if name.startswith(PREFIX)}
    return params, {name: array for name, array in arrays.items() if not name.startswith(PREFIX)}
