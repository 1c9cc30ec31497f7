"""The original checkpoints, system by system: their names for our parameters, and what their options mean here.

A recipe reads the options and the shapes of a checkpoint. Options that our models do not have are refused by name.
Matrices are transposed, since PyTorch keeps a linear map as [out, in]; word tables are not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from xmodal_jax import config as configs
from xmodal_jax.errors import CheckpointError
from xmodal_jax.similarity import NORMS
from xmodal_jax.types import Config

Names = dict[str, str]  # our parameter -> the original's tensor
State = Mapping[str, np.ndarray]


def layer(ours: str, theirs: str, leaves: Mapping[str, str] | None = None) -> Names:
    """Names of a linear map, or of ``{our leaf: their leaf}``."""
    leaves = leaves or {"kernel": "weight", "bias": "bias"}
    return {f"{ours}/{leaf}": f"{theirs}.{name}" for leaf, name in leaves.items()}


def gru(ours: str, theirs: str, *, bidirectional: bool = True) -> Names:
    """Names of a GRU of one layer."""
    names: Names = {}
    for direction, suffix in (("forward", ""), ("backward", "_reverse"))[: 1 + bidirectional]:
        kinds = {"input": "weight_ih", "recurrent": "weight_hh", "input_bias": "bias_ih", "recurrent_bias": "bias_hh"}
        names |= layer(f"{ours}/{direction}", theirs, {leaf: f"{name}_l0{suffix}" for leaf, name in kinds.items()})
    return names


def pool(ours: str, theirs: str) -> Names:
    """Names of a generalised pooling operator."""
    return gru(f"{ours}/gru", f"{theirs}.gru") | {f"{ours}/linear/kernel": f"{theirs}.linear.weight"}


RUNNING = {"mean": "running_mean", "var": "running_var"}
VSEPP = {
    **layer("image_encoder", "img/fc"),
    "text_encoder/embed/embedding": "txt/embed.weight",
    **gru("text_encoder", "txt/rnn", bidirectional=False),
}
SCAN = {
    **layer("image_encoder", "img/fc"),
    "embed/embedding": "txt/embed.weight",
    **gru("text_encoder", "txt/rnn"),
}
VSE_INFTY = {
    **layer("image_linear", "img/fc"),
    **layer("image_mlp/hidden", "img/mlp.layers.0"),
    **layer("image_mlp/norm", "img/mlp.bns.0", {"scale": "weight", "bias": "bias"}),
    **layer("image_mlp/out", "img/mlp.layers.1"),
    **pool("image_pool", "img/gpool"),
    "embed/embedding": "txt/embed.weight",
    **gru("text_gru", "txt/rnn"),
    **pool("text_pool", "txt/gpool"),
}
VSE_INFTY_STATS = layer("image_mlp/norm", "img/mlp.bns.0", RUNNING)
ADAPT_STATS = layer("filtered/norm", "similarity.norm.norm", RUNNING)
CHAN = {
    **layer("project", "img/fc"),
    "embed/embedding": "txt/embed.weight",
    **gru("gru", "txt/rnn"),
}
CHAN_ATTENTION = {
    **layer("attention/norm", "img/feedforward.ln", {"scale": "weight", "bias": "bias"}),
    **layer("attention/query_key_value", "img/feedforward.attn", {"kernel": "in_proj_weight", "bias": "in_proj_bias"}),
    **layer("attention/out", "img/feedforward.attn.out_proj"),
}
SGRAF_NORMS = {"image_whole/local_norm": "sim/v_global_w.embedding_local.1"}
SGRAF_NORMS |= {"image_whole/mean_norm": "sim/v_global_w.embedding_global.1"}
SAF_NORM = {"pairs/reason/norm": "sim/SAF_module.bn"}


def adapt_names(direction: str) -> Names:
    side = {"t2i": "img", "i2t": "txt"}[direction]
    return {
        **layer("image_encoder", "img_enc.fc"),
        "embed/embedding": "txt_enc.embed.embed.weight",
        "embed_fixed/embedding": "txt_enc.embed.glove.weight",
        **gru("text_encoder", "txt_enc.rnn"),
        **layer("conditioner/gamma", f"similarity.adapt_{side}.fc_gamma.0"),
        **layer("conditioner/beta", f"similarity.adapt_{side}.fc_beta.0"),
    }


def sgraf_names(variant: str, steps: int, bidirectional: bool) -> Names:
    names = layer("image_encoder", "img/fc") | {"embed/embedding": "txt/embed.weight"}
    names |= gru("context", "txt/cap_rnn", bidirectional=bidirectional)
    for ours, theirs in (("image_whole", "sim/v_global_w"), ("text_whole", "sim/t_global_w")):
        for part, kind in (("local", "local"), ("mean", "global"), ("weight", "common")):
            names |= layer(f"{ours}/{part}", f"{theirs}.embedding_{kind}.0")
    for part, theirs in (("local", "sim_tranloc_w"), ("whole", "sim_tranglo_w"), ("final", "sim_eval_w")):
        names |= layer(f"pairs/{part}", f"sim/{theirs}")
    if variant == "saf":
        names |= layer("pairs/reason/gate", "sim/SAF_module.attn_sim_w")
    for step in range(steps if variant == "sgr" else 0):
        for part, theirs in (("query", "graph_query_w"), ("key", "graph_key_w"), ("out", "sim_graph_w")):
            names |= layer(f"pairs/reason/{part}_{step}", f"sim/SGR_module.{step}.{theirs}")
    for ours, theirs in (SGRAF_NORMS | (SAF_NORM if variant == "saf" else {})).items():
        names |= layer(ours, theirs, {"scale": "weight", "bias": "bias"})
    return names


def layout(ours: str, array: Any) -> Any:
    """An original's tensor as our parameter of this name has it."""
    return array if array.ndim == 1 or ours.endswith("embedding") else array.T


