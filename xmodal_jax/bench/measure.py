"""One row of `xmodal bench`, in a process of its own: `python -m xmodal_jax.bench.measure NAME [ours|loop]`.

A process of its own gives each row its own peak of memory. It is pinned to one core before JAX or PyTorch can count
them. Times are CPU seconds of the process, so that other processes on the core stretch them little; ours and the loop
run in turn, and the median of the ratios counts. The last line printed is the row as JSON.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

GEMM = (4608, 1024, 1642)  # regions of 128 images by words of 128 captions


def pin() -> int | None:
    """Keep this process on the first core it may use; returns its number, or None where the system cannot."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    core = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return core


def resident(peak: bool) -> int:
    """Bytes this process has in memory now, or had at most since :func:`reset_peak`."""
    key = "VmHWM:" if peak else "VmRSS:"
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def peak_above(run: Callable[[], Any]) -> float | None:
    """MiB by which memory grows while ``run`` runs, None where the system does not tell (only Linux does)."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what compilation left behind would hide what the run needs
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    start = resident(peak=False)
    run()
    return max(resident(peak=True) - start, 0) / 2**20


def cpu_seconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def gemm_rate() -> float:
    """GFLOP/s of XLA's matrix product at the shape :data:`GEMM`, median of 5."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    m, k, n = GEMM
    random = np.random.default_rng(0)
    a, b = (jnp.asarray(random.standard_normal(shape, np.float32)) for shape in ((m, k), (n, k)))
    product = jax.jit(lambda a, b: a @ b.T)
    run = lambda: jax.block_until_ready(product(a, b))  # noqa: E731
    run()
    return 2e-9 * m * k * n / statistics.median(cpu_seconds(run) for _ in range(5))


def has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def ours(name: str) -> dict[str, Any]:
    """The row, the loop's memory apart."""
    import jax

    from xmodal_jax.bench.cases import GROUPS

    case = next(group[name] for group in GROUPS.values() if name in group)()
    loop = case.loop() if case.loop and has_torch() else None
    rate = gemm_rate()
    args = jax.tree.map(jax.numpy.asarray, case.args)
    if case.compiled:
        compiled = jax.jit(case.function).lower(*args).compile()
        run = lambda: jax.block_until_ready(compiled(*args))  # noqa: E731
    else:
        run = lambda: case.function(*args)  # noqa: E731
        run()
    first = []
    memory = peak_above(lambda: first.append(cpu_seconds(run)))
    times, loops, ratios = [], [], []
    for _ in range(case.repeat):
        times.append(cpu_seconds(run) * case.scale)
        if loop:
            loops.append(cpu_seconds(loop) * case.loop_scale)
            ratios.append(loops[-1] / times[-1])
    seconds = statistics.median(times or [first[0] * case.scale])
    flops = case.flop * case.scale / seconds / 1e9 if case.flop else None
    return {
        "name": name,
        "ours_s": seconds,
        "loop_s": statistics.median(loops) if loops else None,
        "ratio": statistics.median(ratios) if ratios else None,
        "ratios": ratios,
        "gflops": flops,
        "gemm_gflops": rate,
        "gemm_shape": "x".join(map(str, GEMM)),
        "gemm_share": flops / rate if flops else None,
        "memory_mb": memory,
        "note": case.note,
        **case.facts,
    }


def loop_memory(name: str) -> dict[str, Any]:
    """MiB that one run of the loop needs, in a process where JAX has compiled nothing."""
    from xmodal_jax.bench.cases import GROUPS

    case = next(group[name] for group in GROUPS.values() if name in group)()
    assert case.loop
    return {"loop_memory_mb": peak_above(case.loop())}


def main(argv: list[str]) -> None:
    pin()
    os.environ["JAX_PLATFORMS"] = "cpu"
    print(json.dumps({"ours": ours, "loop": loop_memory}[argv[1]](argv[0])))


if __name__ == "__main__":
    main(sys.argv[1:])
