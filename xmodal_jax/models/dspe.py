"""DSPE, the two-branch network: a perceptron of the image's feature, one of the sentence's vector, their distance.

Wang, Li, Lazebnik, "Learning Deep Structure-Preserving Image-Text Embeddings", CVPR 2016, and "Learning Two-Branch
Neural Networks for Image-Text Matching Tasks", TPAMI 2018 (arXiv 1704.03470), whose code is lwwang/Two_branch_network.
The structure it preserves is in the loss, :func:`xmodal_jax.losses.top_k`; configs/dspe.py holds the settings.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from xmodal_jax import similarity
from xmodal_jax.errors import UsageError
from xmodal_jax.layers.dense import xavier
from xmodal_jax.layers.image import image_vector
from xmodal_jax.layers.norm import BatchNorm
from xmodal_jax.layers.text import text_vector
from xmodal_jax.matcher import Matcher
from xmodal_jax.similarity import AnyArray
from xmodal_jax.types import Images, Inputs, Texts

POSITIONS = ("hidden", "output")


class Branch(nn.Module):
    """Linear, batch normalisation, ReLU, dropout, Linear on vectors [N, F] to unit vectors [N, D].

    Initial matrices are Xavier's and biases zero, as TensorFlow's fully connected layers have them. Running statistics
    are nearly those of the last batch: the released code gives TensorFlow PyTorch's momentum.

    Attributes:
        hidden_dim: width of the hidden layer.
        size: D.
        nonlinear: whether there is a hidden layer at all.
        bn_position: "hidden", before the ReLU, or "output", after the last linear layer.
        dropout: share of hidden units left out in training.
    """

    hidden_dim: int
    size: int
    nonlinear: bool = True
    bn_position: str = "hidden"
    dropout: float = 0.5
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: Float[AnyArray, "n f"], real: Bool[AnyArray, " n"], *, train: bool) -> Float[Array, "n d"]:
        """``real`` rows make the batch statistics."""

        def linear(x: AnyArray, size: int, name: str) -> jax.Array:
            return xavier(size, self.dtype, name=name)(x).astype(jnp.float32)

        def norm(x: jax.Array) -> jax.Array:
            layer = BatchNorm(x.shape[-1], momentum=0.9, unbiased=False, name="norm")
            return layer(x, real[:, None], train=train)

        if self.nonlinear:
            x = linear(x, self.hidden_dim, "hidden")
            x = jax.nn.relu(norm(x) if self.bn_position == "hidden" else x)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = linear(x, self.size, "out")
        x = norm(x) if self.bn_position == "output" else x
        return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-10))


class Model(Matcher):
    """Two branches without common weights to one space of ``embed_dim`` (D) dimensions, compared by their distance.

    Attributes:
        embed_dim: D.
        hidden_dim: width of the hidden layer of both branches.
        feature: the image feature; regions [B, R, F] are mean-pooled first.
        text: name of the dense text vectors [C, F]: "fisher", "mean", "tfidf". Words are not read.
        nonlinear: False for the ablation: each branch is one linear layer, which "hidden" leaves without batch
            normalisation.
        bn_position: "hidden" in the released code (TPAMI), "output" in the CVPR paper [recalled] and in the baseline
            of RRF-Net.
        dropout: share of hidden units left out in training.
    """

    embed_dim: int = 512
    hidden_dim: int = 2048
    feature: str = "global"
    text: str = "fisher"
    nonlinear: bool = True
    bn_position: str = "hidden"
    dropout: float = 0.5
    dtype: Any = "float32"

    @property
    def inputs(self) -> Inputs:
        return Inputs(image=(self.feature,), text=(self.text,))

    def setup(self) -> None:
        if self.bn_position not in POSITIONS:
            raise UsageError(f'No place "{self.bn_position}" (model.bn_position); there are {", ".join(POSITIONS)}.')
        branch = partial(
            Branch,
            self.hidden_dim,
            self.embed_dim,
            self.nonlinear,
            self.bn_position,
            self.dropout,
            jnp.dtype(self.dtype),
        )
        self.image_branch, self.text_branch = branch(), branch()

    def encode_image(self, image: Images, *, train: bool) -> tuple[Float[Array, "b d"], None]:
        return self.image_branch(image_vector(image, self.feature), jnp.asarray(image.id) >= 0, train=train), None

    def encode_text(self, text: Texts, *, train: bool) -> tuple[Float[Array, "c d"], None]:
        vector = text_vector(text, self.text)
        return self.text_branch(vector, jnp.asarray(text.id) >= 0, train=train), None

    def score(self, image: Float[AnyArray, "b d"], text: Float[AnyArray, "c d"]) -> Float[Array, "b c"]:
        return similarity.euclidean(image, text)
