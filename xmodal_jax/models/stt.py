"""Show, Translate and Tell without attention (Peri, Sah, Ptucha, ICIP 2019, arXiv 1903.06275; released code:
peri044/STT): two towers to one joint space, and one decoder that speaks of whatever lies in it.

From an image the decoder captions, from a caption it paraphrases. Training reads triples (image, caption A, caption B):
the towers rank image and A, and B is what the decoder should say of either.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from xmodal_jax import similarity
from xmodal_jax.layers.decoder import Decoder
from xmodal_jax.layers.dense import xavier
from xmodal_jax.layers.image import image_vector
from xmodal_jax.layers.recurrent import StackedGRU, last_state
from xmodal_jax.layers.text import WordEmbedding
from xmodal_jax.losses import tokens
from xmodal_jax.matcher import Matcher
from xmodal_jax.similarity import AnyArray
from xmodal_jax.types import Batch, Images, Inputs, Texts


class Model(Matcher):
    """Two towers to unit vectors of ``embed_dim`` (D) dimensions, and a decoder from there.

    Attributes:
        vocabulary: V, the number of tokens.
        embed_dim: D.
        word_dim: size of a word vector; encoder and decoder share them.
        feature: which image feature is used; regions [B, R, F] are mean-pooled first.
        layers: L; the encoder and the decoder are stacks of so many GRUs with D / L units each.
        cell: form of the GRUs, "tensorflow" as in the released code or "pytorch".
    """

    vocabulary: int
    embed_dim: int = 1024
    word_dim: int = 300
    feature: str = "global"
    layers: int = 1
    cell: str = "tensorflow"
    dtype: Any = "float32"

    @property
    def inputs(self) -> Inputs:
        return Inputs(image=(self.feature,), captions={"target": 1})

    @property
    def word_tables(self) -> str:
        return "embed/embedding"

    def setup(self) -> None:
        dtype = jnp.dtype(self.dtype)
        self.image_encoder, self.text_projection = (xavier(self.embed_dim, dtype) for _ in range(2))
        self.embed = WordEmbedding(self.vocabulary, self.word_dim)
        self.decoder = Decoder(self.vocabulary, self.embed_dim, self.layers, self.cell, dtype)
        self.text_encoder = StackedGRU(self.embed_dim // self.layers, self.layers, dtype, self.cell)

    def encode_image(self, image: Images, *, train: bool) -> tuple[Any, Float[Array, "b d"]]:
        """The representation, and what the decoder starts from: the same vector here."""
        vector = similarity.l2_normalise(self.image_encoder(image_vector(image, self.feature)).astype(jnp.float32))
        return vector, vector

    def encode_text(self, text: Texts, *, train: bool) -> tuple[Any, Float[Array, "c d"]]:
        states = self.text_encoder(self.embed(text.token), text.mask)
        sentence = jnp.concatenate([last_state(layer, text.mask) for layer in states], axis=-1)
        vector = similarity.l2_normalise(self.text_projection(sentence).astype(jnp.float32))
        return vector, vector

    def score(self, image: Any, text: Any) -> Float[Array, "b c"]:
        return similarity.dot(image, text)

    def aux(self, batch: Batch, image: Any, text: Any, *, train: bool) -> dict[str, jax.Array]:
        """Cross entropy of the further captions, spoken from the images ("captioning") and from the captions
        ("paraphrasing"): summed over tokens, averaged over the captions that count."""
        (_, images), (_, captions) = image, text
        sources = jnp.concatenate([images[batch.text.row], captions])
        target = batch.target
        assert target is not None  # `inputs` asks for it
        token, mask = jnp.asarray(target.token), jnp.asarray(target.mask)
        counted = jnp.asarray(batch.text.id) >= 0
        words, valid = self.embed(token[:, :-1]), mask[:, 1:] & counted[:, None]
        # One loop over the words speaks of both: the two are told apart by what the decoder starts from alone.
        logits = self.decoder(sources, jnp.concatenate([words, words]), jnp.concatenate([valid, valid]))
        each = jnp.split(logits, 2)
        terms = (tokens.cross_entropy(part, token[:, 1:], valid) / jnp.maximum(jnp.sum(counted), 1) for part in each)
        return dict(zip(("captioning", "paraphrasing"), terms, strict=True))

    def begin(self, source: Images | Texts) -> tuple[jax.Array, ...]:
        if isinstance(source, Images):
            return self.decoder.begin(self.encode_image(source, train=False)[1])
        return self.decoder.begin(self.encode_text(source, train=False)[1])

    def word(
        self, carry: tuple[Float[AnyArray, "n s"], ...], token: Int[AnyArray, " n"]
    ) -> tuple[tuple[jax.Array, ...], jax.Array]:
        return self.decoder.step(carry, self.embed(token))
