"""Ranking losses of a score matrix; the names here are those that ``config.loss.name`` may give."""

from xmodal_jax.losses.ranking import Scalar, infonce, sigmoid, triplet, violations

__all__ = ["Scalar", "infonce", "sigmoid", "triplet", "violations"]
