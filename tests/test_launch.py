"""The launch commands: the Python and the environment that they take, what they install and run."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PYTHONS = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if line.startswith("Programming Language")]


def write_script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def bash(command: str, *, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [shutil.which("bash") or "bash", "-c", command],
        cwd=cwd,
        env={**os.environ, "PYTHON": "", "XMODAL_VENV": "", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def tools(tmp_path) -> Path:
    """A folder that as PATH holds nothing but what the launch scripts may count on."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("dirname", "cat", "rm", "env", "bash", "sh"):
        (folder / tool).symlink_to(shutil.which(tool) or tool)
    return folder


THIS = f"3.{sys.version_info.minor}"
FIND = ". launch/common.sh; find_python"
MAKE = "set -eu; . launch/common.sh; make_environment"
REAL = f'exec {shlex.quote(sys.executable)} "$@"'


def pretend(version: str) -> str:
    """Shell lines of an interpreter that runs what it is given by ``-c`` and takes itself for ``version``."""
    code = f"import sys; sys.version_info = ({version.replace('.', ', ')}, 0); exec(sys.argv.pop(1))"
    return f'[ "$1" = -c ] && shift && exec {shlex.quote(sys.executable)} -c {shlex.quote(code)} "$@"'


def test_one_list_of_pythons(checkout, tmp_path):
    wanted = SpecifierSet(PROJECT["requires-python"])
    for version in (f"3.{minor}" for minor in range(8, 17)):
        named = write_script(tmp_path / version, pretend(version))
        assert wanted.contains(f"{version}.1") == (version in PYTHONS)
        write_environment(checkout, ".venv", version)
        assert (bash(MAKE, cwd=checkout, PYTHON=str(named)).returncode == 0) == (version in PYTHONS)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"You need Python {', '.join(PYTHONS[:-1])} or {PYTHONS[-1]} and git." in readme


def test_python_is_found_behind_broken_names(tools):
    write_script(tools / "python3.12", "exit 127")  # a version manager's shim of a version that is not chosen
    for name in ("python3", "python3.11", "python3.13", "python3.12"):
        write_script(tools / name, REAL)
        if name != "python3.12":
            assert bash(FIND, PATH=str(tools)).stdout == f"{name}\n"
    assert bash(FIND, PATH=str(tools)).stdout == "python3.12\n"


WITHOUT_VENV = f'case "$2" in *ensurepip*) exit 1;; *) {REAL};; esac'


def test_no_python_is_one_sentence(tools):
    write_script(tools / "python3", pretend("3.10"))
    write_script(tools / "python", WITHOUT_VENV)
    done = bash(FIND, PATH=str(tools))
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("launch: no Python 3.11, 3.12 or 3.13 with its venv module was found; install one")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (None, "does not start"),
        ("exit 127", "does not start"),
        ("exit 0", "does not start"),  # whatever it is, no Python
        (pretend("3.10"), "is Python 3.10, which is not supported"),
        (WITHOUT_VENV, "lacks its venv module (Debian and Ubuntu: python3-venv)"),
    ],
)
def test_named_python_that_does_not_fit_is_one_sentence(checkout, tools, tmp_path, script, reason):
    write_script(tools / "python3.12", REAL)
    named = tmp_path / "named"
    if script:
        write_script(named, script)
    done = bash(MAKE, cwd=checkout, PATH=str(tools), PYTHON=str(named))
    assert done.returncode == 1 and done.stdout == ""
    advice = "name a Python 3.11, 3.12 or 3.13 or leave PYTHON out"
    assert done.stderr == f"launch: PYTHON={named} {reason}; {advice}\n"


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of the scripts, in a path with spaces, whose .venv only records what it is asked to run."""
    folder = tmp_path / "a checkout" / "x y"
    shutil.copytree(ROOT / "launch", folder / "launch")
    shutil.copytree(ROOT / ".ci", folder / ".ci")
    shutil.copy(ROOT / "pyproject.toml", folder)
    write_environment(folder, ".venv", THIS)
    return folder


def write_environment(checkout: Path, name: str, version: str) -> None:
    """A folder like a virtual environment, whose commands are recorded in a file of its name."""
    log = shlex.quote(str(checkout.parent.parent / f"calls{name}"))
    record = f'printf "%s|" "$PWD" "$@" >> {log}; echo >> {log}'
    python = f"""{pretend(version)}