class Recipe(NamedTuple):
    """How to make a model of a checkpoint."""

    config: Config
    params: Names
    stats: Names  # running statistics
    feature: tuple[int | None, ...]  # what it reads of an image: (F,), or (None, F) for regions
    vocabulary: int  # words; a table may have further rows
    unused: str = r"(?!)"  # regular expression of tensors that nothing reads when a model is used
    notes: tuple[str, ...] = ()
    cut: bool = False  # our word tables end with the words; rows behind them are left out


class Options:
    """The options a model was trained with, ``opt``; every method names the option that it refuses."""

    def __init__(self, values: Mapping[str, Any], name: str = "opt"):
        self.values, self.name = values, name

    def refuse(self, key: str, allowed: str) -> CheckpointError:
        value = self.values.get(key)
        shown = repr(value)[:60] if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
        return CheckpointError(f"the checkpoint was made with {self.name}.{key} = {shown}; this reads {allowed}.")

    def group(self, *keys: str) -> Options:
        """Options inside others; empty where there are none."""
        values, name = self.values, self.name
        for key in keys:
            inner = values.get(key)
            values, name = inner if isinstance(inner, dict) else {}, f"{name}.{key}"
        return Options(values, name)

    def choice(self, key: str, default: str, table: Collection[str]) -> str:
        """The option, one of ``table``."""
        value = self.values.get(key, default)
        if not isinstance(value, str) or value not in table:
            raise self.refuse(key, f"only {', '.join(sorted(table))}")
        return value

    def number(self, key: str, default: float) -> float:
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
            raise self.refuse(key, "numbers of a usual size there")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.refuse(key, "True or False there")
        return value

    def must(self, **wanted: Any) -> None:
        """Hold options that are there against the only values that we have a model for."""
        for key, value in wanted.items():
            given = self.values.get(key, value)
            if isinstance(given, np.ndarray) or given != value:
                raise self.refuse(key, f"only {value!r}")


