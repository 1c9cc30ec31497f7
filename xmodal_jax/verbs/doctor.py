"""`xmodal doctor`: what this installation consists of, what it lacks, and whether it can compute and write."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from xmodal_jax import __version__
from xmodal_jax.errors import UsageError

PACKAGE = "xmodal_jax"


def main(args: argparse.Namespace) -> int:
    """Print the findings, write them to ``args.json`` if given; 0 when all is well, 1 otherwise."""
    findings = examine()
    print_findings(findings)
    if args.json is not None:
        try:
            Path(args.json).write_text(json.dumps(findings, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"{args.json}: cannot write the findings there ({error.strerror}).") from error
    return 0 if findings["healthy"] else 1


def examine() -> dict[str, Any]:
    """All findings as JSON-like data; ``healthy`` when the base packages fit and every self-test passes.

    A missing extra is a finding but no fault.
    """
    try:
        extras = metadata.metadata(PACKAGE).get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError as error:
        raise UsageError(
            'xmodal_jax is not installed in this Python, only its folder is on the path; run pip install -e ".[train]" '
            "in the repository."
        ) from error
    packages = {requirement.name: state(requirement) for requirement in requirements(PACKAGE)}
    tests = {name: attempt(test) for name, test in SELF_TESTS.items()}
    return {
        "xmodal_jax": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(memory() / 2**30, 1),
        "devices": attempt(list_devices),
        "packages": packages,
        "extras": {extra: lacks(extra) for extra in extras},
        "self_test": tests,
        "healthy": not any(package["problem"] for package in packages.values())
        and all(test["passed"] for test in tests.values()),
    }


def requirements(name: str, extra: str = "") -> Iterator[Requirement]:
    """What package ``name`` asks for on this machine: its base requirements, or those that ``extra`` adds."""
    for line in metadata.requires(name) or []:
        requirement = Requirement(line)
        base = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if (not extra and base) or (
            extra and not base and requirement.marker and requirement.marker.evaluate({"extra": extra})
        ):
            yield requirement


def state(requirement: Requirement) -> dict[str, str | None]:
    """Installed version and problem of one requirement, None where there is none."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return {"version": None, "problem": "missing"}
    fits = requirement.specifier.contains(version, prereleases=True)
    return {"version": version, "problem": None if fits else f"{version} does not fit {requirement.specifier}"}


def lacks(extra: str, package: str = PACKAGE) -> list[str]:
    """``name: problem`` of everything that ``package[extra]`` asks for and that is not there."""
    problems = []
    for requirement in requirements(package, extra):
        problem = state(requirement)["problem"]
        if problem:
            problems.append(f"{requirement.name}: {problem}")
            continue
        for nested in sorted(requirement.extras):
            problems += lacks(nested, requirement.name)
    return sorted(set(problems))


def memory() -> int:
    """Bytes of memory that this process may use: the machine's, or its container's limit where that is lower."""
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            size = min(size, int(Path(limit).read_text()))
        except (OSError, ValueError):  # no such file, or the word "max"
            continue
    return size


def list_devices() -> list[str]:
    import jax

    return [f"{device.platform}:{device.id} {device.device_kind}" for device in jax.devices()]


def attempt(test: Callable[[], Any]) -> dict[str, Any]:
    """Run ``test``: whether it passed, its seconds, and what it returned or why it failed."""
    began = time.monotonic()
    try:
        passed, result = True, test()
    except Exception as error:  # whatever is broken here is the finding
        reason = " ".join(str(error).split())[:300]
        passed, result = False, f"{type(error).__name__}: {reason}"
    return {"passed": passed, "seconds": round(time.monotonic() - began, 2), "result": result}


def multiply() -> str:
    """A compiled matrix product on the first device against NumPy's."""
    import jax
    import numpy as np

    left, right = np.random.default_rng(0).standard_normal((2, 128, 128), dtype=np.float32)
    product = jax.jit(lambda a, b: jax.numpy.matmul(a, b, precision="highest"))(left, right)
    error = float(np.abs(np.asarray(product) - left @ right).max())
    if not error < 1e-3:
        raise ArithmeticError(f"a 128 x 128 matrix product is off by {error:.2g}")
    return f"largest difference from NumPy {error:.1g}"


