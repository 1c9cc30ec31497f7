"""Which regions the words of a caption look at: pictures of it, and how often they are the right ones."""

from __future__ import annotations

import argparse
import difflib
import importlib
import json
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from xmodal_jax import models
from xmodal_jax.data.pictures import LARGE, read_picture
from xmodal_jax.data.pipeline import Captions
from xmodal_jax.data.records import Dataset, Split, open_dataset
from xmodal_jax.errors import PICTURES, DataError, UsageError, check_output, require
from xmodal_jax.evaluation.run import Run
from xmodal_jax.inference import Bundle, load
from xmodal_jax.matcher import Matcher
from xmodal_jax.text.vocabulary import UNKNOWN
from xmodal_jax.types import Repr

INK, FAINT, STRANGE, PAPER, BOX = "#1c2733", "#5b6875", "#b3541e", "#ffffff", "#0b6bcb"
COLUMNS, CELL = 7, 1.7  # of the page: pictures side by side, and their width in inches
SIDE = 480  # pixels of a picture, more than a cell has
SHOWN, FAINTEST = 3, 0.02  # regions of a word that are outlined, and how strongly at least


class Pair(NamedTuple):
    """An image and a caption with what there is to draw of them."""

    id: str
    caption: str
    score: float
    words: list[str]
    known: list[bool]  # whether the vocabulary has the word
    weight: np.ndarray  # [R, words]
    boxes: np.ndarray  # [R, 4]
    picture: Path | None
    size: tuple[int, int]  # height, width; (0, 0) = unknown


def with_attention() -> list[str]:
    """Names of the models that have an attention to show."""
    names = [module.name for module in pkgutil.iter_modules(models.__path__)]
    found = {name: importlib.import_module(f"{models.__name__}.{name}").Model for name in names}
    return [name for name, model in found.items() if model.attention is not Matcher.attention]


def check(run: Run) -> None:
    """Raise unless the run's model attends to regions and its data set knows where those are."""
    name = run.config.model.name
    if not run.model.has("attention"):
        raise UsageError(
            f'The model "{name}" of {run.workdir} has no attention between words and regions; '
            f"these have: {', '.join(with_attention())}."
        )
    check_boxes(run.dataset, run.inputs.image, str(run.workdir))


def check_boxes(dataset: Dataset, names: Sequence[str], reader: str) -> None:
    """Raise unless the data set knows where the regions of the features ``names`` are, which ``reader`` reads."""
    if not dataset.manifest["boxes"]:
        raise DataError(
            f"{dataset.directory} carries no boxes, so nobody knows where its regions are; import it again with "
            "SPLIT_boxes.npy beside the features (precomp) or from a bottom-up-attention file (butd)."
        )
    if not any("regions" in dataset.features.get(name, {}) for name in names):
        raise UsageError(
            f"{reader} reads the feature {', '.join(names)}, which has no regions; "
            "train with --config.model.feature=region."
        )


def find_image(dataset: Dataset, id_: str, name: str | None = None) -> tuple[Split, int]:
    """The split (``name`` or any) that holds the image ``id_``, and its row there."""
    splits = [dataset.split(part) for part in ([name] if name else dataset.splits)]
    for split in splits:
        if id_ in split.ids:
            return split, split.ids.index(id_)
    known = [part for split in splits for part in split.ids]
    near = difflib.get_close_matches(id_, known, n=3)
    where = f'split "{name}" of {dataset.directory}' if name else f"{dataset.directory}"
    hint = f"near to it: {', '.join(near)}" if near else f"the first are {', '.join(known[:3])}"
    raise UsageError(f'No image "{id_}" in {where}; {hint}.')


