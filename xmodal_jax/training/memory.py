"""Whether what a system trains fits into memory, told from shapes alone before anything is made."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any

import jax

from xmodal_jax.errors import UsageError
from xmodal_jax.matcher import Matcher
from xmodal_jax.training.optim import path_name, update_rule
from xmodal_jax.types import Batch, Config

GIB = 1 << 30
CGROUP = Path("/sys/fs/cgroup/memory.max")


def available(device: Any) -> int:
    """Bytes of a device's memory; of the host's where the device has none of its own."""
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats and device.platform != "cpu":
        return int(stats["bytes_limit"])
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = CGROUP.read_text().strip() if CGROUP.is_file() else "max"
    return min(host, int(limit)) if limit.isdigit() else host


def size(tree: Any) -> int:
    """Bytes of arrays, or of their shapes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def check(model: Matcher, example: Batch, config: Config, devices: int) -> None:
    """Raise a UsageError where parameters, gradients and the optimiser's state do not fit into a device's memory.

    Args:
        devices: over how many the matrices of :attr:`xmodal_jax.matcher.Matcher.sharded` lie.
    """
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    params: Any = jax.eval_shape(model.init, keys, example)["params"]
    named = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}

    def share(name: str) -> int:
        return devices if model.sharded and re.fullmatch(model.sharded, name) else 1

    held = {name: size(leaf) / share(name) for name, leaf in named.items()}
    whole = max(size(params), 1)
    copies = 2 + size(jax.eval_shape(update_rule(config.optim).init, params)) / whole + bool(config.ema)
    need, have = copies * sum(held.values()), available(jax.local_devices()[0])
    if need > have:
        largest = max(held, key=lambda name: held[name])
        remedy = "set --config.model.groups=3000, say" if hasattr(model, "groups") else "make the model smaller"
        raise UsageError(
            f"Parameters, gradients and the state of {config.optim.name} take {need / GIB:.1f} GiB, and there are "
            f"{have / GIB:.1f} GiB; the largest is {largest} of {' x '.join(f'{n:,}' for n in named[largest].shape)}: "
            f"{remedy}, or use more devices."
        )
