"""GXN: an abstract and a grounded embedding, and the grounded one trained to say captions and to draw pictures.

    xmodal train --config gxn.py:xe,f8k --data data/f8k --workdir runs/xe
    xmodal train --config gxn.py:both,f8k --data data/f8k --workdir runs/both

Source: Gu et al., CVPR 2018, of which no code is public; the stages are the paper's, the numbers [recalled] where
specified and else a [reconstruction]. The rows of its ablation: ``gru``, ``bigru`` (one embedding), ``gxn`` (two),
``xe`` (captions by cross entropy), ``mix`` (then half of it self-critical), ``t2i`` (pictures alone), ``both``.
``t2i`` and ``both`` read the pictures of the data set beside its features. Fine-tuning of the image network is

    --config.model.feature=pixels --config.model.network=resnet152 --config.init.workdir=runs/xe

with ``--config.optim.rules`` as in configs/vse_pixels.py; the generator's pictures are then made of the network's.

Reached on Flickr8k (docs/results.md), width 256, 705 steps of a CPU core, short: gru 215.9, bigru 230.7, gxn 235.3, xe
235.5, t2i 247.2, both 246.9; xe of captions of weight 128 233.3, after 120 further steps 249.8.
"""

from typing import Any

from ml_collections import ConfigDict

from xmodal_jax.defaults import base, parse, shrink
from xmodal_jax.types import Config

VARIANTS = ("xe", "gru", "bigru", "gxn", "mix", "t2i", "both")
GAMMA = 0.5  # of the self-critical loss in the mixture
I2T = {"captioning": 1.0}
RL = {"captioning": 1.0 - GAMMA, "self_critical": GAMMA}
T2I = {"discrimination": 1.0, "generation": 1.0, "kl": 0.02}
# Not in the norm that the towers are clipped by. At the discriminator's rate the generator does not keep up with it
PLAYERS = (
    {"match": r"imagination/(generator|augment)/.*", "lr": 5.0, "clip": False},
    {"match": r"imagination/.*", "clip": False},
)


def stages(paths: tuple[str, ...], mixed: bool, lengths: tuple[float, ...], rate: float, key: str) -> tuple[Any, ...]:
    """(1) embeddings and cross entropy, (2) the adversarial network alone, (3) all together at a small rate."""
    off: dict[str, float] = {"self_critical": 0.0} if mixed else {}
    without: dict[str, float] = dict.fromkeys(T2I, 0.0) if "t2i" in paths else {}
    first = {key: lengths[0], "weights": off | without}
    alone = {"rank": 0.0, **(dict.fromkeys(I2T, 0.0) if "i2t" in paths else {}), **off}
    frozen = (*PLAYERS, {"match": ".*", "lr": 0.0})
    second = {key: lengths[1], "weights": alone, "optim": {"rules": frozen, "b1": 0.5, "lr": 2e-4}}
    third = {key: lengths[-1], "weights": RL if mixed else {}}
    third |= {"optim": {"lr": rate, "schedule": {"kind": "constant"}}}
    return (first, *([second] if "t2i" in paths else []), third)


def get_config(arg: str | None = None) -> Config:
    variant, data, tiny = parse(arg, VARIANTS)
    config = base(data)
    paths = {"xe": ("i2t",), "mix": ("i2t",), "t2i": ("t2i",), "both": ("i2t", "t2i")}.get(variant, ())
    mixed, single = variant in ("mix", "both"), variant in ("gru", "bigru")
    config.model = ConfigDict(
        {
            "name": "gxn",
            "embed_dim": 1024,
            "word_dim": 300,
            "gru_dim": 1024,
            "feature": "region" if data == "scenes" else "global",
            "network": "",
            "cnn_mode": "eval",
            "bidirectional": variant != "gru",
            "dual": not single,
            "abstract": 0.5,
            "measure": "dot",
            "absolute": False,
            "paths": paths,
            "references": 4 if mixed else 0,
            "reward": "cider",
            "longest": 20,
            "side": 64,
            "noise_dim": 100,
            "condition_dim": 128,
            "filters": 64,
            "dtype": "float32",
        }
    )
    config.loss.hardness = 0.0 if single else 1.0
    config.weights.update(
        (I2T if "i2t" in paths else {})
        | ({"self_critical": 0.0, "reward": 0.0} if mixed else {})
        | (T2I if "t2i" in paths else {})
    )
    config.data.pixels.side, config.data.pixels.resize, config.data.pixels.train = 64, 64, "centre"
    lengths, rate = (30.0, 20.0, 10.0), 2e-5
    if "t2i" in paths:
        config.optim.rules = (*PLAYERS, *config.optim.rules)
    if data == "f8k":  # for a processor core and 25 minutes
        config.loss.hardness = 0.0
        config.data.lengths = (24, 40)  # each is a compilation, and so is each pair of captions and references
        config.model.embed_dim = config.model.gru_dim = 256
        config.model.side = config.data.pixels.side = config.data.pixels.resize = 32
        config.model.filters, config.epochs, config.optim.lr = 16, 3.0, 1e-3
        lengths, rate = (2.5, 0.5, 0.5), 1e-4
    if data == "scenes":
        config.loss.hardness = 0.0
        config.model.embed_dim = config.model.gru_dim = 128
        config.model.word_dim, config.model.filters, config.model.side = 64, 8, 16
        config.data.pixels.side = config.data.pixels.resize = 16
        config.data.dev_images = 0
        config.optim.lr, config.epochs = 2e-3, 24.0
        lengths, rate = (18.0, 2.0, 4.0), 5e-4
    if tiny:
        shrink(config)
        config.model.embed_dim = config.model.word_dim = config.model.gru_dim = 32
        config.model.noise_dim, config.model.condition_dim, config.model.filters = 4, 8, 4
        config.model.longest = 6
        lengths = (2, 2) if variant == "mix" else (1, 1, 2)
    if variant in ("mix", "t2i", "both"):
        config.stages = stages(paths, mixed, lengths, rate, "steps" if tiny else "epochs")
    return config