def look(run: Run, variables: Any, split: Split, row: int, caption: str) -> Pair:
    """One image and one caption as the run's model sees them.

    Raises:
        UsageError: a caption without a word.
    """
    vocabulary = run.vocabulary
    assert vocabulary is not None  # a system of words is what attends
    words = vocabulary.split(caption)
    if not words:
        raise UsageError('The caption has no word; give one: --caption "two red squares".')
    reader = run.reader(split.name, boxes=True)
    first = np.zeros(1, np.int64)
    images = reader.images(next(iter(reader.stream(0, 1, lambda _: first + row))), first + row)
    captions = Captions([[caption]], vocabulary, run.config.data.lengths)
    words = words[: captions.lengths[0] - 2]
    if captions.cut:
        print(f"The caption is longer than {max(run.config.data.lengths)} tokens and was cut after {len(words)} words.")
    image = run.evaluator.encode_image(variables, images)
    text = run.evaluator.encode_text(variables, captions.texts(first, first))
    score = float(run.evaluator.score(variables, image, text)[0, 0])
    weight = np.asarray(run.model.apply(variables, image, text, method="attention"))[0, 0]
    real = np.asarray(images.mask)[0]
    known = [token != UNKNOWN for token in vocabulary.encode(caption)[1 : 1 + len(words)]]
    return Pair(
        split.ids[row],
        caption,
        score,
        words,
        known,
        weight[real, 1 : 1 + len(words)],  # <start> stands before the words, <end> and padding behind them
        np.asarray(images.box)[0][real],
        split.pictures[row],
        tuple(split.sizes[row].tolist()),
    )


def look_by(bundle: Bundle, split: Split, row: int, caption: str) -> Pair:
    """One image and one caption as a bundle sees them.

    Raises:
        UsageError: a system without attention, data without what it reads, or a caption without a word.
    """
    item = split.read([row])[0]
    missing = [name for name in bundle.features if name not in item.features]
    if missing:
        raise UsageError(f'{split.dataset.directory} has no feature "{missing[0]}", which {bundle.path} reads.')
    words = bundle.split(caption)
    if not words:
        raise UsageError('The caption has no word; give one: --caption "two red squares".')
    image = bundle.embed_images({name: np.asarray(item.features[name])[None] for name in bundle.features})
    text = bundle.embed_texts([caption])
    words = words[: bundle.length(caption) - 2]
    if bundle.cut(caption):
        print(f"The caption is longer than {max(bundle.lengths)} tokens and was cut after {len(words)} words.")
    strange, boxes = set(bundle.unknown(caption)), np.asarray(item.boxes, np.float32)
    return Pair(
        item.id,
        caption,
        float(bundle.score(image, text)[0, 0]),
        words,
        [word not in strange for word in words],
        bundle.attend(image, text)[0, 0][: len(boxes), 1 : 1 + len(words)],
        boxes,
        item.picture,
        tuple(split.sizes[row].tolist()),
    )


def _canvas(pair: Pair) -> np.ndarray:
    """The picture [H, W, 3] in 0..1, or a tinted sheet of its shape (a square, where that is unknown)."""
    if pair.picture is not None:
        return read_picture(pair.picture, SIDE, LARGE) / 255.0
    height, width = pair.size if min(pair.size) > 0 else (1, 1)
    scale = 240 / max(height, width)
    return np.broadcast_to([0.45, 0.67, 0.93], (max(round(height * scale), 1), max(round(width * scale), 1), 3))


def _pixels(box: np.ndarray, canvas: np.ndarray) -> tuple[float, float, float, float]:
    """Left, top, right and bottom edge of a box in pixels of the canvas, at least one pixel apart."""
    height, width = canvas.shape[:2]
    left, top, right, bottom = (float(edge) for edge in box * [width, height, width, height])
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _lit(canvas: np.ndarray, boxes: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """The canvas faded to white but for the boxes, each as clear as its strength in 0..1; the strongest one counts."""
    clear = np.zeros(canvas.shape[:2])
    for box, level in zip(boxes, strength, strict=True):
        left, top, right, bottom = map(round, _pixels(box, canvas))
        clear[top:bottom, left:right] = np.maximum(clear[top:bottom, left:right], level)
    clear = (0.15 + 0.85 * clear)[..., None]
    return canvas * clear + (1 - clear)


def shorten(word: str, most: int = 15) -> str:
    """What fits over a picture."""
    return word if len(word) <= most else f"{word[: most - 1]}\u2026"


def _outline(axes: Any, box: np.ndarray, canvas: np.ndarray, strength: float) -> None:
    from matplotlib.patches import Rectangle

    left, top, right, bottom = _pixels(box, canvas)
    line: Any = {"fill": False, "edgecolor": BOX, "linewidth": 0.4 + 2 * strength, "alpha": 0.3 + 0.7 * strength}
    axes.add_patch(Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, **line))


