"""CHAN: regions in context of each other, words in context of each other, one hard assignment between them.

Pan, Wu, Zhang, "Fine-grained Image-text Matching by Cross-modal Hard Aligning Network", CVPR 2023, released code
(ppanzx/CHAN), bi-GRU variant. Without self-attention and with the sum of the matches it is the "Sum-Max" ablation
of SCAN (Lee et al., ECCV 2018); configs/chan.py holds the settings of each.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax.layers.dense import xavier
from xmodal_jax.layers.image import survivors
from xmodal_jax.layers.recurrent import BiGRU, uniform
from xmodal_jax.layers.text import WordEmbedding
from xmodal_jax.matcher import Matcher
from xmodal_jax.similarity import AnyArray, l2_normalise, match_weights, sum_max
from xmodal_jax.types import Fragments, Images, Inputs, Texts


class SelfAttention(nn.Module):
    """Residual self-attention of ``heads`` heads after a layer norm, regions [B, R, D] to [B, R, D].

    Only real regions are attended to; the released code calls its attention without lengths. All initial values are
    PyTorch's: one Xavier matrix for query, key and value, zero biases.
    """

    heads: int
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, region: Float[AnyArray, "b r d"], mask: Bool[AnyArray, "b r"]) -> Float[Array, "b r d"]:
        size = region.shape[-1]
        if size % self.heads:
            raise ValueError(f"embed_dim {size} does not divide into {self.heads} heads")
        dense = partial(nn.Dense, dtype=self.dtype, param_dtype=jnp.float32)
        normal = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name="norm")(region)
        joint = xavier(3 * size, self.dtype, name="query_key_value")(normal)
        query, key, value = jnp.split(joint.reshape(*region.shape[:2], 3 * self.heads, -1), 3, axis=2)
        mixed = jax.nn.dot_product_attention(query, key, value, mask=mask[:, None, None, :])
        out = dense(size, kernel_init=uniform(size**-0.5), name="out")(mixed.reshape(region.shape))
        return jnp.asarray(region) + out.astype(jnp.float32)


class Model(Matcher):
    """Unit regions and unit words in one space of ``embed_dim`` (D) dimensions, scored by :func:`sum_max`.

    Attributes:
        vocabulary: V, the number of tokens.
        embed_dim: D, also the size of the GRU of each direction.
        word_dim: size of a word vector.
        feature: the region feature [B, R, F].
        heads: of the self-attention among regions, 0 for none.
        direction: "t2i", words look for regions (CHAN); "i2t", regions look for words.
        pool: "lse", "mean", "sum" or "max" of the best matches.
        temperature: of "lse".
        region_drop: share of regions left out in training, never all of an image.
    """

    vocabulary: int
    embed_dim: int = 1024
    word_dim: int = 300
    feature: str = "region"
    heads: int = 8
    direction: str = "t2i"
    pool: str = "lse"
    temperature: float = 0.1
    region_drop: float = 0.2
    dtype: Any = "float32"

    @property
    def inputs(self) -> Inputs:
        return Inputs((self.feature,))

    @property
    def word_tables(self) -> str:
        return r"(.*/)?embed/embedding"

    def setup(self) -> None:
        dtype = jnp.dtype(self.dtype)
        self.project = xavier(self.embed_dim, dtype)
        self.mix = SelfAttention(self.heads, dtype, name="attention") if self.heads else lambda region, mask: region
        self.embed = WordEmbedding(self.vocabulary, self.word_dim)
        self.gru = BiGRU(self.embed_dim, dtype=dtype)
        self.relevance = partial(sum_max, direction=self.direction, pool=self.pool, temperature=self.temperature)

    def encode_image(self, image: Images, *, train: bool) -> tuple[Fragments, None]:
        mask = jnp.asarray(image.mask)
        if train and self.region_drop:
            mask = survivors(jax.random.uniform(self.make_rng("dropout"), mask.shape), mask, self.region_drop)
        region = self.project(jnp.asarray(image.feature[self.feature], jnp.float32)).astype(jnp.float32)
        region = l2_normalise(self.mix(region, mask))
        return Fragments(jnp.where(mask[..., None], region, 0.0), mask), None

    def encode_text(self, text: Texts, *, train: bool) -> tuple[Fragments, None]:
        mask = jnp.asarray(text.mask)
        return Fragments(l2_normalise(self.gru(self.embed(text.token), mask)), mask), None

    def score(self, image: Fragments, text: Fragments) -> Float[Array, "b c"]:
        return self.relevance(*image, *text)

    def attention(self, image: Fragments, text: Fragments) -> Float[Array, "b c r w"]:
        return match_weights(*image, *text, direction=self.direction)
