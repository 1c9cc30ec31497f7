"""Retrieval: ranks by counting, evaluation protocols, recall tables. NumPy only."""

from xmodal_jax.retrieval.rank import ranks

__all__ = ["ranks"]
