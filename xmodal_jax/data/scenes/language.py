"""Captions: a small grammar that says true things about a scene, and which word speaks of which object.

A phrase is a list of atoms ``(word, objects)``: one token of the tokenizer with the indices of the objects it
describes. Phrases are joined into a sentence, which is spelled with some variety of case and punctuation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from xmodal_jax.data.scenes.world import CAPTIONS, Scene, Thing, stream

T = TypeVar("T")
Phrase = list[tuple[str, tuple[int, ...]]]

CAPTIONS_PER_SCENE = 5
# A word that stands several times is said that much more often.
SHAPE_WORDS = {
    "circle": ("circle", "circle", "disc", "ball"),
    "square": ("square", "square", "box", "block"),
    "triangle": ("triangle", "triangle", "pyramid"),
    "star": ("star",),
    "cross": ("cross", "cross", "plus"),
    "heart": ("heart",),
}
ANY_SHAPE = ("shape", "thing", "object")
COLOUR_WORDS = {
    "red": ("red", "red", "crimson"),
    "yellow": ("yellow", "yellow", "golden"),
    "green": ("green", "green", "emerald"),
    "blue": ("blue", "blue", "azure"),
    "purple": ("purple", "violet"),
    "white": ("white", "white", "pale"),
}
TEXTURE_WORDS = {
    "plain": ("plain", "solid"),
    "striped": ("striped", "striped", "stripy"),
    "dotted": ("dotted", "spotted", "polka-dot"),
    "checkered": ("checkered", "checked"),
}
TEXTURE_NOUNS = {"striped": "stripes", "dotted": "dots", "checkered": "checks"}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
GROUND_WORDS = {
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
OPENINGS = ("there is", "there 's", "here is", "we see", "a picture of", "this shows", "look ,")
ENDINGS = (".", ".", ".", ".", "", "", "", "!")
GLUED = {",", ".", "!", "'s"}  # written without a space before


class Caption(NamedTuple):
    """A caption's text and ``words``: pairs (index of the token, index of the object it speaks of)."""

    text: str
    words: list[tuple[int, int]]


def say(text: str, *objects: int) -> Phrase:
    return [(word, objects) for word in text.split()]


def plural(noun: str) -> str:
    return noun + ("es" if noun.endswith(("s", "x")) else "s")


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


def alike(things: Sequence[Thing]) -> list[tuple[str, str, list[int]]]:
    """Every (shape or "", colour or "", members) that two or more objects have in common."""
    groups: dict[tuple[str, str], list[int]] = {}
    for i, thing in enumerate(things):
        for key in ((thing.shape, ""), ("", thing.colour), (thing.shape, thing.colour)):
            groups.setdefault(key, []).append(i)
    return [(shape, colour, members) for (shape, colour), members in groups.items() if len(members) > 1]


