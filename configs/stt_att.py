"""Show, Translate and Tell with attention; with a loss between paraphrases; and one of its three tasks alone.

    xmodal train --config stt_att.py:stt_att,f8k --workdir runs/stt-att

Source: Peri, Sah, Ptucha, ICIP 2019; settings of the released code's script (peri044/STT), whose data is F30K's.
`stt_para_att`: the released code computes that loss and leaves it out of the total, so its weight is a choice
[reconstruction]: that of the ranking loss, which is a sum over the batch where this one is a mean.

Reached on Flickr8k (docs/results.md), width 256, 700 steps at the rate 1e-3, short: stt_att 268.4; on the scenes 545.4.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from xmodal_jax.defaults import parse
from xmodal_jax.types import Config

VARIANTS = ("stt_att", "stt_para_att", "retrieval", "captioning", "paraphrasing")


def get_config(arg: str | None = None) -> Config:
    variant, data, tiny = parse(arg, VARIANTS)
    stt = runpy.run_path(str(Path(__file__).with_name("stt.py")))
    tasks = "stt" if variant in ("stt_att", "stt_para_att") else variant
    config = stt["get_config"](f"{tasks},{data}{',tiny' if tiny else ''}")
    config.model.update(ConfigDict({"name": "stt_att", "feature": "region", "smooth": 9.0, "unit_start": False}))
    config.model.paraphrase_ranking = variant == "stt_para_att"
    if config.model.paraphrase_ranking:
        config.model.unit_start, config.model.margin = True, config.loss.margin  # as in the released code's model
        config.weights.paraphrase_ranking = float(config.data.batch_size)
    config.data.lengths = (24, 64)  # a compilation of the scores each; the decoder's loss takes longer for padding
    if data == "scenes":  # as SCAN's
        config.epochs, config.loss.warmup_epochs = 2.0 if tiny else 8.0, 1.0
        config.optim.schedule.at = (5.0, 7.0)
        config.data.lengths = (24,)
    if tiny:
        config.data.lengths = (16,)
    return config