def _draw_whole(axes: Any, pair: Pair, canvas: np.ndarray) -> None:
    """The picture, or all regions where there is none."""
    axes.imshow(canvas if pair.picture else np.ones_like(canvas))
    if pair.picture is None:
        axes.set_title("all regions (no picture)", fontsize=8, color=FAINT, pad=3)
        for box in pair.boxes:
            _outline(axes, box, canvas, 0.2)


def strength_of(weight: Float[np.ndarray, "r"]) -> Float[np.ndarray, "r"]:
    """How strongly the regions of a word are drawn: 1 where it looks at one alone, 0 at an even share 1/R or less.

    The scale is that of the service's page and the same for every word, so that one that looks nowhere in particular
    is drawn so.
    """
    if not weight.sum() > 0:
        return np.zeros_like(weight)
    if len(weight) == 1:
        return np.ones_like(weight)
    return np.maximum(0.0, 1 + np.log(np.maximum(weight / weight.sum(), 1e-9)) / np.log(len(weight)))


def _draw_word(axes: Any, pair: Pair, word: int, canvas: np.ndarray) -> None:
    weight, known = pair.weight[:, word], pair.known[word]
    total, top = weight.sum(), weight.max(initial=0.0)
    strength = strength_of(weight)
    axes.imshow(_lit(canvas, pair.boxes, strength))
    order = [int(region) for region in np.argsort(-weight, kind="stable")[:SHOWN] if strength[region] >= FAINTEST]
    for region in reversed(order):
        _outline(axes, pair.boxes[region], canvas, strength[region])
    title = shorten(pair.words[word]) if known else f"{shorten(pair.words[word])} ?"
    axes.set_title(title, fontsize=10, color=INK if known else STRANGE, weight="bold", parse_math=False, pad=3)
    axes.set_xlabel(f"{top / total:.0%}" if total > 0 else "no region", fontsize=8, color=FAINT, labelpad=2)


