"""Captions: a small grammar that says true things about a scene, and which word speaks of which object.

A phrase is a list of atoms ``(word, objects)``: one token of the tokenizer with the indices of the objects it
describes. Phrases are joined into a sentence, spelled with some variety of case and punctuation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from xmodal_jax.data.scenes.world import Scene, Thing, stream

CAPTIONS = 5
Phrase = list[tuple[str, tuple[int, ...]]]

SHAPE_WORDS = {
    "circle": ("circle", "circle", "disc", "ball"),
    "square": ("square", "square", "box", "block"),
    "triangle": ("triangle", "triangle", "pyramid"),
    "star": ("star",),
    "cross": ("cross", "cross", "plus"),
    "ring": ("ring", "ring", "hoop", "donut"),
    "heart": ("heart",),
    "moon": ("moon", "crescent"),
}
PLURALS = {"cross": "crosses", "box": "boxes", "plus": "pluses", "disc": "discs"}
COLOUR_WORDS = {
    "red": ("red", "red", "crimson"),
    "orange": ("orange",),
    "yellow": ("yellow", "yellow", "golden"),
    "green": ("green", "green", "emerald"),
    "blue": ("blue", "blue", "azure"),
    "purple": ("purple", "violet"),
    "white": ("white", "white", "pale"),
    "black": ("black", "black", "dark"),
}
TEXTURE_WORDS = {
    "plain": ("plain", "solid"),
    "striped": ("striped", "striped", "stripy"),
    "dotted": ("dotted", "spotted", "polka-dot"),
    "checkered": ("checkered", "checked"),
}
TEXTURE_NOUNS = {"striped": "stripes", "dotted": "dots", "checkered": "checks"}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
PLACE_WORDS = {
    "sky": ("in the sky", "against the sky", "up in the air", "among the clouds"),
    "grass": ("on the grass", "on a lawn", "in a meadow", "on the lawn"),
    "sand": ("on the sand", "on a beach", "at the beach", "in the desert"),
    "night": ("at night", "in the night sky", "in space", "after sunset"),
    "snow": ("in the snow", "on snow", "on the ice", "in winter"),
    "table": ("on a table", "on a wooden table", "on the desk", "on wooden boards"),
}
RELATION_WORDS = {
    "left": ("left of", "left of", "to the left of"),
    "right": ("right of", "right of", "to the right of"),
    "above": ("above", "over", "higher than"),
    "below": ("below", "under", "beneath", "lower than"),
    "near": ("next to", "beside", "near", "close to"),
    "far": ("far from", "away from"),
}
NUMBERS = ("zero", "one", "two", "three", "four", "five")
OPENINGS = (*[""] * 20, "there is", "there 's", "here is", "we see", "a picture of", "this shows", "look ,")
GLUED = {",", ".", "!", ";", ":", "'s"}  # written without a space before


class Caption(NamedTuple):
    """A caption's text and ``words``: pairs (index of the token, index of the object it speaks of)."""

    text: str
    words: list[tuple[int, int]]


def say(text: str, *objects: int) -> Phrase:
    return [(word, objects) for word in text.split()]


def relations(a: Thing, b: Thing) -> list[str]:
    """Every relation that clearly holds from ``a`` to ``b``."""
    right, down = a.x - b.x, a.y - b.y
    apart = float(np.hypot(right, down))
    tests = {
        "left": -right > max(0.15, 0.8 * abs(down)),
        "right": right > max(0.15, 0.8 * abs(down)),
        "above": -down > max(0.15, 0.8 * abs(right)),
        "below": down > max(0.15, 0.8 * abs(right)),
        "near": apart < a.radius + b.radius + 0.08,
        "far": apart > 0.6,
    }
    return [name for name, holds in tests.items() if holds]


def corner(thing: Thing) -> str:
    """Where in the picture the object clearly is, or an empty string."""
    across = "left" if thing.x < 0.32 else "right" if thing.x > 0.68 else ""
    along = "top" if thing.y < 0.32 else "bottom" if thing.y > 0.68 else ""
    if across and along:
        return f"in the {along} {across} corner"
    if across:
        return f"on the {across} side"
    if along:
        return f"at the {along}"
    return "in the middle" if max(abs(thing.x - 0.5), abs(thing.y - 0.5)) < 0.12 else ""


def plural(noun: str) -> str:
    return PLURALS.get(noun, noun + "s")


