"""`xmodal export`: from a run folder to a bundle that runs anywhere, see :mod:`xmodal_jax.inference.layout`.

Each function of the model becomes StableHLO by `jax.export`, with symbolic numbers of images, captions, regions and
words, for CPU, CUDA and TPU. It takes and gives flat lists of arrays, so that a bundle needs none of our types.
"""

from __future__ import annotations

import argparse
import datetime
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

from xmodal_jax import __version__
from xmodal_jax import config as configs
from xmodal_jax.data import pixels
from xmodal_jax.data.records import BACKBONE, text_file
from xmodal_jax.evaluation.run import Run
from xmodal_jax.export import onnx
from xmodal_jax.export.functions import Function, export_model
from xmodal_jax.inference import layout
from xmodal_jax.inference.pixels import NETWORK
from xmodal_jax.matcher import Matcher
from xmodal_jax.text.vocabulary import Vocabulary
from xmodal_jax.training.checkpoint import flat
from xmodal_jax.types import Config, Facts, Feature

PADDING = (
    "Padding counts in this system (config.model.compat_padding), so the scores of a caption differ a little with the "
    "length that a bundle, a service or an ONNX caller pads it to; train with --config.model.compat_padding=False for "
    "scores that do not."
)


class Card(NamedTuple):
    """What the model card says beside what the bundle itself knows."""

    origin: str  # one sentence: where the parameters come from
    data: str
    commit: str | None
    recall: str  # a Markdown table, or a sentence that there is none


def write(
    out: Path,
    *,
    config: Config,
    model: Matcher,
    variables: Any,
    vocabulary: Vocabulary | None,
    facts: Facts,
    card: Card,
    extractor: str | None = None,
    network: Path | None = None,
    recipe: Mapping[str, Any] | None = None,
    text_models: Mapping[str, Path] = MappingProxyType({}),
    with_onnx: bool = False,
) -> dict[str, Any]:
    """Write a bundle and return its manifest.

    Args:
        out: a folder that does not exist yet, or is empty.
        model, variables: as `model.apply` takes them; only the arrays that encoding and scoring use are stored.
        vocabulary: None where captions will come as token ids, or the model reads none.
        facts: shapes of what the model reads; images will be padded to as many regions as it names.
        extractor: name of what makes the features from pictures, where the package has it ("scenes"); a system that
            reads pixels alone needs none.
        network, recipe: parameters of the image network that made the features from pictures, and how it did.
        text_models: files that make dense text vectors from sentences, by name of the vector.
        with_onnx: write each function as ONNX too, see :mod:`xmodal_jax.export.onnx`.

    Raises:
        CheckpointError: ``out`` holds something, or cannot be written.
        UsageError: a function cannot become ONNX.
    """
    from safetensors.numpy import save

    functions = export_model(model, variables, facts)
    parameters = {name: np.asarray(value) for name, value in flat(variables).items()}
    needed = sorted({name for function in functions.values() for name in function.parameters})
    most = {"r": facts.regions, "w": min(facts.words, model.inputs.most_words or facts.words)}
    graphs = {name: onnx.convert(name, functions, parameters, most) for name in functions} if with_onnx else {}
    pictured = facts.image.get(pixels.NAME, Feature(())).dtype == "uint8"
    if pictured and len(facts.image) == 1:
        extractor = pixels.NAME
    elif recipe:
        extractor = NETWORK
    manifest = {
        "format": layout.FORMAT,
        "version": layout.VERSION,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "made_with": {"xmodal_jax": __version__, "jax": jax.__version__},
        "calling_convention": functions["score"].exported.calling_convention_version,
        "platforms": list(layout.PLATFORMS),
        "system": config.model.name,
        "features": {name: ["regions" if n is None else n for n in f.shape] for name, f in facts.image.items()},
        "regions": facts.regions,
        "most_regions": model.inputs.most_regions,
        "text": {name: ["tokens"] if name == "token" else [facts.text[name].shape[-1]] for name in model.inputs.text},
        "text_models": sorted(text_models),
        "lengths": _lengths(config, model) if facts.vocabulary else [1],
        "tokens": facts.vocabulary,
        "vocabulary": vocabulary.sha256 if vocabulary else None,
        "extractor": extractor,
        "backbone": recipe,
        "pixels": pixels.transform_of(config).manifest() if pictured else None,
        "functions": {name: _describe(function) for name, function in functions.items()},
        "onnx": {name: {"fixed": fixed} for name, (_, fixed) in graphs.items()},
    }
    with layout.fresh_folder(out) as folder:
        configs.save(config, folder / layout.CONFIG)
        if vocabulary is not None:
            vocabulary.save(folder / layout.VOCABULARY)
        tensors = {name: np.asarray(parameters[name], order="C") for name in needed}
        (folder / layout.PARAMETERS).write_bytes(save(tensors))
        if network:
            shutil.copyfile(network, folder / BACKBONE)
        for name, path in text_models.items():
            shutil.copyfile(path, folder / layout.text_model(name))
        for name, function in functions.items():
            (folder / layout.file_of(name)).write_bytes(function.exported.serialize())
        for name, (graph, _) in graphs.items():
            (folder / f"{name}.onnx").write_bytes(graph)
        (folder / layout.CARD).write_text(model_card(manifest, card, parameters, needed), encoding="utf-8")
        return layout.seal(folder, manifest)


