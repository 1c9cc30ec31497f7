"""Scenes drawn as pictures: signed distances for clean edges, six backgrounds, textures, light, shadow and noise.

Only NumPy draws; a picture is uint8 [SIDE, SIDE, 3] and a pure function of the scene and its random numbers.
"""

from __future__ import annotations

import numpy as np

from xmodal_jax.data.scenes.world import Scene, Thing

SIDE = 128
PAINT = {
    "red": (222, 40, 48),
    "yellow": (250, 218, 40),
    "green": (40, 166, 74),
    "blue": (36, 98, 222),
    "purple": (140, 58, 188),
    "white": (246, 246, 246),
}
TURN = np.arange(10) * np.pi / 5
POLYGONS = {
    "square": [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)],
    "triangle": [(0, -1), (1, 0.8), (-1, 0.8)],
    "star": [(s * np.sin(t), -s * np.cos(t)) for s, t in zip((1.08, 0.46) * 5, TURN, strict=True)],
    "cross": [
        *((-0.34, -1), (0.34, -1), (0.34, -0.34), (1, -0.34), (1, 0.34), (0.34, 0.34)),
        *((0.34, 1), (-0.34, 1), (-0.34, 0.34), (-1, 0.34), (-1, -0.34), (-0.34, -0.34)),
    ],
    "heart": [(0, -0.34), (0.865, 0.017), (0, 1), (-0.865, 0.017)],  # the part below the two discs
}


def polygon_distance(u: np.ndarray, v: np.ndarray, corners: list[tuple[float, float]]) -> np.ndarray:
    """Signed distance of points to a polygon, negative inside (segment distances, even-odd rule)."""
    start = np.asarray(corners, np.float32).T[:, :, None, None]
    step = np.roll(start, -1, axis=1) - start
    pu, pv = u - start[0], v - start[1]
    along = np.clip((pu * step[0] + pv * step[1]) / (step * step).sum(0), 0, 1)
    nearest = ((pu - step[0] * along) ** 2 + (pv - step[1] * along) ** 2).min(0)
    level = np.where(step[1] == 0, 1, step[1])  # a level edge is never crossed by a horizontal ray
    crossed = ((pv < 0) != (pv < step[1])) & (pu < step[0] * pv / level)
    return np.where(crossed.sum(0) % 2, -1, 1) * np.sqrt(nearest)


