"""`xmodal search`: a sentence or an image against a gallery."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from xmodal_jax.errors import DataError, UsageError
from xmodal_jax.inference.gallery import Gallery
from xmodal_jax.inference.search import Hit, Searcher


def printable(text: str) -> str:
    """One line without control characters, which a terminal would obey."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def table(hits: Sequence[Hit], width: int) -> list[str]:
    """Lines of at most ``width`` columns: rank, score, id and a caption."""
    ids = [printable(hit.id) for hit in hits]
    longest = min(max(map(len, ids), default=2), 40)
    lines = [f"{'rank':>4}  {'score':>8}  {'id':<{longest}}  caption"]
    for hit, id_ in zip(hits, ids, strict=True):
        caption = printable(hit.captions[0]) if hit.captions else "-"
        more = f"  (+{len(hit.captions) - 1})" if len(hit.captions) > 1 else ""
        start = f"{hit.rank:>4}  {hit.score:>8.4f}  {id_[:longest]:<{longest}}  "
        room = max(width - len(start) - len(more), 20)
        lines.append(start + (caption if len(caption) <= room else f"{caption[: room - 3]}...") + more)
    return lines


def _image_of(gallery: Gallery, name: str) -> int | str:
    row = gallery.row(name)
    if row is not None:
        return row
    if not Path(name).is_file():
        raise DataError(f'"{name}" is neither an image of {gallery.path} nor a file; give an id or a picture.')
    if not gallery.bundle.takes_pictures:
        raise UsageError(
            f"The bundle in {gallery.path} reads features ({', '.join(gallery.bundle.features)}) and cannot make them "
            "from a picture; name an image of the gallery by its id."
        )
    return name


def main(args: argparse.Namespace) -> int:
    """`xmodal search`: a sentence or an image against a gallery; or what re-ranking keeps (``--measure``)."""
    if sum((args.text is not None, args.image is not None, args.measure)) != 1:
        raise UsageError("Give a sentence, or --image, or --measure.")
    try:
        rerank = args.rerank if args.rerank in (None, "all") else int(args.rerank)
    except ValueError:
        rerank = args.rerank
    if args.similar and args.image is None:
        raise UsageError("--similar is for the images like one: give --image.")
    gallery = Gallery(args.gallery, pictures=args.pictures)
    searcher = Searcher(gallery, engine=args.engine, rerank=rerank)
    if args.measure:
        from xmodal_jax.inference.measure import measure, print_measured

        rows = measure(searcher)
        print(json.dumps(rows, indent=1)) if args.json else print_measured(rows)
        return 0
    unknown: list[str] = []
    cut = 0
    if args.similar:
        searcher.check_likeness()
        side, hits = gallery.images, searcher.by_likeness(_image_of(gallery, args.image), args.k)
    elif args.image is not None:
        side, hits = gallery.texts, searcher.by_image(_image_of(gallery, args.image), args.k)
    else:
        side, hits = gallery.images, searcher.by_text([args.text], args.k)[0]
        unknown, cut = searcher.unknown(args.text), gallery.bundle.cut(args.text)
        searcher.check_known(args.text)
    scored = searcher.scored(side, args.k)
    if gallery.note and args.json:
        print(printable(gallery.note), file=sys.stderr)
    if args.json:
        query = {"text": args.text} if args.image is None else {"image": args.image}
        facts = {"query": query, "unknown": unknown, "cut": cut, "scored": scored, "of": len(side)}
        print(json.dumps({**facts, "hits": [hit._asdict() for hit in hits]}, indent=1))
        return 0
    if scored < len(side):
        print(
            f"scored in full: the {scored:,} of {len(side):,} {side.name} that a coarse search puts first; --rerank "
            "all scores every one",
            file=sys.stderr,
        )
    if unknown:
        print(f"not in the vocabulary: {printable(', '.join(unknown))}", file=sys.stderr)
    if cut:
        most = max(gallery.bundle.lengths)
        print(f"the sentence is cut: its last {cut:,} tokens are not read, only {most:,} are", file=sys.stderr)
    print("\n".join(table(hits, shutil.get_terminal_size().columns)))
    return 0
