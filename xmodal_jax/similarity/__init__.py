"""Pure score functions: image representations [B, ...] and text representations [C, ...] to scores [B, C]."""

from xmodal_jax.similarity.attention import (
    MATCH_POOLS,
    NORMS,
    POOLS,
    attention_weights,
    cross_attention,
    gram,
    match_weights,
    sum_max,
)
from xmodal_jax.similarity.fovea import FOVEAS, fovea
from xmodal_jax.similarity.vector import (
    NEVER,
    AnyArray,
    correspondence,
    cosine,
    dot,
    euclidean,
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
    "attention_weights",
    "correspondence",
    "cosine",
    "cross_attention",
    "dot",
    "euclidean",
    "fovea",
    "gram",
    "l2_normalise",
    "match_weights",
    "order",
    "order_root",
    "safe_sqrt",
    "sum_max",
]
