"""What the networks share: convolutions padded as in PyTorch or TensorFlow, their norm, tables of tensor names."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from xmodal_jax.layers.norm import BatchNorm

EVERYWHERE = np.ones((), bool)  # no position of a feature map is padding
LEAVES = {  # of PyTorch's BatchNorm2d
    "weight": "params/{}/scale",
    "bias": "params/{}/bias",
    "running_mean": "batch_stats/{}/mean",
    "running_var": "batch_stats/{}/var",
}

Names = tuple[tuple[str, str], ...]  # (pattern of a whole tensor name, our collection and parameter)


def conv(features: int, size: int, stride: int = 1, *, same: bool = False, dtype: str, **options: Any) -> nn.Conv:
    """A convolution with square kernels; He et al.'s normal initial values (ICCV 2015), by outputs.

    Args:
        same: TensorFlow's "SAME" padding, which may pad one end alone where the stride is 2; otherwise that of
            torchvision's networks, (size - 1) / 2 at both ends.
        dtype: of the product; parameters stay float32.
        options: further ones of :class:`flax.linen.Conv`.
    """
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding="SAME" if same else (size - 1) // 2,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        dtype=jnp.dtype(dtype),
        **options,
    )


def norm(x: Any, name: str, *, train: bool, **options: Any) -> Any:
    """Batch norm of every channel of a feature map [B, h, w, K]."""
    return BatchNorm(x.shape[-1], name=name, **options)(x, EVERYWHERE, train=train)


def linear_names(pattern: str, ours: str) -> Names:
    """Names of a convolution or linear map with a bias."""
    return ((rf"{pattern}\.weight", f"params/{ours}/kernel"), (rf"{pattern}\.bias", f"params/{ours}/bias"))


def norm_names(pattern: str, ours: str) -> Names:
    """Names of a batch norm."""
    return tuple((rf"{pattern}\.{leaf}", path.format(ours)) for leaf, path in LEAVES.items())
