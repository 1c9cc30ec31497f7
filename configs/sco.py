"""SCO, concepts and context fused by a gate and put in order by saying the caption, and its ablations.

    xmodal data concepts data/f8k
    xmodal train --config sco.py:sco,f8k --workdir runs/sco

Source: Huang et al., CVPR 2018; no code was released. Margin, sum of hinges over the batch (K = 127 negatives), width,
weight of the generation, optimiser and batch are the paper's [recalled: K, width, weight]; clipping is VSE++'s.

The founding ablation: `sco` (generation by a decoder of its own parameters) over `shared` (those of the sentence
encoder) over `sampling` (scheduled), and over `gate` (no generation), that over the `sum` of both features, that over
`context` or `concept` alone. docs/systems.md lists its rows with their commands; `--config.model.fusion` is another
fusion under the same generation. The schedule of `sampling` is not known: a line over 10,000 steps to a quarter.

Reached on Flickr8k without generation (docs/results.md), width 256, 600 steps: gate 195.4, sum 192.5, concept 188.4,
context 176.5; one H200, 12 epochs: sum 258.5 and concept 246.7 (stopped before their end), context 254.9, gate 238.7
(stopped half way).
"""

from ml_collections import ConfigDict

from xmodal_jax.defaults import base, parse, shrink
from xmodal_jax.types import Config

GENERATION = {
    "sco": {},
    "shared": {"share_lstm": True, "share_words": True},
    "sampling": {"sampling": 0.25, "sampling_steps": 10_000},
}
VARIANTS = (*GENERATION, "gate", "sum", "concept", "context")


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
            "fusion": "gate" if variant in GENERATION else variant,
            "text": "lstm",
            "dtype": "float32",
        }
    )
    config.loss.hardness = 0.0
    if variant in GENERATION:
        order = {"share_lstm": False, "share_words": False, "start": "state", "sampling": 0.0, "sampling_steps": 0}
        config.model.update({**order, **GENERATION[variant], "name": "sco_order"})
        config.weights.captioning = 1.0
        if variant == "sampling" and data == "scenes":
            config.model.sampling_steps = 4 if tiny else 500
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
