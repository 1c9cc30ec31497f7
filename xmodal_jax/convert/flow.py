"""`xmodal convert`: a checkpoint of the original authors' PyTorch code as a bundle of ours, without PyTorch."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from xmodal_jax.convert import systems, words
from xmodal_jax.digest import sha256
from xmodal_jax.errors import CheckpointError
from xmodal_jax.export import run as export
from xmodal_jax.matcher import Matcher
from xmodal_jax.text.vocabulary import Vocabulary
from xmodal_jax.torch_files import pth
from xmodal_jax.torch_files.pickles import show
from xmodal_jax.training.checkpoint import flat
from xmodal_jax.training.model import example_batch, make_model
from xmodal_jax.types import Config, Facts, Feature

REPOSITORIES = {
    "vsepp": "fartashf/vsepp",
    "scan": "kuanghuei/SCAN",
    "vse_infty": "woodfrog/vse_infty",
    "adapt": "jwehrmann/retrieval.pytorch",
    "sgraf": "Paranioar/SGRAF",
    "chan": "ppanzx/CHAN",
}

UNUSED, OPTIONS = 100, 4000  # names, and characters of options, that the report shows: they are the file's words
REGIONS = 36  # of an image, in the features that these checkpoints were trained on


class Converted(NamedTuple):
    """A checkpoint as our parts."""

    config: Config
    model: Matcher
    variables: Any
    vocabulary: Vocabulary | None  # None: captions come as the original's token ids
    facts: Facts
    notes: list[str]  # sentences that its user should know
    mapped: dict[str, str]  # our parameter -> the original's tensor
    unused: list[str]  # tensors that no use of the model reads
    options: dict[str, Any]  # what it was trained with
    result: str  # what the checkpoint says of its own quality


def convert(system: str, path: Path, vocabulary: Path | None = None) -> Converted:
    """Read the checkpoint of a system, a key of :data:`xmodal_jax.convert.systems.SYSTEMS`.

    Args:
        vocabulary: a file of the words that it was trained with, see :func:`xmodal_jax.convert.words.read_words`.

    Raises:
        CheckpointError: a file that is damaged or refused, options without a model here, tensors that are missing, left
            over, not finite or of another shape, or a vocabulary of another size.
    """
    tree = pth.read(path)
    try:
        state, options = systems.split(system, tree)
        recipe = systems.SYSTEMS[system](state, options)
        names = {
            **{f"params/{ours}": theirs for ours, theirs in recipe.params.items()},
            **{f"batch_stats/{ours}": theirs for ours, theirs in recipe.stats.items()},
        }
        unused = check_names(state, names, recipe.unused)
        check_values(state, names)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    ours, order = None, None
    if vocabulary is not None:
        ours, order = words.match(words.read_words(vocabulary), recipe.vocabulary, vocabulary)
    tokens = len(ours or words.nameless(recipe.vocabulary))
    lengths = max(map(int, recipe.config.data.lengths))
    regions = REGIONS if None in recipe.feature else 1
    facts = Facts({recipe.config.model.feature: Feature(recipe.feature)}, {}, tokens, 0, regions, lengths)
    model = make_model(recipe.config, facts)
    rows = recipe.vocabulary if recipe.cut else None
    arrays = {name: arrange(name, state[theirs], order, rows) for name, theirs in names.items()}
    check_shapes(arrays, wanted(model, facts), names, path)
    notes = list(recipe.notes)
    if ours is None:
        notes.append("without --vocab the bundle takes the token ids of the original's vocabulary, and no sentences")
    elif order != sorted(order or []):
        notes.append(
            "the rows of the word tables were moved, since the original has <start>, <end> and <unk> elsewhere"
        )
    return Converted(
        recipe.config,
        model,
        unflatten_dict(arrays, sep="/"),
        ours,
        facts,
        notes,
        names,
        unused,
        options.values,  # type: ignore[arg-type]
        result_of(tree),
    )


def check_names(state: systems.State, names: dict[str, str], unused: str) -> list[str]:
    """Hold the tensors of the checkpoint against those that are read; returns the ones that nothing needs."""
    idle = [name for name in state if re.fullmatch(unused, name)]
    missing = sorted(set(names.values()) - set(state))
    left = sorted(set(state) - set(names.values()) - set(idle))
    if missing or left:
        clauses = [
            f"{what} {', '.join(map(show, keys[:5]))}{f' and {len(keys) - 5} more' if len(keys) > 5 else ''}"
            for what, keys in (("lacks", missing), ("has, left over,", left))
            if keys
        ]
        raise CheckpointError(
            f"the checkpoint {' and '.join(clauses)}; it is of another system, or of a variant that is not read."
        )
    return idle


def check_values(state: systems.State, names: dict[str, str]) -> None:
    for name in names.values():
        if state[name].dtype.kind != "f":
            raise CheckpointError(f"tensor {name} holds {state[name].dtype} and no numbers with a fraction.")
        with np.errstate(over="ignore"):
            finite = np.isfinite(state[name].astype(np.float32)).all()
        if not finite:
            raise CheckpointError(f"tensor {name} is not finite as float32; take an earlier checkpoint.")


def arrange(name: str, array: np.ndarray, order: list[int] | None, rows: int | None = None) -> jax.Array:
    """An original's tensor as our parameter ``name``: ``rows`` of a word table, in the order of our vocabulary."""
    array = systems.layout(name, array)
    if name.endswith("embedding"):
        array = array[:rows]
    if order is not None and name.endswith("embedding"):
        array = np.concatenate([array[order], array[len(order) :]])
    return jnp.asarray(array, jnp.float32)