case "$1 $2 $3" in
"-m pip --version") ;;
-m*) {record}; [ "$2" != "$FAIL" ];;
*) {REAL};;
esac"""
    write_script(checkout / name / "bin/python", python)
    write_script(checkout / name / "bin/xmodal", record)


def calls(checkout: Path, name: str = ".venv") -> list[list[str]]:
    """The recorded commands, each as [folder, argument, ...], and forget them."""
    path = checkout.parent.parent / f"calls{name}"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return [line.removesuffix("|").split("|") for line in lines]


def test_packages_are_installed_once(checkout):
    def prepare(extra: str) -> list[list[str]]:
        done = bash(f"set -eu; . launch/common.sh; prepare {extra}", cwd=checkout)
        assert done.returncode == 0, done.stderr
        return calls(checkout)

    def install(extra: str) -> list[list[str]]:
        pip = ["-m", "pip", "install", "--disable-pip-version-check"]
        return [[str(checkout), *pip, "-c", "launch/constraints.txt", "-e", f".[{extra}]"]]

    assert prepare("train") == install("train")
    assert prepare("train") == []
    assert prepare("dev") == install("dev")
    with (checkout / "launch" / "constraints.txt").open("a") as file:
        file.write("other==1\n")
    assert prepare("dev") == install("dev")
    assert prepare("train") == []  # the dev extra holds the train extra
    moved = checkout.with_name("moved")
    checkout.rename(moved)
    checkout = moved
    assert prepare("dev") == install("dev")


def test_failed_installation_is_tried_again(checkout):
    command = "set -eu; . launch/common.sh; prepare train"
    done = bash(command, cwd=checkout, FAIL="pip")
    assert done.returncode == 1 and "run the same command again" in done.stderr
    assert len(calls(checkout)) == 1
    assert bash(command, cwd=checkout).returncode == 0
    assert len(calls(checkout)) == 1


def test_foreign_environment_is_left_alone(checkout):
    write_script(checkout / ".venv/bin/python", pretend("3.9"))
    done = bash("bash launch/test.sh", cwd=checkout)
    assert done.returncode == 1 and "holds Python 3.9, but 3.11, 3.12 or 3.13 is needed; remove" in done.stderr


def test_named_python_is_the_one_of_the_environment(checkout, tmp_path):
    write_environment(checkout, ".venv", "3.12")
    assert bash(MAKE, cwd=checkout, PYTHON=str(write_script(tmp_path / "same", pretend("3.12")))).returncode == 0
    other = write_script(tmp_path / "other", pretend("3.13"))
    done = bash(MAKE, cwd=checkout, PYTHON=str(other))
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"launch: PYTHON={other} is Python 3.13, but {checkout}/.venv holds 3.12; remove")


def test_environment_elsewhere(checkout, tools, tmp_path):
    elsewhere = tmp_path / "else where"
    write_script(tmp_path / "my python", f'[ "$2" = venv ] || {REAL}; echo made "$@"; exit 1')
    # Both relative to where the command is called.
    environment = {"PATH": str(tools), "PYTHON": "./my python", "XMODAL_VENV": "else where"}
    command = f". {shlex.quote(str(checkout))}/launch/common.sh; make_environment"
    assert f"made -m venv --clear {elsewhere}\n" in bash(command, cwd=tmp_path, **environment).stdout
    (elsewhere / "other things").mkdir(parents=True)
    done = bash(command, cwd=tmp_path, **environment)
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"launch: XMODAL_VENV={elsewhere} is there but is no virtual environment; name")
    (elsewhere / "pyvenv.cfg").touch()
    assert "made -m venv --clear" in bash(command, cwd=tmp_path, **environment).stdout


def test_broken_environment_is_made_again(checkout, tools):
    write_script(checkout / ".venv/bin/python", "exit 1")
    write_script(tools / "python3", f'[ "$2" = venv ] || {REAL}; echo made "$@"; exit 1')
    done = bash(f". {shlex.quote(str(checkout))}/launch/common.sh; make_environment", PATH=str(tools))
    assert f"made -m venv --clear {checkout}/.venv" in done.stdout


@pytest.mark.parametrize("script", ["launch/test.sh", ".ci/run"])
def test_test_command_runs_every_check(checkout, tools, tmp_path, script):
    command = f"{shlex.quote(str(checkout / script))} -q -k 'a and b'"
    if script.endswith(".sh"):
        command = f"bash {command}"
    done = bash(command, cwd=tmp_path, PATH=str(tools))  # which holds no other Python
    assert done.returncode == 0, done.stderr
    (_, *pip), *checks = calls(checkout)
    assert pip[-1] == ".[dev]"
    assert {folder for folder, *_ in checks} == {str(checkout)}
    assert [shlex.join(check[1:]) for check in checks] == [
        "-m ruff check .",
        "-m ruff format --check .",
        shlex.join(["-m", "pyright", "--pythonpath", f"{checkout}/.venv/bin/python"]),
        "-m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations 40 -q -k 'a and b'",
    ]
    assert bash(command, cwd=tmp_path, PATH=str(tools), FAIL="pyright").returncode == 1
    assert [check[2] for check in calls(checkout)] == ["ruff", "ruff", "pyright"]


def test_ci_covers_every_python(checkout, tools, tmp_path):
    """Names on the path that start and those of pyenv, each version once; what fails there fails the whole."""
    others = [version for version in PYTHONS if version != THIS]
    for version in PYTHONS:
        write_script(tools / f"python{version}", pretend(version))
        write_environment(checkout, f".venv-{version}", version)
    write_script(tools / f"python{others[0]}", "exit 127")
    write_script(tmp_path / "pyenv of mine" / others[0] / "bin/python", pretend(others[0]))
    write_script(tmp_path / "pyenv of mine" / "3.9" / "bin/python", pretend("3.9"))
    prefix = shlex.quote(f"{tmp_path}/pyenv of mine")
    pyenv = f'case $1 in versions) echo 3.9; echo {others[0]};; prefix) printf "%s\\n" {prefix}/"$2";; esac'
    write_script(tools / "pyenv", pyenv)
    command = shlex.quote(str(checkout / ".ci/run"))
    for failing in ("", "pytest"):
        done = bash(command, cwd=tmp_path, PATH=str(tools), FAIL=failing)
        assert done.returncode == bool(failing), done.stderr
        for version in others:
            (folder, *check) = calls(checkout, f".venv-{version}")[-1]
            assert folder == str(checkout) and check[:2] == ["-m", "pytest"]
            for path in (word.partition("::")[0] for word in check if word.startswith("tests/")):
                assert (ROOT / path).is_file(), path
        assert [check[2] for check in calls(checkout)][-4:] == ["ruff", "ruff", "pyright", "pytest"]
        assert calls(checkout, f".venv-{THIS}") == []
    assert done.stderr.endswith(f"launch: the checks failed on Python {' '.join([others[1], others[0], THIS])}\n")


def test_every_extra_is_tried_alone_or_known_not_to_be(checkout, tmp_path):
    script = (ROOT / "launch" / "extras.sh").read_text(encoding="utf-8")
    (line,) = re.findall(r'^all="(.*)"$', script, re.M)
    tried = line.split()
    left = {"dev", "bench", "onnx", "wandb"}  # all together; torch alone; one Python alone; an account
    assert {"core", *PROJECT["optional-dependencies"]} - left == set(tried)
    assert [name for name in tried if f"\ncheck_{name}() " not in script] == []
    done = bash(f"bash {shlex.quote(str(checkout))}/launch/extras.sh core drawing", cwd=tmp_path)
    assert done.returncode == 1 and calls(checkout) == []
    assert done.stderr == f"launch: there is no check of the extra drawing; choose from {line}\n"


def test_demo_command_runs_where_it_is_called(checkout, tmp_path):
    done = bash(f"bash {shlex.quote(str(checkout))}/launch/demo.sh --tiny --workdir 'my demo'", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    pip, demo = calls(checkout)
    assert pip[-1] == ".[train,serve]"
    assert demo == [str(tmp_path), "demo", "--tiny", "--workdir", "my demo"]
