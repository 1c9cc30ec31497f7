"""VSE-infinity on regions with a bi-GRU: generalised pooling, size augmentation, one warm-up epoch.

    xmodal train --config vse_infty.py:f30k --workdir runs/vse_infty

Source: Chen et al., CVPR 2021, arXiv 2011.04305; settings are those of the released code (branch bigru) for F30K and
COCO unless a comment says otherwise.

Reached on Flickr8k (docs/results.md): rsum 293.4 at width 256 in 2,000 steps, 9 to 28 minutes on a CPU core, not the
end. Width 1024 and other sets: not measured.
"""

from ml_collections import ConfigDict

from xmodal_jax.defaults import base, parse, shrink
from xmodal_jax.types import Config

VARIANTS = ("bigru",)


def get_config(arg: str | None = None) -> Config:
    _, data, tiny = parse(arg, VARIANTS)
    config = base(data)
    config.model = ConfigDict(
        {
            "name": "vse_infty",
            "embed_dim": 1024,
            "word_dim": 300,
            "feature": "region",
            "drop_region": 0.2,
            "touch_word": 0.2,
            "touch_ends": True,  # recalled; False spares <start> and <end>
            "compat_padding": False,  # the released code's batch statistics: True
            "dtype": "float32",
        }
    )
    config.epochs = 25.0
    config.data.drop_last = True
    config.loss.warmup_epochs = {"f8k": 4.0, "scenes": 5.0}.get(data, 1.0)  # on the larger sets 1 is as many steps
    config.optim.name, config.optim.weight_decay = "adamw", 0.01  # the default of PyTorch's AdamW
    config.optim.lr = 5e-4
    config.optim.schedule.kind, config.optim.schedule.at, config.optim.schedule.factor = "staircase", (15.0,), 0.1
    config.optim.clip_norm = 2.0
    if data == "scenes":  # few words and small pictures: a narrow model with a high rate
        config.model.embed_dim, config.model.word_dim = 128, 64
        config.optim.lr = 1e-3
        config.data.dev_images = 0
    if tiny:
        shrink(config)
        config.model.embed_dim = config.model.word_dim = 32
    return config
