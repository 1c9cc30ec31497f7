"""The records that flow through the framework, and the letters their shapes are written in.

Letters: B images, C captions, R regions, W words, T fragments of either side, D embedding, F input feature,
V vocabulary, K heads or steps, N items. B before C; item, fragment, feature. ``mask`` is True for real fragments.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

Config = Any  # an ml_collections ConfigDict, whose attributes have no static types
Repr = Any  # a pytree whose every leaf has the item axis first: what `score` needs and nothing else


class Images(NamedTuple):
    """Images of a batch. ``id`` is the image's row in its split, -1 for padding rows."""

    feature: Mapping[str, Any]  # {"global": [B, F], "region": [B, R, F]}
    mask: Any  # [B, R] bool: real regions; [B, 1] when there are only global features
    id: Any  # [B] int32
    box: Any = None  # [B, R, 4] x1, y1, x2, y2 in 0..1, or None


class Texts(NamedTuple):
    """Captions of a batch. ``row`` is the index of the caption's image among the images of this batch."""

    token: Any  # [C, W] int32, 0 is padding
    mask: Any  # [C, W] bool: real words, <start> and <end> included
    row: Any  # [C] int32
    image_id: Any  # [C] int32: the image's row in its split, -1 for padding rows
    id: Any  # [C] int32: the caption's index in its split, -1 for padding rows
    feature: Mapping[str, Any] | None = None  # dense text vectors {name: [C, F]}


class Batch(NamedTuple):
    """Aligned images and captions: caption c describes image ``text.row[c]``.

    ``target`` and ``candidate`` are further captions of the same form, for systems that decode or mine them.
    """

    image: Images
    text: Texts
    target: Texts | None = None
    candidate: Texts | None = None


class Fragments(NamedTuple):
    """A representation with one vector a fragment; the only leaves that are trimmed by length."""

    feature: Any  # [N, T, D]
    mask: Any  # [N, T]
