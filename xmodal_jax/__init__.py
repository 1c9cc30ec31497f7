"""xmodal_jax: image-text matching in JAX, every system one model file and one config.

What a program needs of it, all imported when first used:

    load(path)                      a bundle: embed_images, embed_texts, score, attend, caption
    Gallery(path), Searcher(...)    search in both directions
    recall(image, text, owner)      the recall table of two arrays of embeddings, or of a matrix of scores
    ranks(scores, positive)         ranks in a whole matrix, ties against the query
    losses, similarity              pure functions of arrays: ranking losses, scores

>>> import xmodal_jax
>>> [name for name in dir(xmodal_jax) if name in xmodal_jax.__all__]
['Gallery', 'Searcher', 'load', 'losses', 'ranks', 'recall', 'similarity']
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xmodal_jax import losses as losses
    from xmodal_jax import similarity as similarity
    from xmodal_jax.evaluation import ranks as ranks
    from xmodal_jax.evaluation import recall as recall
    from xmodal_jax.inference import load as load
    from xmodal_jax.inference.gallery import Gallery as Gallery
    from xmodal_jax.inference.search import Searcher as Searcher

__version__ = "0.1.0"
__all__ = ["Gallery", "Searcher", "load", "losses", "ranks", "recall", "similarity"]

_PLACES = {
    "Gallery": "inference.gallery",
    "Searcher": "inference.search",
    "load": "inference",
    "losses": "losses",
    "ranks": "evaluation",
    "recall": "evaluation",
    "similarity": "similarity",
}


def __getattr__(name: str) -> Any:
    # Lazily: `xmodal --help` imports this package, and must not import JAX.
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_PLACES[name]}")
    return module if name == _PLACES[name] else getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
