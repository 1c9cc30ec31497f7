"""SHA-256 of files and of manifests: how everything on disk is held against what was written, and is written whole."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xmodal_jax.errors import CheckpointError


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(manifest: Mapping[str, Any]) -> str:
    """Hex digest of a manifest without its own "sha256" entry."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def write(path: Path, content: str | bytes) -> None:
    """Write a file as a whole: it has all of ``content`` or, after a kill or a refusal, what it had before.

    Raises:
        CheckpointError: the disk refuses.
    """
    unfinished = path.with_name(f"{path.name}.tmp")
    data = content.encode() if isinstance(content, str) else content
    try:
        if path.exists() and not path.is_file():  # /dev/stdout, say
            path.write_bytes(data)
            return
        with unfinished.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        remove(unfinished)
        raise refused(path, error) from error


def remove(path: Path) -> None:
    """Remove a file where there is one and the disk lets it go."""
    with contextlib.suppress(OSError):
        path.unlink()


def refused(path: Path, error: OSError) -> CheckpointError:
    """The sentence on a file or folder that could not be written."""
    return CheckpointError(
        f"{path} cannot be written ({error.strerror or error}); free some space, or choose a folder that can be."
    )
