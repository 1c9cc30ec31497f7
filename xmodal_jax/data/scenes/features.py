"""Region and global features computed from pixels: hand-made descriptors, pooled to second order, NumPy only.

A window is cut out, averaged to :data:`CELLS` x :data:`CELLS` cells, and described by its colours, its outline, its
texture spectrum and its place. Colour and outline are multiplied ("bilinear pooling", Lin, RoyChowdhury and Maji 2015),
so that single entries answer to combinations such as "red and round", as a CNN's do, and survive an average over regions.
"""

from __future__ import annotations

import functools
import math

import numpy as np

CELLS = 24  # a window is seen as this many cells a side
HUES = 8
COLOURS = HUES + 3
OUTLINES, WEAVES = 32, 10  # random projections of the outline and of the texture spectrum
PLACES = 5  # marks along each side of the picture
FEATURES = COLOURS * (OUTLINES + WEAVES) + 30 + 4 * PLACES  # 512


def cut(picture: np.ndarray, boxes: np.ndarray, cells: int) -> np.ndarray:
    """Area averages of windows: picture [H, W, 3], boxes [R, 4] in 0..1 -> [R, cells, cells, 3].

    Each cell is the exact mean of the picture under it, so pixels outside a box have no influence at all.
    """
    height, width, _ = picture.shape

    def weights(low: np.ndarray, high: np.ndarray, pixels: int) -> np.ndarray:
        low = np.clip(low * pixels, 0, pixels - 1)
        span = np.maximum(np.minimum(high * pixels, pixels) - low, 1)
        edges = low[:, None] + span[:, None] * np.linspace(0, 1, cells + 1, dtype=np.float32)
        under = np.clip(edges[..., None] - np.arange(pixels, dtype=np.float32), 0, 1)
        return np.diff(under, axis=1) / (span / cells)[:, None, None]

    rows = weights(boxes[:, 1], boxes[:, 3], height) @ picture.reshape(height, width * 3)
    rows = rows.reshape(-1, cells, width, 3).transpose(0, 2, 1, 3).reshape(-1, width, cells * 3)
    columns = weights(boxes[:, 0], boxes[:, 2], width) @ rows
    return columns.reshape(-1, cells, cells, 3).transpose(0, 2, 1, 3)


def pool(maps: np.ndarray, grid: int) -> np.ndarray:
    """Mean over a ``grid`` x ``grid`` partition: [R, S, S, K] -> [R, grid, grid, K]."""
    regions, side, _, channels = maps.shape
    return maps.reshape(regions, grid, side // grid, grid, side // grid, channels).mean(axis=(2, 4))


def soft_bins(angle: np.ndarray, bins: int) -> np.ndarray:
    """Triangular votes of an angle in turns (period 1) for ``bins`` neighbouring bins: [...] -> [..., bins]."""
    gap = np.abs(angle[..., None] * bins % bins - np.arange(bins, dtype=np.float32))
    return np.maximum(1 - np.minimum(gap, bins - gap), 0)


def colour_votes(window: np.ndarray) -> np.ndarray:
    """Votes for hues (weighted by chroma) and for dark, middle and light greys: [..., 3] in 0..1 -> [..., COLOURS]."""
    high, low = window.max(-1), window.min(-1)
    red, green, blue = window[..., 0], window[..., 1], window[..., 2]
    hue = np.arctan2(math.sqrt(3) * (green - blue), 2 * red - green - blue) / (2 * math.pi)
    chroma = np.clip(1.6 * (high - low), 0, 1)[..., None]
    light = np.maximum(1 - np.abs(2 * high[..., None] - np.arange(3, dtype=np.float32)), 0)
    return np.concatenate([soft_bins(hue, HUES) * chroma, light * (1 - chroma)], axis=-1)


def edge_votes(level: np.ndarray) -> np.ndarray:
    """Votes of the gradient's strength for 8 orientations: [R, S, S] -> [R, S, S, 8]."""
    down, right = np.gradient(level, axis=(1, 2))
    return soft_bins(np.arctan2(down, right) / math.pi, 8) * np.hypot(down, right)[..., None]


def unit(rows: np.ndarray, floor: float) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), floor)


