"""Deep CCA: two perceptrons whose outputs correlate as much as they can, on a dense vector of each sentence.

    xmodal train --config dcca.py:dcca,f8k --workdir runs/dcca

Sources: Andrew et al., ICML 2013 (loss, large batches, r); Yan and Mikolajczyk, CVPR 2015 (images and sentences,
tf-idf). Widths, optimiser and dropout are a [reconstruction]. The loss is of a whole batch, so it wants many pairs,
several times ``embed_dim``. ``--config.model.text`` names the vectors: "fisher", "mean" or "tfidf".

Reached on Flickr8k's Fisher vectors (docs/results.md): 175.5 after 300 steps on one H200, the best on dev after 180.
"""

from ml_collections import ConfigDict

from xmodal_jax.defaults import base, parse, shrink
from xmodal_jax.types import Config

VARIANTS = ("dcca",)


def get_config(arg: str | None = None) -> Config:
    _, data, tiny = parse(arg, VARIANTS)
    config = base(data)
    config.model = ConfigDict(
        {
            "name": "dcca",
            "embed_dim": 128,
            "directions": 128,
            "hidden": (1024,),
            "feature": "region" if data == "scenes" else "global",
            "text": "tfidf" if data == "scenes" else "fisher",
            "activation": "relu",
            "dropout": 0.5,
            "ridge": 1e-4,
            "power": 1.0,
            "momentum": 0.1,
            "dtype": "float32",
        }
    )
    config.weights = ConfigDict({"rank": 0.0, "correlation": 1.0})
    config.data.batch_size, config.data.captions_per_image, config.data.drop_last = 500, 2, True
    config.epochs = 5.0
    config.optim.lr, config.optim.clip_norm = 1e-3, 0.0
    config.optim.schedule.kind = "cosine"
    if data == "scenes":
        config.model.embed_dim = config.model.directions = 32
        config.model.hidden = (256,)
        config.data.batch_size = 125
        config.epochs = 20.0
        config.data.dev_images = 0
    if tiny:
        shrink(config)
        config.model.embed_dim, config.model.directions, config.model.hidden = 8, 6, (16,)
    return config
