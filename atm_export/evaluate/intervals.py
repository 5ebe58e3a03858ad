"""Shares with the interval that the number of images allows."""

from __future__ import annotations

import math
from typing import Any

Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution


def wilson(hits: int, count: int, z: float = Z95) -> tuple[float, float]:
    """Wilson score interval of hits / count, as shares 0..1 (E. B. Wilson, JASA 1927).

    Unlike hits/count +- z sigma it stays inside 0..1, and does not vanish at 0 or all hits.
    """
    if count == 0:
        return 0.0, 1.0
    share, square = hits / count, z * z
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = z / (1 + square / count) * math.sqrt(share * (1 - share) / count + square / count**2 / 4)
    return max(0.0, centre - half), min(1.0, centre + half)


def share_facts(hits: int, count: int) -> dict[str, Any]:
    """percent with its 95 % Wilson interval, and the counts behind it."""
    low, high = wilson(hits, count)
    return {
        "percent": round(100 * hits / count, 3) if count else None,
        "low": round(100 * low, 3),
        "high": round(100 * high, 3),
        "hits": hits,
        "of": count,
    }
