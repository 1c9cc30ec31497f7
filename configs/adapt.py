"""ADAPT: captions filter regions (t2i) or images filter words (i2t); train both, then average their scores.

    xmodal train --config adapt.py:t2i,f30k --config.data.word_vectors=glove.6B.300d.txt --workdir runs/adapt

Source: Wehrmann, Kolling, Barros, AAAI 2020; settings of the released code (jwehrmann/retrieval.pytorch) for F30K and
COCO. Half of each word vector is GloVe and frozen: without data.word_vectors that half stays random.

Reached on Flickr8k (docs/results.md): t2i rsum 338.2 in 85 s on one H100 (18 epochs, GloVe), i2t 325.1 (stopped after
85 s), both together 358.6. Scenes, F30K and COCO: not measured.
"""

from ml_collections import ConfigDict

from xmodal_jax.defaults import base, parse, shrink
from xmodal_jax.types import Config

VARIANTS = ("t2i", "i2t")


def get_config(arg: str | None = None) -> Config:
    direction, data, tiny = parse(arg, VARIANTS)
    config = base(data)
    config.model = ConfigDict(
        {
            "name": "adapt",
            "embed_dim": 1024,
            "word_dim": 300,
            "feature": "region",
            "direction": direction,
            "smooth": 5.0 if data == "coco" else 10.0,
            "pool": {"t2i": "mean", "i2t": "max"}[direction],
            "compat_padding": False,
            "dtype": "float32",
        }
    )
    config.data.lengths = (64,)  # one compilation; scores and the GRU take no longer for it
    config.loss.anneal = 0.991
    config.optim.name, config.optim.lr = "adamax", 1e-3
    config.optim.rules = ({"match": "embed_fixed/embedding", "lr": 0.0}, *config.optim.rules)
    config.eval.every_steps = 500
    if data == "scenes":  # a fraction of the steps of the published sets; small enough for a CPU
        config.model.embed_dim, config.model.word_dim = 128, 64
        config.epochs = 12.0
        config.optim.schedule.at = (8.0,)
        config.eval.every_steps = 0
        config.data.dev_images = 0
    else:
        line, decays = {
            "coco": (16000, range(40000, 80000, 8000)),
            "f8k": (800, range(2000, 4000, 600)),  # not published: a fifth of the captions, a fifth of the steps
        }.get(data, (4000, range(10000, 20000, 3000)))  # F30K's
        config.optim.schedule.kind, config.optim.schedule.factor = "adapt", 0.25
        config.optim.schedule.line, config.optim.schedule.at_steps = (0.5, 2.0, line), tuple(decays)
    if data == "coco":
        config.optim.lr = 7e-4
    elif data == "f30k" and direction == "t2i":
        config.data.batch_size = 105
    if tiny:
        shrink(config)
        config.model.embed_dim = config.model.word_dim = 32
    return config
