"""SCO without order learning: concepts and context fused by a gate, or its ablations.

    xmodal data concepts data/f8k
    xmodal train --config sco.py:gate,f8k --workdir runs/sco

Source: Huang et al., CVPR 2018; no code was released. Margin, sum of hinges over the batch (K = 127 negatives), width,
optimiser and batch are the paper's [recalled: K, width]; gradient clipping is VSE++'s. The founding ablation is over
the variants: the gate over the sum of both, the sum over either alone (concept, context).

Reached on Flickr8k (docs/results.md), one H200, 12 epochs: sum 258.5 and concept 246.7 (stopped before their end),
context 254.9, gate 238.7 (stopped half way). The order of the ablation is not known.
"""

from ml_collections import ConfigDict

from xmodal_jax.defaults import base, parse, shrink
from xmodal_jax.types import Config

VARIANTS = ("gate", "sum", "concept", "context")


def get_config(arg: str | None = None) -> Config:
    variant, data, tiny = parse(arg, VARIANTS)
    config = base(data)
    config.model = ConfigDict(
        {
            "name": "sco",
            "embed_dim": 1024,
            "word_dim": 300,
            "feature": "global",
            "concept": "concept",
            "fusion": variant,
            "text": "lstm",
            "dtype": "float32",
        }
    )
    config.loss.hardness = 0.0
    if data == "scenes":  # few words and small pictures: a narrow model with a high rate learns them in minutes
        config.model.embed_dim, config.model.word_dim = 128, 64
        config.epochs, config.optim.lr = 24.0, 2e-3
        config.optim.schedule.kind, config.optim.schedule.factor = "staircase", 0.3
        config.optim.schedule.at = (14.0, 20.0)
        config.data.dev_images = 0
    if tiny:
        shrink(config)
        config.model.embed_dim = config.model.word_dim = 32
    return config
