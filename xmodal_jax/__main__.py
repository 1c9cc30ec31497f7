"""`python -m xmodal_jax` is `xmodal`."""

from xmodal_jax.cli import entry

entry()
