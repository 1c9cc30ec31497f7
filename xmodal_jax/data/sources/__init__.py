"""Importers: one module a format. Each turns its source into images with captions; `records.write` does the rest."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xmodal_jax.data.records import REPORT, open_dataset
from xmodal_jax.data.sources import butd, coco, flickr, karpathy, objects, precomp, table
from xmodal_jax.data.sources.common import Plan, Report
from xmodal_jax.data.sources.recognise import KINDS, recognise
from xmodal_jax.data.sources.splits import missing
from xmodal_jax.data.writer import prepared, write
from xmodal_jax.errors import DataError
from xmodal_jax.text import unknown
from xmodal_jax.text.vocabulary import MINIMUM

IMPORTERS: dict[str, Callable[[argparse.Namespace], Plan]] = {
    "precomp": precomp.plan,
    "karpathy": karpathy.plan,
    "csv": table.plan,
    "coco": coco.plan,
    "flickr": flickr.plan,
    "jsonl": objects.plan,
    "reid": objects.plan,
    "butd": butd.plan,
}


def main(args: argparse.Namespace) -> int:
    """`xmodal data import KIND SOURCE --out DIR`: import, then say what was read, kept and dropped."""
    _refuse_other_kind(args)
    plan = IMPORTERS[args.kind](args)
    out = Path(args.out)
    manifest = prepared(out, plan.source)
    if manifest is not None:
        print(f"{out}: already prepared from this source, nothing to do.")
        return 0
    report = Report()
    splits, totals = plan.read(report)
    for sentence in missing(splits):
        print(f"note: {sentence}.", flush=True)
    manifest = write(out, splits, name=plan.name, source=plan.source, totals=totals, report=report.entries)
    print(summary(out, manifest, report, list(splits)))
    return 0


def _refuse_other_kind(args: argparse.Namespace) -> None:
    """DataError where the source is clearly one for another importer."""
    found = recognise(Path(args.source))
    if found == "features":
        raise DataError(f"{args.source}: features, not captions; give captions as SOURCE, and this with --features.")
    named = args.kind == "csv" and args.image_col and args.caption_col  # whoever says the columns knows the table
    if found is None or IMPORTERS[found] is IMPORTERS[args.kind] or named:
        return
    raise DataError(
        f"{args.source}: {KINDS[found]}, not {KINDS[args.kind]}; import it with: xmodal data import {found} "
        f"{args.source} --out {args.out}"
    )


def rare_words(out: Path, manifest: dict[str, Any]) -> list[str]:
    """How much of the training captions a vocabulary of the default minimum count would not know, as a line."""
    if "train" not in manifest["splits"]:
        return []
    texts = [text for captions in open_dataset(out).split("train").captions for text in captions]
    coverage = unknown.train_vocabulary(texts, MINIMUM).coverage(texts)
    level = unknown.level(coverage)
    hint = "; lower --config.data.minimum_count for a training" if level else ""
    rare = f"{100 * coverage.share:.1f} % of {coverage.tokens:,} tokens in train are of words that occur less than"
    alone = f", {coverage.blank:,} captions hold only such" if coverage.blank else ""
    return [f"  {'warning: ' if level else ''}{rare} {MINIMUM} times{alone}{hint}"]


def summary(out: Path, manifest: dict[str, Any], report: Report, splits: list[str]) -> str:
    """What an import of ``splits`` read, kept and dropped, for people."""
    lines = [f"{manifest['name']} -> {out}", f"  {'split':<10}{'images':>10}{'captions':>12}{'an image':>12}"]
    for split, counts in manifest["splits"].items():
        low, high = counts["captions_per_image"]
        span = f"{low}" if low == high else f"{low} to {high}"
        lines.append(f"  {split:<10}{counts['images']:>10,}{counts['captions']:>12,}{span:>12}")
    lines += [f"  split {name}: left out, nothing of it was kept" for name in splits if name not in manifest["splits"]]
    for key, feature in manifest["features"].items():
        low, high = feature.get("regions", (0, 0))
        regions = "" if not high else f"{low} regions x " if low == high else f"{low} to {high} regions x "
        lines.append(f"  {key}: {regions}{feature['shape'][-1]} {feature['dtype']}")
    pictures = sum(counts["pictures"] for counts in manifest["splits"].values())
    lines.append(f"  boxes: {'yes' if manifest['boxes'] else 'no'}, pictures: {pictures:,}")
    totals = {key: sum(counts[key] for counts in manifest["splits"].values()) for key in ("images", "captions")}
    lines += rare_words(out, manifest)
    read = " and ".join(f"{count:,} {what}" for what, count in report.read.items())
    lines.append(f"read {read}; kept {totals['images']:,} images and {totals['captions']:,} captions")
    lines += [f"  {note}" for note in report.notes]
    lines += [f"  {count:,} x {what}" for what, count in report.counts.most_common() if count]
    if report.entries:
        lines.append(f"  each one with its place: {out / REPORT}")
    return "\n".join(lines)
