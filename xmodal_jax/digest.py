"""SHA-256 of files and of manifests: how everything on disk is held against what was written, and is written whole."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from xmodal_jax.errors import CheckpointError, XmodalError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(manifest: Mapping[str, Any]) -> str:
    """Hex digest of a manifest without its own "sha256" entry."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest with its digest, as :func:`digest` finds it again."""
    return {**content, "sha256": digest(content)}


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


def full(error: BaseException) -> str | None:
    """What an error of any library says of a disk that is full, in the system's words; None where it is another one.

    Few of them are an OSError with a number: ArrayRecord, TensorStore and `shutil.copytree` only quote the system.
    """
    known = [os.strerror(number) for number in FULL]
    if isinstance(error, OSError) and error.errno in FULL:
        return os.strerror(error.errno)
    return next((reason for reason in known if reason in str(error)), None)


@contextlib.contextmanager
def writing(path: Path, kind: type[XmodalError] = CheckpointError) -> Iterator[None]:
    """Where the disk is full, whatever is raised within becomes one sentence of this kind, which names ``path``."""
    try:
        yield
    except XmodalError:
        raise
    except Exception as error:
        if (reason := full(error)) is None:
            raise
        raise kind(f"{path} cannot be written ({reason}); free some space, or choose a folder that can be.") from error
