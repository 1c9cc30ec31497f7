"""Devices: the mesh, where arrays live, and the two ways to run a step on many of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from xmodal_jax.errors import UsageError
from xmodal_jax.training import processes
from xmodal_jax.training.optim import path_name

AXIS = "data"


class Runner(NamedTuple):
    """How state and batches reach the devices; ``compile`` turns a pure step into one that runs there."""

    compile: Callable[[Callable[..., Any]], Callable[[Any, Any], tuple[Any, Any]]]
    put_state: Callable[[Any], Any]
    get_state: Callable[[Any], Any]  # one copy, for saving and evaluation
    put_batch: Callable[[Any], Any]
    read: Callable[[Any], Any]  # metrics to host numbers
    mesh: jax.sharding.Mesh | None = None  # of a step that is written for the global batch


def make_mesh(devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
    """A one-axis mesh over all devices, those of a process side by side."""
    devices = devices or jax.devices()
    order = jax.make_mesh((len(devices),), (AXIS,), devices=devices).devices.flat
    # Each process reads a contiguous part of the batch. The sort is stable: JAX's good order within a host stays.
    order = np.array(sorted(order, key=lambda device: device.process_index))
    # Auto: the default (Explicit) axis type asks every gather of a sharded operand for an output sharding.
    return Mesh(order, (AXIS,), axis_types=(AxisType.Auto,))


def local(tree: Any) -> Any:
    """Replicated arrays, on the devices of this process alone: what it computes with them needs no other process."""
    if jax.process_count() == 1:
        return tree
    return place(tree, NamedSharding(make_mesh(jax.local_devices()), PartitionSpec()))


def place(tree: Any, sharding: NamedSharding) -> Any:
    """Arrays of ``sharding``, to which each process gives its rows, or all where it is replicated."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree)


def check_divides(batch_size: int, devices: int) -> None:
    """Raise a UsageError unless a global batch splits evenly over the devices."""
    if batch_size % devices:
        raise UsageError(
            f"data.batch_size {batch_size} does not divide over {devices} devices; use a multiple of {devices}."
        )


def in_order(step: Callable[..., Any], devices: Sequence[Any]) -> Callable[..., Any]:
    """``step``, finished before it returns on several CPU devices: those share one pool of threads, where two steps in
    flight can starve each other at a collective until XLA aborts the process."""
    if len(devices) == 1 or devices[0].platform != "cpu":
        return step
    return lambda state, batch: jax.block_until_ready(step(state, batch))


def mesh_for(variables: Any, *items: Any) -> Any:
    """The mesh that holds ``variables``; None for one device, or where rows of ``items`` do not divide."""
    sharding = getattr(jax.tree.leaves(variables)[0], "sharding", None)
    if not isinstance(sharding, NamedSharding) or sharding.mesh.size == 1:
        return None
    divides = all(jax.tree.leaves(part)[0].shape[0] % sharding.mesh.size == 0 for part in items)
    return sharding.mesh if divides else None


def spread(variables: Any, items: Any) -> Any:
    """``items`` with their rows over the devices that hold ``variables``, or as they are where that does not divide."""
    mesh = mesh_for(variables, items)
    return items if mesh is None else jax.device_put(items, NamedSharding(mesh, PartitionSpec(AXIS)))


def jit_runner(devices: Sequence[Any] | None = None) -> Runner:
    """One jit over the mesh: the step is written for the global batch and the compiler splits it."""
    mesh = make_mesh(devices)
    whole, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))

    def compile(step):
        compiled = jax.jit(step, in_shardings=(whole, rows), out_shardings=(whole, whole), donate_argnums=0)
        return in_order(compiled, mesh.devices.flatten().tolist())

    def put_state(state):
        return jax.device_put(state, whole) if jax.process_count() == 1 else place(processes.share(state), whole)

    return Runner(compile, put_state, lambda state: state, lambda batch: place(batch, rows), jax.device_get, mesh)


def pmap_runner(devices: Sequence[Any] | None = None) -> Runner:
    """`jax.pmap` over all devices: each holds its rows and gathers the others' representations."""
    mesh = make_mesh(devices)
    all_devices = mesh.devices.tolist()
    n = len(mesh.local_devices)

    def compile(step):
        def mapped(state, batch):
            return step(state, batch, axis=AXIS)

        return in_order(jax.pmap(mapped, AXIS, devices=all_devices, donate_argnums=0), all_devices)

    def put_state(state):
        return jax.tree.map(lambda x: jax.numpy.stack([x] * n), processes.share(state))

    def put_batch(batch):
        return jax.tree.map(lambda x: np.asarray(x).reshape((n, -1, *np.shape(x)[1:])), batch)

    def first(tree):
        # From a device of this process: `x[0]` is a program of all devices, and many small ones in flight dead-lock.
        return jax.tree.map(lambda x: x.addressable_data(0)[0], tree)

    def get_state(state):
        replica = first(state)
        # Orbax saves no arrays that belong to one of several processes.
        return replica if jax.process_count() == 1 else place(replica, NamedSharding(mesh, PartitionSpec()))

    return Runner(compile, put_state, get_state, put_batch, lambda metrics: jax.device_get(first(metrics)))


def shard(runner: Runner, pattern: str) -> Runner:
    """``runner``, with the rows of the matrices that ``pattern`` names, and of what the optimiser keeps of them, over
    its devices. Several processes hold all of them, as does a number of devices that does not divide the rows."""
    mesh = runner.mesh
    if not pattern or mesh is None or mesh.size == 1 or jax.process_count() > 1:
        return runner
    name = re.compile(rf"(.*/)?(?:{pattern})")

    def shardings(state: Any) -> Any:
        def of(path: Any, leaf: Any) -> NamedSharding:
            rows = name.fullmatch(path_name(path)) and leaf.shape[0] % mesh.size == 0
            return NamedSharding(mesh, PartitionSpec(AXIS) if rows else PartitionSpec())

        return jax.tree_util.tree_map_with_path(of, state)

    def compile(step):
        compiled: list[Any] = []  # at the first call, which knows the state

        def run(state, batch):
            if not compiled:
                where = shardings(state)
                rows, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((AXIS,), ()))
                shards: Any = {"in_shardings": (where, rows), "out_shardings": (where, whole)}
                compiled.append(jax.jit(step, **shards, donate_argnums=0))
            return compiled[0](state, batch)

        return in_order(run, mesh.devices.flatten().tolist())

    return runner._replace(compile=compile, put_state=lambda state: jax.device_put(state, shardings(state)))


RUNNERS = {"jit": jit_runner, "pmap": pmap_runner}


def make_runner(
    parallel: str, batch_sizes: Sequence[int], devices: Sequence[Any] | None = None, *, sharded: str = ""
) -> Runner:
    """The runner of ``config.parallel``, for batches of these sizes; ``sharded`` as in :func:`shard`.

    Raises:
        UsageError: an unknown name, or a batch that does not divide over the devices.
    """
    if parallel not in RUNNERS:
        raise UsageError(f'No way to run called "{parallel}" (config.parallel); there are {", ".join(RUNNERS)}.')
    for size in batch_sizes:
        check_divides(size, len(devices or jax.devices()))
    return shard(RUNNERS[parallel](devices), sharded)
