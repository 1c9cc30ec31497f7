"""What there is in a scene: objects with attributes and places, and the boxes a detector would report.

Scenes come in families of :data:`FAMILY` neighbours that hold the same shapes, colours, textures and sizes, dealt to
the objects differently. A bag of words fits every member of a family; only who has which attribute tells them apart.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
COLOURS = ("red", "yellow", "green", "blue", "purple", "white")
TEXTURES = ("plain", "striped", "dotted", "checkered")
SIZES = ("small", "large")
BACKGROUNDS = ("sky", "grass", "sand", "night", "snow", "table")
RADIUS = {"small": (0.080, 0.095), "large": (0.130, 0.155)}  # of the picture's side
FAMILY = 2
SCENE, PICTURE, CAPTIONS, BOXES, BAG = range(5)  # parts of a scene with random numbers of their own
REGIONS = 10


class Thing(NamedTuple):
    """An object: its attributes, its centre and radius in 0..1 of the side, its angle in radians."""

    shape: str
    colour: str
    texture: str
    size: str
    x: float
    y: float
    radius: float
    angle: float


class Scene(NamedTuple):
    background: str
    things: tuple[Thing, ...]


class Regions(NamedTuple):
    """Boxes [R, 4] (x1, y1, x2, y2 in 0..1), most confident first, and the object each one covers, or -1."""

    boxes: np.ndarray
    covers: list[int]


def stream(seed: int, index: int, part: int) -> np.random.Generator:
    """The random numbers of one part of one scene: editing captions never moves a pixel."""
    return np.random.default_rng([seed, index, part])


def sample_scene(seed: int, index: int) -> Scene:
    """Scene ``index`` of ``seed``; a pure function of both."""
    family, member = divmod(index, FAMILY)
    rng = stream(seed, family, BAG)
    count = int(rng.choice((2, 3, 4, 5), p=(0.15, 0.35, 0.35, 0.15)))
    bags = [
        rng.choice(SHAPES, count),
        rng.choice(COLOURS, count),
        rng.choice(TEXTURES, count, p=(0.25, 0.25, 0.25, 0.25)),
        rng.choice(SIZES, count, p=(0.45, 0.55)),
    ]
    background = str(rng.choice(BACKGROUNDS))
    rng = stream(seed, index, SCENE)
    if member:
        bags = [rng.permutation(bag) for bag in bags]
    if rng.random() < 0.5:
        background = str(rng.choice(BACKGROUNDS))
    radii = [rng.uniform(*RADIUS[str(size)]) for size in bags[3]]
    centres = place(rng, radii)
    return Scene(
        background,
        tuple(
            Thing(*(str(bag[i]) for bag in bags), *centres[i], radii[i], rng.uniform(-0.3, 0.3))
            for i in range(count)
        ),
    )


def place(rng: np.random.Generator, radii: list[float]) -> list[tuple[float, float]]:
    """Centres of discs with little overlap: rejection, beginning anew when a layout has no room left."""
    while True:
        centres: list[tuple[float, float]] = []
        for radius in radii:
            for _ in range(40):
                x, y = rng.uniform(radius + 0.02, 0.98 - radius, 2).tolist()
                near = zip(centres, radii, strict=False)
                if all(np.hypot(x - a, y - b) > 1.05 * (radius + other) for (a, b), other in near):
                    centres.append((x, y))
                    break
        if len(centres) == len(radii):
            return centres


def box_of(thing: Thing) -> tuple[float, float, float, float]:
    return (thing.x - thing.radius, thing.y - thing.radius, thing.x + thing.radius, thing.y + thing.radius)


def overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes [N, 4] and [M, 4] -> [N, M]."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=-1)
    area, area_other = (np.prod(b[:, 2:] - b[:, :2], axis=1) for b in (boxes, others))
    return shared / (area[:, None] + area_other[None] - shared)


def sample_regions(scene: Scene, seed: int, index: int) -> Regions:
    """What a detector would give: jittered boxes, some objects missed, some found twice, and windows on nothing."""
    rng = stream(seed, index, BOXES)
    boxes, confidence = [], []
    for thing in scene.things:
        exact = np.asarray(box_of(thing))
        copies = int(rng.choice((0, 1, 2), p=(0.03, 0.87, 0.1)))
        for _ in range(copies):
            boxes.append(exact + rng.normal(0, 0.13, 4) * thing.radius)
            confidence.append(rng.uniform(0.4, 1.0))
    boxes.append(np.array((0.0, 0.0, 1.0, 1.0)))
    confidence.append(rng.uniform(0.0, 0.8))
    while len(boxes) < REGIONS:
        width, height = rng.uniform(0.15, 0.6, 2)
        left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
        boxes.append(np.array((left, top, left + width, top + height)))
        confidence.append(rng.uniform(0.0, 0.7))
    order = np.argsort(-np.asarray(confidence), kind="stable")[:REGIONS]
    found = np.clip(np.asarray(boxes)[order], 0, 1).astype(np.float32)
    shared = overlap(found, np.asarray([box_of(thing) for thing in scene.things]))
    best = shared.argmax(1)
    return Regions(found, [int(i) if shared[r, i] >= 0.5 else -1 for r, i in enumerate(best)])
