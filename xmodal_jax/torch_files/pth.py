"""PyTorch's files without PyTorch and without running anything in them.

A pickle is a program. Here a child process (:mod:`xmodal_jax.torch_files.unpickle`) reads it with an interpreter of our
own that knows a short list of instructions and of names, under limits of memory and time, and hands back JSON and raw
numbers. The parent reads those two and nothing else.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from xmodal_jax.errors import CheckpointError

ROOT = Path(__file__).resolve().parents[2]
CHILD = "xmodal_jax.torch_files.unpickle"
TYPES = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "bf2")
ANSWER = 256 << 20  # bytes of JSON


def read(path: Path, *, kind: str = "checkpoint", memory: int = 2 << 30, seconds: int = 60) -> Any:
    """What a PyTorch checkpoint or a pickled vocabulary holds, with NumPy arrays for its tensors.

    Both layouts of PyTorch are read, the zip archive and the older stream. Instances (``opt``, an `argparse.Namespace`)
    become dictionaries of their attributes; the state of the optimiser is left out.

    Args:
        kind: "checkpoint" or "vocabulary", whose lists of allowed names differ.
        memory: bytes of address space that the child may take; it needs about 50 MB and three times the largest
            tensor.
        seconds: of processor time and of the clock.

    Raises:
        CheckpointError: the file is missing, damaged, not such a file, or asks for anything that is not allowed.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; give the path of the {kind}.")
    size = path.stat().st_size
    with tempfile.TemporaryDirectory(prefix="xmodal-convert-") as name:
        folder = Path(name)
        command = [sys.executable, "-S", "-P", "-m", CHILD, str(path.resolve()), name, kind, str(memory), str(seconds)]
        try:
            code = subprocess.run(
                command,
                cwd=folder,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                timeout=seconds,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            ).returncode
        except subprocess.TimeoutExpired:
            raise refusal(path, f"reading it takes more than {seconds} s") from None
        if code in (-signal.SIGXCPU, -signal.SIGKILL):
            raise refusal(path, f"reading it takes more than {seconds} s or more memory than there is")
        answer = folder / "answer.json"
        if code or not answer.is_file() or answer.stat().st_size > ANSWER:
            raise refusal(path, f"its reader failed (exit code {code})")
        try:
            content = json.loads(answer.read_text(encoding="ascii"))
            if "refused" not in content:
                return rebuild(content["tree"], tensors(folder / "tensors", content["tensors"], 2 * size))
        except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
            raise refusal(path, f"its reader's answer makes no sense ({error})") from None
        raise refusal(path, content["refused"])


def refusal(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is refused, and nothing in it was executed: {reason}; get the file from its authors again, or from "
        "somebody you trust."
    )


def tensors(path: Path, listing: list[Any], most: int) -> list[np.ndarray]:
    """Arrays of a file in which they stand one behind the other, from ``[type, numbers, shape, strides]`` of each.

    ``most`` bounds the bytes of all of them together, in their types in the file, whatever the child has let through.
    """
    arrays: list[np.ndarray] = []
    with path.open("rb") as file:
        for kind, count, shape, stride in listing:
            if kind not in TYPES or min((count, *shape, *stride)) < 0:
                raise ValueError(f"an array of type {kind!r} and shape {shape}")
            most -= max(count, math.prod(shape)) * int(kind[-1])
            if most < 0:
                raise ValueError("arrays that are larger together than the file allows")
            flat = np.fromfile(file, "<u2" if kind == "bf2" else f"<{kind}", count)
            if kind == "bf2":
                flat = (flat.astype("<u4") << 16).view("<f4")
            if len(flat) != 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)):
                raise ValueError(f"{len(flat)} numbers for the shape {shape}")
            steps = [step * flat.itemsize for step in stride]
            arrays.append(np.lib.stride_tricks.as_strided(flat, shape, steps).copy())
    return arrays


def rebuild(node: Any, arrays: list[np.ndarray]) -> Any:
    """The inverse of the child's ``Result.plain``."""
    if not isinstance(node, dict):
        return node
    ((kind, value),) = node.items()
    if kind == "tensor":
        return arrays[value]
    if kind == "dict":
        return {rebuild(key, arrays): rebuild(item, arrays) for key, item in value}
    items = [rebuild(item, arrays) for item in value]
    return tuple(items) if kind == "tuple" else items
