"""torchvision's tensor names of VGG-19 (`vgg19`): places in two sequences of layers."""

from __future__ import annotations

import numpy as np

from xmodal_jax.layers.backbones.parts import Names, linear_names
from xmodal_jax.layers.backbones.vgg.modeling import SIDE, STAGES


def conv_names() -> Names:
    """Convolutions stand at every second place, each with its ReLU; a pooling follows every stage."""
    names: Names = ()
    place = 0
    for stage, (_, count) in enumerate(STAGES, 1):
        for number in range(1, count + 1):
            names += linear_names(rf"features\.{place}", f"conv{stage}_{number}")
            place += 2
        place += 1
    return names


NAMES = conv_names()
UNUSED = r"classifier\.[036]\.(weight|bias)"
NAMES_FC7 = NAMES + linear_names(r"classifier\.0", "fc6") + linear_names(r"classifier\.3", "fc7")
UNUSED_FC7 = r"classifier\.6\.(weight|bias)"  # the classes of ImageNet


def fc6_layout(weight: np.ndarray) -> np.ndarray:
    """fc6 as a matrix on maps that are laid out by place and then channel; the original's go by channel and then place.

    Args:
        weight: [4096, 512 * 7 * 7].
    """
    return weight.reshape(len(weight), -1, SIDE * SIDE).transpose(2, 1, 0).reshape(-1, len(weight))
