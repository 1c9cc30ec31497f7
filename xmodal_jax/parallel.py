"""Devices: the mesh, where arrays live, and the two ways to run a step on many of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from xmodal_jax.errors import UsageError

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
    """A one-axis mesh over all devices."""
    devices = devices or jax.devices()
    # Auto: the default (Explicit) axis type asks every gather of a sharded operand for an output sharding.
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


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

    def put_batch(batch):
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(rows, np.asarray(x)), batch)

    def put_state(state):
        return jax.device_put(state, whole)

    return Runner(compile, put_state, lambda state: state, put_batch, jax.device_get, mesh)


def pmap_runner(devices: Sequence[Any] | None = None) -> Runner:
    """`jax.pmap` over the local devices: each holds its rows and gathers the others' representations."""
    devices = devices or jax.local_devices()
    n = len(devices)

    def compile(step):
        mapped = jax.pmap(lambda state, batch: step(state, batch, axis=AXIS), AXIS, devices=devices, donate_argnums=0)
        return in_order(mapped, devices)

    def put_state(state):
        return jax.tree.map(lambda x: jax.numpy.stack([x] * n), state)

    def put_batch(batch):
        return jax.tree.map(lambda x: np.asarray(x).reshape((n, -1, *np.shape(x)[1:])), batch)

    def first(tree):
        return jax.tree.map(lambda x: x[0], tree)

    return Runner(compile, put_state, first, put_batch, lambda metrics: jax.device_get(first(metrics)))


RUNNERS = {"jit": jit_runner, "pmap": pmap_runner}


def make_runner(parallel: str, batch_size: int, devices: Sequence[Any] | None = None) -> Runner:
    """The runner of ``config.parallel``.

    Raises:
        UsageError: an unknown name, or a batch that does not divide over the devices.
    """
    if parallel not in RUNNERS:
        raise UsageError(f'No way to run called "{parallel}" (config.parallel); there are {", ".join(RUNNERS)}.')
    check_divides(batch_size, len(devices or jax.devices()))
    return RUNNERS[parallel](devices)
