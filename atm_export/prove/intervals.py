"""Shares with the interval that the number of cases allows, and verdicts on them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from atm_export.tasks.judge import Count

Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution


def wilson(hits: float, count: int, z: float = Z95) -> tuple[float, float]:
    """Wilson score interval of hits / count, as shares 0..1 (E. B. Wilson, JASA 1927).

    Unlike hits/count +- z sigma it stays inside 0..1, and does not vanish at 0 or all hits.
    """
    if count == 0:
        return 0.0, 1.0
    share, square = hits / count, z * z
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = z / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / count**2 / 4)
    low = max(0.0, centre - half) if hits else 0.0  # exact, where rounding would leave 1e-17
    return low, (min(1.0, centre + half) if hits < count else 1.0)


def share_facts(hits: float, count: int) -> dict[str, Any]:
    """percent with its 95 % Wilson interval, and the counts behind it."""
    low, high = wilson(hits, count)
    return {
        "percent": round(100 * hits / count, 3) if count else None,
        "low": round(100 * low, 3),
        "high": round(100 * high, 3),
        "hits": hits,
        "of": count,
    }


def with_intervals(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of a judge as JSON values: counts become shares with their intervals."""
    found: dict[str, Any] = {}
    for name, value in figures.items():
        if isinstance(value, Count):
            found[name] = share_facts(value.hits, value.of)
        else:
            found[name] = with_intervals(value) if isinstance(value, Mapping) else value
    return found


@dataclass(frozen=True)
class Share:
    """`hits` of `of` cases. A bound is broken where the 95 % interval excludes it: one case more or
    less is chance where there are few."""

    hits: int
    of: int

    def at_least(self, bound: float) -> bool:
        """Whether the interval reaches `bound` (a share 0..1) from below."""
        return wilson(self.hits, self.of)[1] >= bound

    def at_most(self, bound: float) -> bool:
        """Whether the interval reaches `bound` (a share 0..1) from above."""
        return wilson(self.hits, self.of)[0] <= bound

    def facts(self) -> dict[str, Any]:
        return share_facts(self.hits, self.of)

    def __str__(self) -> str:
        low, high = wilson(self.hits, self.of)
        return f"{self.hits} of {self.of} (95 % interval {100 * low:.1f} to {100 * high:.1f} %)"
