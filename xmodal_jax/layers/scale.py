"""A learned factor and bias of the scores."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from xmodal_jax.similarity import AnyArray

LARGEST = 100.0  # of the factor, as in CLIP: beyond it training becomes unstable


class Scale(nn.Module):
    """``exp(log_factor) * scores + bias`` with both learned, or the scores as they are where ``factor`` is 0.

    Attributes:
        factor: initial factor, the inverse temperature; 1 / 0.07 in CLIP (Radford et al., ICML 2021), 10 in SigLIP.
        bias: initial bias; 0 in CLIP, whose loss takes no notice of it, -10 in SigLIP (Zhai et al., ICCV 2023).
    """

    factor: float = 0.0
    bias: float = 0.0

    @nn.compact
    def __call__(self, scores: Float[AnyArray, "b c"]) -> Float[Array, "b c"]:
        if not self.factor:
            return jnp.asarray(scores)
        factor = self.param("log_factor", nn.initializers.constant(jnp.log(self.factor)), ())
        bias = self.param("bias", nn.initializers.constant(self.bias), ())
        return jnp.minimum(jnp.exp(factor), LARGEST) * scores + bias
