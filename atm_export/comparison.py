"""One comparison with a bound, and its verdict. NaN never passes: it is no difference that is
allowed. Nothing here imports more than NumPy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True)
class Comparison:
    """What was compared, the largest difference, what is allowed, and whether the first choices
    are the same."""

    what: str
    difference: float
    allowed: float
    same_top1: bool = True

    @property
    def ok(self) -> bool:
        return bool(self.difference <= self.allowed) and self.same_top1

    @property
    def line(self) -> str:
        text = f"{self.what}: differs by {self.difference:.2g}, {self.allowed:g} allowed"
        return text if self.same_top1 else f"{text}; another top-1"


def largest(values: Iterable[float], default: float = 0.0) -> float:
    """The largest of some differences, NaN if one is: Python's `max` forgets it by chance."""
    found = np.fromiter(values, np.float64)
    return float(found.max()) if found.size else default


def smallest(values: Iterable[float], default: float = float("inf")) -> float:
    """The smallest of some margins, NaN if one is."""
    found = np.fromiter(values, np.float64)
    return float(found.min()) if found.size else default


def compare_logits(what: str, ours: Array, theirs: Array, allowed: float) -> Comparison:
    """Logits [n, classes] by their largest difference and by top-1, but where the two best of
    `theirs` lie so close together that either is right."""
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    with np.errstate(invalid="ignore"):
        difference = float(np.abs(ours - theirs).max())
    return Comparison(what, difference, allowed, not flips(ours, theirs, allowed).any())


def flips(ours: Array, theirs: Array, allowed: float) -> NDArray[np.bool_]:
    """Which rows [n] have another top-1, though `theirs` is sure of it by twice what is allowed."""
    two = np.sort(theirs, axis=1)[:, -2:]
    with np.errstate(invalid="ignore"):
        tied = two[:, -1] - two[:, 0] <= 2 * allowed
    flipped: NDArray[np.bool_] = ~tied & (ours.argmax(axis=1) != theirs.argmax(axis=1))
    return flipped


def compare_angles(what: str, ours: Array, theirs: Array, least: float) -> Comparison:
    """Logits [n, classes] by the widest angle of two rows, as 1 - cosine; `least` cosine."""
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
        difference = 1 - float(((ours * theirs).sum(axis=1) / norms).min())
    return Comparison(what, difference, 1 - least)
