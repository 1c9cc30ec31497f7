"""Pure score functions: image representations [B, ...] and text representations [C, ...] to scores [B, C]."""

from xmodal_jax.similarity.attention import MATCH_POOLS, NORMS, POOLS, cross_attention, gram, sum_max
from xmodal_jax.similarity.fovea import FOVEAS, fovea
from xmodal_jax.similarity.vector import (
    NEVER,
    AnyArray,
    correspondence,
    cosine,
    dot,
    l2_normalise,
    order,
    order_root,
    safe_sqrt,
)

__all__ = [
    "FOVEAS",
    "MATCH_POOLS",
    "NEVER",
    "NORMS",
    "POOLS",
    "AnyArray",
    "correspondence",
    "cosine",
    "cross_attention",
    "dot",
    "fovea",
    "gram",
    "l2_normalise",
    "order",
    "order_root",
    "safe_sqrt",
    "sum_max",
]
