"""Tensor names of the small network, in the manner of torchvision's."""

from xmodal_jax.layers.backbones.parts import Names, norm_names

NAMES: Names = (
    (r"conv([1-3])\.weight", r"params/conv\1/kernel"),
    *norm_names(r"bn([1-3])", r"bn\1"),
)
UNUSED = r"fc\.(weight|bias)"
