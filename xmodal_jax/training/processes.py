"""Several processes that train one model: how they join, agree and leave. All of it does nothing for a process alone.

Every process runs the same program on its own rows of each batch. Only the first one writes and speaks; the others say
no more than the error that ends them.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from xmodal_jax.errors import UsageError, XmodalError

ADDRESS, COUNT, INDEX = VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
TIMEOUT = 300  # seconds to wait for the other processes to start
VISIBLE = 90  # seconds after which a file that one host wrote is seen by all others, network file systems included


def join(detect: bool = False, timeout: int = TIMEOUT) -> None:
    """Connect to the other processes that the environment names; to be called before anything touches a device.

    The variables are those that JAX and its tools know, JAX_COORDINATOR_ADDRESS (host:port of process 0),
    JAX_NUM_PROCESSES and JAX_PROCESS_ID. With ``detect``, JAX finds out from SLURM, Open MPI, a TPU pod or Kubernetes
    what they do not say.

    Raises:
        UsageError: the variables are incomplete or wrong, or nothing was detected. Where the others do not come in
            time, the process ends with that error's exit code.
    """
    given = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    if not given and not detect:
        return
    address, count, index = given.get(ADDRESS), _number(COUNT), _number(INDEX)
    if missing := [name for name in VARIABLES if name not in given and not detect]:
        raise UsageError(
            f"{', '.join(given)} is set but {', '.join(missing)} is not; set all three in every process, none to train "
            "with one, or give --distributed where a cluster knows the rest."
        )
    if address and not address.rpartition(":")[2].isdigit():
        raise UsageError(f"{ADDRESS}={address} has no port; it looks like host:1234, where process 0 runs on host.")
    if count is not None and index is not None and index >= count:
        raise UsageError(f"{INDEX}={index} must be below {COUNT}={count}; processes are counted from 0.")
    if address and index == 0:
        _check_free(address)
    # Its handler would swallow SIGTERM until training starts; the training loop has its own.
    jax.config.update("jax_enable_preemption_service", False)
    with _at_most(
        timeout, f"process {'?' if index is None else index} of {count or '?'} at {address or 'its address'}"
    ):
        try:
            jax.distributed.initialize(address, count, index, initialization_timeout=timeout + 60)
        except (RuntimeError, ValueError, TypeError, LookupError, OSError) as error:
            reason = (str(error) or repr(error)).splitlines()[0]
            raise UsageError(
                f"Cannot join other processes ({reason}); --distributed is for jobs that SLURM, Open MPI, a TPU "
                f"pod or Kubernetes started, elsewhere set {', '.join(VARIABLES)}."
            ) from error


def _number(name: str) -> int | None:
    text = os.environ.get(name) or None
    if text is not None and not text.isdigit():
        raise UsageError(f"{name}={text} is not a number.")
    return None if text is None else int(text)


def _check_free(address: str) -> None:
    """JAX would crash on a port in use."""
    port = address.rpartition(":")[2]
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(port)))
        except (OSError, OverflowError) as error:
            raise UsageError(f"Port {port} of {ADDRESS}={address} cannot be used ({error}); choose another.") from error


@contextlib.contextmanager
def _at_most(seconds: int, what: str) -> Iterator[None]:
    """End the process with a sentence after ``seconds``; JAX would abort it with a stack trace."""

    def give_up() -> None:
        print(
            f"xmodal: {what} has waited {seconds} s in vain for the others; check that all were started, with the same "
            f"{ADDRESS} and {COUNT}, and that they can reach that address.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(UsageError.exit_code)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return jax.process_index() == 0


@contextlib.contextmanager
def together() -> Iterator[None]:
    """The work of a joined process. An error ends the process at once, with its sentence and exit code.

    Leaving the usual way would make JAX wait minutes for the others, while those wait for this one; a process that is
    gone stops them.
    """
    if jax.process_count() == 1:
        yield
        return
    with contextlib.ExitStack() as stack:
        if not first():
            null = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(null))
            stack.enter_context(contextlib.redirect_stderr(null))
        try:
            yield
        except BaseException as error:
            stack.close()
            os._exit(_explain(error))


def _explain(error: BaseException) -> int:
    """Print what ended this process; returns its exit code."""
    name = f"process {jax.process_index()} of {jax.process_count()}"
    sys.stdout.flush()
    if isinstance(error, XmodalError):
        print(f"xmodal: {name}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        print(f"xmodal: {name}: interrupted", file=sys.stderr, flush=True)
        return 130
    traceback.print_exception(error)
    print(f"xmodal: {name} ends; if the error is about a connection, see what ended the others", file=sys.stderr)
    sys.stderr.flush()
    return 1


def wait(name: str) -> None:
    """Wait until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def agree(values: Any) -> np.ndarray:
    """The numbers of the first process, float64 [n], in every process."""
    mine = np.atleast_1d(np.asarray(values, np.float64))
    if jax.process_count() == 1:
        return mine
    # As bytes: JAX would round them to float32.
    return np.asarray(multihost_utils.broadcast_one_to_all(mine.view(np.uint8))).view(np.float64)


def share(tree: Any) -> Any:
    """The arrays of the first process, in every process."""
    return tree if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(jax.device_get(tree))


def anyone(flag: bool) -> Any:
    """Whether ``flag`` is true in any process, to be read later (`bool`): the call itself waits for nobody."""
    return flag if jax.process_count() == 1 else _anyone()(flag)


@functools.cache
def _anyone() -> Callable[[bool], Any]:
    mesh = Mesh(np.array(jax.devices()), ("device",))
    each, whole = NamedSharding(mesh, PartitionSpec("device")), NamedSharding(mesh, PartitionSpec())
    count, compiled = jax.local_device_count(), jax.jit(jax.numpy.any, out_shardings=whole)

    def anyone(flag: bool) -> Any:
        out = compiled(jax.make_array_from_process_local_data(each, np.full(count, flag)))
        return jax.block_until_ready(out) if jax.default_backend() == "cpu" else out  # see `parallel.in_order`

    return anyone


def check_shared(path: Path) -> None:
    """Raise a UsageError in a process that does not see a file which the first one has written."""
    until = time.monotonic() + VISIBLE
    while not path.is_file():
        if time.monotonic() > until:
            raise UsageError(
                f"{path} of process 0 is not seen here; --workdir must be on a file system that all share."
            )
        time.sleep(0.2)
