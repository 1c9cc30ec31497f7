"""The records that flow through the framework, and the letters their shapes are written in.

Letters: B images, C captions, R regions, W words, T fragments of either side, D embedding, F input feature,
V vocabulary, K heads or steps, N items. B before C; item, fragment, feature. ``mask`` is True for real fragments.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

Config = Any  # an ml_collections ConfigDict, whose attributes have no static types
Repr = Any  # a pytree whose every leaf has the item axis first: what `score` needs and nothing else


class Inputs(NamedTuple):
    """What a system reads, declared once by its model; readers, `init`, export and bundles derive from it."""

    image: tuple[str, ...]  # names of the image features
    text: tuple[str, ...] = ("token",)  # "token", and, or, names of dense text vectors
    tokens: str = "words"  # how a caption becomes tokens: a name of xmodal_jax.text.tokens.TOKENISERS
    captions: Mapping[str, int] = MappingProxyType({})  # further captions by role: {"target": k}, {"candidate": n}
    most_regions: int | None = None  # the most regions that its parameters allow; None for any number
    most_words: int | None = None  # the most tokens of a caption that it reads; None for any number
    further: tuple[str, ...] = ()  # image features that `aux` alone reads: in training, and never after it
    classes: bool = False  # takes ``Images.id`` as the class of an image and needs to know how many there are


class Feature(NamedTuple):
    """Shape of one item's feature, (F,) or (None, F) for any number of regions, and its dtype in the data set."""

    shape: tuple[int | None, ...]  # its last number is F
    dtype: str = "float32"


class Facts(NamedTuple):
    """What the data answers to :class:`Inputs`. A model's field that is named like a number here takes it."""

    image: Mapping[str, Feature] = MappingProxyType({})
    text: Mapping[str, Feature] = MappingProxyType({})
    vocabulary: int = 0  # V, the number of tokens
    classes: int = 0  # training images
    regions: int = 1  # the most that an image has
    words: int = 1  # tokens of the longest caption that is not cut

    @property
    def vector_dim(self) -> int:
        """Numbers of a dense text vector, of the longest where there are several; 0 where there is none."""
        return max((feature.shape[-1] or 0 for feature in self.text.values()), default=0)


FACT_FIELDS = ("vocabulary", "classes", "regions", "words", "vector_dim")


class Images(NamedTuple):
    """Images of a batch. ``id`` is the image's row in its split, -1 for padding rows."""

    feature: Mapping[str, Any]  # {"global": [B, F], "region": [B, R, F]}
    mask: Any  # [B, R] bool: real regions; [B, 1] when there are only global features
    id: Any  # [B] int32
    box: Any = None  # [B, R, 4] x1, y1, x2, y2 in 0..1, or None


class Texts(NamedTuple):
    """Captions of a batch. ``row`` is the index of the caption's image among the images of this batch, -1 where a
    model chose a caption of another image (:meth:`xmodal_jax.matcher.Matcher.select`)."""

    token: Any  # [C, W] int32, 0 is padding; None where the system reads no tokens
    mask: Any  # [C, W] bool: real tokens, <start> and <end> included; [C, 1] where there are none
    row: Any  # [C] int32
    image_id: Any  # [C] int32: the image's row in its split, -1 for padding rows
    id: Any  # [C] int32: the caption's index in its split, -1 for padding rows
    feature: Mapping[str, Any] | None = None  # dense text vectors {name: [C, F]}, where the system reads any
    same: Any = None  # [C] int32: equal where captions are, -1 for padding rows; None where nothing asks for it


class Batch(NamedTuple):
    """Aligned images and captions: caption c describes image ``text.row[c]``.

    Further captions come by role, where :attr:`Inputs.captions` asks for them. ``target``: k others of the same image
    for each caption, [C * k], those of caption c at c * k and after, where the image has others (else itself).
    ``candidate``: n captions of images that are not in the batch, [n]; their ``row`` is 0 and means nothing.
    """

    image: Images
    text: Texts
    target: Texts | None = None
    candidate: Texts | None = None


class Fragments(NamedTuple):
    """A representation with one vector a fragment; the only leaves that are trimmed by length."""

    feature: Any  # [N, T, D]
    mask: Any  # [N, T]
