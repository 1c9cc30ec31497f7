"""`xmodal caption` and `xmodal paraphrase`: sentences of a run or a bundle, for images, files, captions or a split."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from xmodal_jax.errors import UsageError
from xmodal_jax.text.generation import Decoding


def decoding_of(args: argparse.Namespace) -> Decoding:
    """How the options say that words are chosen.

    Raises:
        UsageError: options of beam search and of sampling together.
    """
    sampled = args.temperature is not None or args.top_p is not None
    if sampled and args.beams > 1:
        raise UsageError("--beams searches and --temperature, --top-p sample; give one of the two.")
    method = "sample" if sampled else "beam" if args.beams > 1 else "greedy"
    return Decoding(
        method,
        args.longest,
        args.beams,
        temperature=1.0 if args.temperature is None else args.temperature,
        top_p=1.0 if args.top_p is None else args.top_p,
    )


def caption(args: argparse.Namespace) -> int:
    """`xmodal caption`: of images by id or file, or of all images of a split."""
    if bool(args.image) == bool(args.split):
        raise UsageError("Give --image (ids or files, any number) or --split.")
    decoding = decoding_of(args)
    names, sentences = (of_bundle if args.bundle else of_run)(args, decoding)
    show(names, sentences, args.json)
    return 0


def of_run(args: argparse.Namespace, decoding: Decoding) -> tuple[list[str], list[str]]:
    """Captions by a run of images of its data set."""
    from xmodal_jax.evaluation.run import Run
    from xmodal_jax.verbs.attend import find_image

    run = Run(args.workdir, args.data)
    run.check_speaks()
    variables, _ = run.variables(run.step(args.step))
    speaker = run.speaker(decoding)
    if args.split:
        split = run.dataset.split(args.split)
        return split.ids, speaker.images(variables, run.reader(args.split))
    sentences = []
    for name in args.image:
        if Path(name).is_file():
            raise UsageError(f"{name} is a file: a run reads the features of its data; export it and give --bundle.")
        split, row = find_image(run.dataset, name)
        reader, rows = run.reader(split.name), np.array([row])
        arrays = next(iter(reader.stream(0, 1, lambda _, rows=rows: rows)))
        sentences += speaker.say(variables, reader.images(arrays, rows), args.seed)
    return list(args.image), sentences


def of_bundle(args: argparse.Namespace, decoding: Decoding) -> tuple[list[str], list[str]]:
    """Captions by a bundle of picture files, or of the images of a data set."""
    from xmodal_jax.data.records import open_dataset
    from xmodal_jax.inference import speaking
    from xmodal_jax.inference.bundle import load
    from xmodal_jax.inference.index import items_of
    from xmodal_jax.verbs.attend import find_image

    bundle = load(args.bundle)
    speaking.check(bundle.functions, bundle.system, "begin_image")
    if args.split:
        if args.data is None:
            raise UsageError("--bundle with --split needs --data, the set that has it.")
        items = items_of(args.data, args.split, list(bundle.features), bundle.reading)
        sentences = []
        for features, mask, _ in items.read(0):
            sentences += bundle.caption(features, mask, decoding=decoding, seed=args.seed)
        return list(items.ids), sentences
    files = [name for name in args.image if Path(name).is_file()]
    if files and len(files) < len(args.image):
        raise UsageError("Give files, or ids of images of --data, not both.")
    if files:
        return files, bundle.caption(files, decoding=decoding, seed=args.seed)
    if args.data is None:
        raise UsageError(f"No file {args.image[0]}; for ids of a data set give --data too.")
    dataset, sentences = open_dataset(args.data), []
    for name in args.image:
        split, row = find_image(dataset, name)
        features = {feature: np.asarray(split.read([row])[0].features[feature])[None] for feature in bundle.features}
        sentences += bundle.caption(features, decoding=decoding, seed=args.seed)
    return list(args.image), sentences


def paraphrase(args: argparse.Namespace) -> int:
    """`xmodal paraphrase`: of sentences, or of all captions of a split."""
    if bool(args.text) == bool(args.split):
        raise UsageError("Give sentences or --split.")
    decoding = decoding_of(args)
    if args.bundle:
        from xmodal_jax.inference import speaking
        from xmodal_jax.inference.bundle import load

        bundle = load(args.bundle)
        speaking.check(bundle.functions, bundle.system, "begin_text")
        texts = args.text or captions_of(args.data, args.split)
        tell_cut(sum(bundle.cut(text) > 0 for text in texts), max(bundle.lengths))
        show(texts, bundle.paraphrase(texts, decoding=decoding, seed=args.seed), args.json)
        return 0
    from xmodal_jax.data.pipeline import Captions
    from xmodal_jax.evaluation.run import Run

    run = Run(args.workdir, args.data)
    run.check_speaks()
    variables, _ = run.variables(run.step(args.step))
    if args.split:
        texts = [text for texts in run.dataset.split(args.split).captions for text in texts]
        captions = run.captions(args.split)
    else:
        texts = list(args.text)
        captions = Captions([[text] for text in texts], run.vocabulary, run.config.data.lengths)
    tell_cut(captions.cut, max(run.config.data.lengths))
    show(texts, run.speaker(decoding).texts(variables, captions, quiet=not args.split), args.json)
    return 0


def tell_cut(count: int, most: int) -> None:
    """Say that so many sentences have more tokens than are read."""
    if count:
        print(f"{count:,} of the sentences are longer than {most} tokens and were cut.", file=sys.stderr)


def captions_of(data: Path | None, split: str) -> list[str]:
    from xmodal_jax.data.records import open_dataset

    if data is None:
        raise UsageError("--bundle with --split needs --data, the set that has it.")
    return [text for texts in open_dataset(data).split(split).captions for text in texts]


def show(names: Any, sentences: list[str], path: Path | None) -> None:
    """Print ``name<TAB>sentence`` lines, or write them as JSON."""
    if path is not None:
        pairs = [{"of": name, "sentence": sentence} for name, sentence in zip(names, sentences, strict=True)]
        path.write_text(json.dumps(pairs, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{path}: {len(sentences):,} sentences")
        return
    for name, sentence in zip(names, sentences, strict=True):
        print(f"{name}\t{sentence}")
