"""`xmodal bench load`: the service under load, on a gallery of 100,000 made-up images and a matcher of width 1,024."""

from __future__ import annotations

import collections
import http.client
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from xmodal_jax.errors import UsageError, require

ITEMS, WIDTH, FEATURES = 100_000, 1024, 128
CLIENTS, OVERLOAD = 32, 4
QUEUE = 32  # requests that may wait; four times the clients are more than that
WORDS = [f"word{i}" for i in range(2000)]


def make_gallery(folder: Path, items: int = ITEMS, width: int = WIDTH) -> Path:
    """A gallery of ``items`` images of random features, under VSE++ with random parameters; a hundred have captions."""
    from xmodal_jax import config as configs
    from xmodal_jax.export import run as export
    from xmodal_jax.inference import index, load
    from xmodal_jax.text.vocabulary import SPECIAL, Vocabulary
    from xmodal_jax.training.model import example_batch, make_model
    from xmodal_jax.training.step import initialise
    from xmodal_jax.types import Facts, Feature

    config = configs.load("vse.py:vsepp", [f"--config.model.embed_dim={width}", "--config.model.feature=global"])
    vocabulary = Vocabulary([*SPECIAL, *WORDS])
    facts = Facts({"global": Feature((FEATURES,))}, vocabulary=len(vocabulary), words=64)
    model = make_model(config, facts)
    init = initialise(model, example_batch(model.inputs, facts), 0)
    export.write(
        folder / "bundle",
        config=config,
        model=model,
        variables={"params": init.params, **init.model_state},
        vocabulary=vocabulary,
        facts=facts,
        card=export.Card("Random numbers, to measure with.", "none", None, "Not measured."),
    )

    def read(start: int) -> Iterator[index.Read]:
        for first in range(start * index.BLOCK, items, index.BLOCK):
            count = min(index.BLOCK, items - first)
            random = np.random.default_rng(first)
            yield {"global": random.standard_normal((count, FEATURES), np.float32)}, np.ones((count, 1), bool), None

    captions = [[sentence(np.random.default_rng(row))] if row < 100 else [] for row in range(items)]
    about = {"name": "made up", "manifest": "0" * 64, "split": "test", "folder": str(folder)}
    ids = [f"image-{row}" for row in range(items)]
    whole = index.Items(about, ids, captions, [None] * items, [(1, 1)] * items, read)
    index.build(folder / "gallery", load(folder / "bundle"), whole)
    return folder / "gallery"


def sentence(random: np.random.Generator) -> str:
    return " ".join(random.choice(WORDS, int(random.integers(4, 15))))


def resident(process: int) -> float:
    """MiB of memory that a process holds now."""
    line = next(
        status for status in Path(f"/proc/{process}/status").read_text().splitlines() if status.startswith("VmRSS")
    )
    return int(line.split()[1]) / 1024


def press(port: int, clients: int, seconds: float) -> dict[str, Any]:
    """So many clients ask one sentence after another, each over its own connection."""
    statuses: collections.Counter[int | str] = collections.Counter()
    times: list[float] = []
    until = time.monotonic() + seconds

    def client(number: int) -> None:
        random = np.random.default_rng(number)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while time.monotonic() < until:
            body = json.dumps({"text": sentence(random), "k": 10})
            began = time.perf_counter()
            try:
                connection.request("POST", "/search", body, {"content-type": "application/json"})
                answer = connection.getresponse()
                answer.read()
            except OSError as error:
                statuses[type(error).__name__] += 1
                connection.close()
                continue
            statuses[answer.status] += 1
            if answer.status == 200:
                times.append(time.perf_counter() - began)
            elif answer.status == 429:
                time.sleep(0.1)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spent = time.monotonic() - began
    p50, p99 = (1000 * float(np.percentile(times or [np.nan], q)) for q in (50, 99))
    return {
        "clients": clients,
        "seconds": round(spent, 1),
        "answers_per_second": round(len(times) / spent, 1),
        "p50_ms": round(p50, 1),
        "p99_ms": round(p99, 1),
        "status": {str(status): count for status, count in sorted(statuses.items(), key=str)},
    }


def bench_load(seconds: float, items: int = ITEMS, width: int = WIDTH) -> list[dict[str, Any]]:
    """32 clients, then four times as many as fit, against `xmodal serve` in a process of its own.

    Raises:
        UsageError: the extra "serve" is not installed, or the service does not start.
    """
    for module in ("fastapi", "uvicorn"):
        require(module, "serve")
    with tempfile.TemporaryDirectory() as name:
        gallery = make_gallery(Path(name), items, width)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-m", "xmodal_jax", "serve", str(gallery), "--port", str(port)]
        log = Path(name) / "log"
        with log.open("w") as file:
            process = subprocess.Popen([*command, "--queue", str(QUEUE)], stdout=file, stderr=subprocess.STDOUT)
        try:
            while "images at http" not in log.read_text():
                if process.poll() is not None:
                    raise UsageError(f"The service did not start: {log.read_text().strip().splitlines()[-1]}")
                time.sleep(0.2)
            rows = []
            press(port, CLIENTS, min(seconds, 5.0))
            for clients in (CLIENTS, OVERLOAD * CLIENTS):
                before = resident(process.pid)
                row = press(port, clients, seconds)
                grown = round(resident(process.pid) - before, 1)
                rows.append({"name": f"load_{clients}", "items": items, "width": width, **row, "grown_mib": grown})
            return rows
        finally:
            process.terminate()
            process.wait(timeout=60)
