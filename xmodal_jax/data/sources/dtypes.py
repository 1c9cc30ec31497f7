"""Bytes of features that were written as one type of number and are read as another.

Such bytes are numbers all the same, and half or twice as many. What gives them away: two float16 numbers read as one
float32 have the same exponents in both halves, while the lower half of a real float32 is nothing like the upper one;
and numbers read wrongly are spread over sizes that features never have.
"""

from __future__ import annotations

import numpy as np

from xmodal_jax.data.records import DTYPES
from xmodal_jax.errors import DataError

TYPES = {**DTYPES, "float64": np.float64}
SAMPLE = 1 << 16  # numbers looked at
ENOUGH = 16  # fewer tell nothing
LIKE = 0.4  # of all halves may differ in their exponents where both halves are numbers
USUAL = 1e-6, 1e4  # magnitudes of features
NARROW = 3.5  # powers of two, standard deviation: features have less, float16 read as bfloat16 several times more


def view_as(array: np.ndarray, dtype: str, where: str) -> np.ndarray:
    """``array`` with its bytes read as ``dtype``: as many bytes a row, so more or fewer numbers."""
    wanted = np.dtype(TYPES[dtype])
    if array.dtype.kind not in "fiuV" or array.shape[-1] * array.dtype.itemsize % wanted.itemsize:
        raise DataError(f"{where}: {array.shape[-1]} x {array.dtype} are no whole number of {dtype} (--feature-dtype).")
    return array if array.dtype == wanted else array.view(wanted)


def refuse_other_type(values: np.ndarray, where: str) -> None:
    """DataError where a sample of features, float16, float32 or float64, looks like bytes of another type."""
    found = likely_type(values)
    if found:
        raise DataError(
            f"{where}: read as {values.dtype.name}, its numbers look like the bytes of {found}; give --feature-dtype "
            f"{found}, or --feature-dtype {values.dtype.name} if they are right."
        )


def likely_type(values: np.ndarray) -> str | None:
    """The type that the bytes of ``values`` look like, None if it is the one they have."""
    values = np.ascontiguousarray(values.reshape(-1)[:SAMPLE]).astype(values.dtype.newbyteorder("="))
    name = values.dtype.name
    if name == "float32":
        if _halves_alike(values):
            return "bfloat16" if 0 < _spread(values.view(TYPES["bfloat16"])) < NARROW else "float16"
        even, odd = _pairs(values)
        if len(odd) >= ENOUGH and _usual(odd) > 0.9 and (_usual(even) < 0.6 or not even.any()):
            return "float64"
    if name == "float64" and _halves_alike(values):
        return "float32"
    if name == "float16":
        even, odd = _pairs(values)
        if len(odd) >= ENOUGH and _usual(values.view(np.float32) if len(values) % 2 == 0 else odd) > 0.9:
            return "float32" if _unlike(_exponents(even), _exponents(odd)) > 1 - LIKE else None
    return None


def _pairs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and second of each pair of numbers in which one is not zero."""
    pairs = values[: len(values) // 2 * 2].reshape(-1, 2)
    pairs = pairs[(pairs != 0).any(axis=1)]
    return pairs[:, 0], pairs[:, 1]


def _halves_alike(values: np.ndarray) -> bool:
    half = {4: np.float16, 8: np.float32}[values.dtype.itemsize]
    lower, upper = _pairs(values.view(half))
    return len(upper) >= ENOUGH and _unlike(_exponents(lower), _exponents(upper)) < LIKE


def _exponents(values: np.ndarray) -> np.ndarray:
    """Distribution of the five bits behind the sign, which in all types tell the size."""
    bits = values.view({2: np.uint16, 4: np.uint32}[values.dtype.itemsize])
    places = (bits >> (8 * values.dtype.itemsize - 6)) & 31
    return np.bincount(places.astype(np.int64), minlength=32) / max(1, len(values))


def _unlike(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first - second).sum() / 2)


def _usual(values: np.ndarray) -> float:
    """Share of the numbers that are not zero and as large as features are."""
    with np.errstate(invalid="ignore"):
        size = np.abs(values.astype(np.float64))
        size = size[size != 0]
        return float(((size > USUAL[0]) & (size < USUAL[1])).mean()) if size.size else 0.0


def _spread(values: np.ndarray) -> float:
    """Standard deviation of the sizes in powers of two."""
    size = np.abs(values.astype(np.float64))
    size = size[(size > 0) & np.isfinite(size)]
    return float(np.log2(size).std()) if size.size else 0.0
