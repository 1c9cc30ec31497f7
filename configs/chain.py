"""CHAIN-VSE: captions as characters, with the released code's encoder or the paper's, scored by cosine or order.

    xmodal train --config chain.py:code,f8k --workdir runs/chain

Sources: Wehrmann, Barros, "Bidirectional Retrieval Made Simple", CVPR 2018; settings are those of the released code
(jwehrmann/chain-vse), where the command of its page scores by cosine. The paper's tables score by order, of widths
1024 to 8192 (``--config.model.embed_dim``); its margin and whether it takes absolute values are not published.

Reached here (docs/results.md): 226.1 on Flickr8k after 700 steps at width 256 with 32 and 64 filters, short.
"""

from ml_collections import ConfigDict

from xmodal_jax.defaults import base, parse, shrink
from xmodal_jax.types import Config

VARIANTS = ("code", "code_order", "paper", "paper_cosine")


def get_config(arg: str | None = None) -> Config:
    variant, data, tiny = parse(arg, VARIANTS)
    config = base(data)
    config.model = ConfigDict(
        {
            "name": "chain",
            "embed_dim": 1024,
            "feature": "region" if data == "scenes" else "global",
            "variant": variant.partition("_")[0],
            "first_filters": 64,
            "filters": 256,
            "pieces": 2,
            "pooling": "max",
            "compat_padding": False,
            "measure": {"code_order": "order_root", "paper": "order"}.get(variant, "dot"),
            "absolute": variant in ("code_order", "paper"),
            "dtype": "float32",
        }
    )
    config.loss.margin, config.loss.hardness = 0.05, 0.0
    config.optim.lr, config.optim.clip_norm = 1e-3, 1.0
    # In characters. The longest caption of Flickr8k has 201, a batch of 128 needs 128 or 160 nearly always; the
    # original cuts none, and a length that no batch needs costs nothing.
    config.data.lengths = (64, 96, 128, 160, 256) if data in ("scenes", "f8k") else (64, 96, 128, 160, 256, 512)
    if data == "scenes":  # few words and small pictures: a narrow model learns them in minutes
        config.model.embed_dim, config.model.first_filters, config.model.filters = 128, 32, 64
        config.epochs, config.optim.lr = 24.0, 2e-3
        config.optim.schedule.factor, config.optim.schedule.at = 0.3, (14.0, 20.0)
        config.data.dev_images = 0
    if tiny:
        shrink(config)
        config.data.lengths = (32,)
        config.model.embed_dim, config.model.first_filters, config.model.filters = 32, 8, 16
    return config
