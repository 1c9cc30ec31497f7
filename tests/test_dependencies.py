"""What a bundle and the service import is what the package asks for: no training stack has to be there by chance."""

import json
import os
import subprocess
import sys
import tomllib
from importlib import metadata

import galleries
import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytest.importorskip("fastapi", reason="the service needs the extra serve")

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]

WALLED = """
import json, sys

walled = set(json.loads(sys.argv[2]))

class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in walled:
            raise ModuleNotFoundError("not declared: " + name, name=name)

sys.meta_path.insert(0, Wall())
"""
BUNDLE = """
import numpy as np
import xmodal_jax

m = xmodal_jax.load(sys.argv[1] + "/bundle")
print(m.score(m.embed_images(np.ones((3, 10, 158), np.float32)), m.embed_texts(["a red square", "two"])).shape)
"""
SERVICE = """
import asyncio
from pathlib import Path

import uvicorn
from xmodal_jax.serve import app, batcher, guard, live

served = live.Live(Path(sys.argv[1] + "/gallery"), lambda path: live.State(g := live.Gallery(path), live.Searcher(g)))
queue, metrics = batcher.Batcher(), guard.Metrics()
guarded = guard.Guard(app.make_app(served, queue, metrics), metrics=metrics, log=None)
uvicorn.Config(guarded).load()
sent = []

async def receive():
    return {"type": "http.request", "body": b'{"text": "a red square", "k": 3}'}

async def send(message):
    sent.append(message)

headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
scope = {"type": "http", "method": "POST", "path": "/search", "raw_path": b"/search", "query_string": b"",
         "headers": headers, "http_version": "1.1", "scheme": "http", "server": None, "client": None, "root_path": ""}
asyncio.run(guarded(scope, receive, send))
print(sent[0]["status"])
queue.close()
served.close()
"""


def closure(lines):
    """Names of all packages that the requirements ``lines`` bring along on this machine."""
    found, left = set(), [Requirement(line) for line in lines]
    while left:
        requirement = left.pop()
        name = canonicalize_name(requirement.name)
        extras = {"", *requirement.extras}
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        if name == "xmodal-jax":
            left += [Requirement(line) for extra in requirement.extras for line in EXTRAS[extra]]
            continue
        if (name, *sorted(extras)) in found:
            continue
        found.add((name, *sorted(extras)))
        for line in metadata.requires(name) or []:
            nested = Requirement(line)
            if nested.marker is None or any(nested.marker.evaluate({"extra": extra}) for extra in extras):
                nested.marker = None
                left.append(nested)
    return {name for name, *_ in found}


def undeclared(lines):
    """Top-level modules that are installed here and belong to none of the packages that ``lines`` bring along."""
    declared = closure(lines) | {"xmodal-jax"}
    return sorted(
        module
        for module, packages in metadata.packages_distributions().items()
        if not declared & {canonicalize_name(package) for package in packages} and module.isidentifier()
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dependencies")
    galleries.gallery(folder, count=4)
    return folder


@pytest.mark.parametrize(
    ("extras", "program", "says"), [((), BUNDLE, "(3, 2)\n"), (("serve",), SERVICE, "200\n")], ids=["bundle", "service"]
)
def test_what_is_imported_is_declared(extras, program, says, folder):
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]
    walled = undeclared(lines)
    assert {"tensorflow", "tensorflow_datasets", "clu"} & set(metadata.packages_distributions()) <= set(walled)
    assert {"jax", "numpy", "xmodal_jax", "flatbuffers"}.isdisjoint(walled)
    command = [sys.executable, "-c", WALLED + program, str(folder), json.dumps(walled)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": ROOT})
    assert done.stdout == says, done.stderr[-2000:]
