"""Which name of a feature file, a TSV or a folder belongs to which image.

Both sides are brought into the same forms, from the name as it is written to the number in it. The first form in which
a name and an image agree counts, so that a shortened name never takes the place of a whole one. Where two fit equally
well nothing is guessed: the import stops and says which.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from xmodal_jax.errors import DataError

Names = Sequence[Sequence[str]]  # of one image: groups that mean different things, as its file names and its number
ENDING = re.compile(r"\.(jpe?g|jpe|jfif|png|webp|gif|bmp|tiff?|ppm|pgm|jp2|heic|avif|npy|npz)$", re.IGNORECASE)
FORMS = ("as it is written", "but for Unicode form and case of the ending", "without folders", "without ending")
NUMBER = len(FORMS)  # the weakest form: the number, without leading zeros and COCO's prefix

MATCH = ", or say with --match which name of the images is meant"


class Fit(NamedTuple):
    """One agreement of an image and a name: where the name is, and in which form."""

    place: int
    form: int
    group: int


def forms(name: str) -> tuple[str, ...]:
    """``name`` in each of the FORMS, and as a number ("" where it is none)."""
    tidy = unicodedata.normalize("NFC", name.strip()).replace("\\", "/").removeprefix("./")
    tidy = ENDING.sub(lambda ending: ending[0].lower(), tidy)
    base = tidy.rpartition("/")[2]
    stem = ENDING.sub("", base)
    number = re.fullmatch(r"(?:COCO_\w+_)?0*(\d+)", stem, re.ASCII)
    return name.strip(), tidy, base, stem, number[1] if number else ""


class Index:
    """The names of what an import finds features or pictures under; ``where`` is their file or folder."""

    def __init__(self, names: Sequence[str], where: str):
        self.names, self.where = list(names), where
        self.tables: list[dict[str, list[int]]] = [{} for _ in range(NUMBER + 1)]
        for place, name in enumerate(self.names):
            for table, key in zip(self.tables, forms(name), strict=True):
                if key:
                    table.setdefault(key, []).append(place)

    def find(self, image: Names) -> Fit | None:
        """The one name that fits ``image``; DataError where two do.

        A number that agrees counts only where no other form does. Its file names and its number are asked apart, as
        the number of one image may be the file name of another.
        """
        fits = [(form, places, group) for group, names in enumerate(image) for form, places in self._first(names)]
        fits = [fit for fit in fits if fit[0] < NUMBER] or fits
        places = sorted({place for _, found, _ in fits for place in found})
        if len(places) > 1:
            first, second = (self.names[place] for place in places[:2])
            raise DataError(
                f'{self.where}: "{first}" and "{second}" both fit image "{image[0][-1]}"; rename one of them or '
                f"take it away{MATCH if len(image) > 1 else ''}."
            )
        return Fit(places[0], fits[0][0], fits[0][2]) if places else None

    def _first(self, names: Sequence[str]) -> list[tuple[int, list[int]]]:
        written = [forms(name) for name in names]
        for form, table in enumerate(self.tables):
            for keys in written:
                if keys[form] in table:
                    return [(form, table[keys[form]])]
        return []

    def match(self, images: Sequence[Names]) -> tuple[list[int | None], str]:
        """For each image the place of its name, and a sentence that says by which forms; DataError where two fit."""
        result: list[int | None] = [None] * len(images)
        taken: dict[int, tuple[int, Fit]] = {}
        for number, image in enumerate(images):
            fit = self.find(image)
            if fit is None:
                continue
            if fit.place in taken:
                other, before = taken[fit.place]
                if _equal(fit, before):
                    raise DataError(
                        f'{self.where}: "{self.names[fit.place]}" fits image "{images[other][0][-1]}" and image '
                        f'"{image[0][-1]}"; write it as one of them is written{MATCH if len(image) > 1 else ""}.'
                    )
                if before.form < fit.form:
                    continue
                result[other] = None
            taken[fit.place] = number, fit
            result[number] = fit.place
        counts = Counter(fit.form for _, fit in taken.values())
        how = [f"{count:,} {(*FORMS, 'by number')[form]}" for form, count in sorted(counts.items())]
        return result, f"{self.where}: {len(taken):,} of {len(images):,} images found by name, {', '.join(how)}"


def _equal(first: Fit, second: Fit) -> bool:
    """Whether neither agreement is better: the same form, or two kinds of name of which none is a mere number."""
    return first.form == second.form or (first.group != second.group and max(first.form, second.form) < NUMBER)