def sizes(state: State, linear: str, table: str) -> tuple[int, int, int, int]:
    """(D, F, V, word size) from the shapes of the image's linear map and of a word table."""
    for name in (linear, table):
        if name not in state or state[name].ndim != 2:
            raise CheckpointError(
                f"the checkpoint has no matrix {name}; it is of another system, or of another image or text encoder."
            )
    return (*state[linear].shape, *state[table].shape)  # type: ignore[return-value]


def start(spec: str, options: Options) -> Config:
    """The config of ``spec`` for the original's data, with the settings of its training for the record."""
    name = options.values.get("data_name", "")
    data = next((data for data in ("f8k", "f30k", "coco") if str(name).startswith(data)), "f30k")
    config = configs.load(f"{spec},{data}")
    config.epochs = options.number("num_epochs", config.epochs)
    config.data.batch_size = int(options.number("batch_size", config.data.batch_size))
    config.loss.margin = options.number("margin", config.loss.margin)
    config.optim.lr = options.number("learning_rate", config.optim.lr)
    config.optim.clip_norm = options.number("grad_clip", config.optim.clip_norm)
    config.loss.hardness = float(options.flag("max_violation", config.loss.hardness == 1.0))
    return config


def precomputed(state: State, options: Options) -> tuple[int, int, int, int]:
    """:func:`sizes` of VSE++, SCAN and VSE-infinity; image networks and BERT are refused."""
    for prefix, what in (
        ("img/cnn.", "an image network"),
        ("img/backbone.", "an image network"),
        ("txt/bert.", "BERT"),
    ):
        if any(name.startswith(prefix) for name in state):
            raise CheckpointError(
                f"the checkpoint holds {what} ({prefix.split('/')[1]}*); only encoders of precomputed features and "
                "GRUs over words are read."
            )
    dim, feature, rows, word = sizes(state, "img/fc.weight", "txt/embed.weight")
    options.must(num_layers=1, embed_size=dim, img_dim=feature, vocab_size=rows, word_dim=word)
    return dim, feature, rows, word


def vsepp(state: State, options: Options) -> Recipe:
    """VSE++, VSE0 and order-embeddings of fartashf/vsepp, on precomputed features."""
    dim, feature, rows, word = precomputed(state, options)
    if "cross_attn" in options.values:  # SCAN with one direction has the same tensors
        raise options.refuse("cross_attn", "checkpoints of VSE++ here, and that is one of SCAN")
    measure = {"cosine": "dot", "order": "order_root"}  # embeddings are normalised, or meant not to be
    config = start("vse.py:vsepp", options)
    config.model.embed_dim, config.model.word_dim = dim, word
    config.model.measure = measure[options.choice("measure", "cosine", measure)]
    config.model.absolute = options.flag("use_abs")
    config.model.normalise_train = config.model.normalise_test = not options.flag("no_imgnorm")
    return Recipe(config, VSEPP, {}, (feature,), rows)


def scan(state: State, options: Options) -> Recipe:
    """The four published models of kuanghuei/SCAN and their other settings."""
    options.must(precomp_enc_type="basic", no_imgnorm=False, no_txtnorm=False)
    dim, feature, rows, word = precomputed(state, options)
    direction = options.choice("cross_attn", "", ("t2i", "i2t"))
    pools = {"LogSumExp": "lse", "Mean": "mean", "Max": "max", "Sum": "sum"}
    config = start(f"scan.py:{direction}_lse", options)
    config.model.embed_dim, config.model.word_dim = dim, word
    config.model.norm = options.choice("raw_feature_norm", "clipped_l2norm", NORMS)
    config.model.pool = pools[options.choice("agg_func", "LogSumExp", pools)]
    config.model.smooth = options.number("lambda_softmax", 9.0)
    config.model.lse = options.number("lambda_lse", 6.0)
    config.model.bidirectional = options.flag("bi_gru")
    names = {ours: theirs for ours, theirs in SCAN.items() if config.model.bidirectional or "/backward/" not in ours}
    return Recipe(config, names, {}, (None, feature), rows)


