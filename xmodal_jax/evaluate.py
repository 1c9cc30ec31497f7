"""Evaluation: encode each item once, score block by block, count ranks; one checkpoint, or watch a run folder."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from xmodal_jax import config as configs
from xmodal_jax.baseline import FILE as BASELINE
from xmodal_jax.baseline import Fitted
from xmodal_jax.checkpoint import Checkpoints
from xmodal_jax.data.pipeline import Captions, FeatureReader, image_batches, text_batches
from xmodal_jax.data.records import Dataset, open_dataset
from xmodal_jax.data.text import Vocabulary
from xmodal_jax.errors import CheckpointError, NumericError, UsageError
from xmodal_jax.matcher import Matcher
from xmodal_jax.pairwise import cut, fragments, lengths, pairwise
from xmodal_jax.parallel import mesh_for, spread
from xmodal_jax.progress import Progress
from xmodal_jax.retrieval import protocols, rank, table
from xmodal_jax.setup import make_captions, make_model, make_reader
from xmodal_jax.types import Config, Repr

IMAGE_BLOCK, CAPTION_BLOCK = 512, 4096  # scores held at a time


class Evaluator:
    """Recall of a model on a split; compiled functions are kept, so that a training loop may call it often."""

    def __init__(self, model: Matcher, *, batch_size: int):
        def encode(method: str) -> Callable[..., Repr]:
            return jax.jit(lambda variables, items: model.apply(variables, items, train=False, method=method)[0])

        self.batch_size = batch_size
        self.encode_image, self.encode_text = encode("encode_image"), encode("encode_text")
        score: Any = partial(model.apply, method="score")
        self._pairwise = jax.jit(partial(pairwise, score), static_argnames="mesh")

    def representations(
        self, variables: Any, reader: FeatureReader, captions: Captions, *, quiet: bool
    ) -> tuple[Repr, Repr]:
        """Stacks of all images and all captions on the host, in the order of the split.

        Raises:
            NumericError: an item whose representation is not finite.
        """
        total = reader.count + len(captions)
        name = reader.split.name
        with Progress(f"encode {name}", total, unit="items", quiet=quiet) as progress:
            images = _stack(
                image_batches(reader, self.batch_size),
                lambda batch: self.encode_image(variables, spread(variables, batch)),
                reader.count,
                lambda i: f'image "{reader.split.ids[i]}" of split "{name}"',
                progress,
            )
            texts = _stack(
                text_batches(captions, self.batch_size),
                lambda batch: self.encode_text(variables, spread(variables, batch)),
                len(captions),
                lambda i: f'caption {i} (image "{reader.split.ids[captions.image[i]]}") of split "{name}"',
                progress,
                longest_first=True,
            )
        return images, texts

    def score(self, variables: Any, images: Repr, texts: Repr) -> jax.Array:
        """Scores [B, C] of representations, spread over the devices that hold ``variables``."""
        mesh = mesh_for(variables, images, texts)
        return self._pairwise(variables, spread(variables, images), spread(variables, texts), mesh=mesh)

    def table(
        self,
        variables: Any,
        reader: FeatureReader,
        captions: Captions,
        *,
        protocol: str = "auto",
        weights: str = "raw",
        quiet: bool = False,
        draws: int = 1000,
    ) -> table.Table:
        """The recall table of a split."""
        stacks = self.representations(variables, reader, captions, quiet=quiet)
        member = Member(self.score, variables, *stacks)
        return rank_table([member], captions.image, reader.count, protocol=protocol, weights=weights, draws=draws)


class Member(NamedTuple):
    """One model of an ensemble (mostly the only one) with its stacks of a split."""

    score: Callable[[Any, Repr, Repr], Any]
    variables: Any
    images: Repr
    texts: Repr

    def pick(self, image: Any, caption: Any) -> Member:
        """The items at two indices or slices."""
        images, texts = (
            jax.tree.map(lambda leaf, index=index: leaf[index], stack)
            for stack, index in ((self.images, image), (self.texts, caption))
        )
        return self._replace(images=images, texts=texts)

    def scores(self) -> Any:
        return self.score(self.variables, self.images, self.texts)


def rank_table(
    members: Sequence[Member], owner: np.ndarray, n_images: int, *, protocol: str, weights: str, draws: int = 1000
) -> table.Table:
    """The recall table of stacks whose caption c belongs to image ``owner[c]``; members vote by their mean score."""
    folds, why = protocols.choose(protocol, n_images)
    results = []
    for fold in folds:
        inside = np.isin(owner, fold)
        local = np.searchsorted(fold, owner[inside])
        own = [member.pick(fold, inside) for member in members]

        def block(image: slice, caption: slice, own: Sequence[Member] = own) -> Any:
            total, *others = (member.pick(image, caption).scores() for member in own)
            return sum(others, start=total) / len(own)

        ranks = rank.blocked_ranks(block, local, len(fold), image_block=IMAGE_BLOCK, caption_block=CAPTION_BLOCK)
        results.append((*ranks, local))
    return table.make_table(results, protocol=why, weights=weights, draws=draws)


def _stack(
    batches: Iterator[Any],
    encode: Callable[[Any], Repr],
    count: int,
    name: Callable[[int], str],
    progress: Progress,
    *,
    longest_first: bool = False,
) -> Repr:
    stacks: Any = None
    width = 0
    for batch in batches:
        own = np.asarray(batch.id)
        out = jax.device_get(encode(batch))
        if longest_first:  # padding that the first batch has no use for is not kept
            width = width or (int(lengths(out).max()) if fragments(out) else 1)
            out = cut(out, width)
        if stacks is None:
            stacks = jax.tree.map(lambda leaf: np.zeros((count, *leaf.shape[1:]), leaf.dtype), out)
        real = own >= 0
        for leaf, into in zip(jax.tree.leaves(out), jax.tree.leaves(stacks), strict=True):
            finite = np.isfinite(leaf[real]).reshape(int(real.sum()), -1).all(axis=1)
            if not finite.all():
                bad = int(own[real][np.flatnonzero(~finite)[0]])
                raise NumericError(
                    f"The representation of {name(bad)} is not finite ({int((~finite).sum())} of this batch are not); "
                    "check the features with `xmodal data check`, or the checkpoint."
                )
            into[(own[real], *(slice(size) for size in leaf.shape[1:]))] = leaf[real]
        progress.advance(int(real.sum()))
    return stacks


class Run:
    """A run folder opened for evaluation: config, vocabulary, data, model, checkpoints."""

    def __init__(self, workdir: Path, data: str | None = None):
        self.workdir = workdir
        self.config: Config = configs.read(workdir)
        self.vocabulary = Vocabulary.load(workdir / "vocabulary.json")
        self.dataset: Dataset = open_dataset(data or self.config.data.dir)
        self.model = make_model(self.config, self.vocabulary)
        self.checkpoints = Checkpoints(workdir, read_only=True)
        self.evaluator = Evaluator(self.model, batch_size=self.config.eval.batch_size)

    def step(self, wanted: int | None) -> int:
        """The step ``wanted``, the best one by default."""
        steps = self.checkpoints.steps()
        if wanted is not None and wanted not in steps:
            known = ", ".join(f"{step}" for step in steps) or "none"
            raise CheckpointError(f"{self.workdir} has no checkpoint of step {wanted}; there are: {known}.")
        return self.checkpoints.best() if wanted is None else wanted

    def variables(self, step: int) -> tuple[dict[str, Any], str]:
        """Parameters and statistics of a step, and whether they are the averaged ("ema") or the "raw" weights."""
        tree = self.checkpoints.restore_model(step)
        weights = "ema" if self.config.ema else "raw"
        params = tree["ema"] if self.config.ema else tree["params"]
        return {"params": params, **tree["model_state"]}, weights

    def member(self, step: int, split: str) -> tuple[Member, np.ndarray, str]:
        """A step with its stacks of a split, the image of each caption, and which weights they are."""
        own = self.dataset.split(split)
        captions = make_captions(own, self.vocabulary, self.config)
        if captions.cut:
            print(f"{captions.cut:,} captions are longer than {max(self.config.data.lengths)} tokens and were cut.")
        variables, weights = self.variables(step)
        stacks = self.evaluator.representations(variables, make_reader(own, self.config), captions, quiet=False)
        return Member(self.evaluator.score, variables, *stacks), captions.image, weights

    def vote(self, split: str) -> tuple[Member, np.ndarray, str]:
        """The best step as a member of an ensemble, as :meth:`member` gives it."""
        return self.member(self.checkpoints.best(), split)

    def __str__(self) -> str:
        return f"{self.workdir} step {self.checkpoints.best():,}"

    def table(self, step: int, split: str, protocol: str) -> table.Table:
        """The recall table of one step."""
        member, owner, weights = self.member(step, split)
        return rank_table([member], owner, len(self.dataset.split(split)), protocol=protocol, weights=weights)


def report(run: Run, step: int, result: table.Table, split: str, json_path: Path | None) -> None:
    """Print the table; write it under ``workdir/eval`` as JSON and Markdown, and to ``json_path``."""
    rsum = run.checkpoints.rsum(step)
    chosen = f"step {step:,}" + (f" (dev rsum {rsum:.1f})" if rsum is not None else "")
    title = f"{run.workdir} on {run.dataset.manifest['name']} {split}, {chosen}"
    table.to_screen(result, title=title)
    content = {"workdir": str(run.workdir), "split": split, "step": step, **table.to_json(result)}
    folder = run.workdir / "eval"
    folder.mkdir(exist_ok=True)
    text = json.dumps(content, indent=1) + "\n"
    for path in filter(None, (folder / f"{split}-{step}.json", json_path)):
        path.write_text(text)
    (folder / f"{split}-{step}.md").write_text(table.to_markdown(result, title=title))


def scaled(member: Member, by: Member) -> Member:
    """A member whose scores are divided by the standard deviation of those of ``by``, taken over one block of them."""
    deviation = float(np.std(np.asarray(by.pick(slice(IMAGE_BLOCK), slice(CAPTION_BLOCK)).scores())))
    return member._replace(score=lambda *args: member.score(*args) / max(deviation, 1e-12))


def ensemble(args: argparse.Namespace) -> int:
    """The mean of the score matrices of several runs' best steps, each scaled by its spread on dev with ``--scale``."""
    if args.watch or args.step is not None:
        raise UsageError("--ensemble takes the best step of each run; leave out --watch and --step.")
    runs: list[Run | Fitted] = [
        Fitted.load(path, args.data) if (path / BASELINE).is_file() else Run(path, args.data) for path in args.ensemble
    ]
    for run in runs[1:]:
        if run.dataset.manifest["sha256"] != runs[0].dataset.manifest["sha256"]:
            raise UsageError(
                f"{run.workdir} was trained on {run.dataset.directory}, {runs[0].workdir} on "
                f"{runs[0].dataset.directory}: other data. An ensemble ranks one set; name it with --data."
            )
    parts = [run.vote(args.split) for run in runs]
    members, owner, count = [part[0] for part in parts], parts[0][1], len(runs[0].dataset.split(args.split))
    if args.scale:
        known = [part[0] for part in parts] if args.split == "dev" else [run.vote("dev")[0] for run in runs]
        members = [scaled(member, by) for member, by in zip(members, known, strict=True)]
    weights = "/".join(sorted({part[2] for part in parts}))
    result = rank_table(members, owner, count, protocol=args.protocol, weights=weights)
    names = ", ".join(map(str, runs))
    how = "mean score, each in units of its deviation on dev," if args.scale else "mean score"
    table.to_screen(result, title=f"{how} of {names} on {runs[0].dataset.manifest['name']} {args.split}")
    if args.json:
        content = {"ensemble": [str(run.workdir) for run in runs], "scale": args.scale, "split": args.split}
        args.json.write_text(json.dumps({**content, **table.to_json(result)}, indent=1) + "\n")
    return 0


