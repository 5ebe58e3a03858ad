"""The inputs of the parity ladder: images, flat colours, noise, one image repeated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from atm_export.inputs import Pixels

BATCHES = (1, 3, 8)
COLOURS = ((128, 128, 128), (0, 0, 0), (255, 255, 255), (200, 30, 60), (20, 90, 160), (7, 7, 9))


@dataclass(frozen=True)
class Case:
    """One input of the ladder: its kind, its batch size, and candidates [batch, H, W, C] uint8.

    Candidates are tried in order until the reference decides with a margin on one.
    """

    kind: str
    batch: int
    candidates: tuple[Pixels, ...]


def cases(images: Pixels, batches: tuple[int, ...] = BATCHES) -> Iterator[Case]:
    """All kinds at all batch sizes; `images` [k, H, W, C] are real ones."""
    for batch in batches:
        yield Case("images", batch, _windows(images, batch))
        yield Case("flat", batch, tuple(_flat(images.shape[1:], batch, i) for i in range(6)))
        yield Case("noise", batch, tuple(_noise(images.shape[1:], batch, i) for i in range(6)))
        if batch > 1:
            repeats = [np.repeat(images[i % len(images)][None], batch, axis=0) for i in range(4)]
            yield Case("repeated", batch, tuple(repeats))


def _windows(images: Pixels, batch: int) -> tuple[Pixels, ...]:
    starts = range(0, max(len(images) - batch, 0) + 1, max(1, batch // 2))
    windows = tuple(images[i : i + batch] for i in starts if len(images[i : i + batch]) == batch)
    if windows:
        return windows[:6]
    return (images[np.arange(batch) % len(images)],)


def _flat(shape: tuple[int, ...], batch: int, first: int) -> Pixels:
    """Of each colour as many numbers as there are channels, from the first on again."""
    colours = [np.resize(COLOURS[(first + i) % len(COLOURS)], shape[-1]) for i in range(batch)]
    return np.stack([np.broadcast_to(colour.astype(np.uint8), shape) for colour in colours])


def _noise(shape: tuple[int, ...], batch: int, seed: int) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (batch, *shape), dtype=np.uint8)