def vse_infty(state: State, options: Options) -> Recipe:
    """VSE-infinity on regions with a bi-GRU, woodfrog/vse_infty, branch bigru; its last word is <mask>."""
    options.must(precomp_enc_type="basic", no_imgnorm=False, no_txtnorm=False)
    dim, feature, rows, word = precomputed(state, options)
    config = start("vse_infty.py:bigru", options)
    config.model.embed_dim, config.model.word_dim = dim, word
    # A second batch norm of the image's MLP exists in the original and is never called.
    unused = r"img/mlp\.bns\.1\..*|.*\.num_batches_tracked"
    return Recipe(config, VSE_INFTY, VSE_INFTY_STATS, (None, feature), rows - 1, unused)


def adapt(state: State, options: Options) -> Recipe:
    """ADAPT of jwehrmann/retrieval.pytorch, with GloVe beside learned word vectors."""
    model = options.group("model")
    image, text, score = (model.group(part) for part in ("img_enc", "txt_enc", "similarity"))
    image.must(name="simple", pooling="none")
    text.must(name="gru_glove", pooling="none")
    text.group("params").must(use_bi_gru=True, add_rand_embed=True)
    details = score.group("params")
    details.must(k=1, train_gamma=False, normalization="batchnorm", use_fovea=True)
    direction = score.choice("name", "adapt_t2i", ("adapt_t2i", "adapt_i2t")).removeprefix("adapt_")
    dim, feature, rows, word = sizes(state, "img_enc.fc.weight", "txt_enc.embed.embed.weight")
    train = {**options.group("dataset", "train").values, **options.group("criterion").values}
    config = start(f"adapt.py:{direction}", Options({**train, "max_violation": True}))  # annealed, see the config
    config.model.embed_dim, config.model.word_dim = dim, word
    config.model.smooth = details.number("gamma", {"t2i": 10.0, "i2t": 1.0}[direction])
    config.model.compat_padding = True
    note = (
        "padding counts in this system as in the original code: the score of a caption depends a little on the length "
        "that it is padded to, and images want as many regions as in training (36)"
    )
    # The part for translations has the same tensors again, and nothing of images reads it.
    unused = r"ml_similarity\..*|.*\.num_batches_tracked"
    return Recipe(config, adapt_names(direction), ADAPT_STATS, (None, feature), rows, unused, (note,))


def sgraf(state: State, options: Options) -> Recipe:
    """SGR or SAF of Paranioar/SGRAF, one of which a checkpoint holds."""
    options.must(no_imgnorm=False, no_txtnorm=False)
    dim, feature, rows, word = precomputed(state, options)
    variant = options.choice("module_name", "SGR", ("SGR", "SAF")).lower()
    size = sizes(state, "sim/sim_tranloc_w.weight", "txt/embed.weight")[0]
    steps = sum(bool(re.fullmatch(r"sim/SGR_module\.\d+\.graph_query_w\.weight", name)) for name in state)
    options.must(sim_dim=size, **({"sgr_step": steps} if variant == "sgr" else {}))
    config = start(f"sgraf.py:{variant}", options)
    config.model.embed_dim, config.model.word_dim, config.model.similarity_dim = dim, word, size
    config.model.steps = steps or config.model.steps
    config.model.bidirectional = options.flag("bi_gru", True)
    norms = SGRAF_NORMS | (SAF_NORM if variant == "saf" else {})
    stats = {name: tensor for ours, theirs in norms.items() for name, tensor in layer(ours, theirs, RUNNING).items()}
    note = (
        f"this is {variant.upper()} alone; the published SGRAF is the mean of its scores and those of the other "
        "half. A batch norm has parameters for each place of 36 regions, so images want their regions in the order of "
        "training"
    )
    names = sgraf_names(variant, steps, config.model.bidirectional)
    return Recipe(config, names, stats, (None, feature), rows, r".*\.num_batches_tracked", (note,))


