"""Object arrays of NumPy: arrays of arrays, or a dict of arrays. They are pickles, which can run any program.

So only what NumPy's own arrays are made of is let through.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from xmodal_jax.errors import DataError

ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not let in")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def load_objects(path: Path) -> dict[Any, Any] | list[np.ndarray] | None:
    """What an object array holds, None if ``path`` is an array of numbers; DataError where it is anything else."""
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            _, _, dtype = reader(file)
            if not dtype.hasobject:
                return None
            content = _Unpickler(file).load()
    except Exception as error:  # NumPy parses the header as Python, and pickles raise what they like
        if isinstance(error, ValueError):
            return None  # the header is damaged: what reads numbers says so
        raise DataError(
            f"{path}: an object array that is cut short, damaged or holds more than arrays ({error})."
        ) from None
    if isinstance(content, np.ndarray) and content.shape == () and isinstance(content.item(), dict):
        content = content.item()
    values = list(content.values()) if isinstance(content, dict) else content
    if isinstance(values, np.ndarray) and values.ndim > 1:  # arrays of one shape become numbers that are objects
        try:
            return list(values.astype(np.float32))
        except (TypeError, ValueError):
            raise DataError(f"{path}: an object array of something that is no number.") from None
    if not len(values) or not all(isinstance(value, np.ndarray) and value.dtype != object for value in values):
        raise DataError(
            f"{path}: an array of Python objects, which are not arrays [R, F] of an image each; save it again with "
            "numpy.save as numbers."
        )
    return content if isinstance(content, dict) else list(values)
