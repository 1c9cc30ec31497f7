"""Dual-Path from pixels: stage I before a frozen image network, stage II through all of it.

    xmodal train --config dual_path_pixels.py:dual_path,f30k --data data/f30k --workdir runs/dual_path \\
        --config.init.backbone=resnet50.pth

Source: dual_path.py, whose system, variants and settings these are; the image path begins with a ResNet-50 here. In
stage II the released code trains it at 0.001 and 0.02 of the rate by turns over its list of parameters, which are read
here as matrices and biases, and the scales of its norms, and the first convolution at 0.0001. It never uses the
statistics of a batch (``cnn_mode``; the released code does in stage II). ``--config.model.network=lite0
--config.init.backbone=package`` takes a network that comes as a Python package.

Reached on Flickr8k's photographs at 96 pixels, EfficientNet-Lite0, narrow (docs/results.md): 40.5 after 920 steps of
stage I, then after 60 of stage II 46.4, after as many with the image network frozen 45.5. Published widths: not run.
"""

import runpy
from pathlib import Path

from xmodal_jax.defaults import parse
from xmodal_jax.types import Config

VARIANTS = ("dual_path", "instance", "hardest")
FROZEN = {"match": ".*backbone/.*", "lr": 0.0}
TRAINED = (
    {"match": ".*backbone/(conv1|stem)/.*", "lr": 1e-4},
    {"match": ".*backbone/.*/scale", "lr": 0.02},
    {"match": ".*backbone/.*", "lr": 1e-3},
)


def get_config(arg: str | None = None) -> Config:
    variant, data, tiny = parse(arg, VARIANTS)
    features = runpy.run_path(str(Path(__file__).with_name("dual_path.py")))
    config = features["get_config"](f"{variant},{data}{',tiny' if tiny else ''}")
    config.model.feature, config.model.network = "pixels", "resnet50"
    config.data.pixels.area = (0.64, 1.0)  # 0.8 to 1 of the side
    rules = config.optim.rules
    if data == "scenes":  # a narrow network, which nothing has trained before
        config.model.network, config.init.backbone = "small", "random"
        config.data.pixels.side, config.data.pixels.resize = 64, 72
        config.data.pixels.area, config.data.pixels.flip = (0.9, 1.0), False
    if tiny:
        config.data.pixels.side, config.data.pixels.resize = 32, 36
    config.optim.rules = (FROZEN, *rules)
    for stage in config.stages[1:]:
        stage["optim"] = {**stage.get("optim", {}), "rules": (*TRAINED, *rules)}
        if data == "scenes" and not tiny and variant != "hardest":  # by a batch's halves it learns far more slowly
            config.model.candidates, stage["loss"] = 0, {"name": "triplet", "hardness": 0.0}
            stage["weights"]["rank"], stage["optim"]["schedule"] = 0.1, {"kind": "cosine"}
    return config
