"""Which captions belong to which images, and which pairs a loss may look at."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from xmodal_jax.similarity.vector import AnyArray, correspondence
from xmodal_jax.types import Images, Texts


class Pairing(NamedTuple):
    """The ids of B images and C captions of a batch; -1 is padding. Losses read these and no features."""

    image_id: Int[AnyArray, " b"]  # the image's row in its split
    row: Int[AnyArray, " c"]  # the caption's image among the images of the batch
    caption_image_id: Int[AnyArray, " c"]  # the same image's row in its split
    caption_id: Int[AnyArray, " c"]  # the caption's place in its split

    @classmethod
    def of(cls, image: Images, text: Texts) -> Pairing:
        """That of the images and captions of a batch."""
        return cls(*map(jnp.asarray, (image.id, text.row, text.image_id, text.id)))

    def negative(self, image: Int[AnyArray, " i"], *, mask_same_image: bool) -> Bool[Array, "i c"]:
        """Which pairs of the images at ``image`` (-1 for none) and all captions are negatives."""
        image_id = jnp.where(image >= 0, jnp.asarray(self.image_id)[image], -1)[:, None]
        allowed = (image_id >= 0) & (self.caption_id >= 0) & (image[:, None] != self.row)
        return allowed & (image_id != self.caption_image_id) if mask_same_image else allowed

    def positive(self) -> Bool[Array, "b c"]:
        """True at each caption's own image."""
        return correspondence(self.row, len(self.image_id))

    def counted(self, *, mask_same_image: bool) -> Bool[Array, "b c"]:
        """Pairs without padding and, on demand, without further captions of the same image in other rows."""
        where = (jnp.asarray(self.image_id) >= 0)[:, None] & (self.caption_id >= 0)
        return where & ~self.sibling() if mask_same_image else where

    def sibling(self) -> Bool[Array, "b c"]:
        """Captions of the same image as that of a row, which stand in another row."""
        same = self.image_id[:, None] == self.caption_image_id
        return same & ~self.positive()

    def real(self) -> Bool[Array, " c"]:
        """Captions that count, with an image that counts."""
        return (jnp.asarray(self.caption_id) >= 0) & (jnp.asarray(self.image_id)[self.row] >= 0)

    def same_image(self) -> Bool[Array, "c c"]:
        """Pairs of captions that describe one image, each with itself included; no padding."""
        real = self.caption_id >= 0
        same = self.caption_image_id[:, None] == self.caption_image_id
        return same & real[:, None] & real

    def take_captions(self, index: jax.Array) -> Pairing:
        """The same images with the captions at ``index``."""
        captions = (jnp.asarray(ids)[index] for ids in (self.row, self.caption_image_id, self.caption_id))
        return Pairing(self.image_id, *captions)