def draw(pairs: Sequence[Pair], path: Path) -> None:
    """A page of pairs: the picture, then for each word what it looks at.

    Raises:
        UsageError: ``path`` cannot be written.
    """
    for module in ("matplotlib", "PIL"):
        require(module, "train")
    from textwrap import fill

    from matplotlib.figure import Figure

    canvases = [_canvas(pair) for pair in pairs]
    columns = min(COLUMNS, max(4, *(1 + len(pair.words) for pair in pairs)))
    rows = [-(-(1 + len(pair.words)) // columns) for pair in pairs]
    tall = [min(max(canvas.shape[0] / canvas.shape[1], 0.5), 1.5) * CELL + 0.4 for canvas in canvases]
    titles = [fill(pair.caption, 15 * columns) for pair in pairs]
    heads = [0.25 * (title.count("\n") + 1) + 0.3 for title in titles]
    heights = [head + count * height for head, count, height in zip(heads, rows, tall, strict=True)]
    figure = Figure(figsize=(columns * CELL, sum(heights) + 0.3), layout="constrained", facecolor=PAPER)
    blocks: Any = figure.subfigures(len(pairs) + 1, 1, height_ratios=[*heights, 0.3])
    for pair, canvas, title, count, block in zip(pairs, canvases, titles, rows, blocks, strict=False):
        block.suptitle(
            f"{title}\nscore {pair.score:.3f}, image {pair.id}",
            x=0.01,
            ha="left",
            fontsize=10,
            color=INK,
            parse_math=False,
        )
        cells = block.subplots(count, columns, squeeze=False).ravel()
        for axes in cells:
            axes.set(xticks=[], yticks=[])
            for side in axes.spines.values():
                side.set(color="#c5ccd3", linewidth=0.8)
        _draw_whole(cells[0], pair, canvas)
        for word, axes in enumerate(cells[1 : 1 + len(pair.words)]):
            _draw_word(axes, pair, word, canvas)
        for axes in cells[1 + len(pair.words) :]:
            axes.axis("off")
    whole = all(np.allclose(pair.weight.sum(axis=0), 1.0, atol=1e-2) for pair in pairs)
    even = sorted({1 / max(len(pair.boxes), 1) for pair in pairs})
    shares = " to ".join(f"{share:.1%}" for share in dict.fromkeys((even[0], even[-1])))
    note = (
        f"Clearer: the word looks there more; faded where it gives no more than an even share ({shares}), "
        f"clear where it looks nowhere else. Outlined: of its first {SHOWN} regions those above that share. Per cent: "
        "the share of the first."
    )
    if not whole:
        note += " Regions look at words here; each word's weights are divided by their sum."
    if not all(known for pair in pairs for known in pair.known):
        note += ' "?": not in the vocabulary.'
    blocks[-1].text(0.01, 0.5, fill(note, 20 * columns), ha="left", va="center", fontsize=8, color=FAINT)
    try:
        figure.savefig(path, dpi=100)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be written ({error}); give another --out, such as attention.png.") from None


class Accuracy(NamedTuple):
    """Of the words that name an object: how often their most attended region covers such an object."""

    right: float
    chance: float  # of a region drawn at random
    possible: float  # share of the words whose object some region covers
    words: int


def own_attention(run: Run, variables: Any, images: Repr, texts: Repr, owner: np.ndarray) -> np.ndarray:
    """The attention [C, R, W] of each caption with its own image, caption c being that of image ``owner[c]``."""

    @jax.jit
    def every(variables: Any, images: Repr, texts: Repr, owner: Any) -> jax.Array:
        def attend_pair(pair: tuple[jax.Array, Repr]) -> jax.Array:
            image = jax.tree.map(lambda leaf: leaf[pair[0]][None], images)
            text = jax.tree.map(lambda leaf: leaf[None], pair[1])
            weight: Any = run.model.apply(variables, image, text, method="attention")
            return weight[0, 0]

        return jax.lax.map(attend_pair, (owner, texts), batch_size=64)

    return np.asarray(every(variables, images, texts, owner))


def word_accuracy(attention: np.ndarray, truth: Iterable[Mapping[str, Any]]) -> Accuracy:
    """Hold attention [C, R, W] against the truth of the built-in scenes; regions that tie for the most share a word.

    Args:
        attention: of all captions of the images in ``truth``, in their order; column 0 is ``<start>``.
        truth: for each image "regions", the object that each region covers (-1: none), and "words", for each caption
            the pairs (index of the word, object that it names).
    """
    rows: list[tuple[float, float, float]] = []
    caption = 0
    for line in truth:
        covers = np.asarray(line["regions"])
        for named in line["words"]:
            objects: dict[int, list[int]] = {}
            for place, word in named:
                objects.setdefault(place, []).append(word)
            for place, word in objects.items():
                if place + 2 < attention.shape[2]:  # else the caption was cut before this word, and <end> stands here
                    weight, right = attention[caption, : len(covers), place + 1], np.isin(covers, word)
                    rows.append((right[weight == weight.max()].mean(), right.mean(), float(right.any())))
            caption += 1
    right, chance, possible = np.mean(rows or [(0.0, 0.0, 0.0)], axis=0).tolist()
    return Accuracy(right, chance, possible, len(rows))


def read_truth(split: Split) -> list[dict[str, Any]]:
    """The lines of ``SPLIT.truth.jsonl``, which the built-in scenes have."""
    path = split.dataset.directory / f"{split.name}.truth.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main(args: argparse.Namespace) -> int:
    """`xmodal attend`: the picture of one image and one caption."""
    check_output("--out", args.out, PICTURES)

    def find(dataset: Dataset) -> tuple[Split, int, str]:
        split, row = find_image(dataset, args.image, args.split)
        return split, row, next(iter(split.captions[row]), "") if args.caption is None else args.caption

    if args.bundle:
        if args.data is None or args.step is not None:
            raise UsageError("--bundle needs --data, a prepared data set, and has no --step.")
        bundle, dataset = load(args.bundle), open_dataset(args.data)
        check_boxes(dataset, list(bundle.features), str(args.bundle))
        split, row, caption = find(dataset)
        pair, where = look_by(bundle, split, row, caption), ""
    else:
        run = Run(args.workdir, args.data)
        check(run)
        split, row, caption = find(run.dataset)
        step = run.step(args.step)
        pair, where = look(run, run.variables(step)[0], split, row, caption), f" at step {step:,}"
    draw([pair], args.out)
    strange = [word for word, known in zip(pair.words, pair.known, strict=True) if not known]
    if strange:
        print(f"not in the vocabulary of {args.bundle or args.workdir}: {', '.join(strange)}")
    print(f"{args.out}: score {pair.score:.3f}{where}, split {split.name}")
    return 0
