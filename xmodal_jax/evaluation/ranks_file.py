"""The ranks of an evaluation as a file beside its table, ``SPLIT-STEP.ranks.npz``: what is compared query by query.

It has the ranks of both directions, the image of each caption, the fold of each image, and as JSON what `xmodal eval`
says of run and data, the ids of the images, a hash of their captions, and a SHA-256 of all of it.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from xmodal_jax import digest
from xmodal_jax.data.records import Split
from xmodal_jax.errors import CheckpointError
from xmodal_jax.evaluation.table import Duplicates
from xmodal_jax.evaluation.vote import Ranking

BROKEN = (zipfile.BadZipFile, zlib.error, NotImplementedError, RecursionError, OverflowError, MemoryError)
DAMAGE = (OSError, ValueError, KeyError, TypeError, EOFError, AttributeError, *BROKEN)  # what a damaged .npz raises
ARRAYS = ("i2t", "t2i", "image", "fold")


class Evaluation(NamedTuple):
    """One system on one split, query by query."""

    ranking: Ranking
    ids: list[str]  # of the images
    about: dict[str, Any]  # "data", "identity", "split", "captions" (hash), and of a run "workdir" and "step"


def file_of(split: str, step: int) -> str:
    """The name of the file."""
    return f"{split}-{step}.ranks.npz"


def captions_hash(captions: Sequence[Sequence[str]]) -> str:
    """SHA-256 of the captions of each image: sets with other features of the same pictures have the same."""
    return hashlib.sha256(json.dumps([list(texts) for texts in captions]).encode()).hexdigest()


def make(ranking: Ranking, ids: Sequence[str], captions: Sequence[Sequence[str]], about: Mapping[str, Any]) -> bytes:
    """The content of the file."""
    arrays = {name: getattr(ranking, name).astype(np.int32) for name in ARRAYS}
    known = {"protocol": ranking.protocol, "weights": ranking.weights, "duplicates": ranking.duplicates._asdict()}
    known["captions"] = captions_hash(captions)
    text = json.dumps({**about, **known, "ids": list(ids)})
    file = io.BytesIO()
    np.savez_compressed(file, about=text, sha256=_sha256(text, arrays), **arrays)
    return file.getvalue()


def beside(path: Path) -> Path:
    """The file that goes with the table in ``path``."""
    return path.with_name(f"{path.stem}.ranks.npz")


def write_beside(path: Path, ranking: Ranking, split: Split, about: Mapping[str, Any]) -> None:
    """Keep the ranks of a table that has no run folder; nothing beside what is no file, such as /dev/stdout.

    Where equal captions are shared there are no ranks to compare with others, and an earlier file goes.
    """
    if ranking.duplicates.shared:
        beside(path).unlink(missing_ok=True)
    elif path.is_file():
        digest.write(beside(path), make(ranking, split.ids, split.captions, about))


def read(path: Path) -> Evaluation:
    """Read the file. Raises a CheckpointError where it is damaged."""
    try:
        return parse(path.read_bytes(), path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}).") from None


def parse(content: bytes, path: Path) -> Evaluation:
    """The content of the file ``path``. Raises a CheckpointError where it is damaged."""
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in ARRAYS}
            text, sha256 = str(archive["about"]), str(archive["sha256"])
        if sha256 != _sha256(text, arrays):
            raise ValueError("its SHA-256 differs")
    except DAMAGE as error:
        raise CheckpointError(f"{path} is damaged ({error}); remove it and run `xmodal eval` again.") from None
    about = json.loads(text)
    ids, protocol, weights = (about.pop(name) for name in ("ids", "protocol", "weights"))
    ranks = {name: array.astype(np.int64) for name, array in arrays.items()}
    duplicates = about.pop("duplicates")
    counted = Duplicates(**{**duplicates, "tied": tuple(duplicates["tied"])})
    return Evaluation(Ranking(**ranks, protocol=protocol, weights=weights, duplicates=counted), ids, about)


def _sha256(text: str, arrays: Mapping[str, np.ndarray]) -> str:
    hashed = hashlib.sha256(text.encode())
    for name in ARRAYS:
        hashed.update(np.asarray(arrays[name], "<i4").tobytes())
    return hashed.hexdigest()
