"""Ranking losses of a score matrix."""

from xmodal_jax.losses.pairing import Pairing
from xmodal_jax.losses.ranking import Scalar, infonce, sigmoid, triplet, violations

LOSSES = {"triplet": triplet, "infonce": infonce, "sigmoid": sigmoid}  # the names that a config may give

__all__ = ["LOSSES", "Pairing", "Scalar", "infonce", "sigmoid", "triplet", "violations"]