def main(args: argparse.Namespace) -> int:
    """`xmodal eval`: the best step (or ``--step``) of a run folder, every new one (``--watch``), or an ensemble."""
    if args.ensemble:
        return ensemble(args)
    if args.scale:
        raise UsageError("--scale is for the members of an --ensemble.")
    run = Run(Path(args.workdir), args.data)
    if args.watch:
        return watch(run, args)
    step = run.step(args.step)
    report(run, step, run.table(step, args.split, args.protocol), args.split, args.json)
    return 0


def watch(run: Run, args: argparse.Namespace) -> int:
    """Evaluate each checkpoint once as it appears, until the run says it is finished."""
    if args.step is not None:
        raise UsageError("--watch evaluates every new step; leave out --step.")
    done: set[int] = set()
    print(f"Watching {run.workdir} every {args.interval:g} s; stop with Ctrl-C.", file=sys.stderr)
    while True:
        finished = (run.workdir / "finished.json").is_file()
        for step in run.checkpoints.steps():
            if step in done:
                continue
            done.add(step)
            try:
                result = run.table(step, args.split, args.protocol)
            except (CheckpointError, FileNotFoundError) as error:
                print(f"step {step:,}: passed over, {error}", file=sys.stderr)  # the run may have removed it meanwhile
                continue
            report(run, step, result, args.split, args.json)
        if finished:
            return 0
        time.sleep(args.interval)
