"""`xmodal data check DIR`: is a prepared data set whole, finite, and clean between its splits?

Errors (exit code 3): a file that differs from the manifest, features that are not finite, an image of one split in
another one, captions that a training would for the most part not know. Warnings: captions that are empty, repeated,
shared between splits or unknown to a tenth, images that occur twice in a split or are all zeros, captions that are very
long. A `test` inside a `testall` is neither.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from xmodal_jax.data.records import Dataset, Split, finite, open_dataset, verify
from xmodal_jax.errors import DataError
from xmodal_jax.progress import Progress
from xmodal_jax.text import unknown
from xmodal_jax.text.same import plain
from xmodal_jax.text.vocabulary import MINIMUM, Coverage

EXAMPLES = 3
LONG = 256  # words; the longest human caption of the usual sets has about 80


class Findings:
    """Errors and warnings as sentences, each with a few examples."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def add(self, level: str, sentence: str, examples: Sequence[str] = ()) -> None:
        shown = "; ".join(examples[:EXAMPLES]) + ("; ..." if len(examples) > EXAMPLES else "")
        getattr(self, level).append(sentence + (f": {shown}" if shown else "."))


def check(directory: str | Path, *, minimum: int = MINIMUM, allow_unknown: bool = False) -> dict[str, Any]:
    """Everything that `xmodal data check` finds, as a JSON-ready dictionary; features are read one image at a time.

    Args:
        minimum: how often a word must occur in the training captions to be known.
        allow_unknown: captions that are unknown for the most part are a warning, no error.

    Raises:
      DataError: ``directory`` is no prepared data set, or its manifest cannot be read.
    """
    dataset = open_dataset(directory)
    findings = Findings()
    for problem in verify(directory):
        findings.add("errors", problem)
    tables: dict[str, dict[str, Any]] = {}
    images: dict[str, dict[str, Sequence[Hashable | None]]] = {}
    captions: dict[str, list[str]] = {}
    for name in dataset.splits:
        split = dataset.split(name)
        try:
            tables[name] = _count(split)
            captions[name] = _check_captions(split, findings)
            images[name] = {
                "id": split.ids,
                "features": _check_features(split, findings),
                "picture": _picture_hashes(dataset, split),
            }
            _check_text_features(split, findings)
        except DataError as error:  # the other splits are still worth a look
            findings.add("errors", str(error))
    known = _check_known(dataset, list(captions), minimum, 1.0 if allow_unknown else unknown.REFUSE, findings)
    for name, kinds in images.items():
        _check_repeats(name, kinds, findings)
    for first, second in combinations(images, 2):
        _check_shared(first, second, images, captions, findings)
    return {
        "directory": str(directory),
        "name": dataset.manifest["name"],
        "splits": tables,
        "unknown": {name: coverage._asdict() for name, coverage in known.items()},
        "features": dataset.features,
        "boxes": dataset.manifest["boxes"],
        "text_features": dataset.manifest.get("text_features", {}),
        "errors": findings.errors,
        "warnings": findings.warnings,
        "verdict": "broken" if findings.errors else "usable, see the warnings" if findings.warnings else "clean",
    }


