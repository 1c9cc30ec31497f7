"""What the values of a config may be: one table of keys, asked before anything of a run is made."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from xmodal_jax import config as configs
from xmodal_jax import losses
from xmodal_jax.data import pixels
from xmodal_jax.errors import UsageError
from xmodal_jax.layers.backbones import BACKBONES, MODES
from xmodal_jax.layers.decoder import STARTS
from xmodal_jax.layers.recurrent import CELLS
from xmodal_jax.models import gxn
from xmodal_jax.similarity import FOVEAS, MATCH_POOLS, NORMS, POOLS
from xmodal_jax.text.rewards import REWARDS
from xmodal_jax.training.parallel import RUNNERS
from xmodal_jax.training.schedules import KINDS
from xmodal_jax.training.trackers import TRACKERS
from xmodal_jax.types import Config


class Check(NamedTuple):
    """A condition on the value of a key, and its words after "it must be"."""

    holds: Callable[[Any], bool]
    words: str


def at_least(least: float) -> Check:
    return Check(lambda value: math.isfinite(value) and value >= least, f"at least {least:g}")


def among(*names: str | int) -> Check:
    return Check(lambda value: value in names, f"one of {', '.join(map(str, names))}")


def regular(pattern: str) -> bool:
    """Whether a pattern is a regular expression."""
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def is_rule(rule: Mapping[str, Any]) -> bool:
    """Whether an optimiser rule has a pattern, and factors that are not negative."""
    factors = [rule[key] for key in set(rule) - {"match"}]
    known = set(rule) <= {"match", "lr", "decay", "clip"} and rule.get("clip", True) in (True, False)
    return known and regular(rule["match"]) and all(math.isfinite(factor) and factor >= 0 for factor in factors)


COUNT, FROM_0 = at_least(1), at_least(0)
ABOVE_0 = Check(lambda value: math.isfinite(value) and value > 0, "above 0")
SHARE = Check(lambda value: 0 <= value < 1, "at least 0 and below 1")
SQUARE = Check(lambda value: 1 <= value <= pixels.MOST, f"from 1 to {pixels.MOST}")
FINITE = Check(math.isfinite, "a finite number")
SIZES = Check(lambda value: len(value) > 0 and all(int(x) == x > 0 for x in value), "numbers from 1, (8, 16) say")
EPOCHS = Check(lambda value: all(math.isfinite(x) and x > 0 for x in value), "epochs above 0, (15.0,) say")

TABLE = {
    "seed": Check(lambda value: 0 <= value < 2**32, "from 0 to 4294967295"),
    "epochs": ABOVE_0,
    "steps": FROM_0,
    "ema": SHARE,
    "parallel": among(*RUNNERS),
    "block": Check(lambda v: len(v) in (0, 3) and all(int(x) == x > 0 for x in v), "() or (images, captions, pairs)"),
    "chunk": FROM_0,
    "data.batch_size": COUNT,
    "data.sampler": among("captions", "images", "pairs", "length_buckets"),
    "data.captions_per_image": COUNT,
    "data.lengths": Check(
        lambda value: len(value) > 0 and all(int(x) == x >= 3 for x in value), "lengths of at least 3, (16, 32) say"
    ),
    "data.minimum_count": COUNT,
    "data.most_unknown": Check(lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "data.dev_images": FROM_0,
    "data.pixels.side": SQUARE,
    "data.pixels.resize": SQUARE,
    "data.pixels.train": among(*pixels.TRAIN),
    "data.pixels.eval": among(*pixels.EVAL),
    "data.pixels.area": Check(lambda v: len(v) == 2 and 0 < v[0] <= v[1] <= 1, "(least, most), above 0 and at most 1"),
    "data.pixels.aspect": Check(
        lambda v: len(v) == 2 and 0 < v[0] <= v[1] and math.isfinite(v[1]), "(least, most) above 0"
    ),
    "data.pixels.policy": among(*pixels.POLICIES),
    "loss.name": among(*losses.LOSSES),
    "loss.margin": FROM_0,
    "loss.hardness": Check(lambda value: 0 <= value <= 1, "from 0 to 1"),
    "loss.warmup_epochs": FROM_0,
    "loss.anneal": SHARE,
    "loss.hinge_power": ABOVE_0,
    "loss.k": COUNT,
    "loss.i2t_weight": FROM_0,
    "loss.t2i_weight": FROM_0,
    "loss.text_weight": FROM_0,
    "loss.image_weight": FROM_0,
    "weights.*": FROM_0,
    "ramps.*": FROM_0,
    "optim.name": among("adam", "adamw", "adamax", "sgd"),
    "optim.lr": FROM_0,
    "optim.warmup_steps": FROM_0,
    "optim.schedule.kind": among(*KINDS),
    "optim.schedule.at": EPOCHS,
    "optim.schedule.at_steps": Check(lambda value: all(x >= 0 for x in value), "steps of at least 0"),
    "optim.schedule.line": Check(
        lambda value: len(value) == 3 and min(value) >= 0 and value[2] >= 2, "(first, last, steps), 2 steps or more"
    ),
    "optim.schedule.every": ABOVE_0,
    "optim.schedule.factor": ABOVE_0,
    "optim.schedule.end": FROM_0,
    "optim.b1": SHARE,
    "optim.b2": SHARE,
    "optim.eps": ABOVE_0,
    "optim.momentum": SHARE,
    "optim.weight_decay": FROM_0,
    "optim.clip_norm": FROM_0,
    "optim.clip_tensor_norm": FROM_0,
    "optim.clip_value": FROM_0,
    "optim.rules": Check(
        lambda value: len(value) > 0 and all(map(is_rule, value)),
        'rules {"match": regular expression, "lr": factor, "decay": factor, "clip": True or False}, factors at least 0',
    ),
    "model.name": Check(lambda value: isinstance(value, str), "the name of a model, or the path of its file"),
    "init.skip": Check(lambda value: not isinstance(value, str) and all(map(regular, value)), "regular expressions"),
    "eval.every_epochs": ABOVE_0,
    "eval.every_steps": FROM_0,
    "eval.batch_size": COUNT,
    "checkpoint.keep": COUNT,
    "checkpoint.every_steps": FROM_0,
    "log.every_steps": COUNT,
    "log.tracker": Check(lambda value: value in ("", *TRACKERS), f"empty or {' or '.join(TRACKERS)}"),
    "collapse.warn_steps": FROM_0,
    "collapse.stop_steps": FROM_0,
}

# Of the systems of the package; a model file of the user's has fields of its own. A system's own key comes first.
MODEL = {
    "model.*_dim": COUNT,
    "model.*filters": COUNT,
    "model.pieces": COUNT,
    "model.layers": COUNT,
    "model.regions": COUNT,
    "model.steps": COUNT,
    "model.heads": FROM_0,
    "model.dropout": SHARE,
    "model.region_drop": SHARE,
    "model.drop_region": SHARE,
    "model.touch_word": SHARE,
    "model.positions": COUNT,
    "model.position": among("shift", "left"),
    "model.offset_step": COUNT,
    "model.candidates": FROM_0,
    "model.groups": FROM_0,
    "model.sampled": FROM_0,
    "model.widths": SIZES,
    "model.blocks": SIZES,
    "model.tokens": among("words", "cased"),
    "model.smooth": ABOVE_0,
    "model.temperature": ABOVE_0,
    "model.lse": ABOVE_0,
    "model.scale": FROM_0,
    "model.margin": FROM_0,
    "model.bias": FINITE,
    "model.dtype": among("float32", "bfloat16", "float16"),
    "model.direction": among("t2i", "i2t"),
    "model.norm": among(*NORMS),
    "model.measure": among("dot", "cosine", "euclidean", "order", "order_root"),
    "model.cell": among(*CELLS),
    "model.reasoning": among("sgr", "saf"),
    "model.relation": among("sum_max", "defrag"),
    "model.bn_position": among("hidden", "output"),
    "model.hidden": Check(lambda value: all(int(x) == x >= 1 for x in value), "widths, (512, 256) say"),
    "mte.adversary": among("reversal", "flipped"),
    "gxn.abstract": Check(lambda value: 0 <= value <= 1, "from 0 to 1"),
    "gxn.measure": among(*gxn.MEASURES),
    "gxn.paths": Check(
        lambda value: not isinstance(value, str) and set(value) <= set(gxn.PATHS), '() or of "i2t", "t2i"'
    ),
    "gxn.references": FROM_0,
    "gxn.reward": among(*REWARDS),
    "gxn.longest": COUNT,
    "gxn.side": among(8, 16, 32, 64, 128),
    "dcca.activation": among("relu", "sigmoid"),
    "dcca.directions": COUNT,
    "dcca.ridge": ABOVE_0,
    "dcca.power": FROM_0,
    "dcca.momentum": Check(lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "twoway.layer": FROM_0,
    "twoway.cells": COUNT,
    "twoway.scaling": among("none", "unit", "standard"),
    "twoway.leak": SHARE,
    "twoway.momentum": Check(lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "scan.pool": among(*POOLS),
    "chan.pool": among(*MATCH_POOLS),
    "adapt.pool": among(*FOVEAS),
    "chain.pooling": among("max", "mean"),
    "chain.variant": among("code", "paper"),
    "mdan.steps": FROM_0,
    "rrf.steps": FROM_0,
    "rrf.fusion": among("conv", "sum", "none"),
    "model.bn_momentum": Check(lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "vse.text": among("gru", "bow"),
    "model.network": among("", *BACKBONES),
    "model.cnn_mode": among(*MODES),
    "smlstm.attention_form": among("joint", "product", "printed"),
    "smlstm.local_sim": among("add", "mul"),
    "smlstm.regulariser": among("squared", "printed"),
    "mcnn.level": among("word", "short", "long", "sentence"),
    "mcnn.padding": among("valid", "same"),
    "sco*.text": among("lstm", "gru"),
    "sco*.fusion": among("gate", "sum", "concept", "context"),
    "sco_order.start": among(*STARTS),
    "sco_order.sampling": Check(lambda value: 0 <= value <= 1, "from 0 to 1"),
    "sco_order.sampling_steps": FROM_0,
}


def check(config: Config) -> None:
    """Hold every value of a config, and of each of its stages, against the table.

    Raises:
        UsageError: one that cannot be; it names key, value and what the value must be.
    """
    _check(config, "config")
    if config.stages:
        for number, stage in enumerate(configs.stages(config)):
            _check(stage, f"config.stages[{number}]")


def _check(config: Config, place: str) -> None:
    for key, value in configs.flatten(config).items():
        if type(value) is int and abs(value) >= 1 << 31 and key != "seed":
            raise UsageError(f"{place}.{key} is {value}; it must be below {1 << 31:,}.")
        condition = find(*within(key, config))
        try:
            good = condition is None or condition.holds(value)
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
            good = False
        if condition is not None and not good:
            shown = f'"{value}"' if isinstance(value, str) else f"{value}"
            raise UsageError(f"{place}.{key} is {shown}; it must be {condition.words}.")


def within(key: str, config: Config) -> tuple[str, str]:
    """A key of a system within a system (``model.tower.norm``) as that system's own, and the name of the system."""
    system, (group, *path) = config.model, key.split(".")
    while group == "model" and configs.is_system(system[path[0]]):
        system, path = system[path[0]], path[1:]
    return ".".join((group, *path)), str(system.name)


def find(key: str, model: str) -> Check | None:
    """The condition on a key of a config with the system ``model``; None where there is none."""
    tables = (TABLE,) if model.endswith(".py") else (TABLE, MODEL)
    names = (key.replace("model.", f"{model}.", 1), key)  # what a system says of its own field goes before what all say
    for name in names:
        for pattern, condition in (item for table in tables for item in table.items()):
            if re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), name):
                return condition
    return None
