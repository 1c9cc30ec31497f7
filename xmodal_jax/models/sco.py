"""SCO, the matching half: an image is what can be said of it and what it looks like, mixed by a gate.

Huang, Wu, Song, Wang, "Learning Semantic Concepts and Order for Image and Sentence Matching", CVPR 2018 (arXiv
1712.02036). No code was released. The image feature ``concept`` holds probabilities of words, which
`xmodal data concepts` trains from captions, or any tagger's, which `xmodal data attach` takes. The paper's order
learning, a decoder that speaks from the same vector v, is :mod:`xmodal_jax.models.sco_order`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax import similarity
from xmodal_jax.errors import UsageError
from xmodal_jax.layers.dense import xavier
from xmodal_jax.layers.image import image_vector
from xmodal_jax.layers.text import GRUText, LSTMText
from xmodal_jax.matcher import Matcher
from xmodal_jax.similarity import AnyArray
from xmodal_jax.types import Images, Inputs, Texts

FUSIONS = ("gate", "sum", "concept", "context")


class Model(Matcher):
    """Concepts p and context x to one vector v of ``embed_dim`` (D) dimensions, compared by its cosine to a caption.

    With unit vectors p' = l2(W_l p) and x' = l2(W_g x), the gate is t = sigmoid(U_l p + U_g x) and
    v = t * p' + (1 - t) * x', entry by entry. The four maps have no bias, as in the paper's equation.

    Attributes:
        vocabulary: V, the number of tokens.
        embed_dim: D.
        word_dim: size of a word vector.
        feature: the image feature of the context x; regions [B, R, F] are mean-pooled first. The paper averages ten
            crops of a picture, which is a matter of how the feature was extracted.
        concept: the image feature of the concepts p [B, K].
        fusion: "gate"; the ablations "sum", v = p' + x', and "concept" or "context", p' or x' alone, which read one
            feature only.
        text: "lstm", the paper's sentence encoder, or "gru".
    """

    vocabulary: int
    embed_dim: int = 1024
    word_dim: int = 300
    feature: str = "global"
    concept: str = "concept"
    fusion: str = "gate"
    text: str = "lstm"
    dtype: Any = "float32"

    @property
    def inputs(self) -> Inputs:
        alone = {"concept": (self.concept,), "context": (self.feature,)}
        return Inputs(alone.get(self.fusion, (self.feature, self.concept)))

    @property
    def word_tables(self) -> str:
        return r"(.*/)?embed/embedding"

    def setup(self) -> None:
        if self.fusion not in FUSIONS:
            raise UsageError(f'No fusion "{self.fusion}" (model.fusion); there are {", ".join(FUSIONS)}.')
        dtype = jnp.dtype(self.dtype)
        encoder = {"lstm": LSTMText, "gru": GRUText}[self.text]
        self.text_encoder = encoder(self.vocabulary, self.word_dim, self.embed_dim, dtype=dtype)
        if self.fusion != "context":
            self.concept_map = xavier(self.embed_dim, dtype, use_bias=False)
        if self.fusion != "concept":
            self.context_map = xavier(self.embed_dim, dtype, use_bias=False)
        if self.fusion == "gate":
            self.concept_gate, self.context_gate = (xavier(self.embed_dim, dtype, use_bias=False) for _ in range(2))

    def fuse(self, image: Images) -> Float[Array, "b d"]:
        """The paper's v, of which a caption's cosine is taken."""
        concept, context = (self.read(image, name) for name in (self.concept, self.feature))
        if self.fusion == "concept":
            return self.unit(self.concept_map(concept))
        if self.fusion == "context":
            return self.unit(self.context_map(context))
        said, seen = self.unit(self.concept_map(concept)), self.unit(self.context_map(context))
        if self.fusion == "sum":
            return said + seen
        opened = self.concept_gate(concept).astype(jnp.float32) + self.context_gate(context).astype(jnp.float32)
        gate = jax.nn.sigmoid(opened)
        return gate * said + (1.0 - gate) * seen

    def read(self, image: Images, name: str) -> Any:
        """The feature [B, F]; None where the system does not read it."""
        if name not in self.inputs.image:
            return None
        return image_vector(image, name)

    def unit(self, x: Float[Array, "b d"]) -> Float[Array, "b d"]:
        return similarity.l2_normalise(x.astype(jnp.float32))

    def encode_image(self, image: Images, *, train: bool) -> tuple[Float[Array, "b d"], Any]:
        return similarity.l2_normalise(self.fuse(image)), None

    def encode_text(self, text: Texts, *, train: bool) -> tuple[Float[Array, "c d"], None]:
        return similarity.l2_normalise(self.text_encoder(text.token, text.mask)), None

    def score(self, image: Float[AnyArray, "b d"], text: Float[AnyArray, "c d"]) -> Float[Array, "b c"]:
        return similarity.dot(image, text)