def _count(split: Split) -> dict[str, Any]:
    per_image = [len(captions) for captions in split.captions]
    words = [len(caption.split()) for captions in split.captions for caption in captions] or [0]
    return {
        "images": len(per_image),
        "captions": sum(per_image),
        "captions_per_image": [min(per_image), max(per_image)],
        "words": [min(words), median(words), max(words)],
        "pictures": sum(path is not None for path in split.pictures),
    }


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _check_captions(split: Split, findings: Findings) -> list[str]:
    """Empty, repeated and very long captions; returns all in plain form."""
    everything: list[str] = []
    empty, twice, long = [], [], []
    for image, captions in zip(split.ids, split.captions, strict=True):
        forms = [plain(caption) for caption in captions]
        everything += forms
        if "" in forms:
            empty.append(image)
        if len(set(forms)) < len(forms):
            twice.append(image)
        long += [f"{image} ({len(form.split()):,})" for form in forms if len(form.split()) > LONG]
    name = f'split "{split.name}"'
    if empty:
        findings.add("warnings", f"{name}: {_number(len(empty), 'image')} with an empty caption", empty)
    if twice:
        findings.add("warnings", f"{name}: {_number(len(twice), 'image')} with the same caption twice", twice)
    if long:
        findings.add("warnings", f"{name}: {_number(len(long), 'caption')} of more than {LONG} words, by image", long)
    repeated = {form: count for form, count in Counter(everything).items() if count > 1 and form}
    if repeated:
        examples = [f'"{_short(form)}" x {count}' for form, count in Counter(repeated).most_common(EXAMPLES + 1)]
        surplus = sum(repeated.values()) - len(repeated)
        findings.add("warnings", f"{name}: {_number(surplus, 'caption')} already in it", examples)
    return everything


def _check_known(
    dataset: Dataset, names: Sequence[str], minimum: int, most: float, findings: Findings
) -> dict[str, Coverage]:
    """How much of the captions a vocabulary of the training split would know, by split; none where that is missing or
    tiny."""
    if "train" not in names:
        return {}
    texts = {name: [text for captions in dataset.split(name).captions for text in captions] for name in names}
    vocabulary = unknown.train_vocabulary(texts["train"], minimum)
    known = {name: vocabulary.coverage(captions) for name, captions in texts.items()}
    if known["train"].tokens < unknown.FEW:
        return {}
    for name, coverage in known.items():
        level = unknown.level(coverage, most)
        if level:
            how = f"in a vocabulary of the words that occur {minimum} times in train"
            findings.add(level, f'split "{name}": {unknown.sentence(coverage)} {how}')
    return known


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _check_features(split: Split, findings: Findings) -> list[bytes | None]:
    """Read every image; returns a digest of each one's features, None where there are none or only zeros."""
    digests: list[bytes | None] = []
    bad, zero, padded = [], [], []
    stored = split.dataset.manifest["features"]  # what was added may tell images apart that are one, so is left aside
    with Progress(f"check {split.name}", len(split), unit="images") as progress:
        for row in range(len(split)):
            item = split.read([row])[0]
            features = {name: value for name, value in item.features.items() if name in stored}
            digest = hashlib.blake2b(digest_size=16)
            for name in sorted(features):
                digest.update(features[name].tobytes())
            broken = [name for name, value in item.features.items() if not finite(value)]
            if broken:
                bad.append(f"{item.id} ({', '.join(broken)})")
            if features and not any(value.any() for value in features.values()):
                zero.append(item.id)
            elif any(value.ndim == 2 and not value[-1].any() for value in features.values()):
                padded.append(item.id)
            digests.append(digest.digest() if features and zero[-1:] != [item.id] else None)
            progress.advance()
    if bad:
        findings.add(
            "errors", f'split "{split.name}": {_number(len(bad), "image")} with features that are not finite', bad
        )
    if zero:
        findings.add(
            "warnings", f'split "{split.name}": {_number(len(zero), "image")} whose features are all zero', zero
        )
    if padded:
        sentence = f'split "{split.name}": {_number(len(padded), "image")} whose last region is all zero, as padding is'
        findings.add("warnings", sentence + " (import them again to have it dropped)", padded)
    return digests


def _check_text_features(split: Split, findings: Findings) -> None:
    """Whether the text features of the split can be read and are finite."""
    for name in split.text_features:
        array = split.text_feature(name)
        if not all(finite(np.asarray(array[start : start + 1000])) for start in range(0, len(array), 1000)):
            findings.add("errors", f'split "{split.name}": text features "{name}" are not finite')


def _picture_hashes(dataset: Dataset, split: Split) -> list[str | None]:
    """SHA-256 of each picture, from the manifest, which has been held against the files."""
    files = dataset.manifest["files"]
    return [files[f"images/{path.name}"]["sha256"] if path else None for path in split.pictures]


