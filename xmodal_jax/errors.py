"""Errors a user can act on. Each message is one sentence: what, where, what to do.

The command line prints the message without a traceback and leaves with the class's exit code.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class XmodalError(Exception):
    """Base of every error the package raises on purpose."""

    exit_code = 1


class UsageError(XmodalError):
    """A wrong option, config key or combination of them."""

    exit_code = 2


class DataError(XmodalError):
    """Input data that is missing, broken or contradicts itself."""

    exit_code = 3


class CheckpointError(XmodalError):
    """A checkpoint or run folder that is missing, broken or belongs to something else."""

    exit_code = 4


class NumericError(XmodalError):
    """A loss, score or feature that is not finite, or a collapsed model."""

    exit_code = 5


class CutWarning(UserWarning):
    """A text has more tokens than the system reads; the command line says so in words of its own."""


SAVED_ON_SIGNAL = 75  # sysexits' EX_TEMPFAIL: run the same command again to go on


PICTURES = (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".webp")


def check_output(option: str, path: Path | None, endings: Sequence[str] = ()) -> None:
    """Raise a :class:`UsageError` where the file of an option cannot be written, before anything is computed for it."""
    if path is None:
        return
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"{option} {path}: give a file in a folder that is there.")
    if endings and path.suffix.lower() not in endings:
        raise UsageError(f"{option} {path}: give a name that ends in {', '.join(endings[:-1])} or {endings[-1]}.")


def require(module: str, extra: str) -> None:
    """Import ``module`` or raise a :class:`UsageError` that names the extra which brings it."""
    import importlib

    try:
        importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f'This command needs {module.split(".")[0]} ({error}); install it with pip install "xmodal_jax[{extra}]".'
        ) from error
