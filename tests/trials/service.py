"""The service under clients that mean it harm: its memory, and whether others are answered meanwhile."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import resource
import shutil
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trials import makers
from trials.harness import Child, Failures, Row, forked, sound, verb
from trials.makers import Things

DEADLINE, AMPLE = 8.0, 60.0  # seconds that a request may take, here and where nothing is late on purpose
GROWTH = 128  # MiB that the service may grow by under all of it: bodies in flight have 64 MB
ASK = json.dumps({"text": makers.SENTENCE, "k": 3}).encode()


class Service:
    """`xmodal serve` in a child, and a client that asks one ordinary question."""

    def __init__(self, gallery: Path, deadline: float = DEADLINE):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        argv = ["serve", gallery, "--port", self.port, "--deadline", deadline]
        self.child = Child(lambda: verb(*argv))
        until = time.monotonic() + 120
        while self.ask()[0] != 200:
            if time.monotonic() > until or self.child.ended() is not None:
                raise RuntimeError(f"the service does not start: {self.child.text('err')[-2000:]}")
            time.sleep(0.2)
        self.answer = self.ask()[1]

    def ask(self, seconds: float = AMPLE) -> tuple[int, bytes]:
        """Status and body of the answer to the ordinary question; 0 where there is none."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=seconds)
        try:
            connection.request("POST", "/search", ASK, {"content-type": "application/json"})
            answer = connection.getresponse()
            return answer.status, without_times(answer.read())
        except OSError as error:
            return 0, repr(error).encode()
        finally:
            connection.close()

    def memory(self) -> int:
        """MiB that it holds."""
        for line in Path(f"/proc/{self.child.id}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) >> 10
        return 0

    def close(self) -> None:
        self.child.kill()
        self.child.wait()


def without_times(body: bytes) -> bytes:
    """An answer without what differs from one to the next."""
    with contextlib.suppress(ValueError, AttributeError, KeyError, TypeError):
        return json.dumps([(hit["row"], hit["score"]) for hit in json.loads(body)["hits"]]).encode()
    return body


def connect(service: Service) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), timeout=20)


def head(path: str, length: object = None, host: str = "localhost") -> bytes:
    body = f"content-length: {length}\r\n" if length is not None else ""
    return f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n{body}\r\n".encode()


def status(client: socket.socket, seconds: float = 20.0) -> int:
    """The status that a client is answered with; 0 where the connection ends without one."""
    client.settimeout(seconds)
    try:
        line = client.recv(4096).split(b" ", 2)
        return int(line[1]) if len(line) > 1 else 0
    except (OSError, ValueError):
        return 0


@contextlib.contextmanager
def clients(service: Service, count: int) -> Iterator[list[socket.socket]]:
    """So many connections, as far as the service takes them."""
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            with contextlib.suppress(OSError):
                found.append(stack.enter_context(connect(service)))
        yield found