def shape_distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance to a shape of radius about 1 around the origin, negative inside; v points down."""
    if shape == "circle":
        return np.hypot(u, v) - 1
    edge = polygon_distance(u, v, POLYGONS[shape])
    if shape == "heart":
        edge = np.minimum(edge, np.hypot(np.abs(u) - 0.46, v + 0.34) - 0.54)
    return edge


def texture_pattern(texture: str, u: np.ndarray, v: np.ndarray, softness: float) -> np.ndarray:
    """How much of the second tone shows at a point, 0..1; ``softness`` is one pixel in units of the radius."""
    if texture == "plain":
        return np.zeros_like(u)
    wave = 2 * np.pi / 0.5
    if texture == "striped":
        level = np.sin(wave * (0.8 * u + 0.6 * v))
    elif texture == "dotted":
        level = np.cos(wave * u) + np.cos(wave * v) - 0.75
    else:
        level = 1.3 * np.sin(wave * 0.75 * u) * np.sin(wave * 0.75 * v)
    return np.clip(0.5 + level / (wave * softness), 0, 1)


def smooth_noise(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    """Bilinear interpolation of a small random grid to [SIDE, SIDE], about -1..1."""
    level = rng.uniform(-1, 1, (rows, columns)).astype(np.float32)
    for points in (rows, columns):  # interpolate down, turn, interpolate down again, and be back
        at = np.linspace(0, points - 1, SIDE, dtype=np.float32)[:, None]
        low = np.minimum(at.astype(np.int32), points - 2)
        level = (level[low[:, 0]] * (low + 1 - at) + level[low[:, 0] + 1] * (at - low)).T
    return level


def blend(top: tuple[int, int, int], bottom: tuple[int, int, int]) -> np.ndarray:
    share = np.linspace(0, 1, SIDE, dtype=np.float32)[:, None, None]
    column = np.asarray(top, np.float32) * (1 - share) + np.asarray(bottom, np.float32) * share
    return np.repeat(column, SIDE, axis=1)


def draw_background(background: str, rng: np.random.Generator) -> np.ndarray:
    """The ground [SIDE, SIDE, 3] as float 0..255."""
    if background == "sky":
        cloud = np.clip(smooth_noise(rng, 5, 4) + 0.5 * smooth_noise(rng, 11, 7), 0, 1)[..., None]
        return blend((96, 170, 236), (196, 226, 250)) * (1 - cloud) + 250 * cloud
    if background == "grass":
        blades = smooth_noise(rng, 24, 80)[..., None] * np.array((11, 16, 8), np.float32)
        return blend((120, 190, 84), (70, 148, 52)) + blades
    if background == "sand":
        return blend((238, 214, 164), (220, 188, 130)) + 9 * smooth_noise(rng, 40, 6)[..., None]
    if background == "snow":
        return blend((228, 238, 250), (206, 220, 240)) + 8 * smooth_noise(rng, 5, 5)[..., None]
    if background == "table":
        ground = blend((166, 112, 70), (138, 90, 54)) + 10 * smooth_noise(rng, 60, 4)[..., None]
        ground[:: SIDE // 4] *= 0.72  # the gaps between the planks
        return ground
    ground = blend((16, 18, 52), (52, 44, 98)) + 5 * smooth_noise(rng, 4, 4)[..., None]
    rows, columns = rng.integers(0, SIDE, (2, 45))
    ground[rows, columns] += rng.uniform(60, 190, (45, 1))
    return ground


def draw_thing(canvas: np.ndarray, thing: Thing, rng: np.random.Generator) -> None:
    """Paint one object onto the canvas, with shadow, outline, texture and light from the upper left."""
    radius = thing.radius * SIDE
    reach = int(radius * 1.15) + 5
    column, row = int(thing.x * SIDE), int(thing.y * SIDE)
    top, left = max(row - reach, 0), max(column - reach, 0)
    patch = canvas[top : row + reach, left : column + reach]
    y, x = np.mgrid[top : top + patch.shape[0], left : left + patch.shape[1]].astype(np.float32)
    x, y = (x + (0.5 - thing.x * SIDE)) / radius, (y + (0.5 - thing.y * SIDE)) / radius
    cos, sin = float(np.cos(thing.angle)), float(np.sin(thing.angle))
    u, v = cos * x + sin * y, cos * y - sin * x
    edge = shape_distance(thing.shape, u, v) * radius

    shadow = np.zeros_like(edge)
    shadow[3:, 2:] = 0.32 * np.clip(0.5 - edge[:-3, :-2] / 5, 0, 1)
    patch *= 1 - shadow[..., None]
    paint = np.clip(PAINT[thing.colour] + rng.normal(0, 7, 3), 0, 255).astype(np.float32)
    bright = paint.mean() > 150
    tone = paint * 0.62 if bright else paint + (255 - paint) * 0.55
    pattern = texture_pattern(thing.texture, u, v, 1 / radius)[..., None]
    body = paint * (1 - pattern) + tone * pattern
    body *= 1 - 0.13 * np.clip(x + y, -1, 1)[..., None]
    rim = np.clip(0.5 + edge + 1.5, 0, 1)[..., None]
    body = body * (1 - rim) + paint * 0.45 * rim
    cover = np.clip(0.5 - edge, 0, 1)[..., None]
    patch *= 1 - cover
    patch += body * cover


def draw(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """The picture of a scene, uint8 [SIDE, SIDE, 3]."""
    canvas = draw_background(scene.background, rng)
    for thing in scene.things:
        draw_thing(canvas, thing, rng)
    canvas *= (rng.uniform(0.9, 1.08) * rng.normal(1, 0.02, 3)).astype(np.float32)
    canvas += 1.6 * rng.standard_normal((SIDE, SIDE, 1), dtype=np.float32)
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
