"""The nearest neighbours of embeddings among themselves, and how much of them two models share.

Nearest is largest cosine; of equal ones the image that comes first. Every image is asked for among
all others of the same model (merged queries in the merged gallery, unmerged ones in the unmerged),
as a service has it that embeds its pictures anew. Nothing here imports more than NumPy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Places = NDArray[np.int64]
GRID = 2.0**38  # cosines are equal where they are so on it: FP64 sums differ by 2**-50
BLOCK = 2**22  # similarities at a time: 32 MB
MOST = 2**24  # images: keys hold grid and place in 63 bits


def directions(rows: NDArray[Any]) -> Floats:
    """Vectors [n, d] of length 1; NaN for what has no direction."""
    rows = rows.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def nearest(rows: NDArray[Any], k: int) -> Places:
    """The `k` nearest others of each of n embeddings [n, d], nearest first, [n, k].

    Memory is bounded: n * k, and one block of similarities. ValueError where there are not k others
    or a vector has no direction.
    """
    n, unit = len(rows), directions(rows)
    if not 0 < k < n <= MOST:
        raise ValueError(f"{n} images have no {k} neighbours")
    if not np.isfinite(unit).all():
        raise ValueError("an embedding has no direction")
    step, found = max(1, BLOCK // n), np.empty((n, k), np.int64)
    for start in range(0, n, step):
        block = unit[start : start + step] @ unit.T
        # one key for cosine and place: all differ, and of equal cosines the first is the largest
        keys = np.rint(block * GRID).astype(np.int64) * n + np.arange(n - 1, -1, -1)
        own = np.arange(len(block))
        keys[own, start + own] = np.iinfo(np.int64).min
        best = np.sort(np.partition(keys, n - k, axis=1)[:, n - k :], axis=1)[:, ::-1]
        found[start : start + step] = n - 1 - best % n
    return found


def shared(ours: Places, plain: Places, k: int) -> Floats:
    """The share of each image's `k` nearest neighbours that both models find, [n]."""
    same = ours[:, :k, None] == plain[:, None, :k]
    return np.asarray(same.any(axis=2).mean(axis=1))


def recalled(ours: Places, plain: Places, k: int) -> NDArray[np.bool_]:
    """Whether the unmerged model's nearest neighbour of each image is among the merged model's `k`
    nearest, [n]: recall@k with the unmerged neighbour as what is right."""
    return np.asarray((ours[:, :k] == plain[:, :1]).any(axis=1))
