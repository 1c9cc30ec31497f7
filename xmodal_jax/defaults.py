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


# What each key means; docs/config.md is made of this, the values below and the ranges of xmodal_jax.training.checks.
MEANINGS = {
    "seed": "of initial values, batches and dropout",
    "epochs": "length of the training; may be a fraction",
    "steps": "length in steps, in place of `epochs` where positive",
    "ema": "decay of the averaged weights, which evaluation then scores; 0 for none",
    "parallel": "how one step runs on several devices",
    "block": "(images, captions, pairs) scored at a time, see `similarity.pairwise.Block`; () chooses by device",
    "chunk": "images scored at a time by a loss that never holds all scores, see `losses.chunked`; 0 for all at once",
    "stages": "parts of a training, each of which overrides keys while it lasts, as in "
    "`({'epochs': 15.0}, {'epochs': 15.0, 'optim': {'lr': 2e-5}, 'keep_optimiser': False})`; () for one",
    "data.dir": "the prepared data set, a folder that `xmodal data` wrote",
    "data.batch_size": "images of a step, over all devices",
    "data.sampler": "what an epoch visits once: each caption, each image, pairs of captions of an image, or captions "
    "in batches of like length",
    "data.captions_per_image": "captions of each image in a step, for the samplers `captions` and `images`",
    "data.drop_last": "leave out the short batch at the end of an epoch",
    "data.lengths": "numbers of tokens that captions are padded to, a compilation each; longer captions are cut",
    "data.minimum_count": "how often training captions must have a word for it to be in the vocabulary",
    "data.most_unknown": "share of tokens unknown to the vocabulary from which on no training starts; 1: never refused",
    "data.dev_images": "the first so many images of dev choose the best step, as in the released codes; 0 for all",
    "data.word_vectors": "prefix of a words.txt / npy pair, or a GloVe text file, that the word table starts from",
    "data.pixels.side": "pixels of a side of the square that a system of raw pictures reads",
    "data.pixels.resize": "pixels of the short side of a picture before `centre` takes its middle",
    "data.pixels.train": "random: a part of each picture, drawn anew in every step; centre: the middle; squash: all",
    "data.pixels.eval": "the same after training, without chance; a bundle remembers it",
    "data.pixels.area": "(least, most) share of the picture that `random` keeps; (0.64, 1.0) is 0.8 to 1 of the side",
    "data.pixels.aspect": "(least, most) width by height of the part that `random` keeps",
    "data.pixels.flip": "mirror half of the training pictures",
    "data.pixels.policy": "refuse: a picture that is missing, corrupt or too large ends the training; skip: it is left "
    "out with its captions; evaluation always refuses",
    "data.vector_words": "only words that `data.word_vectors` has are in the vocabulary (Dual-Path)",
    "loss.name": "the loss of `weights.rank`, of `xmodal_jax.losses`; it reads those of the keys here that it has",
    "loss.margin": "of the hinges",
    "loss.hardness": "1: only the hardest negative counts; 0: the sum over all; between: a mixture",
    "loss.warmup_epochs": "epochs of the sum of hinges before `hardness` holds",
    "loss.anneal": "ADAPT's eta: hardness 1 - eta ** step; 0 for off",
    "loss.hinge_power": "exponent of each hinge",
    "loss.mask_same_image": "no other caption of an image in the batch counts as its negative",
    "loss.mask_same_text": "equal captions of different images are no negatives",
    "loss.k": "hardest negatives of an anchor in each term (DSPE, RRF-Net)",
    "loss.i2t_weight": "of the negative captions of an image (DSPE, RRF-Net)",
    "loss.t2i_weight": "of the negative images of a caption (DSPE, RRF-Net)",
    "loss.text_weight": "of the structure among captions (DSPE, RRF-Net); 0 leaves it out",
    "loss.image_weight": "of the structure among images (RRF-Net)",
    "weights.rank": "of the ranking loss; 0 for a system that does not rank, or is trained to by other losses alone",
    "weights.captioning": "of the caption decoder's cross entropy, a mean over captions (STT, GXN, SCO)",
    "weights.paraphrasing": "of the paraphrase decoder's cross entropy (STT)",
    "weights.paraphrase_ranking": "of the ranking of captions by further captions of their image (STT with attention)",
    "weights.instance_image": "of the classification of images, each a class (Dual-Path)",
    "weights.instance_text": "of the classification of their captions (Dual-Path)",
    "weights.modality": "of the modality discriminator's cross entropy, which trains it alone (MTE)",
    "weights.confusion": "of the adversarial loss, which trains the towers alone: alpha of the gradient reversal (MTE)",
    "weights.accuracy": "0: the discriminator's accuracy is logged alone (MTE)",
    "weights.gap": "of the distance between the means of image and caption embeddings; 0 to log it alone (MTE)",
    "weights.mmd": "of their maximum mean discrepancy; 0 to log it alone (MTE)",
    "weights.self_critical": "of the policy gradient of sampled captions, by reward less that of greedy ones (GXN)",
    "weights.reward": "0: the mean reward of greedy captions is logged alone (GXN)",
    "weights.discrimination": "of the picture discriminator's loss, which trains it alone (GXN)",
    "weights.generation": "of the adversarial loss of generator and sentence encoder (GXN)",
    "weights.kl": "of the divergence of the generator's conditions from N(0, 1) (GXN)",
    "weights.correlation": "of minus the sum of canonical correlations (Deep CCA)",
    "weights.image_error": "of the squared error of images made from captions (2WayNet)",
    "weights.text_error": "of the squared error of caption vectors made from images (2WayNet)",
    "weights.hidden": "of the squared distance of both channels' middle layers (2WayNet)",
    "weights.decorrelation": "of the correlation among the units of each middle layer (2WayNet)",
    "weights.variance": "of the sum of 1 / gamma ** 2 over all factors of batch normalisation (2WayNet)",
    "weights.coverage": "of how unevenly the steps of attention look at a pair's regions and words: lambda (sm-LSTM)",
    "ramps.confusion": "epochs of the stage over which the weight of that loss rises from 0, by 2 / (1 + exp(-10 p)) "
    "- 1 of the share p of them that is done; 0 for all of it at once. So for every loss of `weights`",
    "optim.name": "the update rule; adamw decays beside the gradient, the others in it",
    "optim.lr": "learning rate before schedule and rules",
    "optim.warmup_steps": "steps of a linear rise of the rate from 0",
    "optim.schedule.kind": "staircase: times `factor` at each epoch of `at`; exponential: at every `every` epochs; "
    "cosine: down to `end` over the stage; adapt: the released code's `line` and `at_steps`",
    "optim.schedule.at": "epochs of the staircase's steps",
    "optim.schedule.every": "epochs between the exponential schedule's steps",
    "optim.schedule.factor": "of each step of the schedule",
    "optim.schedule.end": "the share of the rate that cosine ends at",
    "optim.schedule.line": "(first, last, steps) of the rise at the start (ADAPT)",
    "optim.schedule.at_steps": "steps, not epochs, at which the rate falls (ADAPT)",
    "optim.b1": "decay of Adam's first moment",
    "optim.b2": "decay of Adam's second moment",
    "optim.eps": "Adam's epsilon",
    "optim.momentum": "of sgd",
    "optim.nesterov": "Nesterov's form of sgd's momentum",
    "optim.weight_decay": "factor of the parameters that is taken off",
    "optim.clip_norm": "most L2 norm of all gradients together; 0 for off",
    "optim.clip_tensor_norm": "most L2 norm of each gradient array; 0 for off",
    "optim.clip_value": "most absolute value of each entry of a gradient; 0 for off",
    "optim.rules": "factors of rate and decay by parameter: the first whose `match` fits its whole name; 0 freezes; "
    "`clip` False leaves their gradients out of `clip_norm`",
    "init.workdir": "a run whose best parameters this one starts from, or a bundle",
    "init.skip": "patterns of parameters and running statistics that are left at their initial values then",
    "init.backbone": 'weights of the image network: a file, "package" for its Python package, or "random"',
    "init.vocabulary": "take the words of that run or bundle, not those of the captions",
    "eval.every_epochs": "epochs between evaluations on dev, each of which saves",
    "eval.every_steps": "steps between them, in place of `every_epochs` where positive",
    "eval.batch_size": "items encoded at a time",
    "checkpoint.keep": "the latest so many saved steps are kept, and the best by dev rsum",
    "checkpoint.every_steps": "steps between further saves; 0 for none",
    "log.every_steps": "steps between lines of metrics.jsonl",
    "log.tensorboard": "write TensorBoard's files as well",
    "log.tracker": "a service that shows the log as well, wandb (an extra); empty for none",
    "collapse.warn_steps": "steps on the plateau of equal scores after which a warning comes",
    "collapse.stop_steps": "steps there after which training stops",
    "model.name": "the system: a module of `xmodal_jax.models`, or a `.py` file of your own",
    "model.dtype": "of matrix products; parameters and scores stay float32",
}


