"""RRF-Net, a recurrent residual layer and a fusion of its outputs on a dense vector of each sentence.

    xmodal train --config rrf.py:rrf,f30k --workdir runs/rrf

Source: ICCV 2017; settings of the released code (yuLiu24/RRF-Net), batches of 1,500 pairs of an image and one caption.
``--config.model.text`` names the vectors: "fisher", "mean" or "tfidf". The founding ablations, with T counted as in the
released code, which applies its shared layer T + 1 times:

    recurrence  --config.model.steps=T, T from 0 to 4
    fusion      --config.model.fusion=none, or sum

Reached on Flickr8k's Fisher vectors (docs/results.md): 186.3 after 5,100 of 6,500 steps on one H200, still rising. On
a CPU core, 300 steps of 500 pairs at widths 256 and 512, ``bn_momentum`` 0.1 and rate 0.5: T = 3 188.3, T = 1 218.5.
"""

from ml_collections import ConfigDict

from xmodal_jax.defaults import base, parse, shrink
from xmodal_jax.types import Config

VARIANTS = ("rrf",)
PAIRS = {"f30k": 145_000, "coco": 566_435}  # captions of the training split; of COCO with its further images [recalled]


def get_config(arg: str | None = None) -> Config:
    _, data, tiny = parse(arg, VARIANTS)
    config = base(data)
    config.model = ConfigDict(
        {
            "name": "rrf",
            "embed_dim": 512,
            "hidden_dim": 2048,
            "feature": "region" if data == "scenes" else "global",
            "text": "tfidf" if data == "scenes" else "fisher",
            "steps": 3,
            "fusion": "conv",
            "dropout": 0.5,
            "bn_momentum": 0.001,
            "dtype": "float32",
        }
    )
    config.loss.name, config.loss.margin, config.loss.k = "bi_rank", 0.1, 50
    config.loss.i2t_weight, config.loss.t2i_weight = 1.0, 2.0
    config.loss.text_weight, config.loss.image_weight = 0.5, 1.0
    config.loss.mask_same_image = True
    config.data.batch_size, config.data.drop_last = 1500, True
    config.optim.name, config.optim.lr, config.optim.momentum, config.optim.weight_decay = "sgd", 0.1, 0.9, 5e-4
    config.optim.clip_norm = 0.0
    config.optim.rules = (
        {"match": ".*norm[^/]*/bias", "lr": 1.0, "decay": 1.0},
        {"match": ".*/bias", "lr": 2.0, "decay": 0.0},
        {"match": ".*", "lr": 1.0, "decay": 1.0},
    )
    per_epoch = PAIRS.get(data, PAIRS["f30k"]) / config.data.batch_size
    every, steps = (5_500, 16_500) if data == "coco" else (2_000, 6_500)
    config.epochs = round(steps / per_epoch, 1)
    config.optim.schedule.kind, config.optim.schedule.every = "exponential", round(every / per_epoch, 1)
    if data == "scenes":
        config.model.embed_dim, config.model.hidden_dim = 128, 256
        config.model.bn_momentum = 0.1  # of a short training the average over all batches lags behind
        config.data.batch_size = 125
        config.epochs, config.optim.schedule.every = 24.0, 10.0
        config.data.dev_images = 0
    if tiny:
        shrink(config)
        config.model.embed_dim = config.model.hidden_dim = 32
    return config
