"""Show, Translate and Tell with attention (Peri, Sah, Ptucha, ICIP 2019, arXiv 1903.06275; released code: peri044/STT).

As :mod:`xmodal_jax.models.stt`, but words attend to regions: pairs are scored by SCAN's text-to-image attention with
the mean over words. The decoder still starts from one vector, of an image the mean of its regions, of a caption the
encoder's final states.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax import losses, similarity
from xmodal_jax.layers.decoder import Decoder
from xmodal_jax.layers.dense import xavier
from xmodal_jax.layers.image import as_regions, mean_pool
from xmodal_jax.layers.recurrent import BiGRU, last_state
from xmodal_jax.layers.text import WordEmbedding
from xmodal_jax.models import stt
from xmodal_jax.types import Batch, Fragments, Images, Texts

NORM = "clipped_l2norm"


class Model(stt.Model):
    """Region vectors [B, R, D], word vectors [C, W, D], scores by cross attention, and the decoder.

    Attributes:
        feature: which image feature holds the regions [B, R, F].
        layers: L of the decoder; the encoder has one GRU in each direction.
        smooth: the inverse temperature of the attention.
        unit_start: the decoder starts from unit vectors of captions, as it does of images. The released ``stt-att``
            reads the caption a second time for the decoder and leaves that outcome at the length it has; the
            released model with a loss between paraphrases does not.
        paraphrase_ranking: add the loss of that name, see :meth:`aux`.
        margin: of that loss.
    """

    feature: str = "region"
    smooth: float = 9.0
    unit_start: bool = False
    paraphrase_ranking: bool = False
    margin: float = 0.2

    def setup(self) -> None:
        dtype = jnp.dtype(self.dtype)
        self.image_encoder = xavier(self.embed_dim, dtype)
        self.embed = WordEmbedding(self.vocabulary, self.word_dim)
        self.decoder = Decoder(self.vocabulary, self.embed_dim, self.layers, self.cell, dtype)
        self.text_encoder = BiGRU(self.embed_dim, dtype=dtype, cell=self.cell)

    def encode_image(self, image: Images, *, train: bool) -> tuple[dict[str, Any], Float[Array, "b d"]]:
        mask = jnp.asarray(image.mask)
        projected = self.image_encoder(as_regions(image.feature[self.feature])).astype(jnp.float32)
        region = similarity.l2_normalise(projected).astype(self.dtype)
        vector = similarity.l2_normalise(mean_pool(projected, mask))
        return {"region": Fragments(region, mask), "gram": similarity.gram(region)}, vector

    def encode_text(self, text: Texts, *, train: bool) -> tuple[dict[str, Any], Float[Array, "c d"]]:
        forward, backward = self.text_encoder.directions(self.embed(text.token), text.mask)
        word = similarity.l2_normalise((forward + backward) / 2).astype(self.dtype)
        sentence = (last_state(forward, text.mask) + backward[:, 0]) / 2  # the backward pass ends at the first word
        if self.unit_start:
            sentence = similarity.l2_normalise(sentence)
        return {"word": Fragments(word, jnp.asarray(text.mask))}, sentence

    def score(self, image: dict[str, Any], text: dict[str, Any]) -> Float[Array, "b c"]:
        return similarity.cross_attention(
            *image["region"],
            *text["word"],
            direction="t2i",
            norm=NORM,
            smooth=self.smooth,
            pool="mean",
            context_gram=image["gram"],
        )

    def attention(self, image: dict[str, Any], text: dict[str, Any]) -> Float[Array, "b c r w"]:
        return similarity.attention_weights(
            *image["region"], *text["word"], direction="t2i", norm=NORM, smooth=self.smooth
        )

    def aux(self, batch: Batch, image: Any, text: Any, *, train: bool) -> dict[str, jax.Array]:
        """The two losses of the decoder and, on demand, "paraphrase_ranking": captions and further captions of their
        images rank each other by the cosine of the encoder's final states, with the hardest negative's hinge.

        The released code computes it in its model ``stt_att_t2t`` and leaves it out of the total; there it is a sum,
        here a mean over captions, and other captions of the same image are no negatives.
        """
        terms = super().aux(batch, image, text, train=train)
        if self.paraphrase_ranking:
            assert batch.target is not None  # `inputs` asks for it
            terms["paraphrase_ranking"] = self.rank_paraphrases(batch.text, text[1], batch.target)
        return terms

    def rank_paraphrases(self, text: Texts, sentence: Float[Array, "c d"], target: Texts) -> Float[Array, ""]:
        """Mean loss of the captions, whose final states are ``sentence``, each with its own target."""
        further = self.encode_text(target, train=True)[1]
        scores = similarity.dot(similarity.l2_normalise(sentence), similarity.l2_normalise(further))
        image_id = jnp.asarray(text.image_id)
        real = jnp.asarray(text.id) >= 0
        itself = similarity.correspondence(jnp.arange(len(real)), len(real))
        other = image_id[:, None] != image_id
        where = (itself | other) & real[:, None] & real
        total = losses.triplet(scores, itself, where, margin=self.margin, hardness=1)
        return total / jnp.maximum(jnp.sum(real), 1)
