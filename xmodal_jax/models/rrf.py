"""RRF-Net: two branches of perceptrons with a recurrent residual layer and a fusion of its outputs.

Liu, Guo, Bakker, Lew, "Learning a Recurrent Residual Fusion Network for Multimodal Matching", ICCV 2017; released code:
yuLiu24/RRF-Net (Caffe). The loss is :func:`xmodal_jax.losses.bi_rank`; configs/rrf.py holds the settings.
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
from xmodal_jax.layers.image import image_vector
from xmodal_jax.layers.norm import BatchNorm
from xmodal_jax.layers.text import text_vector
from xmodal_jax.matcher import Matcher
from xmodal_jax.similarity import AnyArray
from xmodal_jax.types import Images, Inputs, Texts

FUSIONS = ("conv", "sum", "none")


class Branch(nn.Module):
    """Vectors [N, F] to unit vectors [N, D].

    Batch normalisation, Linear, ReLU, dropout, Linear, normalisation and ReLU give h. One linear layer W, the same in
    every step, and a normalisation of each step then give ``r_0 = h + ReLU(BN_0(W h))`` and
    ``r_t = r_(t-1) + ReLU(BN_t(W r_(t-1)))`` for t up to T. They are fused, and a last Linear and normalisation follow.
    Initial matrices are drawn from N(0, 0.05^2) and biases are zero; running statistics are Caffe's.

    Attributes:
        hidden_dim: width of the first layer.
        size: D, width of all others.
        steps: T.
        fusion: "conv", a weighted sum over the steps, one normalisation of all its numbers, ReLU; "sum"; "none", r_T.
        dropout: share of the first layer's units left out in training.
        momentum: share that the running statistics lose with each batch.
    """

    hidden_dim: int
    size: int
    steps: int = 3
    fusion: str = "conv"
    dropout: float = 0.5
    momentum: float = 0.001
    dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: Float[AnyArray, "n f"], real: Bool[AnyArray, " n"], *, train: bool) -> Float[Array, "n d"]:
        """``real`` rows make the batch statistics."""

        def linear(size: int, name: str) -> nn.Dense:
            return nn.Dense(size, kernel_init=nn.initializers.normal(0.05), dtype=self.dtype, name=name)

        def norm(x: AnyArray, name: str) -> jax.Array:
            layer = BatchNorm(x.shape[-1], momentum=self.momentum, corrected=True, name=name)
            x = jnp.asarray(x, jnp.float32)
            return layer(x, real.reshape(-1, *[1] * (x.ndim - 1)), train=train)

        x = jax.nn.relu(linear(self.hidden_dim, "hidden")(norm(x, "input_norm")))
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = jax.nn.relu(norm(linear(self.size, "narrow")(x), "narrow_norm"))
        shared, steps = linear(self.size, "residual"), []
        for step in range(self.steps + 1):
            x = x + jax.nn.relu(norm(shared(x), f"residual_norm_{step}"))
            steps.append(x)
        if self.fusion == "conv":
            stack = jnp.stack(steps, axis=-1)
            x = jax.nn.relu(norm(linear(1, "fusion")(stack), "fusion_norm"))[..., 0]
        elif self.fusion == "sum":
            x = sum(steps[1:], start=steps[0])
        return similarity.l2_normalise(norm(linear(self.size, "out")(x), "out_norm"), eps=1e-6)


class Model(Matcher):
    """Two branches without common weights to unit vectors of ``embed_dim`` (D) dimensions.

    Attributes:
        embed_dim: D, also the width of the residual layer.
        hidden_dim: width of the first layer of both branches.
        feature: the image feature; regions [B, R, F] are mean-pooled first.
        text: name of the dense text vectors [C, F]: "fisher", "mean", "tfidf". Words are not read.
        steps: T as the released code counts it: its shared layer is applied T + 1 times, 4 times at its T of 3. Whether
            the paper counts so too is not known.
        fusion: "conv", a learned weighted sum over the applications' outputs; "sum"; "none", the last output alone.
        dropout: share of the first layer's units left out in training.
        bn_momentum: share that the running statistics lose with each batch; 0.001 is Caffe's.
    """

    embed_dim: int = 512
    hidden_dim: int = 2048
    feature: str = "global"
    text: str = "fisher"
    steps: int = 3
    fusion: str = "conv"
    dropout: float = 0.5
    bn_momentum: float = 0.001
    dtype: Any = "float32"

    @property
    def inputs(self) -> Inputs:
        return Inputs(image=(self.feature,), text=(self.text,))

    def setup(self) -> None:
        if self.fusion not in FUSIONS:
            raise UsageError(f'No fusion "{self.fusion}" (model.fusion); there are {", ".join(FUSIONS)}.')
        branch = partial(
            Branch,
            self.hidden_dim,
            self.embed_dim,
            self.steps,
            self.fusion,
            self.dropout,
            self.bn_momentum,
            jnp.dtype(self.dtype),
        )
        self.image_branch, self.text_branch = branch(), branch()

    def encode_image(self, image: Images, *, train: bool) -> tuple[Float[Array, "b d"], None]:
        return self.image_branch(image_vector(image, self.feature), jnp.asarray(image.id) >= 0, train=train), None

    def encode_text(self, text: Texts, *, train: bool) -> tuple[Float[Array, "c d"], None]:
        vector = text_vector(text, self.text)
        return self.text_branch(vector, jnp.asarray(text.id) >= 0, train=train), None

    def score(self, image: Float[AnyArray, "b d"], text: Float[AnyArray, "c d"]) -> Float[Array, "b c"]:
        return similarity.dot(image, text)