class Speaker:
    """Makes phrases about one scene with its own random numbers."""

    def __init__(self, scene: Scene, rng: np.random.Generator):
        self.scene, self.things, self.rng = scene, scene.things, rng

    def pick(self, choices: Sequence[T]) -> T:
        return choices[int(self.rng.random() * len(choices))]

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def relation(self, names: Sequence[str]) -> Phrase:
        return say(self.pick(RELATION_WORDS[self.pick(names)])) if names else say("and")

    def thing(self, i: int) -> Phrase:
        """A noun phrase for object ``i``: some of its attributes, before or behind the noun."""
        thing = self.things[i]
        plain = thing.texture == "plain"
        before = [self.pick(SIZE_WORDS[thing.size])] if self.chance(0.4) else []
        behind: Phrase = []
        if self.chance(0.5 if plain else 0.85):
            if not plain and self.chance(0.3):
                behind = [("with", ()), (TEXTURE_NOUNS[thing.texture], (i,))]
            else:
                before.append(self.pick(TEXTURE_WORDS[thing.texture]))
        if self.chance(0.92) or not (before or behind):
            colour = self.pick(COLOUR_WORDS[thing.colour])
            if not behind and self.chance(0.1):
                behind = [("in", ()), (colour, (i,))]
            else:
                before.append(colour)
        words = [*before, self.pick(ANY_SHAPE if self.chance(0.04) else SHAPE_WORDS[thing.shape])]
        article = self.pick(("a", "a", "a", "the", "one"))
        if article == "a" and words[0][0] in "aeiou":
            article = "an"
        return [(article, ()), *((word, (i,)) for word in words), *behind]

    def group(self, shape: str, colour: str, members: Sequence[int]) -> Phrase:
        """ "two red squares", "three hearts", "two blue things"."""
        words = [NUMBERS[len(members)]]
        words += [self.pick(COLOUR_WORDS[colour])] if colour else []
        words.append(plural(self.pick(SHAPE_WORDS[shape] if shape else ANY_SHAPE)))
        return say(" ".join(words), *members)

    def pair(self, a: int, b: int) -> Phrase:
        return self.thing(a) + self.relation(relations(self.things[a], self.things[b])) + self.thing(b)

    def third(self, a: int, b: int, c: int) -> Phrase:
        """A pair and one more object; "it" may mean either of the pair, so the relation holds to both."""
        phrase = self.pair(a, b) + say(self.pick(("and", ", with"))) + self.thing(c)
        to_both = [
            name
            for name in relations(self.things[c], self.things[a])
            if name in relations(self.things[c], self.things[b])
        ]
        return phrase + self.relation(to_both) + say("it") if to_both and self.chance(0.5) else phrase

    def body(self) -> Phrase:
        """What is said, before spelling. Kinds of sentence that the scene has no matter for fall back on a pair."""
        order = np.argsort(self.rng.random(len(self.things))).tolist()
        a, b, rest = order[0], order[1], order[2:]
        kind, where, groups = self.rng.random(), corner(self.things[a]), alike(self.things)
        if kind < 0.15 and rest:
            return [*self.thing(a), (",", ()), *self.thing(b), *say("and"), *self.thing(rest[0])]
        if kind < 0.2 and rest:
            return self.third(a, b, rest[0])
        if kind < 0.3 and groups:
            group = self.pick(groups)
            others = [i for i in order if i not in group[2]]
            return self.group(*group) + (say(self.pick(("and", "with"))) + self.thing(others[0]) if others else [])
        if kind < 0.34:
            return say(f"{NUMBERS[len(order)]} {plural(self.pick(ANY_SHAPE))} , among them") + self.thing(a)
        if kind < 0.36 and where:
            return self.thing(a) + say(where)
        if kind < 0.46 and where:
            return self.thing(a) + say(where) + say("and") + self.thing(b)
        return self.pair(a, b)

    def caption(self) -> Caption:
        atoms = self.body()
        opening = say(self.pick(OPENINGS)) if self.chance(0.2) and atoms[0][0] in ("a", "an", "one") else []
        ground = say(self.pick(GROUND_WORDS[self.scene.background])) if self.chance(0.3) else []
        if ground and not opening and self.chance(0.25):
            atoms = [*ground, (",", ()), *atoms]
        else:
            atoms = opening + atoms + ground
        atoms = atoms + say(self.pick(ENDINGS))
        text = "".join(word if word in GLUED else " " + word for word, _ in atoms).strip()
        spelling = self.rng.random()
        text = text.upper() if spelling < 0.02 else text[0].upper() + text[1:] if spelling < 0.7 else text
        return Caption(text, [(k, i) for k, (_, objects) in enumerate(atoms) for i in objects])


def write_captions(scene: Scene, seed: int, index: int) -> list[Caption]:
    """Five different captions of scene ``index``; a pure function of the scene, ``seed`` and ``index``."""
    speaker = Speaker(scene, stream(seed, index, CAPTIONS))
    captions: dict[str, Caption] = {}
    while len(captions) < CAPTIONS_PER_SCENE:
        caption = speaker.caption()
        captions.setdefault(caption.text.lower(), caption)
    return list(captions.values())