class Writer:
    """Writes one caption of a scene with its own random numbers."""

    def __init__(self, scene: Scene, rng: np.random.Generator):
        self.scene, self.things, self.rng = scene, scene.things, rng

    def pick(self, choices: Sequence[str]) -> str:
        return choices[int(self.rng.integers(len(choices)))]

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def pick_relation(self, a: int, b: int) -> Phrase:
        known = relations(self.things[a], self.things[b])
        return say(self.pick(RELATION_WORDS[self.pick(known)])) if known else say("and")

    def background(self) -> Phrase:
        return say(self.pick(PLACE_WORDS[self.scene.background]))

    def thing(self, i: int, article: str = "") -> Phrase:
        """A noun phrase for object ``i``: some of its attributes, before or behind the noun."""
        thing = self.things[i]
        colour, texture = self.chance(0.92), self.chance(0.5 if thing.texture == "plain" else 0.85)
        size = self.chance(0.4)
        colour = colour or not (texture or size)
        behind: Phrase = []
        before: list[str] = []
        if size:
            before.append(self.pick(SIZE_WORDS[thing.size]))
        if texture:
            if thing.texture != "plain" and self.chance(0.3):
                behind = [("with", ()), (TEXTURE_NOUNS[thing.texture], (i,))]
            else:
                before.append(self.pick(TEXTURE_WORDS[thing.texture]))
        if colour:
            word = self.pick(COLOUR_WORDS[thing.colour])
            if not behind and self.chance(0.1):
                behind = [("in", ()), (word, (i,))]
            else:
                before.append(word)
        noun = self.pick(("shape", "thing", "object")) if self.chance(0.04) else self.pick(SHAPE_WORDS[thing.shape])
        words = [*before, noun]
        article = article or self.pick(("a", "a", "a", "the", "one"))
        if article == "a" and words[0][0] in "aeiou":
            article = "an"
        return [(article, ()), *((word, (i,)) for word in words), *behind]

    def group(self) -> tuple[Phrase, list[int]]:
        """A count of objects that share their shape, their colour or both; empty when none do."""
        groups: dict[tuple[str, str], list[int]] = {}
        for i, thing in enumerate(self.things):
            for key in ((thing.shape, ""), ("", thing.colour), (thing.shape, thing.colour)):
                groups.setdefault(key, []).append(i)
        shared = [(key, members) for key, members in groups.items() if len(members) > 1]
        if not shared:
            return [], []
        (shape, colour), members = shared[int(self.rng.integers(len(shared)))]
        words = [self.pick(COLOUR_WORDS[colour])] if colour else []
        words.append(plural(self.pick(SHAPE_WORDS[shape])) if shape else self.pick(("shapes", "things", "objects")))
        return say(" ".join((NUMBERS[len(members)], *words)), *members), members

    def body(self) -> Phrase:
        """What is said, before spelling: one of eight kinds of sentence."""
        order = [int(i) for i in self.rng.permutation(len(self.things))]
        a, b = order[:2]
        kind = int(self.rng.choice(8, p=(0.5, 0.15, 0.05, 0.1, 0.08, 0.03, 0.01, 0.08)))
        if kind == 0:
            return self.thing(a) + self.pick_relation(a, b) + self.thing(b)
        if kind == 1 and len(order) > 2:
            listed = self.thing(a) + [(",", ())] + self.thing(b)
            return listed + [("and", ())] + self.thing(order[2])
        if kind == 2 and len(order) > 2:
            c = order[2]
            more = say("and") + self.thing(c) if self.chance(0.5) else say(", with") + self.thing(c)
            if relations(self.things[c], self.things[a]) and self.chance(0.5):
                more += self.pick_relation(c, a) + say("it")
            return self.thing(a) + self.pick_relation(a, b) + self.thing(b) + more
        if kind == 3:
            group, members = self.group()
            rest = [i for i in order if i not in members]
            if group and rest:
                return group + say(self.pick(("and", "with"))) + self.thing(rest[0])
            if group:
                return group
        if kind == 4 and corner(self.things[a]):
            return self.thing(a) + say(corner(self.things[a])) + say("and") + self.thing(b)
        if kind == 5:
            total = NUMBERS[len(order)]
            return say(f"{total} {self.pick(('shapes', 'things', 'objects'))} , one is") + self.thing(a)
        if kind == 6 and corner(self.things[a]):
            return self.thing(a) + say(corner(self.things[a]))
        return self.thing(a) + say("and") + self.thing(b)

    def caption(self) -> Caption:
        atoms = self.body()
        ground = self.background() if self.chance(0.3) else []
        atoms = ground + [(",", ())] + atoms if ground and self.chance(0.2) else atoms + ground
        if atoms[0][0] in ("a", "an", "one"):
            atoms = say(self.pick(OPENINGS)) + atoms
        ending = self.pick((".", ".", ".", ".", "", "", "", "!"))
        atoms = atoms + say(ending)
        text = "".join(word if word in GLUED else " " + word for word, _ in atoms).strip()
        spelling = self.rng.random()
        text = text.upper() if spelling < 0.02 else text[0].upper() + text[1:] if spelling < 0.7 else text
        return Caption(text, [(k, i) for k, (_, objects) in enumerate(atoms) for i in objects])


def write_captions(scene: Scene, seed: int, index: int) -> list[Caption]:
    """Five different captions of scene ``index``; a pure function of the scene, ``seed`` and ``index``."""
    writer = Writer(scene, stream(seed, index, 2))
    captions: dict[str, Caption] = {}
    while len(captions) < CAPTIONS:
        caption = writer.caption()
        captions.setdefault(caption.text.lower(), caption)
    return list(captions.values())