def _check_repeats(name: str, kinds: Mapping[str, Sequence[Hashable | None]], findings: Findings) -> None:
    """One image under two ids of a split."""
    for kind in ("features", "picture"):
        first: dict[Hashable, Any] = {}
        pairs = []
        for image, key in zip(kinds["id"], kinds[kind], strict=True):
            if key is not None and first.setdefault(key, image) != image:
                pairs.append(f"{first[key]} = {image}")
        if pairs:
            findings.add(
                "warnings", f'split "{name}": {_number(len(pairs), "image")} with the {kind} of another one', pairs
            )


def _check_shared(
    former: str,
    latter: str,
    images: Mapping[str, Mapping[str, Sequence[Hashable | None]]],
    captions: Mapping[str, list[str]],
    findings: Findings,
) -> None:
    """What two splits have in common: the same image is an error, the same caption a warning."""
    if former.startswith("test") and latter.startswith("test"):
        return  # COCO's 1,000 test images are part of its 5,000
    names = f'"{former}" and "{latter}"'
    ids = set(images[former]["id"]) & set(images[latter]["id"])
    if ids:
        findings.add("errors", f"{_number(len(ids), 'image id')} in both {names}", sorted(map(str, ids)))
    for kind in ("features", "picture"):
        first = dict(zip(images[former][kind], images[former]["id"], strict=True))
        first.pop(None, None)
        pairs = [
            f"{first[key]} = {image}"
            for key, image in zip(images[latter][kind], images[latter]["id"], strict=True)
            if key in first and image not in ids
        ]
        if pairs:
            findings.add(
                "errors", f"{_number(len(pairs), 'image')} in both {names} under two ids, by their {kind}", pairs
            )
    shared = set(captions[former]) & set(captions[latter]) - {""}
    if shared:
        findings.add(
            "warnings", f"{_number(len(shared), 'caption')} in both {names}", [f'"{_short(c)}"' for c in sorted(shared)]
        )


def main(args: argparse.Namespace) -> int:
    """Print counts, findings and a verdict; 0 if there is no error, else 3."""
    result = check(args.directory, minimum=args.minimum_count, allow_unknown=args.allow_unknown)
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    _print(result)
    return DataError.exit_code if result["errors"] else 0


def _print(result: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("split", title=f"{result['name']} ({result['directory']})")
    for column in ("images", "captions", "an image", "words min / median / max", "pictures"):
        table.add_column(column, justify="right")
    for name, counts in result["splits"].items():
        low, high = counts["captions_per_image"]
        shortest, middle, longest = counts["words"]
        table.add_row(
            name,
            f"{counts['images']:,}",
            f"{counts['captions']:,}",
            f"{low}" if low == high else f"{low} to {high}",
            f"{shortest:,} / {middle:g} / {longest:,}",
            f"{counts['pictures']:,}",
        )
    Console().print(table)
    for key, feature in result["features"].items():
        shape = " x ".join("R" if size is None else f"{size}" for size in feature["shape"])
        print(f"{key}: {shape} {feature['dtype']}")
    print(f"boxes: {'yes' if result['boxes'] else 'no'}")
    for name, entry in result["text_features"].items():
        missing = ", ".join(f"{split} {count:,}" for split, count in entry["missing"].items())
        print(f"text {name}: {entry['shape'][0]} {entry['dtype']} ({entry['kind']}; without a known word: {missing})")
    for name, entry in result["unknown"].items():
        print(f"captions of {name}: {unknown.sentence(Coverage(**entry))}")
    for level in ("errors", "warnings"):
        for sentence in result[level]:
            print(f"{level[:-1]}: {sentence}")
    counts = [_number(len(result[f"{level}s"]), level) for level in ("error", "warning")]
    print(f"verdict: {result['verdict']} ({', '.join(counts)})")
