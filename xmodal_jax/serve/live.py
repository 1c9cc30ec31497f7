"""What is served now: a gallery with everything compiled, replaced as a whole when it changes on disk."""

from __future__ import annotations

import contextlib
import io
import itertools
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xmodal_jax.data.pictures import LARGE, read_picture
from xmodal_jax.errors import CheckpointError, DataError, UsageError, XmodalError
from xmodal_jax.inference import layout
from xmodal_jax.inference.functions import take
from xmodal_jax.inference.gallery import AGAIN, FORMAT, VERSION, Gallery, Side
from xmodal_jax.inference.search import Hit, Searcher
from xmodal_jax.inference.shapes import SIZES, WORDS, rounded
from xmodal_jax.serve.batcher import BATCH

SIDE = 1024  # pixels; a larger picture is made smaller before its features are computed
SENTENCE, SAMPLES = 80, 12  # characters of an example, and how many images are shown beside
LOOK = 2.0  # seconds between looks at the manifest


class State:
    """One gallery, ready to answer; the methods that take lists are called by the batcher's thread alone."""

    def __init__(self, gallery: Gallery, searcher: Searcher):
        self.gallery, self.searcher = gallery, searcher
        self.count = len(gallery.images)
        self.system = gallery.bundle.system
        self.pixels = gallery.bundle.takes_pictures
        functions = gallery.bundle.manifest["functions"]
        boxes = gallery.images.boxes is not None
        self.steps = "glimpses" in functions and "attention" not in functions  # whether not words look, but steps
        self.blind = self._lacking() if boxes and self.steps and self.count else ""
        self.attends = boxes and ("attention" in functions or self.steps) and not self.blind
        self.speaks_of_images, self.speaks_of_sentences = "begin_image" in functions, "begin_text" in functions

    def facts(self) -> dict[str, Any]:
        """What the page needs to know."""
        return {
            "gallery": self.gallery.fingerprint[:12],
            "data": self.gallery.manifest["data"]["name"],
            "system": self.system,
            "images": self.count,
            "captions": len(self.gallery.texts),
            "pixels": self.pixels,
            "attention": self.attends,
            "steps": self.steps,
            "similar": self.searcher.likens,
            "speaks_of_images": self.speaks_of_images,
            "speaks_of_sentences": self.speaks_of_sentences,
        }

    def _lacking(self) -> str:
        """Why what steps look at, features that a gallery does not hold, cannot be had; nothing where it can."""
        try:
            self.gallery.features(0)
        except (DataError, UsageError, OSError) as error:
            return str(error)
        return ""

    # Answers

    def by_text(self, asked: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
        """Ranked images of sentences."""
        most = max(k for _, k in asked)
        ranked = self.searcher.by_text([text for text, _ in asked], most)
        return [
            {
                "kind": "images",
                "unknown": self.gallery.bundle.unknown(text),
                "cut": self.gallery.bundle.cut(text),
                **self._scored(self.gallery.images, most),
                "hits": [self._image(hit) for hit in hits[:k]],
            }
            for (text, k), hits in zip(asked, ranked, strict=True)
        ]

    def by_item(self, asked: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        """Ranked captions of the gallery's images."""
        answers = []
        for row, k in asked:
            captions = set(self.gallery.images.lines[row]["captions"])
            hits = self.searcher.by_image(row, k)
            found = [self._caption(hit) | {"own": hit.row in captions} for hit in hits]
            answers.append({"kind": "captions", **self._scored(self.gallery.texts, k), "hits": found})
        return answers

    def by_likeness(self, asked: Sequence[tuple[Any, int]]) -> list[dict[str, Any]]:
        """Ranked images that are like the gallery's, by their rows, or like new pictures."""
        return [
            {
                "kind": "images",
                "scored": self.count,
                "of": self.count,
                "hits": [self._image(hit) for hit in self.searcher.by_likeness(image, k)],
            }
            for image, k in asked
        ]

    def by_picture(self, asked: Sequence[tuple[Any, int]]) -> list[dict[str, Any]]:
        """Ranked captions of new pictures, as :meth:`read` gives them."""
        return [
            {
                "kind": "captions",
                **self._scored(self.gallery.texts, k),
                "hits": [self._caption(hit) for hit in self.searcher.by_image(pixels, k)],
            }
            for pixels, k in asked
        ]

    def attend(self, asked: Sequence[tuple[int, str]]) -> list[dict[str, Any]]:
        """Words, boxes and, for each word, its share of attention to each region; of a system whose steps look, the
        shares of each step, and under ``steps`` those of its attention to the words."""
        answers = []
        for row, text in asked:
            image, bundle = self.gallery.images.take([row]), self.gallery.bundle
            sentence, words = bundle.embed_texts([text]), bundle.split(text)[: bundle.length(text) - 2]
            spoken, steps = slice(1, 1 + len(words)), {}  # between <start>, and <end> and padding
            if self.steps:
                weight, seen = self._glimpses(row, text)
                steps = {"steps": np.round(seen[:, spoken].astype(np.float64), 4).tolist()}
            else:
                weight = bundle.attend(image, sentence)[0, 0][:, spoken]
            assert self.gallery.images.boxes is not None  # else nothing attends
            boxes = self.gallery.images.boxes[row].astype(np.float32)
            real = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
            shown = weight[: len(boxes)][real[: len(weight)]]
            share = shown / np.maximum(shown.sum(axis=0, keepdims=True), 1e-12)
            answers.append(
                {
                    "words": words,
                    **steps,
                    "boxes": np.round(boxes[real].astype(np.float64), 4).tolist(),
                    "weights": np.round(share.T.astype(np.float64), 4).tolist(),
                    "uniform": round(1 / max(int(real.sum()), 1), 4),
                    "score": float(bundle.score(take(image, slice(0, 1)), sentence)[0, 0]),
                    "unknown": bundle.unknown(text),
                    "cut": bundle.cut(text),
                }
            )
        return answers

    def _glimpses(self, row: int, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Weights [R, K] and [K, W] of the steps."""
        try:
            features, mask = self.gallery.features(row)
        except (DataError, OSError) as error:  # of the data set, not of the question
            raise CheckpointError(str(error)) from None
        regions, words = self.gallery.bundle.glimpses(features, [text], mask)
        return regions[0, 0].T, words[0, 0]

    def caption(self, asked: Sequence[Any]) -> list[dict[str, Any]]:
        """What the system says of new pictures, as :meth:`read` gives them."""
        bundle = self.gallery.bundle
        given = [
            {name: value[None] for name, value in picture.items()} if isinstance(picture, Mapping) else [picture]
            for picture in asked
        ]
        return [{"caption": bundle.caption(picture)[0]} for picture in given]

    def paraphrase(self, asked: Sequence[str]) -> list[dict[str, Any]]:
        """Sentences in the system's words."""
        bundle = self.gallery.bundle
        return [
            {"paraphrase": said, "unknown": bundle.unknown(text), "cut": bundle.cut(text)}
            for text, said in zip(asked, bundle.paraphrase(asked), strict=True)
        ]

    def warm(self) -> None:
        """Compile what is not a search, for every shape that requests have."""
        bundle = self.gallery.bundle
        if self.attends and self.count:
            longest = max(bundle.lengths)
            texts = [text for text in ("a " * count for count in range(1, longest + 1)) if not bundle.cut(text)]
            for text in {rounded(bundle.length(text), longest): text for text in texts}.values():
                self.attend([(0, text)])
        if self.pixels:
            most = bundle.manifest["regions"]
            shapes = {name: [most if n == "regions" else n for n in shape] for name, shape in bundle.features.items()}
            kind = {name: np.uint8 if len(shape) == 3 else np.float32 for name, shape in shapes.items()}
            picture = {name: np.ones((1, *shape), kind[name]) for name, shape in shapes.items()}
            if bundle.manifest.get("backbone"):  # its image network is read and compiled by the first picture
                bundle.extract([np.zeros((8, 8, 3), np.uint8)])
            bundle.embed_images(picture)
            if self.speaks_of_images:
                bundle.caption(picture)
        if self.speaks_of_sentences:
            longest = max(bundle.lengths)
            widths = {min(WORDS << doubled, longest) for doubled in range(longest.bit_length())}
            for size, width in itertools.product((size for size in SIZES if size <= BATCH), widths):
                bundle.paraphrase(["a " * (width - 2)] * size)  # and its start and end

    def read(self, body: bytes) -> Any:
        """What is kept of an uploaded picture until its turn: what the system reads of it, or its pixels made small."""
        bundle = self.gallery.bundle
        return (
            {name: value[0] for name, value in bundle.extract([body])[0].items()}
            if bundle.reading
            else (read_picture(body, SIDE))
        )

    def as_png(self, path: Path) -> bytes:
        """A picture of the gallery for a browser that does not show its format."""
        from PIL import Image

        body = io.BytesIO()
        Image.fromarray(read_picture(path, SIDE, LARGE)).save(body, "PNG")
        return body.getvalue()

    def describe(self, row: int) -> dict[str, Any]:
        """An image with its captions."""
        line = self.gallery.images.lines[row]
        texts = self.gallery.texts.lines
        captions = [texts[place]["caption"] for place in line["captions"]]
        known = {"row": row, "id": line["id"], "captions": captions, "picture": self.picture(row) is not None}
        return known | {"size": line.get("size", [0, 0]), "said": line.get("said")}

    def picture(self, row: int) -> Path | None:
        """Where the picture of an image may be read; None also where its path leads out of the data set by a link."""
        try:
            return self.gallery.picture(row)
        except DataError:
            return None

    def examples(self) -> dict[str, Any]:
        """Sentences that this gallery has an answer to, and some of its images, spread over it."""
        texts, bundle = self.gallery.texts.lines, self.gallery.bundle
        rows = np.linspace(0, len(texts) - 1, 50).astype(int) if texts else []
        captions = [texts[row]["caption"] for row in rows]
        fit = [text for text in captions if 0 < len(text) <= SENTENCE and not bundle.unknown(text)]
        images = np.unique(np.linspace(0, self.count - 1, SAMPLES).astype(int)) if self.count else []
        return {"sentences": list(dict.fromkeys(fit))[:3], "images": [self.describe(int(row)) for row in images]}

    def _scored(self, side: Side, k: int) -> dict[str, int]:
        return {"scored": self.searcher.scored(side, k), "of": len(side)}

    def _image(self, hit: Hit) -> dict[str, Any]:
        known = self.describe(hit.row)
        return {**known, "captions": known["captions"][:1], "score": round(float(hit.score), 4)}

    def _caption(self, hit: Hit) -> dict[str, Any]:
        line = self.gallery.texts.lines[hit.row]
        return {"row": hit.row, "caption": line["caption"], "item": line["image"], "score": round(float(hit.score), 4)}


def open_state(
    path: Path, engine: str = "exact", rerank: int | str | None = None, pictures: Path | None = None
) -> State:
    """A gallery whose answers are compiled and tried; its data set lies in ``pictures``, if that is given.

    Raises:
        XmodalError: as the gallery and the engine do.
    """
    gallery = Gallery(path, pictures=pictures)
    if gallery.note:
        print(f"serve: {gallery.note}", file=sys.stderr, flush=True)
    searcher = Searcher(gallery, engine=engine, rerank=rerank)
    state = State(gallery, searcher)
    if state.blind:
        print(f"serve: what the steps look at is not shown: {state.blind}", file=sys.stderr, flush=True)
    searcher.warm()
    for k in (50, 1000):  # more candidates are scored at once
        searcher.warm(most=1, k=k)
    state.warm()
    return state


def _seen(path: Path, manifest: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells a look at a gallery on disk from the one before: files that are still being copied change it."""
    names = sorted(manifest["files"])
    files = [path / name for name in names]
    stats = [file.stat() if file.is_file() else None for file in files]
    return manifest["sha256"], *((stat.st_size, stat.st_mtime_ns, stat.st_ino) if stat else None for stat in stats)


class Live:
    """The state that answers now. A gallery that is replaced on disk replaces it when it is ready, in one assignment.

    Args:
        path: the gallery.
        open: makes a state of it.
    """

    def __init__(self, path: Path, open: Callable[[Path], State] = open_state):
        self.path, self._open = path, open
        self.state = open(path)
        self.swaps = 0
        self._refused: Any = None  # what was on disk when it was last found broken
        self._told = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="gallery", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(LOOK):
            with contextlib.suppress(Exception):  # even where nothing can be printed any more
                self.look()

    def look(self) -> bool:
        """Take up a gallery that has changed; whether one was taken up. A broken one leaves the old one in place."""
        try:
            manifest = layout.read_manifest(self.path, FORMAT, VERSION, AGAIN)
            if manifest["sha256"] == self.state.gallery.fingerprint:
                return False
            found = _seen(self.path, manifest)
            if found == self._refused:
                return False
            self._refused = found
            self.state = self._open(self.path)
            self.swaps += 1
            self._tell(f"{self.path} has changed: {self.state.count:,} images now")
            return True
        except Exception as error:  # in the middle of being replaced, or damaged in any way; the next look may do
            reason = str(error) if isinstance(error, XmodalError | OSError) else f"{type(error).__name__}: {error}"
            self._tell(f"still the old gallery ({reason})")
            return False

    def _tell(self, line: str) -> None:
        """Print what has not just been printed."""
        if line != self._told:
            self._told = line
            print(f"serve: {line}", file=sys.stderr, flush=True)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
