"""Semantic words of captions: which there are, the forms each comes in, and which of them an image's captions hold.

SCO (Huang et al., CVPR 2018) takes the K most frequent nouns, verbs, adjectives and numbers of the training captions,
with tenses and plurals merged. Its tagger and its list are not published. [reconstruction] Here words of all other
classes are left out by a list, :data:`FUNCTION`, and forms are merged by rules that believe in a base form only where
the captions have it too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from xmodal_jax.errors import DataError
from xmodal_jax.text.tokens import tokenize

_FUNCTION = """
a an the this that these those some any each every either neither both all half such same other others another several
many much more most few less lot lots no not none enough own
i me my mine you your yours he him his she her hers it its we us our ours they them their theirs itself himself herself
themselves one ones someone somebody something anyone anything everyone everything nobody nothing
who whom whose which what where when while why how whether
and or but nor so yet if because although though than as
at by for from in into of off on onto to with without within through throughout across along among amongst around about
above below over under underneath beneath beside besides between behind beyond near nearby next against toward towards
past during before after until till since whilst up upon upside down out outside inside amid via per like unlike
is are was were be been being am has have had having do does did doing done can could will would shall should may might
must cannot get gets getting got s t m d re ve ll n't 's 're 've 'll 'm 'd
there here away back together apart forward backward backwards forwards ahead aside sideways very too also just only
even almost nearly still already again then now once ever never always often perhaps maybe really quite rather
apparently seemingly possibly probably else instead however well etc
"""
IRREGULAR = {
    "people": "person", "persons": "person", "men": "man", "women": "woman", "children": "child", "feet": "foot",
    "teeth": "tooth", "mice": "mouse", "geese": "goose", "wolves": "wolf", "leaves": "leaf", "knives": "knife",
    "shelves": "shelf", "ran": "run", "sat": "sit", "stood": "stand", "held": "hold", "lying": "lie", "lay": "lie",
    "laying": "lie", "wore": "wear", "worn": "wear", "caught": "catch", "threw": "throw", "thrown": "throw",
    "rode": "ride", "ridden": "ride", "swam": "swim", "took": "take", "taken": "take", "made": "make", "went": "go",
    "gone": "go", "fell": "fall", "fallen": "fall", "drove": "drive", "driven": "drive", "ate": "eat", "eaten": "eat",
    "flew": "fly", "flown": "fly", "slept": "sleep", "swung": "swing", "spoke": "speak", "gave": "give",
    "given": "give", "blew": "blow", "blown": "blow", "hung": "hang", "fought": "fight", "kept": "keep",
    "broke": "break", "broken": "break", "drew": "draw", "drawn": "draw", "tying": "tie",
}  # fmt: skip
_WHOLE = """
building clothing railing ceiling evening morning wedding earring painting lighting meeting crossing crowd string
ring king wing thing spring sibling sling shorts jeans pants glasses sunglasses clothes news canvas christmas lens
tennis gymnastics bus grass dress boss chess red bed shed sled speed seed bleed hundred naked colored coloured legged
haired tired bored united blind overalls stairs series species goggles binoculars scissors
"""
FUNCTION = frozenset(_FUNCTION.split())
WHOLE = frozenset(_WHOLE.split())  # look like a form of another word and are none
VOWEL = re.compile("[aeiouy]")
SHORT = re.compile(
    "(^|[^aeiou])[aeiouy][^aeiouwxy]$"
)  # its last letter would be doubled: biting is of bite, not of bit


def candidates(word: str) -> list[list[str]]:
    """What ``word`` may be a form of, by English spelling alone: likelier bases first, equally likely ones together."""

    def stems(stem: str) -> list[list[str]]:  # of -ing and -ed
        if len(stem) < 2 or not VOWEL.search(stem):
            return []
        if SHORT.search(stem):
            return [[f"{stem}e"], [stem]]
        double = len(stem) > 2 and stem[-1] == stem[-2]
        return [[stem, f"{stem}e", *([stem[:-1]] if double else [])]]

    if word.endswith("ing"):
        return stems(word[:-3])
    if word.endswith("ied") or word.endswith("ies"):
        return [[f"{word[:-3]}y", word[:-1]]]
    if word.endswith("ed") and not word.endswith("eed"):
        return stems(word[:-2])
    if word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
        longer = word.endswith(("ses", "xes", "zes", "ches", "shes", "oes"))
        return [[word[:-1], *([word[:-2]] if longer else [])]]
    return []


class Concepts:
    """The K words that are looked for, each with its forms.

    Args:
        forms: of each concept, its name first.
    """

    def __init__(self, forms: Sequence[Sequence[str]]):
        self.forms = [list(words) for words in forms]
        self.names = [words[0] for words in self.forms]
        self.place = {word: place for place, words in enumerate(self.forms) for word in words}

    def __len__(self) -> int:
        return len(self.forms)

    def of(self, captions: Iterable[Sequence[str]]) -> Float[np.ndarray, "n k"]:
        """1 where any caption of an image has any form of the word, else 0."""
        rows = [
            {self.place[word] for text in texts for word in tokenize(text) if word in self.place} for texts in captions
        ]
        labels = np.zeros((len(rows), len(self)), np.float32)
        for row, places in enumerate(rows):
            labels[row, list(places)] = 1.0
        return labels

    def text(self) -> str:
        """As a file that people read and edit: a concept a line, its name and further forms with spaces between."""
        return "".join(" ".join(words) + "\n" for words in self.forms)


def frequent(captions: Iterable[str], count: int) -> Concepts:
    """The ``count`` most frequent semantic words of captions, equally frequent ones in order of the alphabet.

    A word is a form of another that the captions have at least once, of several that of which they have most.

    Raises:
        DataError: there are fewer.
    """
    seen = Counter(word for text in captions for word in tokenize(text))
    words = {word: n for word, n in seen.items() if re.fullmatch(r"[^\W\d_][\w'-]+", word) and word not in FUNCTION}
    forms: dict[str, Counter[str]] = {}
    for word, number in words.items():
        forms.setdefault(base_form(word, words), Counter())[word] += number
    order = sorted(forms, key=lambda base: (-forms[base].total(), base))[:count]
    if len(order) < count:
        raise DataError(
            f"The training captions have {len(order):,} semantic words, not {count:,}; give a smaller --count."
        )
    return Concepts([[base, *sorted(set(forms[base]) - {base})] for base in order])


def base_form(word: str, counts: Mapping[str, int]) -> str:
    """The word that ``word`` is a form of among those that are counted, or itself."""
    if word in IRREGULAR:
        return IRREGULAR[word]
    for bases in [] if word in WHOLE else candidates(word):
        known = [base for base in bases if base in counts]
        if known:
            return max(known, key=counts.__getitem__)
    return word


def read_concepts(path: Path) -> Concepts:
    """Concepts of a file like that of :meth:`Concepts.text`; lines that are empty or begin with # are left out.

    Raises:
        DataError: no such file, no word in it, or a word that is there twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: cannot be read as UTF-8 text ({getattr(error, 'strerror', None) or error})."
        ) from None
    forms = [line.lower().split() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not forms:
        raise DataError(f"{path}: no word in it; write a concept a line, its name and further forms.")
    twice = [word for word, number in Counter(word for words in forms for word in words).items() if number > 1]
    if twice:
        raise DataError(f'{path}: "{twice[0]}" is in it twice; a word belongs to one concept.')
    return Concepts(forms)
