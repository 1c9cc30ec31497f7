"""`xmodal serve`."""

from __future__ import annotations

import argparse
import os
import signal
import socket
from typing import Any

from xmodal_jax import config as configs
from xmodal_jax.errors import UsageError, require

LOOPBACK = ("127.0.0.1", "localhost", "::1")
DRAIN = 10  # seconds that requests in flight get on SIGTERM


def check_address(host: str, port: int, token: str | None) -> None:
    """Raise a UsageError where the service may not or cannot listen."""
    if host not in LOOPBACK and not token:
        raise UsageError(
            f"--host {host} opens the gallery to other machines; set a token in XMODAL_TOKEN, which clients send as "
            "Authorization: Bearer TOKEN."
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise UsageError(f"Port {port} of {host} cannot be used ({error}); choose another --port.") from None


def main(args: argparse.Namespace) -> int:
    """Serve a gallery until SIGTERM or Ctrl-C."""
    for module in ("fastapi", "uvicorn", "PIL"):
        require(module, "serve")
    import uvicorn

    from xmodal_jax.serve.app import ROUTES, make_app
    from xmodal_jax.serve.batcher import BATCH, Batcher
    from xmodal_jax.serve.connections import PATIENCE, Connection
    from xmodal_jax.serve.guard import Guard, Metrics
    from xmodal_jax.serve.live import Live, open_state

    path = args.gallery
    if (path / configs.RECORD).is_file():
        from xmodal_jax.export import gallery

        path = gallery.of_run(path, args.split)
    elif args.split:
        raise UsageError("--split is for a run folder; a gallery is of one split already.")
    token = os.environ.get("XMODAL_TOKEN") or None
    check_address(args.host, args.port, token)
    print(f"serve: opening {path} and compiling; the first query is then as fast as the others", flush=True)
    live = Live(path, lambda path: open_state(path, args.engine, args.rerank, args.pictures))
    batcher, metrics = Batcher(most=args.queue), Metrics()
    app: Any = make_app(live, batcher, metrics, deadline=args.deadline)
    limits: Any = {"deadline": args.deadline, "most": args.queue + BATCH}
    guarded = Guard(app, metrics=metrics, routes=ROUTES, token=token, loopback=args.host in LOOPBACK, **limits)
    shown = f"[{args.host}]" if ":" in args.host else args.host
    print(f"serve: {live.state.count:,} images at http://{shown}:{args.port}/ (Ctrl-C ends it)", flush=True)
    config = uvicorn.Config(
        guarded,
        http=Connection,
        host=args.host,
        port=args.port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN,
        timeout_keep_alive=PATIENCE,
        h11_max_incomplete_event_size=32_768,
        ws="none",
    )
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them again once it has drained
        signal.signal(number, lambda *_: None)
    uvicorn.Server(config).run()
    batcher.close()
    live.close()
    print("serve: ended", flush=True)
    return 0
