"""What all configs share: the defaults of everything that is not the model, and the words of their argument."""

from ml_collections import ConfigDict

from xmodal_jax.types import Config

# Where `xmodal data import` puts a set is the user's choice; these are the folders the documentation uses.
DATA = {
    "scenes": "data/scenes",
    "f8k": "data/f8k",
    "f30k": "data/f30k",
    "coco": "data/coco",
    "own": "",  # any other set: the settings of F30K, or else the published ones; `xmodal train --data DIR` means it
}


def parse(arg: str | None, variants: tuple[str, ...]) -> tuple[str, str, bool]:
    """``"vsepp,f8k,tiny"`` to (variant, data, tiny); words in any order, first variant and scenes by default.

    Raises:
        ValueError: a word that is neither a variant nor a data set.
    """
    words = [word for word in (arg or "").split(",") if word]
    known = (*variants, *DATA, "tiny")
    for word in words:
        if word not in known:
            raise ValueError(f'no variant or data set "{word}"; there are {", ".join(known)}')
    variant = next((word for word in words if word in variants), variants[0])
    data = next((word for word in words if word in DATA), "scenes")
    return variant, data, "tiny" in words


def base(data: str) -> Config:
    """Defaults: VSE++'s optimiser and sampler (Faghri et al. 2018, released code)."""
    config: Config = ConfigDict()
    config.seed = 0
    config.epochs = 30.0
    config.steps = 0  # overrides epochs where positive
    config.ema = 0.0  # decay of the averaged weights, 0 = off; evaluation scores them where on
    config.parallel = "jit"  # or "pmap"
    config.block = ()  # (images, captions, pairs) scored at a time, see similarity.pairwise.Block; () = by device
    config.chunk = 0  # images scored at a time by a loss that never holds all scores, see losses.chunked; 0 = off
    config.data = ConfigDict(
        {
            "dir": DATA[data],
            "batch_size": 128,
            "sampler": "captions",
            "captions_per_image": 1,
            "drop_last": False,
            "lengths": (16, 24, 32, 64),  # static caption lengths, a compilation each; longer captions are cut
            "minimum_count": 4,
            "most_unknown": 0.5,  # share of unknown tokens from which on no training starts; 1 = never refused
            "dev_images": 1000,  # the originals select on the first 1,000 dev images; 0 = all
            "word_vectors": "",  # prefix of a words.txt / npy pair, or a GloVe text file
        }
    )
    config.loss = ConfigDict(
        {
            "name": "triplet",  # of xmodal_jax.losses; the options below are read by those that have them
            "margin": 0.2,
            "hardness": 1.0,
            "warmup_epochs": 0.0,  # epochs of the sum of hinges before `hardness` holds
            "anneal": 0.0,  # ADAPT's eta: hardness 1 - eta ** step
            "hinge_power": 1.0,  # exponent of each hinge
            "mask_same_image": False,
            "mask_same_text": False,  # equal captions of different images are no negatives
        }
    )
    config.weights = ConfigDict({"rank": 1.0})
    config.optim = ConfigDict(
        {
            "name": "adam",
            "lr": 2e-4,
            "warmup_steps": 0,
            # staircase: times factor at each epoch of `at`; exponential: at every `every` epochs; cosine: to `end`
            "schedule": {"kind": "staircase", "at": (15.0,), "every": 1.0, "factor": 0.1, "end": 0.0},
            "b1": 0.9,
            "b2": 0.999,
            "eps": 1e-8,
            "momentum": 0.0,
            "nesterov": False,
            "weight_decay": 0.0,
            "clip_norm": 2.0,
            "clip_tensor_norm": 0.0,
            "clip_value": 0.0,
            "rules": ({"match": ".*", "lr": 1.0, "decay": 1.0},),
        }
    )
    # Each stage overrides keys while it lasts: {"epochs": 15.0, "optim": {"lr": 2e-5}, "keep_optimiser": False}
    config.stages = ()
    # Parameters of a run or a bundle to start from, all but those that match `skip`; with its words, not the captions'
    config.init = ConfigDict({"workdir": "", "skip": (), "vocabulary": False})
    config.eval = ConfigDict({"every_epochs": 1.0, "every_steps": 0, "batch_size": 256})
    config.checkpoint = ConfigDict({"keep": 2, "every_steps": 0})
    config.log = ConfigDict({"every_steps": 20, "tensorboard": True})
    config.collapse = ConfigDict({"warn_steps": 500, "stop_steps": 5000})
    return config


def shrink(config: Config) -> Config:
    """``tiny``: the same system, small enough for a test on a few dozen images."""
    config.epochs = 2.0
    config.data.batch_size = 16
    config.data.lengths = (16,)
    config.log.every_steps = 5
    config.log.tensorboard = False
    return config