@functools.cache
def random_layer(inputs: int, outputs: int) -> np.ndarray:
    """A fixed random projection; its columns sum to 0, which takes out what all windows have in common."""
    weights = np.random.default_rng(2018).standard_normal((inputs, outputs), dtype=np.float32)
    return weights - weights.mean(0)


@functools.cache
def spectrum_bins() -> np.ndarray:
    """Which of 5 rings x 6 orientations an entry of a 16 x 16 real spectrum belongs to: [16 * 9, 30]."""
    down, right = np.meshgrid(np.fft.fftfreq(16) * 16, np.arange(9), indexing="ij")
    radius, angle = np.hypot(down, right).ravel(), np.arctan2(down, right).ravel() / np.pi
    edges = (1, 2, 3, 4.5, 6.5, 9)
    rings = np.stack([(radius >= a) & (radius < b) for a, b in zip(edges, edges[1:], strict=False)], axis=1)
    return (rings[:, :, None] * soft_bins(angle, 6)[:, None, :]).reshape(16 * 9, 30).astype(np.float32)


def texture_spectrum(window: np.ndarray) -> np.ndarray:
    """Strength of the middle's waves by wavelength and orientation: [R, CELLS, CELLS, 3] -> [R, 30]."""
    edge = (CELLS - 16) // 2
    grey = window[:, edge : edge + 16, edge : edge + 16].mean(-1)
    fade = np.hanning(16).astype(np.float32)
    waves = np.fft.rfft2((grey - grey.mean((1, 2), keepdims=True)) * np.outer(fade, fade))
    return np.sqrt(np.abs(waves).astype(np.float32).reshape(len(grey), -1) @ spectrum_bins())


def parts(picture, boxes):
    boxes = np.asarray(boxes, np.float32)
    window = cut(np.asarray(picture, np.float32) / 255, boxes, CELLS)
    rim = np.concatenate([window[:, 0], window[:, -1], window[:, :, 0], window[:, :, -1]], axis=1)
    figure = np.linalg.norm(window - np.median(rim, axis=1)[:, None, None], axis=-1)
    edge = np.sqrt(pool(edge_votes(figure), 4)).reshape(len(boxes), -1)
    colour = pool(colour_votes(window[:, CELLS // 4 : -CELLS // 4, CELLS // 4 : -CELLS // 4]), 1)[:, 0, 0]
    marks = np.linspace(0, 1, PLACES, dtype=np.float32)
    x1, y1, x2, y2 = boxes.T
    spans = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)
    place = [np.exp(-(((span[:, None] - marks) * (PLACES - 1)) ** 2)) for span in spans]
    outline = np.concatenate([unit(edge, 1.2), 0.7 * unit(pool(figure[..., None], 8).reshape(len(boxes), -1), 3.0)], 1)
    return dict(colour=colour, outline=outline, texture=texture_spectrum(window) / 6, place=np.concatenate(place, 1))


def region_features(picture: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    p = parts(picture, boxes)
    outline = np.maximum(p['outline'] @ random_layer(p['outline'].shape[1], OUTLINES) + 0.25, 0)
    weave = np.maximum(p['texture'] @ random_layer(30, WEAVES) * 0.6 + 0.25, 0)
    both = p['colour'][:, :, None] * np.concatenate([outline, weave], axis=1)[:, None, :]
    return np.concatenate([2 * both.reshape(len(both), -1), p['texture'], p['place']], axis=1).astype(np.float16)


QUARTERS = np.array([[0, 0, 1, 1], [0, 0, 0.5, 0.5], [0.5, 0, 1, 0.5], [0, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]], np.float32)


def global_feature(picture: np.ndarray) -> np.ndarray:
    """One vector [F] of a whole picture [H, W, 3]: the mean over the picture and its quarters."""
    return region_features(picture, QUARTERS).astype(np.float32).mean(axis=0).astype(np.float16)