def base(data: str) -> Config:
    """Defaults: VSE++'s optimiser and sampler (Faghri et al. 2018, released code)."""
    config: Config = ConfigDict()
    config.seed = 0
    config.epochs = 30.0
    config.steps = 0
    config.ema = 0.0
    config.parallel = "jit"
    config.block = ()
    config.chunk = 0
    config.data = ConfigDict(
        {
            "dir": DATA[data],
            "batch_size": 128,
            "sampler": "captions",
            "captions_per_image": 1,
            "drop_last": False,
            "lengths": (16, 24, 32, 64),
            "minimum_count": 4,
            "most_unknown": 0.5,
            "dev_images": 1000,
            "word_vectors": "",
            "vector_words": False,
            "pixels": {
                "side": 224,
                "resize": 256,
                "train": "random",
                "eval": "centre",
                "area": (0.08, 1.0),
                "aspect": (0.75, 4 / 3),
                "flip": True,
                "policy": "refuse",
            },
        }
    )
    config.loss = ConfigDict(
        {
            "name": "triplet",
            "margin": 0.2,
            "hardness": 1.0,
            "warmup_epochs": 0.0,
            "anneal": 0.0,
            "hinge_power": 1.0,
            "mask_same_image": False,
            "mask_same_text": False,
        }
    )
    config.weights = ConfigDict({"rank": 1.0})
    config.ramps = ConfigDict()
    config.optim = ConfigDict(
        {
            "name": "adam",
            "lr": 2e-4,
            "warmup_steps": 0,
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
    config.stages = ()
    config.init = ConfigDict({"workdir": "", "skip": (), "vocabulary": False, "backbone": ""})
    config.eval = ConfigDict({"every_epochs": 1.0, "every_steps": 0, "batch_size": 256})
    config.checkpoint = ConfigDict({"keep": 2, "every_steps": 0})
    config.log = ConfigDict({"every_steps": 20, "tensorboard": True, "tracker": ""})
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