def _lengths(config: Config, model: Matcher) -> list[int]:
    """Numbers of tokens that captions are padded to, up to what the model reads of them."""
    most = model.inputs.most_words or max(map(int, config.data.lengths))
    return sorted({min(int(length), most) for length in config.data.lengths})


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
    way = manifest.get("pixels")
    seen = f", or pictures ({way['kind']}, {way['resize']} to {way['side']} pixels)" if way else ", or pictures"
    if manifest.get("backbone"):
        seen = f", or pictures, of which {manifest['backbone']['network']} makes them"
    text = f"token ids below {manifest['tokens']:,} (it has no vocabulary)"
    if manifest["vocabulary"] or not manifest["tokens"]:
        text = "sentences" if manifest["vocabulary"] or manifest["text_models"] else "dense vectors"
    regions = f", at most {manifest['most_regions']} regions" if manifest["most_regions"] else ""
    origin = manifest["made_with"]
    by = f"xmodal_jax {origin['xmodal_jax']}" + (f", commit {card.commit}" if card.commit else "")
    return f"""# {manifest["system"]}

{card.origin}

```python
import xmodal_jax

m = xmodal_jax.load("path/to/this/folder")
```

| | |
|---|---|
| system | `{manifest["system"]}`, options in `{layout.CONFIG}` |
| images | {given}{seen if manifest["extractor"] else ""}{regions} |
| captions | {text}{f", at most {max(manifest['lengths'])} tokens" if manifest["tokens"] else ""} |
| parameters | {stored:,} in `{layout.PARAMETERS}` |
| data | {card.data} |
| made with | {by}, JAX {origin["jax"]}, {manifest["created"]} |
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


def recall_of(run: Run, step: int) -> str:
    """The recall tables that `xmodal eval` wrote for this step, as Markdown."""
    tables = sorted((run.workdir / "eval").glob(f"**/*-{step}.md"))
    if not tables:
        reached = run.checkpoints.reached(step)
        known = f"During training: {reached}. " if reached else ""
        return f"{known}Not measured on a test split: `xmodal eval --workdir {run.workdir}`, then export again."
    return "\n\n".join(path.read_text(encoding="utf-8").strip() for path in tables)


def _unit(vocabulary: Vocabulary) -> str:
    return "characters" if vocabulary.tokens == "characters" else "words"


def export_run(run: Run, step: int, out: Path, *, with_onnx: bool = False) -> dict[str, Any]:
    """Write the bundle ``out`` of one step of a run; returns its manifest. Raises as :func:`write` does."""
    variables, weights = run.variables(step)
    manifest = run.dataset.manifest
    note = f" {PADDING}" if run.model.padding_counts else ""
    if note:
        print(f"note: {PADDING}", file=sys.stderr)
    card = Card(
        f"Trained with xmodal_jax; step {step:,}, {weights} weights.{note}",
        f"{run.title if run.home else run.record.get('name', 'other data')}, manifest "
        + (manifest["sha256"] if run.home else run.record["data"])[:12]
        + (f", {len(run.vocabulary):,} {_unit(run.vocabulary)}" if run.vocabulary else ""),
        commit(),
        recall_of(run, step),
    )
    recipe = manifest.get("extractor")
    made = bool(recipe) and set(run.facts.image) <= set(recipe["features"])  # not attached from elsewhere
    return write(
        out,
        config=run.config,
        model=run.model,
        variables=variables,
        vocabulary=run.vocabulary,
        facts=run.facts,
        card=card,
        extractor="scenes" if "scenes" in manifest["source"] else None,
        network=run.dataset.directory / BACKBONE if made else None,
        recipe=recipe if made else None,
        text_models={name: run.dataset.directory / text_file(name) for name in run.facts.text},
        with_onnx=with_onnx,
    )


def main(args: argparse.Namespace) -> int:
    """`xmodal export`: the best step of a run, or another one, as a bundle."""
    run = Run(args.workdir, args.data)
    step = run.step(args.step)
    written = export_run(run, step, args.out, with_onnx=args.onnx)
    size = sum(entry["bytes"] for entry in written["files"].values())
    print(f"{args.out}: step {step:,} of {run.workdir}, {size / 1e6:.1f} MB, for {', '.join(written['platforms'])}")
    print(f"next: xmodal index --bundle {args.out} --data {run.dataset.directory} --out gallery")
    return 0