def chan(state: State, options: Options) -> Recipe:
    """CHAN of ppanzx/CHAN with its bi-GRU; its last word is <mask>."""
    options.must(text_enc_type="bigru", no_imgnorm=False, no_txtnorm=False)
    dim, feature, rows, word = precomputed(state, options)
    heads = {"basic": 0, "selfattention": 8}[options.choice("precomp_enc_type", "basic", ("basic", "selfattention"))]
    codings = {"VHACoding": "t2i", "THACoding": "i2t"}
    pools = {"LSEPooling": "lse", "MeanPooling": "mean", "SumPooling": "sum", "MaxPooling": "max"}
    config = start("chan.py:chan", options)
    config.model.embed_dim, config.model.word_dim, config.model.heads = dim, word, heads
    config.model.direction = codings[options.choice("coding_type", "", codings)]
    config.model.pool = pools[options.choice("pooling_type", "", pools)]
    config.model.temperature = options.number("belta", 0.1)
    note = (
        "padded regions are not attended to; the original code attends to them, so images with fewer regions than the "
        "others of their batch score a little differently there"
    )
    notes = ("the word table's last row, <mask>, is left out: no caption has it", *((note,) if heads else ()))
    names = CHAN | (CHAN_ATTENTION if heads else {})
    # A linear map behind the GRU exists in the original and is never called.
    return Recipe(config, names, {}, (None, feature), rows - 1, r"txt/fc\..*", notes, cut=True)


SYSTEMS: dict[str, Callable[[State, Options], Recipe]] = {
    "vsepp": vsepp,
    "scan": scan,
    "vse_infty": vse_infty,
    "adapt": adapt,
    "sgraf": sgraf,
    "chan": chan,
}
PARTS = {  # what a checkpoint has a state each of; ADAPT's has one of everything
    "adapt": ("",),
    "sgraf": ("img/", "txt/", "sim/"),
    "chan": ("img/", "txt/", "sim/", "loss/"),
}


def plain_name(name: str) -> str:
    """A tensor's name without the wrappers: DataParallel's, and ADAPT's around its similarity."""
    parts = [part for part in name.split(".") if part != "module"]
    return ".".join(parts).replace("similarity.similarity.", "similarity.")


def split(system: str, tree: Any) -> tuple[dict[str, np.ndarray], Options]:
    """Tensors by name, ``img/...`` and ``txt/...`` where images and texts have a state each, and the options.

    Raises:
        CheckpointError: the checkpoint does not have the form that the system's trainer saves.
    """
    whole = system == "adapt"
    prefixes = PARTS.get(system, ("img/", "txt/"))
    further = f" and {len(prefixes) - 2} more" if len(prefixes) > 2 else ""
    form, key = ("all tensors", "args") if whole else (f"the states of images and texts{further}", "opt")
    model, options = (tree.get(part) if isinstance(tree, dict) else None for part in ("model", key))
    states: list[Any] = [model] if whole else model if isinstance(model, list) else []
    if (
        not isinstance(options, dict)
        or len(states) != len(prefixes)
        or not all(isinstance(state, dict) for state in states)
        or not all(isinstance(value, np.ndarray) for state in states for value in state.values())
    ):
        raise CheckpointError(
            f'the file is no checkpoint of {system}, which is a dictionary with {form} as "model" and options as '
            f'"{key}"; name the system that it belongs to.'
        )
    for name in (name for state in states for name in state):
        if not re.fullmatch(r"[\w.]{1,200}", str(name), re.ASCII):  # it will stand in messages
            raise CheckpointError(f"a tensor of the checkpoint has the name {ascii(name)[:60]}, which no module gives.")
    items = [
        (prefix + plain_name(str(name)), value)
        for prefix, state in zip(prefixes, states, strict=True)
        for name, value in state.items()
    ]
    named = dict(items)
    if len(named) < len(items):
        raise CheckpointError("two tensors of the checkpoint have the same name, but for wrappers; it cannot be read.")
    return named, Options(options, key)
