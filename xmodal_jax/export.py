"""`xmodal export`: from a run folder to a bundle that runs anywhere, see :mod:`xmodal_jax.bundle`.

Each function of the model becomes StableHLO by `jax.export`, with symbolic numbers of images, captions, regions and
words, for CPU, CUDA and TPU. It takes and gives flat lists of arrays, so that a bundle needs none of our types.
"""

from __future__ import annotations

import argparse
import datetime
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from xmodal_jax import __version__, onnx
from xmodal_jax import bundle as bundles
from xmodal_jax import config as configs
from xmodal_jax.checkpoint import flat
from xmodal_jax.data.text import Vocabulary
from xmodal_jax.evaluate import Run
from xmodal_jax.matcher import Matcher
from xmodal_jax.optim import path_name
from xmodal_jax.setup import features_of
from xmodal_jax.types import Config, Images, Texts

Struct = jax.ShapeDtypeStruct
Features = Mapping[str, tuple[int | None, ...]]  # of one image: (F,), or (None, F) for any number of regions


class Card(NamedTuple):
    """What the model card says beside what the bundle itself knows."""

    origin: str  # one sentence: where the parameters come from
    data: str
    commit: str | None
    recall: str  # a Markdown table, or a sentence that there is none


class Function(NamedTuple):
    """An exported function with the names of the parameters that it takes first, as a list of arrays."""

    exported: export.Exported
    parameters: list[str]
    leaves: list[str]  # names of what it gives
    call: Callable[..., Any]  # what was exported


