"""python launch/local.py N COMMAND...: runs COMMAND as N processes of this machine that train one model.

    python launch/local.py 2 .venv/bin/xmodal train --config vse.py:vsepp,f8k --workdir runs/vsepp

It rehearses many hosts; for the devices of one machine, one process is enough. Ctrl-C and SIGTERM go on to all of them.
When one fails the others have 15 seconds to leave; the exit code is that of the first to fail.
"""

import os
import signal
import socket
import subprocess
import sys
import time

GRACE = 15.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def main(count: int, command: list[str]) -> int:
    env = {**os.environ, "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": str(count)}
    started: list[subprocess.Popen] = []

    def stop(number: int, _: object) -> None:
        for process in started:
            process.terminate()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    for index in range(count):
        # In a session of its own: Ctrl-C then reaches it through this script alone, once and not twice.
        started.append(subprocess.Popen(command, env={**env, "JAX_PROCESS_ID": str(index)}, start_new_session=True))
        print(f"launch: process {index} has id {started[-1].pid}", file=sys.stderr, flush=True)
    running, code, until = list(started), 0, float("inf")
    while running:
        for process in list(running):
            if process.poll() is not None:
                running.remove(process)
                if process.returncode and not code:
                    code, until = process.returncode, time.monotonic() + GRACE
        if time.monotonic() > until:
            for process in running:
                process.kill()
        time.sleep(0.02)
    return code if code >= 0 else 128 - code  # as a shell says that a signal ended it


if __name__ == "__main__":
    if len(sys.argv) < 3 or not sys.argv[1].isdigit() or int(sys.argv[1]) < 1:
        sys.exit(__doc__)
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
