"""Patch features as colours: the first three principal components of the unmerged model's, as red,
green and blue, merged and unmerged on one scale."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from atm_export.inputs import RGB, Pixels
from atm_export.report.pictures import enlarged

Features = NDArray[Any]
ENDS = (0.01, 0.99)  # quantiles of a component that are black and full


def coloured_features(plain: Features, merged: Features) -> tuple[Pixels, Pixels]:
    """Unmerged and merged features [H, W, D] as colours [H, W, 3]. Axes, signs and scale are those
    of the unmerged ones: of each axis the largest number is positive."""
    rows = plain.reshape(-1, plain.shape[-1]).astype(np.float64)
    middle = rows.mean(axis=0)
    axes = np.linalg.svd(rows - middle, full_matrices=False)[2][:RGB]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    axes = axes * np.where(largest < 0, -1, 1)
    seen = (rows - middle) @ axes.T
    low, high = np.quantile(seen, ENDS, axis=0)

    def drawn(features: Features) -> Pixels:
        values = (features.astype(np.float64) - middle) @ axes.T
        share = np.clip((values - low) / np.maximum(high - low, 1e-12), 0, 1)
        colours = np.rint(255 * share).astype(np.uint8)
        missing = RGB - colours.shape[-1]  # an image of one or two patches
        return np.pad(colours, ((0, 0), (0, 0), (0, missing)), mode="edge")

    return drawn(plain), drawn(merged)


def patches_drawn(pixels: Pixels, features: Features) -> Pixels:
    """Colours of patches [H, W, 3] in the size of the image's drawing, cut to whole patches."""
    rows, columns = features.shape[:2]
    tall, wide = (n // m for n, m in zip(enlarged(pixels).shape[:2], (rows, columns), strict=True))
    return features.repeat(tall, axis=0).repeat(wide, axis=1)


def features_beside(pixels: Pixels, plain: Features, merged: Features) -> Pixels:
    """An image [H, W, C], its unmerged and its merged features [rows, columns, D], in a row."""
    drawn = [patches_drawn(pixels, each) for each in coloured_features(plain, merged)]
    height, width = drawn[0].shape[:2]
    gap = np.full((height, 8, RGB), 255, np.uint8)
    first = enlarged(pixels)[:height, :width]
    return np.concatenate([first, gap, drawn[0], gap, drawn[1]], axis=1)