def used(function: Callable[..., Any], *args: Any) -> list[bool]:
    """For each array of the first argument, whether the outcome of ``function(*args)`` depends on it."""
    jaxpr: Any = jax.make_jaxpr(function)(*args).jaxpr
    needed = {id(v) for v in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if any(id(v) in needed for v in equation.outvars):
            needed |= {id(v) for v in equation.invars}
    return [id(v) in needed for v in jaxpr.invars[: len(jax.tree.leaves(args[0]))]]


def export_model(
    model: Matcher, variables: Any, features: Features, example: tuple[Images, Texts]
) -> dict[str, Function]:
    """Each function of ``model``, by name; ``example`` is an image and a caption of the right sizes to trace with."""
    names, values = zip(*flat(variables).items(), strict=True)
    treedef = jax.tree.structure(variables)
    image, text = (
        jax.eval_shape(lambda v, x, m=method: model.apply(v, x, train=False, method=m)[0], variables, own)
        for method, own in zip(("encode_image", "encode_text"), example, strict=True)
    )
    structures = jax.tree.structure(image), jax.tree.structure(text)

    def encode_image(parameters, feature, mask):
        own = Images(feature, mask, jnp.zeros(mask.shape[:1], jnp.int32))
        out = model.apply(jax.tree.unflatten(treedef, parameters), own, train=False, method="encode_image")
        return jax.tree.leaves(out[0])

    def encode_text(parameters, token, mask):
        zero = jnp.zeros(mask.shape[:1], jnp.int32)
        own = Texts(token, mask, zero, zero, zero)
        out = model.apply(jax.tree.unflatten(treedef, parameters), own, train=False, method="encode_text")
        return jax.tree.leaves(out[0])

    def on_pair(method):
        def function(parameters, image, text):
            own = (jax.tree.unflatten(*pair) for pair in zip(structures, (image, text), strict=True))
            return model.apply(jax.tree.unflatten(treedef, parameters), *own, method=method)

        return function

    # A model with parameters for each region (SGRAF) takes no more regions than it has.
    most = getattr(model, "regions", None)
    limit = [f"r <= {most}"] if isinstance(most, int) else []

    def build(
        function: Callable[..., Any], leaves: list[str], args: Callable[[export.SymbolicScope], Any], *constraints: str
    ) -> Function:
        structs = [Struct(np.shape(value), value.dtype) for value in values]
        keep = used(function, structs, *args(export.SymbolicScope(constraints)))

        def pruned(parameters, *rest):
            own = iter(parameters)  # of those that are not used only the shape counts
            whole = [next(own) if kept else jnp.zeros(x.shape, x.dtype) for x, kept in zip(structs, keep, strict=True)]
            return function(whole, *rest)

        chosen = [index for index, kept in enumerate(keep) if kept]
        out = export.export(jax.jit(pruned), platforms=bundles.PLATFORMS)(
            [structs[index] for index in chosen], *args(export.SymbolicScope(constraints))
        )
        return Function(out, [names[index] for index in chosen], leaves, pruned)

    def image_args(scope):
        shapes = {name: ["b", *("r" if n is None else str(n) for n in shape)] for name, shape in features.items()}
        feature = {name: _struct(", ".join(shape), np.float32, scope) for name, shape in shapes.items()}
        regions = "r" if any(None in shape for shape in features.values()) else "1"
        return feature, _struct(f"b, {regions}", bool, scope)

    def text_args(scope):
        return _struct("c, w", np.int32, scope), _struct("c, w", bool, scope)

    made = {
        "encode_image": build(encode_image, leaf_names(image), image_args, *limit),
        "encode_text": build(encode_text, leaf_names(text), text_args),
    }

    def pair_args(scope):
        avals = (made[name].exported.out_avals for name in ("encode_image", "encode_text"))
        return [[_struct(str(a.shape)[1:-1], a.dtype, scope) for a in own] for own in avals]

    pair_limit = limit if "r" in str([a.shape for a in made["encode_image"].exported.out_avals]) else []
    made["score"] = build(on_pair("score"), ["score"], pair_args, *pair_limit)
    if type(model).attention is not Matcher.attention:
        made["attention"] = build(on_pair("attention"), ["weight"], pair_args, *pair_limit)
    return made


def _struct(shape: str, dtype: Any, scope: export.SymbolicScope) -> Struct:
    return Struct(export.symbolic_shape(shape.rstrip(","), scope=scope), dtype)


def leaf_names(tree: Any) -> list[str]:
    """Names of a representation's arrays, ``region/feature``; a single array is called ``embedding``."""
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    return ["embedding"] if names == [""] else names


def example_of(features: Features, regions: int, words: int) -> tuple[Images, Texts]:
    """One image and one caption of zeros."""
    own = {
        name: np.zeros((1, *(regions if n is None else n for n in shape)), np.float32)
        for name, shape in features.items()
    }
    regions = regions if any(None in shape for shape in features.values()) else 1
    zero = np.zeros(1, np.int32)
    mask = np.ones((1, words), bool)
    return Images(own, np.ones((1, regions), bool), zero), Texts(np.zeros((1, words), np.int32), mask, zero, zero, zero)


def write(
    out: Path,
    *,
    config: Config,
    model: Matcher,
    variables: Any,
    vocabulary: Vocabulary | None,
    features: Features,
    card: Card,
    regions: int = 36,
    extractor: str | None = None,
    with_onnx: bool = False,
) -> dict[str, Any]:
    """Write a bundle and return its manifest.

    Args:
        out: a folder that does not exist yet, or is empty.
        model, variables: as `model.apply` takes them; only the arrays that encoding and scoring use are stored.
        vocabulary: None where captions will come as token ids.
        features: what the model reads of an image, each (F,) or (None, F).
        regions: the number of regions to pad to, that of the training data.
        extractor: name of what makes the features from pixels, where the package has it ("scenes").
        with_onnx: write each function as ONNX too, see :mod:`xmodal_jax.onnx`.

    Raises:
        CheckpointError: ``out`` holds something, or cannot be written.
        UsageError: a function cannot become ONNX.
    """
    from safetensors.numpy import save

    functions = export_model(model, variables, features, example_of(features, regions, 8))
    parameters = {name: np.asarray(value) for name, value in flat(variables).items()}
    needed = sorted({name for function in functions.values() for name in function.parameters})
    most = {"r": regions, "w": max(map(int, config.data.lengths))}
    graphs = {name: onnx.convert(name, functions, parameters, most) for name in functions} if with_onnx else {}
    manifest = {
        "format": bundles.FORMAT,
        "version": bundles.VERSION,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "made_with": {"xmodal_jax": __version__, "jax": jax.__version__},
        "calling_convention": functions["score"].exported.calling_convention_version,
        "platforms": list(bundles.PLATFORMS),
        "system": config.model.name,
        "features": {name: ["regions" if n is None else n for n in shape] for name, shape in features.items()},
        "regions": regions,
        "lengths": sorted(int(length) for length in config.data.lengths),
        "tokens": int(model.vocabulary),  # type: ignore[attr-defined]
        "vocabulary": vocabulary.sha256 if vocabulary else None,
        "extractor": extractor,
        "functions": {name: _describe(function) for name, function in functions.items()},
        "onnx": {name: {"fixed": fixed} for name, (_, fixed) in graphs.items()},
    }
    with bundles.fresh_folder(out) as folder:
        configs.save(config, folder / bundles.CONFIG)
        if vocabulary is not None:
            vocabulary.save(folder / bundles.VOCABULARY)
        tensors = {name: np.asarray(parameters[name], order="C") for name in needed}
        (folder / bundles.PARAMETERS).write_bytes(save(tensors))
        for name, function in functions.items():
            (folder / bundles.file_of(name)).write_bytes(function.exported.serialize())
        for name, (graph, _) in graphs.items():
            (folder / f"{name}.onnx").write_bytes(graph)
        (folder / bundles.CARD).write_text(model_card(manifest, card, parameters, needed), encoding="utf-8")
        return bundles.seal(folder, manifest)


def _describe(function: Function) -> dict[str, Any]:
    gives = [
        {"name": name, "shape": [str(size) for size in aval.shape], "dtype": str(aval.dtype)}
        for name, aval in zip(function.leaves, function.exported.out_avals, strict=True)
    ]
    return {"parameters": function.parameters, "gives": gives}


def model_card(manifest: Mapping[str, Any], card: Card, parameters: Mapping[str, Any], needed: Sequence[str]) -> str:
    """The README of a bundle."""
    stored = sum(parameters[name].size for name in needed)
    graphs = f"\n| ONNX | {', '.join(f'`{name}.onnx`' for name in manifest['onnx'])} |" if manifest["onnx"] else ""
    given = ", ".join(f"`{name}` {shape}" for name, shape in manifest["features"].items())
    text = "sentences" if manifest["vocabulary"] else f"token ids below {manifest['tokens']:,} (it has no vocabulary)"
    made = manifest["made_with"]
    by = f"xmodal_jax {made['xmodal_jax']}" + (f", commit {card.commit}" if card.commit else "")
    return f"""# {manifest["system"]}

{card.origin}

```python
import xmodal_jax

m = xmodal_jax.load("path/to/this/folder")
```

| | |
|---|---|
| system | `{manifest["system"]}`, options in `{bundles.CONFIG}` |
| images | {given}{", or pixels" if manifest["extractor"] else ""} |
| captions | {text}, at most {max(manifest["lengths"])} tokens |
| parameters | {stored:,} in `{bundles.PARAMETERS}` |
| data | {card.data} |
| made with | {by}, JAX {made["jax"]}, {manifest["created"]} |
| runs on | {", ".join(manifest["platforms"])} |{graphs}

## Recall

{card.recall}

## How long it keeps

The functions are StableHLO of `jax.export`, calling convention {manifest["calling_convention"]}. JAX promises that
releases of at least the next 180 days run them; parameters, config and vocabulary have no such limit, and
`xmodal export` makes the functions anew from the run.
"""


def commit() -> str | None:
    """Commit of the source tree that runs, where it is one."""
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def features_for(run: Run) -> tuple[Features, int]:
    """What the run's model reads of an image, and the most regions that its data has."""
    specs = {name: run.dataset.manifest["features"][name] for name in features_of(run.config)}
    features: dict[str, tuple[int | None, ...]] = {
        name: (None, spec["shape"][-1]) if "regions" in spec else (spec["shape"][-1],) for name, spec in specs.items()
    }
    return features, max((spec["regions"][1] for spec in specs.values() if "regions" in spec), default=1)


def recall_of(run: Run, step: int) -> str:
    """The recall tables that `xmodal eval` wrote for this step, as Markdown."""
    tables = sorted((run.workdir / "eval").glob(f"*-{step}.md"))
    if not tables:
        rsum = run.checkpoints.rsum(step)
        known = f"rsum on dev during training: {rsum:.1f}. " if rsum is not None else ""
        return f"{known}Not measured on a test split: `xmodal eval --workdir {run.workdir}`, then export again."
    return "\n\n".join(path.read_text(encoding="utf-8").strip() for path in tables)


def export_run(run: Run, step: int, out: Path, *, with_onnx: bool = False) -> dict[str, Any]:
    """Write the bundle ``out`` of one step of a run; returns its manifest. Raises as :func:`write` does."""
    variables, weights = run.variables(step)
    features, regions = features_for(run)
    manifest = run.dataset.manifest
    card = Card(
        f"Trained with xmodal_jax; step {step:,}, {weights} weights.",
        f"{manifest['name']}, manifest {manifest['sha256'][:12]}, {len(run.vocabulary):,} words",
        commit(),
        recall_of(run, step),
    )
    return write(
        out,
        config=run.config,
        model=run.model,
        variables=variables,
        vocabulary=run.vocabulary,
        features=features,
        card=card,
        regions=regions,
        extractor="scenes" if "scenes" in manifest["source"] else None,
        with_onnx=with_onnx,
    )


def main(args: argparse.Namespace) -> int:
    """`xmodal export`: the best step of a run, or another one, as a bundle."""
    run = Run(args.workdir, args.data)
    step = run.step(args.step)
    made = export_run(run, step, args.out, with_onnx=args.onnx)
    size = sum(entry["bytes"] for entry in made["files"].values())
    print(f"{args.out}: step {step:,} of {run.workdir}, {size / 1e6:.1f} MB, for {', '.join(made['platforms'])}")
    print(f"next: xmodal index --bundle {args.out} --data {run.dataset.directory} --out gallery")
    return 0
