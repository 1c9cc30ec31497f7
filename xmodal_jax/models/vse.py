"""The VSE family: one linear map of the image, one sentence encoder, one inner product or order similarity.

UVS / VSE0 (Kiros, Salakhutdinov, Zemel 2014, arXiv 1411.2539), order-embeddings (Vendrov et al., ICLR 2016,
arXiv 1511.06361) and VSE++ (Faghri et al., BMVC 2018, arXiv 1707.05612) differ in fields of this model and in the
loss's hardness; configs/vse.py holds the settings of each.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax import similarity
from xmodal_jax.layers.dense import xavier
from xmodal_jax.layers.image import PIXELS, ImageVector
from xmodal_jax.layers.scale import Scale
from xmodal_jax.layers.text import BagOfWords, GRUText
from xmodal_jax.matcher import Matcher
from xmodal_jax.similarity import AnyArray
from xmodal_jax.types import Images, Inputs, Texts


class Model(Matcher):
    """Two towers to one joint space of ``embed_dim`` (D) dimensions.

    Attributes:
        vocabulary: V, the number of tokens.
        embed_dim: D.
        word_dim: size of a word vector.
        feature: which image feature is used; regions [B, R, F] are mean-pooled first. Of "pixels" the feature is what
            ``network`` sees, scaled to unit length as in VSE++'s released code.
        network: name of an image network of :mod:`xmodal_jax.layers.backbones`, for pixels.
        cnn_mode: "eval" keeps the network's running statistics and leaves its dropout out while it is trained, which
            is what VSE++'s figures rest on; "train" uses those of the batch.
        text: "gru" or "bow", the sentence encoder.
        bidirectional: average the final states of a forward and a backward GRU.
        measure: a function of :mod:`xmodal_jax.similarity`: "dot", "cosine", "order" or "order_root".
        absolute: take absolute values of both embeddings (order-embeddings).
        normalise_train, normalise_test: scale image embeddings to unit length in training, in use. UVS does only
            the latter, vsepp's VSE0 neither. Captions always are.
        scale, bias: initial values of a learned factor and bias of the scores, see
            :class:`xmodal_jax.layers.scale.Scale`; a factor of 0 leaves both out.
    """

    vocabulary: int
    embed_dim: int = 1024
    word_dim: int = 300
    feature: str = "global"
    network: str = ""
    cnn_mode: str = "eval"
    text: str = "gru"
    bidirectional: bool = False
    measure: str = "dot"
    absolute: bool = False
    normalise_train: bool = True
    normalise_test: bool = True
    scale: float = 0.0
    bias: float = 0.0
    dtype: Any = "float32"

    @property
    def inputs(self) -> Inputs:
        return Inputs((self.feature,))

    @property
    def word_tables(self) -> str:
        return r"(.*/)?embed/embedding"

    def setup(self) -> None:
        dtype = jnp.dtype(self.dtype)
        encoders = {
            "gru": lambda *sizes: GRUText(*sizes, bidirectional=self.bidirectional, dtype=dtype),
            "bow": lambda *sizes: BagOfWords(*sizes, dtype=dtype),
        }
        self.text_encoder = encoders[self.text](self.vocabulary, self.word_dim, self.embed_dim)
        self.image_vector = ImageVector(self.feature, self.network, self.cnn_mode, str(dtype))
        self.image_encoder = xavier(self.embed_dim, dtype)
        self.similarity = getattr(similarity, self.measure)
        self.scaled = Scale(self.scale, self.bias)

    def encode_image(self, image: Images, *, train: bool) -> tuple[Float[Array, "b d"], None]:
        pooled = self.image_vector(image, train=train)
        if self.feature == PIXELS:
            pooled = similarity.l2_normalise(pooled)
        embedding = self.image_encoder(pooled).astype(jnp.float32)
        if self.normalise_train if train else self.normalise_test:
            embedding = similarity.l2_normalise(embedding)
        return (jnp.abs(embedding) if self.absolute else embedding), None

    def encode_text(self, text: Texts, *, train: bool) -> tuple[Float[Array, "c d"], None]:
        embedding = similarity.l2_normalise(self.text_encoder(text.token, text.mask))
        return (jnp.abs(embedding) if self.absolute else embedding), None

    def score(self, image: Float[AnyArray, "b d"], text: Float[AnyArray, "c d"]) -> Float[Array, "b c"]:
        return self.scaled(self.similarity(image, text))
