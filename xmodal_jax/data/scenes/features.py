"""Region and global features computed from pixels: hand-made descriptors, one fixed random layer, NumPy only.

Each window is cut out, averaged to :data:`CELLS` x :data:`CELLS` cells and described by its colours, its gradient
orientations, its figure against the window's rim, its texture spectrum and its place. A fixed random projection with
a rectifier then mixes the descriptors, so that single entries answer to combinations ("red and round") like a CNN's.
"""

from __future__ import annotations

import functools
import math

import numpy as np

CELLS = 24
FEATURES = 256
HUES = 8


def cut(picture: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Area averages of windows: picture [H, W, 3] in 0..1, boxes [R, 4] in 0..1 -> [R, CELLS, CELLS, 3].

    Each cell is the exact mean of the picture under it, so pixels outside a box have no influence at all.
    """
    height, width, _ = picture.shape

    def weights(low: np.ndarray, high: np.ndarray, pixels: int) -> np.ndarray:
        low = np.clip(low * pixels, 0, pixels - 1)
        span = np.maximum(np.minimum(high * pixels, pixels) - low, 1)
        edges = low[:, None] + span[:, None] * np.linspace(0, 1, CELLS + 1, dtype=np.float32)
        under = np.clip(edges[..., None] - np.arange(pixels, dtype=np.float32), 0, 1)
        return np.diff(under, axis=1) / (span / CELLS)[:, None, None]

    rows = weights(boxes[:, 1], boxes[:, 3], height) @ picture.reshape(height, width * 3)
    rows = rows.reshape(-1, CELLS, width, 3).transpose(0, 2, 1, 3).reshape(-1, width, CELLS * 3)
    columns = weights(boxes[:, 0], boxes[:, 2], width) @ rows
    return columns.reshape(-1, CELLS, CELLS, 3).transpose(0, 2, 1, 3)


def pool(maps: np.ndarray, grid: int) -> np.ndarray:
    """Mean over a ``grid`` x ``grid`` partition: [R, S, S, K] -> [R, grid * grid * K]."""
    regions, side, _, channels = maps.shape
    blocks = maps.reshape(regions, grid, side // grid, grid, side // grid, channels)
    return blocks.mean(axis=(2, 4)).reshape(regions, -1)


def soft_bins(angle: np.ndarray, bins: int) -> np.ndarray:
    """Triangular votes of an angle in turns (period 1) for ``bins`` neighbouring bins: [...] -> [..., bins]."""
    gap = np.abs(angle[..., None] * bins % bins - np.arange(bins, dtype=np.float32))
    return np.maximum(1 - np.minimum(gap, bins - gap), 0)


def colours(window: np.ndarray) -> np.ndarray:
    """Votes for hues (weighted by chroma) and for dark, middle and light greys: [R, S, S, 3] -> [..., HUES + 3]."""
    high, low = window.max(-1), window.min(-1)
    red, green, blue = np.moveaxis(window, -1, 0)
    hue = np.arctan2(math.sqrt(3) * (green - blue), 2 * red - green - blue) / (2 * math.pi)
    chroma = np.clip(1.6 * (high - low), 0, 1)[..., None]
    light = np.maximum(1 - np.abs(2 * high[..., None] - np.arange(3, dtype=np.float32)), 0)
    return np.concatenate([soft_bins(hue, HUES) * chroma, light * (1 - chroma)], axis=-1)


def unit(rows: np.ndarray, floor: float = 0.05) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), floor)


def descriptors(picture: np.ndarray, boxes: np.ndarray) -> dict[str, np.ndarray]:
    window = cut(np.asarray(picture, np.float32) / 255, np.asarray(boxes, np.float32))
    grey = window.mean(-1)
    rim = np.concatenate([window[:, 0], window[:, -1], window[:, :, 0], window[:, :, -1]], axis=1)
    figure = np.linalg.norm(window - np.median(rim, axis=1)[:, None, None], axis=-1)
    down, right = np.gradient(figure, axis=(1, 2))
    votes = soft_bins(np.arctan2(down, right) / np.pi, 8) * np.hypot(down, right)[..., None]
    middle = grey[:, 4:20, 4:20]
    middle = (middle - middle.mean((1, 2), keepdims=True)) * np.outer(*[np.hanning(16)] * 2).astype(
        np.float32
    )
    power = np.abs(np.fft.rfft2(middle)).astype(np.float32)
    x1, y1, x2, y2 = np.asarray(boxes, np.float32).T
    marks = np.linspace(0, 1, 5, dtype=np.float32)
    place = [
        np.exp(-(((c[:, None] - marks) / 0.25) ** 2))
        for c in ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
    ]
    return {
        "colour": unit(np.sqrt(pool(colours(window), 4))),
        "edge": unit(np.sqrt(pool(votes, 4))),
        "figure": unit(pool(figure[..., None], 8)),
        "texture": unit(np.sqrt(texture_bins(power)), 0.5),
        "place": unit(np.concatenate(place, 1)),
    }


@functools.cache
def spectrum_bins() -> np.ndarray:
    fy, fx = np.meshgrid(np.fft.fftfreq(16) * 16, np.arange(9), indexing="ij")
    radius = np.hypot(fx, fy).ravel()
    angle = (np.arctan2(fy, fx) / np.pi).ravel()
    rings = np.stack(
        [(radius >= a) & (radius < b) for a, b in ((1, 2), (2, 3), (3, 4.5), (4.5, 6.5), (6.5, 9))], 1
    )
    return (rings[:, :, None] * soft_bins(angle, 6)[:, None, :]).reshape(16 * 9, -1).astype(np.float32)


def texture_bins(power: np.ndarray) -> np.ndarray:
    return power.reshape(len(power), -1) @ spectrum_bins()


@functools.cache
def mixing(inputs: int) -> tuple[np.ndarray, np.ndarray]:
    """The fixed random layer [inputs, FEATURES] and its thresholds."""
    rng = np.random.default_rng(2018)
    weights = rng.standard_normal((inputs, FEATURES), dtype=np.float32)
    return weights, rng.uniform(-1, 0.5, FEATURES).astype(np.float32)


SHARE = {"colour": 1.2, "edge": 1.2, "figure": 0.7, "texture": 0.8, "place": 1.0}
MEAN = None


def raw_features(picture, boxes):
    parts = descriptors(picture, boxes)
    return np.concatenate([SHARE[name] * part for name, part in parts.items()], axis=1)


def windows(grid, size):
    c = np.linspace(size / 2, 1 - size / 2, grid)
    y, x = np.meshgrid(c, c, indexing="ij")
    h = size / 2
    return np.stack([x - h, y - h, x + h, y + h], -1).reshape(-1, 4).astype(np.float32)
