"""Region and global features computed from pixels, with NumPy alone: descriptors and a small linear detector.

A window is averaged to cells and described by its colours, its outline, its texture spectrum and its place. A linear
detector, fitted once by ridge regression to the windows of a few reference scenes, turns the descriptors into responses
to shapes, colours, textures and sizes, as the pretrained detector of Anderson et al. (2018, "Bottom-up and top-down
attention") does for photographs. Products of responses answer to combinations ("red and round") and survive averaging.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy as np
from scipy import ndimage

from xmodal_jax.data.scenes import render, world
from xmodal_jax.errors import DataError

CELLS = 24  # a window is seen as this many cells a side
HUES = 8
PLACES = 5  # marks along a side of the picture
EDGE = 25  # the least difference of neighbouring pixels, of 255, that counts as an edge
GRID = 64  # boxes are proposed on a grid of this many cells a side
WHOLE = np.array([(0, 0, 1, 1)], np.float32)
REFERENCE_SEED, REFERENCE_SCENES = 1_000_000_007, 120  # what the detector is fitted to; no data set has this seed
ATTRIBUTES = (world.SHAPES, world.COLOURS, world.TEXTURES, world.SIZES)
PRODUCTS = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3))  # which kinds of responses are multiplied
FEATURES = (
    *(sum(map(len, ATTRIBUTES)) + 1, sum(len(ATTRIBUTES[a]) * len(ATTRIBUTES[b]) for a, b in PRODUCTS)),
    *(HUES + 3, 4 * PLACES),
)  # widths of: responses and objectness, products, colours of the corners, place


def check_input(picture: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    picture, boxes = np.asarray(picture), np.asarray(boxes, np.float32)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or min(picture.shape) < 3:
        raise DataError(f"A picture must be uint8 [H, W, 3], not {picture.dtype} {list(picture.shape)}.")
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
        raise DataError(f"Boxes must be finite and [R, 4], not {list(boxes.shape)}.")
    return picture, boxes


def cut(picture: np.ndarray, boxes: np.ndarray, cells: int = CELLS) -> np.ndarray:
    """Area averages of windows: picture uint8 [H, W, 3], boxes [R, 4] in 0..1 -> [R, cells, cells, 3] in 0..1.

    Each cell is the mean of the picture under it (by the summed-area table, Crow 1984), so pixels outside a box have
    no influence. Windows are at least a pixel wide.
    """
    table = np.zeros((picture.shape[0] + 1, picture.shape[1] + 1, 3))
    table[1:, 1:] = picture.cumsum(0, dtype=np.int64).cumsum(1)

    def edges(low: np.ndarray, high: np.ndarray, pixels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        low = np.clip(low.astype(np.float64) * pixels, 0, pixels - 1)
        span = np.maximum(np.minimum(high * pixels, pixels) - low, 1)
        at = low[:, None] + span[:, None] * np.linspace(0, 1, cells + 1)
        whole = np.minimum(at.astype(np.int64), pixels - 1)
        return whole, (at - whole)[..., None, None], span / cells

    row, part, height = edges(boxes[:, 1], boxes[:, 3], picture.shape[0])
    sums = table[row] * (1 - part) + table[row + 1] * part
    column, part, width = edges(boxes[:, 0], boxes[:, 2], picture.shape[1])
    region = np.arange(len(boxes))[:, None]
    sums = sums[region, :, column] * (1 - part) + sums[region, :, column + 1] * part
    means = np.diff(np.diff(sums, axis=1), axis=2).swapaxes(1, 2)
    return (means / (255 * height * width)[:, None, None, None]).astype(np.float32)


def pool(maps: np.ndarray, grid: int) -> np.ndarray:
    """Mean over a ``grid`` x ``grid`` partition: [R, S, S, K] -> [R, grid, grid, K]."""
    regions, side, _, channels = maps.shape
    step = side // grid
    return maps.reshape(regions, grid, step, grid, step, channels).sum(2).sum(3) / np.float32(step * step)


def flat(maps: np.ndarray) -> np.ndarray:
    return maps.reshape(len(maps), -1)


def unit(rows: np.ndarray, floor: float) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), floor)


def soft_bins(turns: np.ndarray, bins: int) -> np.ndarray:
    """Triangular votes of an angle in turns (period 1) for neighbouring bins: [...] -> [..., bins]."""
    gap = np.abs(turns[..., None] * bins % bins - np.arange(bins, dtype=np.float32))
    return np.maximum(1 - np.minimum(gap, bins - gap), 0)


def colour_votes(window: np.ndarray) -> np.ndarray:
    """Votes for hues (weighted by chroma) and for dark, middle and light greys: [..., 3] in 0..1 -> [..., HUES + 3]."""
    red, green, blue = window[..., 0], window[..., 1], window[..., 2]
    high, low = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    hue = np.arctan2(math.sqrt(3) * (green - blue), 2 * red - green - blue) / (2 * math.pi)
    chroma = np.clip(1.6 * (high - low), 0, 1)[..., None]
    light = np.maximum(1 - np.abs(2 * high[..., None] - np.arange(3, dtype=np.float32)), 0)
    return np.concatenate([soft_bins(hue, HUES) * chroma, light * (1 - chroma)], axis=-1)


def outline(window: np.ndarray) -> np.ndarray:
    """Silhouette and edges of what differs from the window's rim: [R, CELLS, CELLS, 3] -> [R, 64 + 128].

    The edges are histograms of oriented gradients (Dalal and Triggs 2005) on a 4 x 4 grid.
    """
    rim = np.concatenate([window[:, 0], window[:, -1], window[:, :, 0], window[:, :, -1]], axis=1)
    apart = window - np.median(rim, axis=1)[:, None, None]
    figure = np.sqrt(np.einsum("rijc,rijc->rij", apart, apart))
    down, right = np.gradient(figure, axis=(1, 2))
    votes = soft_bins(np.arctan2(down, right) / math.pi, 8) * np.hypot(down, right)[..., None]
    silhouette = unit(flat(pool(figure[..., None], 8)), 3.0)
    return np.concatenate([0.7 * silhouette, unit(np.sqrt(flat(pool(votes, 4))), 1.2)], axis=1)


@functools.cache
def spectrum_bins() -> np.ndarray:
    """Which of 5 rings x 6 orientations an entry of a 16 x 16 real spectrum belongs to: [16 * 9, 30]."""
    down, right = np.meshgrid(np.fft.fftfreq(16) * 16, np.arange(9), indexing="ij")
    radius, turns = np.hypot(down, right).ravel(), np.arctan2(down, right).ravel() / math.pi
    edges = (1, 2, 3, 4.5, 6.5, 9)
    rings = np.stack([(radius >= low) & (radius < high) for low, high in itertools.pairwise(edges)], axis=1)
    return (rings[:, :, None] * soft_bins(turns, 6)[:, None, :]).reshape(16 * 9, 30).astype(np.float32)


def texture_spectrum(window: np.ndarray) -> np.ndarray:
    """Strength of the middle's waves by wavelength and orientation: [R, CELLS, CELLS, 3] -> [R, 30]."""
    edge = (CELLS - 16) // 2
    middle = window[:, edge:-edge, edge:-edge]
    grey = (middle[..., 0] + middle[..., 1] + middle[..., 2]) / 3
    fade = np.hanning(16).astype(np.float32)
    waves = np.fft.rfft2((grey - grey.mean((1, 2), keepdims=True)) * np.outer(fade, fade))
    return np.sqrt(flat(np.abs(waves).astype(np.float32)) @ spectrum_bins()) / 6


