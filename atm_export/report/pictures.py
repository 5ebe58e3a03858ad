"""Images with their merged patches drawn as regions (figures 7 and A1 of the paper).

A patch that stays a token of its own keeps its pixels; patches that share a token take the mean
colour of their region, with an outline around it; dropped patches are dark.
"""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from atm_export.inputs import RGB, Pixels

Map = NDArray[np.int64]
LEAST = 224  # smaller images are enlarged to about this many pixels
DIMMED = 5
OUTLINE = (255, 255, 255)


def drawable(grid: tuple[int, ...]) -> bool:
    """Whether patches lie in rows and columns."""
    return len(grid) == 2


def coloured(pixels: Pixels) -> Pixels:
    """[H, W, C] as RGB: the channels' mean where they are no colours."""
    if pixels.shape[2] == RGB:
        return pixels
    mean = pixels.mean(axis=2, keepdims=True).round().astype(np.uint8)
    return mean.repeat(RGB, axis=2)


def enlarged(pixels: Pixels) -> Pixels:
    """Small images by whole pixels, others as they are; RGB."""
    pixels = coloured(pixels)
    scale = max(1, round(LEAST / min(pixels.shape[:2])))
    return pixels.repeat(scale, axis=0).repeat(scale, axis=1)


def regions(pixels: Pixels, patch_to_token: Map, grid: tuple[int, ...]) -> Pixels:
    """Image [H, W, C] and token of each patch [rows * columns] (-1: dropped) to a drawing, enlarged
    if small."""
    rows, columns = grid
    big = enlarged(pixels)
    tokens = patch_to_token.reshape(rows, columns) + 1  # 0: dropped
    tall, wide = big.shape[0] // rows, big.shape[1] // columns
    of_pixel = tokens.repeat(tall, axis=0).repeat(wide, axis=1)
    inside = big[: rows * tall, : columns * wide].copy()
    flat = of_pixel.reshape(-1)
    count = np.bincount(flat)
    means = np.stack(
        [np.bincount(flat, inside[..., c].reshape(-1)) / np.maximum(count, 1) for c in range(RGB)],
        axis=1,
    )
    dropped = of_pixel == 0
    shared = (count > tall * wide)[of_pixel] & ~dropped
    inside[shared] = means[of_pixel][shared].round().astype(np.uint8)
    inside[dropped] //= DIMMED
    inside[_borders(of_pixel) & _near(shared)] = OUTLINE
    return inside


def _borders(of_pixel: Map) -> NDArray[np.bool_]:
    edge = np.zeros(of_pixel.shape, bool)
    edge[1:] |= of_pixel[1:] != of_pixel[:-1]
    edge[:, 1:] |= of_pixel[:, 1:] != of_pixel[:, :-1]
    return edge


def _near(shared: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of shared regions, and those below or right of one."""
    near = shared.copy()
    near[1:] |= shared[:-1]
    near[:, 1:] |= shared[:, :-1]
    return near


def side_by_side(pixels: Pixels, patch_to_token: Map, grid: tuple[int, ...]) -> Pixels:
    """The image and its drawing, next to each other."""
    drawn = regions(pixels, patch_to_token, grid)
    plain = enlarged(pixels)[: drawn.shape[0], : drawn.shape[1]]
    gap = np.full((drawn.shape[0], 8, RGB), 255, np.uint8)
    return np.concatenate([plain, gap, drawn], axis=1)


def png(pixels: Pixels) -> bytes:
    """PNG bytes."""
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "PNG", optimize=True)
    return data.getvalue()


def data_url(pixels: Pixels, quality: int = 82) -> str:
    """A JPEG small enough to lie inside a page."""
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=quality, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
