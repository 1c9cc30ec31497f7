"""m-CNN: four networks, whose image joins at the word, the short phrase, the long phrase or the sentence.

xmodal train --config mcnn.py:word,f30k --workdir runs/mcnn_word        # m-CNN_wd
xmodal train --config mcnn.py:short,f30k --workdir runs/mcnn_short      # m-CNN_phs
xmodal train --config mcnn.py:long,f30k --workdir runs/mcnn_long        # m-CNN_phl
xmodal train --config mcnn.py:sentence,f30k --workdir runs/mcnn_sentence  # m-CNN_st
xmodal eval --ensemble runs/mcnn_word runs/mcnn_short runs/mcnn_long runs/mcnn_sentence  # m-CNN_ENS
"""

from ml_collections import ConfigDict

from xmodal_jax.defaults import base, parse, shrink
from xmodal_jax.types import Config

VARIANTS = ("word", "short", "long", "sentence")


def get_config(arg: str | None = None) -> Config:
    variant, data, tiny = parse(arg, VARIANTS)
    config = base(data)
    config.model = ConfigDict(
        {
            "name": "mcnn",
            "level": variant,
            "feature": "region" if data == "scenes" else "global",
            "word_dim": 50,
            "image_dim": 256,
            "widths": (200, 300, 300),
            "hidden_dim": 400,
            "positions": 30,
            "padding": "valid",
            "dropout": 0.1,
            "dtype": "float32",
        }
    )
    config.data.lengths = (32,)  # 30 words between <start> and <end>
    config.loss.margin, config.loss.hardness = 0.5, 0.0
    # Guesses: the norm of a sum of hinges is thousands, and clipped to 2 one rate serves every level and batch size
    config.optim.name, config.optim.lr, config.optim.momentum, config.optim.clip_norm = "sgd", 0.1, 0.9, 2.0
    config.optim.schedule.kind = "cosine"
    if data in ("scenes", "f8k"):
        config.block = (128, 1, 32)  # pairs that stay in the cache of a CPU core
    if data == "scenes":
        config.model.widths, config.model.hidden_dim, config.model.image_dim = (64, 64, 64), 128, 128
        config.data.dev_images = 0
    if tiny:
        shrink(config)
        config.model.image_dim = config.model.hidden_dim = 32
        config.model.widths = (16, 16, 16)
    return config
