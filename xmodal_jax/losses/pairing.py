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
    row: Int[AnyArray, " c"]  # the caption's image among the images of the batch, -1 where that is not in it
    caption_image_id: Int[AnyArray, " c"]  # the same image's row in its split
    caption_id: Int[AnyArray, " c"]  # the caption's place in its split
    caption_text: Int[AnyArray, " c"] | None = None  # equal where captions are; None where that does not matter

    @classmethod
    def of(cls, image: Images, text: Texts) -> Pairing:
        """That of the images and captions of a batch."""
        return cls(*jax.tree.map(jnp.asarray, (image.id, text.row, text.image_id, text.id, text.same)))

    def negative(
        self,
        image: Int[AnyArray, " i"],
        caption: Int[AnyArray, " k"] | None = None,
        *,
        mask_same_image: bool,
        mask_same_text: bool = False,
    ) -> Bool[Array, "i k"]:
        """Which pairs of the images at ``image`` (-1 for none) and the captions at ``caption`` (all by default) are
        negatives."""
        captions = self if caption is None else self.take_captions(caption)
        image_id = jnp.where(image >= 0, jnp.asarray(self.image_id)[image], -1)[:, None]
        allowed = (image_id >= 0) & (captions.caption_id >= 0) & (image[:, None] != captions.row)
        if mask_same_image:
            allowed &= image_id != captions.caption_image_id
        return allowed & ~self.same_text(image, caption) if mask_same_text else allowed

    def positive(self) -> Bool[Array, "b c"]:
        """True at each caption's own image."""
        return correspondence(self.row, len(self.image_id))

    def counted(self, *, mask_same_image: bool, mask_same_text: bool = False) -> Bool[Array, "b c"]:
        """Pairs without padding and, on demand, without further captions of the same image in other rows, without
        captions of other images that equal a caption of the image in the batch."""
        where = (jnp.asarray(self.image_id) >= 0)[:, None] & (self.caption_id >= 0)
        if mask_same_image:
            where &= ~self.sibling()
        if mask_same_text:
            where &= ~self.same_text(jnp.arange(len(self.image_id)))
        return where

    def same_text(self, image: Int[AnyArray, " i"], caption: Int[AnyArray, " k"] | None = None) -> Bool[Array, "i k"]:
        """Which captions at ``caption`` (all by default) are of another image than those at ``image``, but equal one
        that the batch has of it.

        Memory is O(i C), or O(B k) for chosen captions: nothing compares all captions with all.
        """
        assert self.caption_text is not None, "the batches do not tell which captions are equal"
        count = len(self.caption_id)
        _, text = jnp.unique(self.caption_text, return_inverse=True, size=count)
        _, whose = jnp.unique(
            self.image_id, return_inverse=True, size=len(self.image_id)
        )  # an image may be there twice
        real, of = self.caption_id >= 0, whose[self.row]
        if caption is None:
            has = jnp.zeros((len(image), count), bool)
            has = has.at[:, text].max((whose[image][:, None] == of) & real)[:, text]
            return has & (whose[image][:, None] != of)
        has = jnp.zeros((len(self.image_id), len(caption)), bool)
        has = has.at[of].max((text[:, None] == text[caption]) & real[:, None])[whose[image]]
        return has & (whose[image][:, None] != of[caption])

    def sibling(self) -> Bool[Array, "b c"]:
        """Captions of the same image as that of a row, which stand in another row."""
        same = self.image_id[:, None] == self.caption_image_id
        return same & ~self.positive()

    def real(self) -> Bool[Array, " c"]:
        """Captions that count, with an image that counts."""
        row = jnp.asarray(self.row)
        return (jnp.asarray(self.caption_id) >= 0) & (row >= 0) & (jnp.asarray(self.image_id)[row] >= 0)

    def same_image(self) -> Bool[Array, "c c"]:
        """Pairs of captions that describe one image, each with itself included; no padding."""
        real = self.caption_id >= 0
        same = self.caption_image_id[:, None] == self.caption_image_id
        return same & real[:, None] & real

    def take_captions(self, index: AnyArray) -> Pairing:
        """The same images with the captions at ``index``."""
        captions = (self.row, self.caption_image_id, self.caption_id, self.caption_text)
        return Pairing(self.image_id, *jax.tree.map(lambda ids: jnp.asarray(ids)[index], captions))
