"""What an exported function is made of, looked through before it runs: a bundle may come from a stranger.

StableHLO computes; but a custom call names a function of the process by a string and hands it raw addresses, and
infeeds and sends wait for somebody. None of our systems needs more than the few names below.
"""

from __future__ import annotations

from pathlib import Path

from jax import export
from jax.extend.mlir import ir
from jax.interpreters import mlir

from xmodal_jax.errors import CheckpointError

LARGEST = 64 << 20  # bytes of a function: parameters are not part of it
DIALECTS = frozenset({"builtin", "func", "stablehlo", "chlo"})
CALLS = frozenset({"shape_assertion"})  # of symbolic sizes; it is taken out before anything is compiled
IDLE = frozenset(f"stablehlo.{name}" for name in ("infeed", "outfeed", "send", "recv"))


def screen(exported: export.Exported, path: Path) -> None:
    """Raise a CheckpointError unless the function in ``path`` consists of operations that only compute."""
    found: list[str] = []

    def look(operation: ir.Operation) -> ir.WalkResult:
        name = operation.operation.name
        if name == "stablehlo.custom_call":
            target = ir.StringAttr(operation.attributes["call_target_name"]).value
            if target not in CALLS:
                found.append(f"custom call {target!r}")
        elif name in IDLE or name.partition(".")[0] not in DIALECTS:
            found.append(f"operation {name!r}")
        return ir.WalkResult.INTERRUPT if found else ir.WalkResult.ADVANCE

    with mlir.make_ir_context():
        ir.Module.parse(exported.mlir_module()).operation.walk(look)
    if found:
        raise CheckpointError(
            f"{path} is refused and was not run: it has the {found[0][:80]}, which no exported system needs; take the "
            "bundle from somebody you trust."
        )
