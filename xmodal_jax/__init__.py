"""xmodal_jax: image-text matching in JAX, every system one model file and one config."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xmodal_jax.inference import load as load

__version__ = "0.1.0"


def __getattr__(name: str):
    # Lazily: `xmodal --help` imports this package, and must not import JAX.
    if name == "load":
        from xmodal_jax.inference import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
