"""The house: no import goes from a lower room to a higher one, none goes round in a circle, and the hall is short."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "xmodal_jax"

# From the floor up: a module imports from its own line and from the lines above it here, docs/architecture.md says why.
FLOORS = (
    ("errors", "digest", "progress", "types"),
    ("similarity", "text", "torch_files"),
    ("losses", "layers"),
    ("matcher",),
    ("models",),
    ("config", "defaults"),
    ("data",),
    ("training",),
    ("evaluation",),
    ("baselines",),
    ("inference",),
    ("export",),
    ("convert",),
    ("report",),
    ("train", "evaluate"),
    ("serve", "bench", "verbs"),
    ("cli",),
    ("__main__", "__init__"),
)
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}
MODULES = {
    ".".join(("xmodal_jax", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
    if "configs" not in path.relative_to(PACKAGE).parts
}


def room(module: str) -> str:
    return [*module.split("."), "__init__"][1]


def imports(path: Path) -> list[tuple[int, str]]:
    """(line, module of the package) of every import in a file, those inside functions too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in whole]
        else:
            continue
        found += [(node.lineno, name) for name in names if name in MODULES]
    return found


def test_every_room_has_a_floor():
    assert {room(module) for module in MODULES} == set(FLOOR)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_import_goes_up(module):
    up = [
        f"{MODULES[module].relative_to(PACKAGE.parent)}:{line} imports {other}, which is a higher room"
        for line, other in imports(MODULES[module])
        if FLOOR[room(other)] > FLOOR[room(module)] and other != "xmodal_jax"
    ]
    assert not up, "\n".join(up)


def test_no_import_goes_round_in_a_circle():
    edges = {module: {other for _, other in imports(path)} - {module} for module, path in MODULES.items()}
    edges = {module: {o for o in others if not module.startswith(f"{o}.")} for module, others in edges.items()}
    while edges:  # take away what imports nothing that is left; what remains runs round
        free = [module for module, others in edges.items() if not others & edges.keys()]
        assert free, "these import each other: " + ", ".join(sorted(edges))
        for module in free:
            del edges[module]


def test_the_hall_holds_what_a_stranger_reads_first():
    hall = {path.stem for path in PACKAGE.glob("*.py")}
    assert hall == {room for floor in FLOORS for room in floor if (PACKAGE / f"{room}.py").is_file()}
    assert len(hall) <= 12
