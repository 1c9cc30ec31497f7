"""The pins, the versions, and the wheel: what it holds and that it works outside the repository."""

import hashlib
import importlib
import pkgutil
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from helpers import child_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import xmodal_jax
from xmodal_jax import __version__

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONSTRAINTS = (ROOT / "launch" / "constraints.txt").read_text(encoding="ascii").splitlines()
EXTRAS = PROJECT["optional-dependencies"]
PYTHONS = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if line.startswith("Programming Language")]
MACHINES = {
    "linux": {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix"},
    "arm": {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "aarch64", "os_name": "posix"},
    "mac": {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64", "os_name": "posix"},
}


def test_constraints_are_versions_and_markers_only():
    for line in CONSTRAINTS:
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*( ; [a-zA-Z_0-9 '<>=!.()]+)?", line), line
    names = [line.partition("==")[0] for line in CONSTRAINTS]
    assert names == sorted(names)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("python", PYTHONS)
def test_every_range_has_one_pin_that_fits(python, machine):
    environment = {"python_version": python, "python_full_version": f"{python}.1", "extra": "", **MACHINES[machine]}
    pins: dict[str, str] = {}
    for line in map(Requirement, CONSTRAINTS):
        if line.marker is None or line.marker.evaluate(environment):
            name = canonicalize_name(line.name)
            assert name not in pins, f"two pins of {name}"
            pins[name] = str(line.specifier).removeprefix("==")
    wanted = [
        *PROJECT["dependencies"],
        # The pins of later Pythons are of a later JAX than the converter knows.
        *(line for extra, lines in EXTRAS.items() if extra != "onnx" or python == "3.11" for line in lines),
    ]
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        if name != "xmodal-jax" and (requirement.marker is None or requirement.marker.evaluate(environment)):
            assert requirement.specifier.contains(pins[name]), requirement


def test_extra_of_an_extra_has_no_marker():
    """hatchling puts the parts of such an extra in its place and drops the marker, so each part has to bear it."""
    for line in map(Requirement, (line for lines in EXTRAS.values() for line in lines)):
        assert canonicalize_name(line.name) != "xmodal-jax" or line.marker is None, line
    converter = {f"{line}; python_version < '3.12'" for line in EXTRAS["onnx"] if not line.startswith("jax<")}
    assert converter <= set(EXTRAS["dev"])


def test_every_module_imports():
    names = [module.name for module in pkgutil.walk_packages(xmodal_jax.__path__, "xmodal_jax.")]
    assert len(names) > 50
    for name in names:
        if name.endswith(".__main__"):  # runs the command line
            continue
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            assert error.name == "torch"  # the extra bench, which dev does not hold


def test_one_version_and_licence_everywhere():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {__version__}\n" in citation and PROJECT["version"] == __version__
    assert "\nlicense: Apache-2.0\n" in citation and PROJECT["license"] == "Apache-2.0"
    # The text as the Apache Software Foundation publishes it, to the byte.
    digest = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    assert digest == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def sources(folder: str) -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for path in (ROOT / folder).rglob("*.py")
        if "__pycache__" not in path.parts  # the only thing there that git does not hold
    }


@pytest.fixture(scope="session")
def distributions(tmp_path_factory) -> tuple[Path, Path]:
    """The sdist, and the wheel built from it."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


@pytest.mark.slow
def test_sdist_and_wheel_hold_the_sources_and_no_more(distributions):
    sdist, wheel = distributions
    assert wheel.name == f"xmodal_jax-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        records = {name.rpartition(".dist-info/")[2] for name in archive.namelist() if ".dist-info/" in name}
        packed = {name: archive.read(name) for name in names}
    assert {name for name in names if name.endswith(".py")} == sources("xmodal_jax") | {
        f"xmodal_jax/{name}" for name in sources("configs")
    }
    assert all(name.startswith("xmodal_jax/") for name in names)
    assert "licenses/LICENSE" in records
    for name in sources("configs"):
        assert packed[f"xmodal_jax/{name}"] == (ROOT / name).read_bytes()
    with tarfile.open(sdist) as archive:
        members = {name.partition("/")[2] for name in archive.getnames()}
    assert members >= sources("configs") | sources("tests") | {"launch/test.sh", "launch/constraints.txt", "LICENSE"}
    assert not [name for name in members if name.startswith((".venv", ".jax_cache", "runs", ".git/"))]


@pytest.fixture(scope="session")
def installed(distributions, tmp_path_factory) -> Path:
    """Scripts folder of a fresh environment outside the repository, with the wheel installed.

    Third-party packages come from the environment that runs the tests, after the new one's own: the plain path in the
    .pth file does not bring the editable installation of the repository along.
    """
    environment = tmp_path_factory.mktemp("outside") / "fresh env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True, timeout=120)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(distributions[1])], check=True, timeout=120)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "third_party.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment / "bin"


def outside(installed: Path, *command: str, cwd: Path, timeout: int = 300) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in child_environment().items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(installed / command[0]), *command[1:]],
        cwd=cwd,
        env=variables,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done


@pytest.mark.slow
def test_wheel_works_outside_the_repository(installed, tmp_path):
    where = outside(installed, "python", "-c", "import xmodal_jax; print(xmodal_jax.__file__)", cwd=tmp_path).stdout
    assert Path(where).is_relative_to(installed.parent)
    assert "doctor" in outside(installed, "xmodal", "--help", cwd=tmp_path).stdout
    assert "\nhealthy\n" in outside(installed, "xmodal", "doctor", cwd=tmp_path).stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_wheel_runs_the_demo_outside_the_repository(installed, tmp_path):
    outside(installed, "xmodal", "demo", "--tiny", "--workdir", str(tmp_path / "tiny demo"), cwd=tmp_path, timeout=500)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny demo"]
    report = (tmp_path / "tiny demo" / "report.md").read_text(encoding="utf-8")
    assert "word-region accuracy" in report and "generated caption" in report
    pictures = re.findall(r"\]\((.+\.png)\)", report)
    assert pictures == ["curves.png", "ranks.png", "retrieved.png", "attention.png"]
    assert "| i2t R@1 |" in (tmp_path / "tiny demo" / "bundle" / "README.md").read_text(encoding="utf-8")
    assert all((tmp_path / "tiny demo" / name).stat().st_size > 10_000 for name in pictures)
