"""Shared set-up: CPU with eight virtual devices, a compilation cache, the real data where it is present."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# Nearly all the time of the tests is compilation: LLVM may leave out what makes large arrays fast.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ["XLA_FLAGS"] = f"{QUICK} {os.environ.get('XLA_FLAGS', '')}"
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import pytest

DATA = Path(os.environ.get("XMODAL_DATA", ROOT.parent / "shared" / "data"))
GOLDEN = Path(__file__).resolve().parent / "golden"


MAPS = Path("/proc/self/maps")  # Linux gives a process 65,530 mappings, and every compiled function takes ten


@pytest.fixture(scope="module", autouse=True)
def few_mappings():
    """A worker that has run through many files would else crash where it compiles, or loads, one function more."""
    yield
    if "jax" in sys.modules and MAPS.is_file() and MAPS.read_bytes().count(b"\n") > 20_000:
        sys.modules["jax"].clear_caches()


@pytest.fixture
def one_device(monkeypatch):
    """Runs use one device instead of eight virtual ones, which two cores would only simulate slowly."""
    import jax

    from xmodal_jax.training import parallel

    monkeypatch.setitem(parallel.RUNNERS, "jit", lambda _: parallel.jit_runner(jax.devices()[:1]))
    monkeypatch.setattr(parallel, "check_divides", lambda *_: None)


@pytest.fixture(scope="session")
def flickr8k() -> Path:
    """The folder of the real Flickr8k features in the precomp layout."""
    folder = DATA / "flickr8k"
    if not (folder / "train_caps.txt").is_file():
        pytest.skip(f"no real data at {folder}; set XMODAL_DATA to a folder that holds flickr8k")
    return folder