def place_marks(boxes: np.ndarray) -> np.ndarray:
    """Centre and size of boxes as soft marks on a scale: [R, 4] -> [R, 4 * PLACES]."""
    x1, y1, x2, y2 = boxes.T
    spans = np.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], axis=1)
    return flat(np.exp(-(((spans[..., None] - np.linspace(0, 1, PLACES)) * (PLACES - 1)) ** 2))).astype(np.float32)


def describe(picture: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What can be said of windows before detection: all descriptors [R, .], and two of them: colours, place."""
    window = cut(picture, boxes)
    colour = pool(colour_votes(pool(window, CELLS // 2)), 3)
    place = place_marks(boxes)
    rows = [outline(window), np.sqrt(flat(colour)), texture_spectrum(window), place]
    return np.concatenate(rows, axis=1, dtype=np.float64), colour, place


@functools.cache
def detector() -> tuple[np.ndarray, np.ndarray]:
    """Weights [descriptors, attributes] and offsets, fitted to reference scenes by ridge regression (in seconds)."""
    rows, wanted = [], []
    for index in range(0, REFERENCE_SCENES * world.FAMILY, world.FAMILY):
        scene = world.sample_scene(REFERENCE_SEED, index)
        regions = world.sample_regions(scene, REFERENCE_SEED, index)
        picture = render.draw(scene, world.stream(REFERENCE_SEED, index, world.PICTURE))
        rows.append(describe(picture, regions.boxes)[0])
        for covered in regions.covers:
            attributes = scene.things[covered][: len(ATTRIBUTES)] if covered >= 0 else [""] * len(ATTRIBUTES)
            wanted.append([name == has for names, has in zip(ATTRIBUTES, attributes, strict=True) for name in names])
    inputs, outputs = np.concatenate(rows), np.asarray(wanted, np.float64)
    mean = inputs.mean(0)
    centred = inputs - mean
    weights = np.linalg.solve(centred.T @ centred + 3 * np.eye(len(mean)), centred.T @ (outputs - outputs.mean(0)))
    weights = weights.round(6)  # the last bits of a solution depend on the machine
    return weights, outputs.mean(0) - mean @ weights


def respond(picture: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Features of windows of a checked picture, [R, F] float64: the four parts that :data:`FEATURES` lists."""
    rows, colour, place = describe(picture, boxes)
    weights, offsets = detector()
    scores = rows @ weights + offsets
    objectness = np.clip(scores[:, : len(world.SHAPES)].sum(1, keepdims=True), 0, 1)
    # Weak responses are mostly wrong: cut them off, and let the strong ones saturate.
    ends = np.cumsum([len(names) for names in ATTRIBUTES])
    kinds = np.split(np.clip((scores - 0.2) / 0.6, 0, 1), ends[:-1], axis=1)
    products = [flat(kinds[a][:, :, None] * kinds[b][:, None, :]) for a, b in PRODUCTS]
    corners = np.sqrt(colour[:, ::2, ::2]).mean((1, 2))
    return np.concatenate([*kinds, objectness, *products, 0.5 * corners, 0.5 * place * objectness], axis=1)


def propose_boxes(picture: np.ndarray, most: int = 12) -> np.ndarray:
    """Boxes [P, 4] of what stands out by sharp closed edges; the whole picture where nothing does."""
    picture, _ = check_input(picture, WHOLE)
    level = np.ascontiguousarray(picture.transpose(2, 0, 1), np.int16)
    edge = np.zeros(picture.shape[:2], bool)
    edge[1:] |= np.abs(np.diff(level, axis=1)).max(0) > EDGE
    edge[:, 1:] |= np.abs(np.diff(level, axis=2)).max(0) > EDGE
    for axis, pixels in enumerate(picture.shape[:2]):
        edge = np.logical_or.reduceat(edge, np.arange(GRID) * pixels // GRID, axis=axis)
    closed = np.pad(edge, 1)
    label: Any = ndimage.label  # its stubs lose that it returns a pair
    ground, _ = label(~closed)
    inside = ndimage.binary_opening(ground != ground[0, 0], np.ones((3, 3)))[1:-1, 1:-1]
    blobs, _ = label(inside)
    spans = [(s[1].start, s[0].start, s[1].stop, s[0].stop) for s in ndimage.find_objects(blobs)]
    return np.asarray(spans, np.float32).reshape(-1, 4)[:most] / GRID if spans else WHOLE


def picture_features(picture: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """:func:`region_features` and :func:`global_feature` of one picture in one go."""
    picture, boxes = check_input(picture, boxes)
    rows = respond(picture, np.concatenate([boxes, propose_boxes(picture), WHOLE]))
    total = rows[len(boxes) : -1].sum(0) / 2
    ground = slice(sum(FEATURES[:2]), sum(FEATURES[:3]))
    total[ground] = rows[-1, ground]
    return rows[: len(boxes)].astype(np.float16), total.astype(np.float16)


def region_features(picture: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Features of windows: picture uint8 [H, W, 3], boxes [R, 4] (x1, y1, x2, y2 in 0..1) -> float16 [R, F].

    F is the sum of :data:`FEATURES`. Pixels outside a box do not change its row.

    Raises:
      DataError: the picture or the boxes have another form.
    """
    return respond(*check_input(picture, boxes)).astype(np.float16)


def global_feature(picture: np.ndarray) -> np.ndarray:
    """Feature of a whole picture, uint8 [H, W, 3] -> float16 [F]: proposed boxes summed, and the ground's colours."""
    return picture_features(picture, np.zeros((0, 4), np.float32))[1]
