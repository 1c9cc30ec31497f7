"""One softmax over the training images (or groups of them) that both towers share (Zheng et al., arXiv 1711.05535)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from xmodal_jax.layers.bottleneck import HE
from xmodal_jax.losses import tokens
from xmodal_jax.similarity import NEVER, AnyArray


class SharedClassifier(nn.Module):
    """Cross entropy of features [N, D] against ``classes`` columns of one matrix, whoever made the features.

    Attributes:
        classes: number of columns.
        size: D.
        bias: learn one number a class (Dual-Path on Flickr30K; on COCO there is none).
        dtype: of the product; parameters and logits stay float32.
    """

    classes: int
    size: int
    bias: bool = True
    dtype: jnp.dtype = jnp.dtype("float32")

    def setup(self) -> None:
        self.kernel = self.param("kernel", HE, (self.size, self.classes))
        self.offset = self.param("bias", nn.initializers.zeros, (self.classes,)) if self.bias else jnp.zeros(())

    def _product(self, feature: jax.Array, kernel: jax.Array) -> jax.Array:
        out = jnp.promote_types(self.dtype, jnp.float32)
        return jnp.dot(feature.astype(self.dtype), kernel.astype(self.dtype), preferred_element_type=out)

    def __call__(self, feature: Float[Array, "n d"]) -> Float[Array, "n k"]:
        """Logits of all classes."""
        return self._product(feature, self.kernel) + self.offset

    def loss(
        self, feature: Float[Array, "n d"], label: Int[AnyArray, " n"], drawn: Int[Array, " s"] | None = None
    ) -> Float[Array, ""]:
        """Mean cross entropy of the rows whose label is not negative.

        Args:
            drawn: classes drawn uniformly, with replacement, that stand for all others: each counts as often as makes
                the sum of exponentials right on average, and not at all for the row whose label it is.
        """
        label = jnp.asarray(label)
        real, target = label >= 0, jnp.maximum(label, 0)
        if drawn is not None:
            logits = self._sampled(feature, target, drawn)
            target = jnp.zeros_like(target)
        else:
            logits = self(feature)
        total = tokens.cross_entropy(logits[:, None], target[:, None], real[:, None])
        return total / jnp.maximum(jnp.sum(real), 1)

    def _sampled(self, feature: jax.Array, target: jax.Array, drawn: jax.Array) -> Float[Array, "n s"]:
        """Logits of the row's class, then those of the drawn ones, corrected by the logarithm of their chance."""
        offset = jnp.broadcast_to(self.offset, (self.classes,))
        chosen = jnp.sum(feature * jnp.take(self.kernel, target, axis=1).T, axis=1)
        others = self._product(feature, jnp.take(self.kernel, drawn, axis=1)) + offset[drawn]
        others = jnp.where(drawn == target[:, None], NEVER, others + np.log(self.classes / len(drawn)))
        return jnp.concatenate([(chosen + offset[target])[:, None], others], axis=1)
