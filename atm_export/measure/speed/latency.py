"""Latency of exports as a ratio: interleaved in one process, medians, paired ratios."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from math import comb
from typing import Any

import numpy as np

from atm_export.backends.runner import Array, Runner

WARM_UP = 2


def orders(count: int) -> list[list[int]]:
    """Orders of `count` runners, to be taken in turn, in which each comes behind every other one
    equally often (a Williams square; E. J. Williams, 1949). A runner behind itself would find its
    weights in the cache."""
    first = [0]
    for k in range(1, count):
        first.append(k // 2 + 1 if k % 2 else count - k // 2)
    rows = [[(position + i) % count for position in first] for i in range(count)]
    if count % 2:  # one square cannot balance an odd number; the mirrored rows do
        rows += [rows[(count - 2 - i) % count][::-1] for i in range(count)]
    return rows


def interleave(
    runners: Mapping[str, Runner],
    feeds: Sequence[Mapping[str, Array]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each runner in each round; WARM_UP uncounted rounds.

    feeds: inputs by runner, one per round and taken in turn. Two runners go A B A B; more take
    turns in the orders of `orders`.
    """
    names = list(runners)
    turns = [[0, 1]] if len(names) == 2 else orders(len(names))
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for i in range(-WARM_UP, rounds):
        feed = feeds[i % len(feeds)]
        for name in (names[k] for k in turns[i % len(turns)]):
            start = clock()
            runners[name].run(feed[name])
            if i >= 0:
                seconds[name].append(clock() - start)
    return seconds


def compare(seconds: Mapping[str, Sequence[float]], baseline: str, batch: int) -> dict[str, Any]:
    """Medians in ms a batch, and the median of paired ratios baseline / other."""
    base = np.asarray(seconds[baseline])
    return {
        "batch": batch,
        "rounds": len(base),
        "median_ms": {name: round(1e3 * float(np.median(s)), 3) for name, s in seconds.items()},
        "speedup": {
            name: round(float(np.median(base / np.asarray(s))), 3)
            for name, s in seconds.items()
            if name != baseline
        },
    }


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the median by order statistics (no distribution assumed); the whole range
    where there are fewer than six values."""
    ranked, n = sorted(values), len(values)
    below, tail = 0, 1 / 2**n
    while below + 1 <= (n - 1) // 2 and tail <= 0.025:
        below += 1
        tail += comb(n, below) / 2**n
    k = max(0, below - 1)
    return ranked[k], ranked[n - 1 - k]


def row_of(
    seconds: Sequence[float], base: Sequence[float] | None, batch: int, flops_ratio: float
) -> dict[str, Any]:
    """One line of the table: latency in ms, throughput, and the paired ratio unmerged / this."""
    ms = 1e3 * np.asarray(seconds)
    row: dict[str, Any] = {
        "batch": batch,
        "rounds": len(ms),
        "median_ms": round(float(np.median(ms)), 3),
        "p90_ms": round(float(np.quantile(ms, 0.9)), 3),
        "p99_ms": round(float(np.quantile(ms, 0.99)), 3),
        "images_per_s": round(1e3 * batch / float(np.median(ms)), 2),
        "flops_ratio": round(flops_ratio, 3),
    }
    if base is not None:
        row["speedup"] = paired_ratio(base, seconds)
    return row


def paired_ratio(base: Sequence[float], seconds: Sequence[float]) -> dict[str, float]:
    """The median of the ratios base / seconds, round by round, with its 95 % interval."""
    ratios = [b / s for b, s in zip(base, seconds, strict=True)]
    low, high = median_interval(ratios)
    return {
        "median": round(float(np.median(ratios)), 3),
        "low": round(low, 3),
        "high": round(high, 3),
    }
