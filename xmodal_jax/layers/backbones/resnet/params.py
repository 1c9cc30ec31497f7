"""torchvision's tensor names of residual networks (`resnet18`, `resnet50`, `resnet101`, `resnet152`)."""

from xmodal_jax.layers.backbones.parts import Names, norm_names

NAMES: Names = (
    (r"conv1\.weight", "params/conv1/kernel"),
    *norm_names("bn1", "bn1"),
    (r"(layer[1-4]\.\d+)\.conv([1-3])\.weight", r"params/\1/conv\2/kernel"),
    *norm_names(r"(layer[1-4]\.\d+)\.bn([1-3])", r"\1/bn\2"),
    (r"(layer[1-4]\.\d+)\.downsample\.0\.weight", r"params/\1/downsample/kernel"),
    *norm_names(r"(layer[1-4]\.\d+)\.downsample\.1", r"\1/downsample_bn"),
)
UNUSED = r"fc\.(weight|bias)"  # the classes of ImageNet
