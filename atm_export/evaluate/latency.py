"""Latency of exports as a ratio: interleaved in one process, medians, one thread pool."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from atm_export.backends.runner import Array, Runner


def interleave(
    runners: Mapping[str, Runner],
    batches: Sequence[Mapping[str, Array]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each runner in each round, A B A B ...; one uncounted warm-up round.

    batches: inputs by runner, one per round and taken in turn.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for i in range(rounds + 1):
        batch = batches[i % len(batches)]
        for name, runner in runners.items():
            start = clock()
            runner.run(batch[name])
            if i:
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
