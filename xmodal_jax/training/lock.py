"""Keeps other processes out of a folder while one is at work in it; the system lets go when that one dies."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from pathlib import Path

from xmodal_jax.errors import UsageError, XmodalError

FILE = "lock"
TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


class Lock:
    """Held from when it is made until :meth:`release`, or the end of the process; use as a context manager or not.

    The file says which process holds it. One that a dead process left is taken over; where a file system has no locks,
    that process is looked for instead.

    Args:
        path: of the file.
        error: what is raised where another process holds it.
    """

    def __init__(self, path: Path, error: type[XmodalError] = UsageError):
        self.path = path
        while True:
            self.file = path.open("a+", encoding="utf-8")
            if not self._take():
                holder = self._holder()
                self.file.close()
                who = f" ({holder['pid']} on {holder['host']})" if holder else ""
                raise error(f"Another process is at work in {path.parent}{who}; wait for it to end.")
            # Whoever held it before may have removed the file after it was opened here.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self.file.fileno()), path.stat()):
                    break
            self.file.close()
        self.file.truncate(0)
        self.file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
        self.file.flush()

    def _take(self) -> bool:
        try:
            import fcntl

            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (ImportError, OSError) as error:
            if getattr(error, "errno", None) in TAKEN:
                return False
            return not _alive(self._holder())  # a system or a file system without locks
        return True

    def _holder(self) -> dict[str, object]:
        """Host and process that the file names; {} where it does not."""
        self.file.seek(0)
        try:
            content = json.loads(self.file.read())
            return {"host": str(content["host"]), "pid": int(content["pid"])}
        except (ValueError, KeyError, TypeError, RecursionError):
            return {}

    def release(self) -> None:
        """Let go, and remove the file; once is enough."""
        if self.file.closed:
            return
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(self.file.fileno()), self.path.stat()):
                self.path.unlink()
        self.file.close()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _alive(holder: dict[str, object]) -> bool:
    """Whether the process that a lock file names may be at work; one on another host is taken to be."""
    if not holder:
        return False
    if holder["host"] != socket.gethostname():
        return True
    try:
        os.kill(int(str(holder["pid"])), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return holder["pid"] != os.getpid()
