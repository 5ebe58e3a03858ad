"""One comparison with a bound, and its verdict. NaN never passes: it is no difference that is
allowed. Nothing here imports more than NumPy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


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