def send(client: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        client.sendall(data)


# Attacks: each holds what it does for as long as the context lasts, and says what was wrong with the answers


Attack = Callable[[Service, int, random.Random], "contextlib.AbstractContextManager[Callable[[], list[str]]]"]


@contextlib.contextmanager
def unfinished(service: Service, count: int, _: random.Random) -> Iterator[Callable[[], list[str]]]:
    """Bodies of pictures that are announced and half sent."""
    with clients(service, count) as every:
        for client in every:
            send(client, head("/search/picture", 1_600_000) + bytes(800_000))
        yield lambda: [f"answered {code}" for client in every if (code := status(client)) not in (0, 429)]


@contextlib.contextmanager
def idle(service: Service, count: int, _: random.Random) -> Iterator[Callable[[], list[str]]]:
    """Connections that say nothing."""
    with clients(service, count):
        yield list


@contextlib.contextmanager
def slow(service: Service, count: int, _: random.Random) -> Iterator[Callable[[], list[str]]]:
    """Headers that come letter by letter."""
    stop = threading.Event()
    with clients(service, count) as every:

        def drip() -> None:
            for letter in head("/search", 2) + b"x" * 1000:
                for client in every:
                    send(client, bytes([letter]))
                if stop.wait(0.1):
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            yield list
        finally:
            stop.set()
            thread.join()


def each(ask: Callable[[socket.socket, random.Random], set[int]]) -> Attack:
    """An attack of one client after the other, who may be answered by the codes that ``ask`` gives."""

    @contextlib.contextmanager
    def attack(service: Service, count: int, rng: random.Random) -> Iterator[Callable[[], list[str]]]:
        wrong = []
        for _ in range(count):
            with connect(service) as client:
                allowed = ask(client, rng)
                if allowed and (code := status(client)) not in allowed:
                    wrong.append(f"answered {code} instead of {sorted(allowed)}")
        yield lambda: wrong

    return attack


def oversized(client: socket.socket, rng: random.Random) -> set[int]:
    if rng.random() < 0.5:
        length = rng.choice([10_000_001, 1 << 40, "9" * 300])
        send(client, head("/search/picture", length))
        return {413, 400} if isinstance(length, str) else {413}  # the HTTP library takes no number of so many digits
    send(client, head("/search").replace(b"\r\n\r\n", b"\r\ntransfer-encoding: chunked\r\n\r\n"))
    for _ in range(3):
        send(client, b"10000\r\n" + b"x" * 65536 + b"\r\n")
    return {413}


def leaves(client: socket.socket, rng: random.Random) -> set[int]:
    send(client, (head("/search", len(ASK)) + ASK)[: rng.randrange(20, len(ASK) + 120)])
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return set()


def stranger(client: socket.socket, rng: random.Random) -> set[int]:
    host = rng.choice(["evil.example", "localhost.evil.example", "169.254.169.254", "127.0.0.1.nip.io", "[::2]:80"])
    send(client, head("/search", len(ASK), host) + ASK)
    return {421}


def broken(client: socket.socket, rng: random.Random) -> set[int]:
    """Bytes that are no request, or JSON that is none."""
    body = rng.choice([b"[" * 30_000, b'{"text": 5}', b"\xff\xfe", b'{"text": "\\ud800"}', b'{"k": 1e999}', b"{"])
    if rng.random() < 0.2:
        send(client, rng.randbytes(200) + b"\r\n\r\n")
        return {400, 0}
    send(client, head("/search", len(body)) + body)
    return {400, 413, 422}


@contextlib.contextmanager
def late(service: Service, count: int, _: random.Random) -> Iterator[Callable[[], list[str]]]:
    """Bodies that come letter by letter: the deadline ends them."""
    with clients(service, count) as every:
        for client in every:
            send(client, head("/search", len(ASK)) + ASK[:3])

        def ends() -> list[str]:
            began = time.monotonic()
            codes = [status(client, DEADLINE + 15) for client in every]
            wrong = [f"answered {code} instead of 429" for code in codes if code != 429]
            return wrong + (["the deadline took 15 s more"] if time.monotonic() - began > DEADLINE + 15 else [])

        yield ends


ATTACKS: dict[str, tuple[int, Attack]] = {
    "unfinished bodies": (40, unfinished),
    "idle connections": (1200, idle),
    "slow headers": (50, slow),
    "bodies that are too large": (40, each(oversized)),
    "clients that leave": (200, each(leaves)),
    "bodies past the deadline": (20, late),
    "wrong hosts": (40, each(stranger)),
    "broken requests": (200, each(broken)),
}


def services(things: Things, tries: int, seed: int, first: int) -> Row:
    """All kinds of clients, one after the other; ``tries`` below the full number takes the same share of each."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, limit[1]), limit[1]))
    full = sum(count for count, _ in ATTACKS.values())
    service, failures, done, slowest = Service(things.gallery), Failures(), 0, 0.0
    try:
        for _ in range(20):
            service.ask()
        before = service.memory()
        for name, (count, attack) in ATTACKS.items():
            count = max(count * tries // full, 1)
            with attack(service, count, random.Random(f"{seed}/{name}/{first}")) as wrong:
                began = time.monotonic()
                meanwhile = service.ask()
                slowest = max(slowest, time.monotonic() - began)
                if meanwhile != (200, service.answer):
                    failures.add(f"{name}: a question meanwhile is answered {meanwhile[0]}: {meanwhile[1][:200]!r}")
                for text in wrong():
                    failures.add(f"{name}: {text}")
            if service.ask() != (200, service.answer):
                failures.add(f"{name}: afterwards the service does not answer as before")
            done += count
        after = service.memory()
        if after - before > GROWTH:
            failures.add(f"it has grown from {before} to {after} MiB")
        failures.add("a traceback in its log" if "Traceback" in service.child.text("err") else "")
    finally:
        service.close()
    notes = {"before": before, "after": after, "slowest_ms": round(1000 * slowest)}
    return Row(done, failures, notes)


# A gallery that is replaced while it is served


def replaced(things: Things, tries: int, seed: int, first: int) -> Row:
    """Two galleries change places while clients ask: every answer is that of one of them, whole."""
    root = things.root / "served"
    root.mkdir(exist_ok=True)
    other, here = root / "other", root / "gallery"
    argv = ["index", "--bundle", things.bundle, "--data", things.data, "--split", "dev", "--out", other]
    if not other.exists():
        sound(forked(lambda: verb(*argv)))
    answers = []
    for gallery in (other, things.gallery):
        alone = Service(gallery, AMPLE)
        answers.append(alone.answer)
        alone.close()
    shutil.rmtree(here, ignore_errors=True)
    shutil.copytree(things.gallery, here)
    service, failures, asked = Service(here, AMPLE), Failures(), 0
    rng = random.Random(f"{seed}/replaced/{first}")
    try:
        for number in range(first, first + tries):
            wanted = answers[(number - first) % 2]
            exchange((other, things.gallery)[(number - first) % 2], here, rng)
            until, answer = time.monotonic() + AMPLE, (0, b"")
            while answer != (200, wanted) and time.monotonic() < until:
                answer, asked = service.ask(), asked + 1
                if answer[0] != 200 or answer[1] not in answers:
                    failures.add(f"try {number}: answered {answer[0]}: {answer[1][:200]!r}")
                    break
                time.sleep(0.05)
            if answer[0] == 200 and answer[1] != wanted:
                failures.add(f"try {number}: the new gallery was not taken within a minute")
    finally:
        service.close()
    return Row(tries, failures, {"asked": asked})


def exchange(source: Path, here: Path, rng: random.Random) -> None:
    """Put a gallery in the place of another: by a rename, or file by file as a slow copy does."""
    if rng.random() < 0.5:
        ready = here.with_name("ready")
        shutil.copytree(source, ready)
        here.rename(here.with_name("old"))
        ready.rename(here)
        shutil.rmtree(here.with_name("old"))
        return
    shutil.rmtree(here)
    here.mkdir()
    paths: list[Any] = sorted(path for path in source.rglob("*") if path.is_file())
    rng.shuffle(paths)
    for path in paths:
        place = here / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
        time.sleep(0.02)
