"""Image networks on photographs: pixels [B, S, S, 3] to a feature map [B, h, w, F], and their published weights."""

from xmodal_jax.layers.backbones.backbone import BACKBONES, MODES, Backbone, Network, map_shape

__all__ = ["BACKBONES", "MODES", "Backbone", "Network", "map_shape"]
