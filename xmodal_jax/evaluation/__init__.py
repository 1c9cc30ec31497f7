"""Retrieval: ranks by counting, evaluation protocols, recall tables."""

from xmodal_jax.evaluation.embeddings import recall
from xmodal_jax.evaluation.rank import blocked_ranks, ranks

__all__ = ["blocked_ranks", "ranks", "recall"]
