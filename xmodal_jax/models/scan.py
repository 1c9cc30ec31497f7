"""SCAN: stacked cross attention between regions and words (Lee et al., ECCV 2018, arXiv 1803.08024).

Regions are mapped linearly and words by a bi-GRU to unit vectors of one space; a pair is scored by attending from one
side's fragments to the other's (:func:`xmodal_jax.similarity.cross_attention`). Settings are those of the released
code (kuanghuei/SCAN); configs/scan.py has the published four.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax import similarity
from xmodal_jax.layers.dense import xavier
from xmodal_jax.layers.image import as_regions
from xmodal_jax.layers.recurrent import BiGRU
from xmodal_jax.layers.text import WordEmbedding
from xmodal_jax.matcher import Matcher
from xmodal_jax.types import Fragments, Images, Inputs, Texts


class Model(Matcher):
    """Region vectors [B, R, D], word vectors [C, W, D], scores by cross attention.

    Attributes:
        vocabulary: V, the number of tokens.
        embed_dim: D; also the size of the GRU in each direction.
        word_dim: size of a word vector.
        feature: which image feature holds the regions [B, R, F]. Further features of the whole image, "region+global",
            are mapped too and added to each of its regions: so a region is seen in its picture (not in the paper).
        dropout: rate of dropped numbers in region vectors, word embeddings and word vectors (not in the paper: 0).
        direction: "t2i", words attend to regions, or "i2t".
        norm, smooth, pool, lse: see :func:`xmodal_jax.similarity.cross_attention`.
        bidirectional: read captions both ways, as all published models do.
    """

    vocabulary: int
    embed_dim: int = 1024
    word_dim: int = 300
    feature: str = "region"
    direction: str = "t2i"
    norm: str = "clipped_l2norm"
    smooth: float = 9.0
    pool: str = "lse"
    lse: float = 6.0
    bidirectional: bool = True
    dropout: float = 0.0
    dtype: Any = "float32"

    @property
    def inputs(self) -> Inputs:
        return Inputs(tuple(self.feature.split("+")))

    @property
    def word_tables(self) -> str:
        return r"(.*/)?embed/embedding"

    def setup(self) -> None:
        dtype = jnp.dtype(self.dtype)
        self.image_encoder = xavier(self.embed_dim, dtype)
        self.context_encoder = [xavier(self.embed_dim, dtype, use_bias=False) for _ in self.feature.split("+")[1:]]
        self.drop = nn.Dropout(self.dropout)
        self.embed = WordEmbedding(self.vocabulary, self.word_dim)
        self.text_encoder = BiGRU(self.embed_dim, bidirectional=self.bidirectional, dtype=dtype)

    def encode_image(self, image: Images, *, train: bool) -> tuple[dict[str, Any], None]:
        name, *others = self.feature.split("+")
        region = self.image_encoder(as_regions(image.feature[name]))
        for other, encoder in zip(others, self.context_encoder, strict=True):
            region += encoder(as_regions(image.feature[other]))
        region = similarity.l2_normalise(self.drop(region, deterministic=not train)).astype(self.dtype)
        out: dict[str, Any] = {"region": Fragments(region, jnp.asarray(image.mask))}
        if self.direction == "t2i":  # regions are the context: their inner products serve all captions
            out["gram"] = similarity.gram(region)
        return out, None

    def encode_text(self, text: Texts, *, train: bool) -> tuple[dict[str, Any], None]:
        word = self.text_encoder(self.drop(self.embed(text.token), deterministic=not train), text.mask)
        word = similarity.l2_normalise(self.drop(word, deterministic=not train))
        return {"word": Fragments(word.astype(self.dtype), jnp.asarray(text.mask))}, None

    def score(self, image: dict[str, Any], text: dict[str, Any]) -> Float[Array, "b c"]:
        return similarity.cross_attention(
            *image["region"],
            *text["word"],
            direction=self.direction,
            norm=self.norm,
            smooth=self.smooth,
            pool=self.pool,
            lse=self.lse,
            context_gram=image.get("gram"),
        )

    def attention(self, image: dict[str, Any], text: dict[str, Any]) -> Float[Array, "b c r w"]:
        return similarity.attention_weights(
            *image["region"], *text["word"], direction=self.direction, norm=self.norm, smooth=self.smooth
        )