def differentiate() -> str:
    """The gradient of the triplet loss through normalised embeddings is finite and not zero."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from xmodal_jax.losses import triplet

    def loss(embedding: Any) -> Any:
        image, text = embedding / jnp.linalg.norm(embedding, axis=-1, keepdims=True)
        return triplet(image @ text.T, jnp.eye(len(image), dtype=bool), margin=0.2, hardness=1.0)

    embedding = np.random.default_rng(0).standard_normal((2, 8, 16), dtype=np.float32)
    value, gradient = jax.jit(jax.value_and_grad(loss))(embedding)
    norm = float(jnp.linalg.norm(gradient))
    if not (np.isfinite(value) and np.isfinite(norm) and norm > 0):
        raise ArithmeticError(f"loss {float(value)}, norm of its gradient {norm}")
    return f"loss {float(value):.2f}, norm of its gradient {norm:.2f}"


def run_bundle() -> str:
    """A small bundle is written, loaded again, and scores two images with a sentence."""
    import jax
    import numpy as np

    from xmodal_jax import config as configs
    from xmodal_jax.export import run as export
    from xmodal_jax.inference.bundle import load
    from xmodal_jax.text.vocabulary import SPECIAL, Vocabulary
    from xmodal_jax.training.model import example_batch, make_model
    from xmodal_jax.types import Facts, Feature

    config = configs.load("vse.py:vsepp,tiny", ["--config.model.feature=global"])
    vocabulary = Vocabulary([*SPECIAL, "cat", "dog"])
    facts = Facts({"global": Feature((8,))}, {}, len(vocabulary), 0, 1, max(config.data.lengths))
    model = make_model(config, facts)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    shapes = jax.eval_shape(model.init, keys, example_batch(model.inputs, facts))
    variables = jax.tree.map(lambda leaf: np.linspace(-1, 1, leaf.size, dtype=leaf.dtype).reshape(leaf.shape), shapes)
    card = export.Card("Numbers in order.", "none", None, "Not measured.")
    parts = {"config": config, "model": model, "variables": variables, "vocabulary": vocabulary, "facts": facts}
    with tempfile.TemporaryDirectory() as folder:
        export.write(Path(folder) / "bundle", card=card, **parts)
        bundle = load(Path(folder) / "bundle")
        scores = bundle.score(bundle.embed_images(np.eye(2, 8, dtype=np.float32)), ["a dog"])
    if scores.shape != (2, 1) or not (np.abs(scores) <= 1.0001).all():
        raise ArithmeticError(f"cosines {scores.tolist()}")
    return f"scores {scores[0, 0]:.2f} and {scores[1, 0]:.2f}"


def write_and_read() -> str:
    """A file in the temporary folder comes back as it was written."""
    content = os.urandom(1 << 20)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "doctor.bin"
        path.write_bytes(content)
        if path.read_bytes() != content:
            raise OSError(f"{path} does not hold what was written to it")
        return f"1 MiB in {Path(folder).parent}"


SELF_TESTS: dict[str, Callable[[], str]] = {
    "compiled matrix product": multiply,
    "triplet loss gradient": differentiate,
    "small bundle": run_bundle,
    "temporary file": write_and_read,
}


def print_findings(findings: dict[str, Any]) -> None:
    """The findings as a page of text."""
    print(f"xmodal_jax {findings['xmodal_jax']}, Python {findings['python']} ({sys.executable})")
    print(f"{findings['platform']}, {findings['cpus']} CPUs, {findings['memory_gib']} GiB memory")
    devices = findings["devices"]
    print(f"JAX devices: {', '.join(devices['result']) if devices['passed'] else devices['result']}")
    print("\npackages")
    for name, package in findings["packages"].items():
        print(f"  {name:<20} {package['problem'] or package['version']}")
    print("\nextras")
    for extra, problems in findings["extras"].items():
        advice = f'{"; ".join(problems)}\n  {"":<20} pip install "{PACKAGE}[{extra}]"'
        print(f"  {extra:<20} {advice if problems else 'complete'}")
    print("\nself-test")
    for name, test in findings["self_test"].items():
        print(f"  {name:<24} {'ok' if test['passed'] else 'FAILED'} ({test['seconds']:.2f} s): {test['result']}")
    faults = [name for name, package in findings["packages"].items() if package["problem"]]
    advice = f'; pip install --upgrade "{PACKAGE}" mends the packages' if faults else ""
    faults += [name for name, test in findings["self_test"].items() if not test["passed"]]
    print("\nhealthy" if not faults else f"\nNOT healthy: {', '.join(faults)}{advice}")
