"""The figures of a run of the attacks as JSON, and the table of `docs/reliability.md` that is made of them."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trials.attempts import ATTACKS

ROOT = Path(__file__).resolve().parents[2]
FIGURES, PAGE = ROOT / "docs" / "reliability.json", ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- figures: made by launch/reliability.sh from reliability.json -->", "<!-- end of figures -->"
PACKAGES = ("jax", "flax", "orbax-checkpoint", "numpy", "tensorflow-cpu", "array-record", "uvicorn")


def commit() -> str:
    """The commit that is checked out, marked where files differ from it."""
    git = ["git", "-C", str(ROOT)]
    name = subprocess.run([*git, "rev-parse", "--short=7", "HEAD"], capture_output=True, text=True, check=True)
    changed = subprocess.run([*git, "status", "--porcelain", "xmodal_jax", "tests"], capture_output=True, text=True)
    return name.stdout.strip() + ("+changes" if changed.stdout.strip() else "")


def about(seed: int) -> dict[str, Any]:
    """When and on what an attack ran."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    where = f"{os.cpu_count()} cores of {platform.machine()}, CPU, {platform.system()}"
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"commit": commit(), "date": day, "machine": where, "seed": seed, "versions": versions}


def keep(path: Path, rows: Mapping[str, dict[str, Any]], seed: int) -> None:
    """Put the rows into a file of figures, in place of those of the same attacks."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    known |= {name: {**row, **about(seed)} for name, row in rows.items()}
    ordered = {name: known[name] for name in ATTACKS if name in known}
    path.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")


def survived(name: str, row: Mapping[str, Any]) -> str:
    """What an attack was survived with, its own figures filled in."""
    return ATTACKS[name].survived.format(**row)


def table(figures: Mapping[str, dict[str, Any]]) -> list[str]:
    """The lines of the table."""
    lines = ["| attack | tries | survived | what that means | command |", "| --- | --- | --- | --- | --- |"]
    for name, row in figures.items():
        command = f"`bash launch/reliability.sh --only {name}`"
        counts = f"{row['tries']:,} | {row['survived']:,}"
        lines.append(f"| {ATTACKS[name].what.format(**row)} | {counts} | {survived(name, row)} | {command} |")
    return lines


def origin(figures: Mapping[str, dict[str, Any]]) -> list[str]:
    """Where the figures are from: the attacks that were run together in one sentence."""
    groups: dict[str, list[str]] = {}
    for name, row in figures.items():
        versions = ", ".join(f"{package} {version}" for package, version in row["versions"].items())
        where = f"at commit `{row['commit']}` on {row['date']} (seed {row['seed']}; {row['machine']}; {versions})"
        groups.setdefault(where, []).append(name)
    lines = []
    for where, names in groups.items():
        lines += [f"{', '.join(f'`{name}`' for name in names)}:", f"{where}.", ""]
    return lines[:-1]


def fill(page: str, figures: Mapping[str, dict[str, Any]]) -> str:
    """The page with its table made anew."""
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    return "\n".join([before + BEGIN, *table(figures), "", *origin(figures), END]) + after


def main() -> int:
    """Write the table of the page from the figures that are kept."""
    figures = json.loads(FIGURES.read_text(encoding="utf-8"))
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), figures), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
