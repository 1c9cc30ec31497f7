"""2WayNet: two channels of tied matrices between images and a dense vector of each sentence.

    xmodal train --config twoway.py:twoway,f8k --workdir runs/twoway

Source: Eisenschtat and Wolf, CVPR 2017; settings are those of the released code (aviveise/2WayNet), of Flickr8k for
f8k and of Flickr30K otherwise, whose last matrix is locally dense. The decay, 0.005 or 0.05 times the squares, is twice
that in the gradient. How that code scales its inputs is unknown (``--config.model.scaling``).

Reached on Flickr8k's Fisher vectors (docs/results.md): 181.6 after 936 steps at a rate of 1e-3 with widths 500, 750,
1000 and momentum 0.05. On dev 108 after 500 steps at the published rate with widths 1000, 1500, 2000.
"""

from ml_collections import ConfigDict

from xmodal_jax.defaults import base, parse, shrink
from xmodal_jax.types import Config

VARIANTS = ("twoway",)


def get_config(arg: str | None = None) -> Config:
    _, data, tiny = parse(arg, VARIANTS)
    config = base(data)
    small = data in ("f8k", "scenes")
    config.model = ConfigDict(
        {
            "name": "twoway",
            "hidden": (2000, 3000, 4000) if small else (2000, 3000, 16000),
            "layer": 1,
            "cells": 1 if small else 2,
            "feature": "region" if data == "scenes" else "global",
            "text": "tfidf" if data == "scenes" else "fisher",
            "scaling": "standard",
            "leak": 0.3,
            "dropout": 0.5,
            "momentum": 0.01,
        }
    )
    terms = {"image_error": 1.0, "text_error": 1.0, "hidden": 0.25, "decorrelation": 0.5, "variance": 0.05}
    config.weights = ConfigDict({"rank": 0.0, **terms})
    config.data.drop_last = True
    config.epochs = 100.0
    config.optim.name, config.optim.lr, config.optim.momentum, config.optim.nesterov = "sgd", 1e-4, 0.9, True
    config.optim.weight_decay, config.optim.clip_norm = 0.01 if small else 0.1, 0.0
    config.optim.rules = ({"match": ".*(bias|beta)", "decay": 0.0}, {"match": ".*"})
    config.optim.schedule.at, config.optim.schedule.factor = (20.0, 40.0, 60.0, 80.0), 0.5
    if data == "scenes":
        config.model.hidden = (128, 256, 128)
        config.model.momentum = 0.1
        config.optim.lr = 1e-3
        config.epochs = 30.0
        config.data.dev_images = 0
    if tiny:
        shrink(config)
        config.model.hidden = (16, 24, 16)
    return config
