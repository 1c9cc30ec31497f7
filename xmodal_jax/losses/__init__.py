"""Ranking losses of a score matrix."""

from xmodal_jax.losses.pairing import Pairing
from xmodal_jax.losses.ranking import Scalar, halves, infonce, sigmoid, triplet, violations
from xmodal_jax.losses.top_k import bi_rank, top_k

LOSSES = {  # the names that a config may give
    "triplet": triplet,
    "infonce": infonce,
    "sigmoid": sigmoid,
    "top_k": top_k,
    "bi_rank": bi_rank,
    "halves": halves,
}

__all__ = [
    "LOSSES",
    "Pairing",
    "Scalar",
    "bi_rank",
    "halves",
    "infonce",
    "sigmoid",
    "top_k",
    "triplet",
    "violations",
]
