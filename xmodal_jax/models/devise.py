"""DeViSE (Frome et al., "DeViSE: A Deep Visual-Semantic Embedding Model", NIPS 2013), a baseline for sentences.

A linear map of the image is trained onto the vectors of sentences, which are fixed: the mean of word vectors, as
`xmodal data text-features mean` makes it. The loss ranks the sentences of an image, not the images of a sentence.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax import similarity
from xmodal_jax.layers.dense import xavier
from xmodal_jax.layers.image import image_vector
from xmodal_jax.layers.text import text_vector
from xmodal_jax.matcher import Matcher
from xmodal_jax.similarity import AnyArray
from xmodal_jax.types import Images, Inputs, Texts


class Model(Matcher):
    """``t . M v``: M of the image's feature v, t the sentence's vector at unit length.

    Attributes:
        vector_dim: numbers of the sentence's vector, hence of M v; known from the data.
        feature: the image feature [B, F]; regions [B, R, F] are mean-pooled first.
        text: name of the dense text vectors [C, D], "mean" in the paper's spirit. Words are not read.
        measure: "dot" as in the paper, or "cosine", which keeps images with long M v from leading every ranking.
    """

    vector_dim: int
    feature: str = "global"
    text: str = "mean"
    measure: str = "dot"
    dtype: Any = "float32"

    @property
    def inputs(self) -> Inputs:
        return Inputs(image=(self.feature,), text=(self.text,))

    def setup(self) -> None:
        self.image_map = xavier(self.vector_dim, self.dtype, use_bias=False)
        self.similarity = getattr(similarity, self.measure)

    def encode_image(self, image: Images, *, train: bool) -> tuple[Float[Array, "b d"], None]:
        return self.image_map(image_vector(image, self.feature)).astype(jnp.float32), None

    def encode_text(self, text: Texts, *, train: bool) -> tuple[Float[Array, "c d"], None]:
        return similarity.l2_normalise(text_vector(text, self.text)), None

    def score(self, image: Float[AnyArray, "b d"], text: Float[AnyArray, "c d"]) -> Float[Array, "b c"]:
        return self.similarity(image, text)