def wanted(model: Matcher, facts: Facts) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters and running statistics of the model."""
    batch = example_batch(model.inputs, facts)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    return {name: leaf.shape for name, leaf in flat(jax.eval_shape(model.init, keys, batch)).items()}


def check_shapes(
    arrays: dict[str, jax.Array], shapes: dict[str, tuple[int, ...]], names: dict[str, str], path: Path
) -> None:
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise CheckpointError(
                f"{path}: tensor {names[name]} becomes {list(arrays[name].shape)}, the model wants {list(shape)}; its "
                "parts do not belong together."
            )


def result_of(tree: dict[str, Any]) -> str:
    """The checkpoint's own figures, as a sentence."""
    best, epoch = tree.get("best_rsum", tree.get("rsum")), tree.get("epoch")
    if isinstance(best, bool) or not isinstance(best, int | float):
        return "The checkpoint names no figures of its own."
    when = f", saved with epoch {epoch}" if isinstance(epoch, int) else ""
    return f"The checkpoint's own note: best rsum on dev {best:.1f}{when}."


def report(converted: Converted, path: Path) -> str:
    """What became of the checkpoint, as text."""
    leaves = flat(converted.variables)
    lines = [f"{path}: {converted.result}"]
    lines += [f"  {theirs} -> {ours} {list(leaves[ours].shape)}" for ours, theirs in converted.mapped.items()]
    lines.append(f"{len(converted.mapped)} tensors read, nothing left over")
    if converted.unused:
        names = ", ".join(map(show, converted.unused[:UNUSED])) + (", ..." if len(converted.unused) > UNUSED else "")
        lines.append(f"{len(converted.unused)} that using the model does not need: {names}")
    lines.append(f"options: {json.dumps(converted.options, default=lambda value: type(value).__name__)[:OPTIONS]}")
    lines += [f"note: {note}" for note in converted.notes]
    lines.append("no code in the file was executed")
    return "\n".join(lines)


def main(args: argparse.Namespace) -> int:
    """`xmodal convert`: read the checkpoint, say what became of it, write the bundle."""
    converted = convert(args.system, args.checkpoint, args.vocab)
    print(report(converted, args.checkpoint))
    digest = sha256(args.checkpoint)
    notes = "".join(f" Note: {note}." for note in converted.notes)
    data = str(converted.options.get("data_name", ""))
    export.write(
        args.out,
        config=converted.config,
        model=converted.model,
        variables=converted.variables,
        vocabulary=converted.vocabulary,
        facts=converted.facts,
        card=export.Card(
            f"Converted by xmodal_jax from `{args.checkpoint.name}` (SHA-256 {digest}), a checkpoint of the code of "
            f"{REPOSITORIES[args.system]}.{notes}",
            data if re.fullmatch(r"[\w-]{1,40}", data) else "not named in the checkpoint",
            export.commit(),
            f"{converted.result} Nothing was measured here.",
        ),
    )
    print(f"{args.out}: bundle written")
    print(f"next: python -c 'import xmodal_jax; m = xmodal_jax.load(\"{args.out}\"); print(m)'")
    return 0
