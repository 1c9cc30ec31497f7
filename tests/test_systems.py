"""docs/systems.md names every system, links to its own sections, and takes its figures from docs/results.jsonl."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "systems.md").read_text()
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| [")]


@pytest.mark.parametrize("folder", ["xmodal_jax/models", "configs"])
def test_every_system_has_its_row(folder):
    files = sorted(path.name for path in (ROOT / folder).glob("*.py") if not path.name.startswith("_"))
    named = {name for row in ROWS for name in re.findall(r"(\w+\.py)", row[1])}
    assert [name for name in files if name not in named] == []


def test_every_row_leads_to_its_section():
    titles = re.findall(r"^## (.+)$", PAGE, re.M)
    anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
    wanted = {link for row in ROWS for link in re.findall(r"\(#([^)]+)\)", row[0])}
    assert wanted == anchors


def test_figures_here_are_those_of_runs():
    lines = (ROOT / "docs" / "results.jsonl").read_text().splitlines()
    known = {f"{run['figures']['rsum']:.1f}" for run in map(json.loads, lines) if run.get("figures", {}).get("rsum")}
    figures = {figure for row in ROWS for figure in re.findall(r"\d+\.\d", row[-1])}
    assert len(figures) > 10 and figures <= known, figures - known
