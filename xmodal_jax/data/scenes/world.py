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
COUNTS = (0.15, 0.35, 0.35, 0.15)  # how often there are 2, 3, 4, 5 objects
FAMILY = 2
REGIONS = 10
BAG, SCENE, PICTURE, CAPTIONS, BOXES = range(5)  # parts of a scene, each with random numbers of its own


class Thing(NamedTuple):
    """An object: its attributes, its centre and radius in 0..1 of the picture's side, its angle in radians."""

    shape: str
    colour: str
    texture: str
    size: str
    x: float
    y: float
    radius: float
    angle: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        """x1, y1, x2, y2 in 0..1."""
        return self.x - self.radius, self.y - self.radius, self.x + self.radius, self.y + self.radius


class Scene(NamedTuple):
    background: str
    things: tuple[Thing, ...]


class Regions(NamedTuple):
    """Boxes [R, 4] float32 (x1, y1, x2, y2 in 0..1), most confident first, and the object each covers, or -1."""

    boxes: np.ndarray
    covers: list[int]


def stream(seed: int, index: int, part: int) -> np.random.Generator:
    """The random numbers of one part of one scene: a new caption rule, say, never moves a pixel."""
    return np.random.default_rng([seed, index, part])


def sample_scene(seed: int, index: int) -> Scene:
    """Scene ``index`` of ``seed``; a pure function of both."""
    family, member = divmod(index, FAMILY)
    rng = stream(seed, family, BAG)
    count = int(rng.choice((2, 3, 4, 5), p=COUNTS))
    bags = [rng.choice(names, count) for names in (SHAPES, COLOURS, TEXTURES, SIZES)]
    background = str(rng.choice(BACKGROUNDS))
    rng = stream(seed, index, SCENE)
    if member:
        bags = [rng.permutation(bag) for bag in bags]
    if rng.random() < 0.5:
        background = str(rng.choice(BACKGROUNDS))
    radii = [rng.uniform(*RADIUS[str(size)]) for size in bags[3]]
    angles = rng.uniform(-0.3, 0.3, count).tolist()
    things = []
    for i, centre in enumerate(place(rng, radii)):
        shape, colour, texture, size = (str(bag[i]) for bag in bags)
        things.append(Thing(shape, colour, texture, size, *centre, radii[i], angles[i]))
    return Scene(background, tuple(things))


def place(rng: np.random.Generator, radii: list[float]) -> list[tuple[float, float]]:
    """Centres of discs that do not touch: by rejection, begun anew where a layout has no room left."""
    while True:
        centres: list[tuple[float, float]] = []
        for radius in radii:
            for _ in range(40):
                x, y = rng.uniform(radius + 0.02, 0.98 - radius, 2).tolist()
                others = zip(centres, radii, strict=False)
                if all(np.hypot(x - a, y - b) > 1.05 * (radius + other) for (a, b), other in others):
                    centres.append((x, y))
                    break
            else:
                break
        if len(centres) == len(radii):
            return centres


def overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes [N, 4] and [M, 4] -> [N, M]."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=-1)
    area, area_other = (np.prod(b[:, 2:] - b[:, :2], axis=1) for b in (boxes, others))
    return shared / (area[:, None] + area_other[None] - shared)


def sample_regions(scene: Scene, seed: int, index: int) -> Regions:
    """What a detector would give: jittered boxes, some objects missed, some found twice, and windows on nothing.

    The order is that of a confidence that is higher for objects, but not always.
    """
    rng = stream(seed, index, BOXES)
    boxes, confidence = [np.array((0.0, 0.0, 1.0, 1.0))], [rng.uniform(0.0, 0.8)]
    for thing in scene.things:
        for _ in range(int(rng.choice((0, 1, 2), p=(0.03, 0.87, 0.1)))):
            boxes.append(thing.box + rng.normal(0, 0.13, 4) * thing.radius)
            confidence.append(rng.uniform(0.4, 1.0))
    while len(boxes) < REGIONS:
        width, height = rng.uniform(0.15, 0.6, 2)
        left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
        boxes.append(np.array((left, top, left + width, top + height)))
        confidence.append(rng.uniform(0.0, 0.7))
    order = np.argsort(-np.asarray(confidence), kind="stable")[:REGIONS]
    found = np.clip(np.asarray(boxes)[order], 0, 1).astype(np.float32)
    shared = overlap(found, np.asarray([thing.box for thing in scene.things]))
    return Regions(found, [int(row.argmax()) if row.max() >= 0.5 else -1 for row in shared])
