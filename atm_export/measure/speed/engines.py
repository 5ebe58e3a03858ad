"""An engine where its device is: is it right, how fast is it, which policy pays there."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from atm_export.backends.runner import Array, Runner
from atm_export.measure.speed.latency import interleave
from atm_export.prove.precision import judge, paired
from atm_export.tasks.base import Output

BATCHES = (1, 8, 32, 64)
ROUNDS = 30
Clock = Callable[[], float]


@dataclass(frozen=True)
class Expected:
    """One batch for the graph's input, and what the eager reference makes of it: outputs
    [batch, ...] by name and token counts (flat)."""

    feed: Array
    outputs: Mapping[str, Array]
    tokens: Array


def engine_parity(
    traced: Runner,
    shipped: Runner,
    expected: Sequence[Expected],
    precision: str,
    outputs: Sequence[Output],
) -> dict[str, Any]:
    """Token counts through the traced engine, outputs through the one that ships, under the
    precision's tolerance. Both runners are entered."""
    found = [(shipped.run(e.feed), traced.run(e.feed)) for e in expected]
    proof = judge(
        precision,
        paired(outputs, [e.outputs for e in expected], [out for out, _ in found]),
        np.concatenate([e.tokens for e in expected]).astype(np.float64),
        np.concatenate(
            [np.asarray(told["tokens_per_block"]).reshape(-1) for _, told in found]
        ).astype(np.float64),
        len(expected[0].feed),
    )
    return {**proof.facts(), "against": "the eager reference, on this GPU"}


def engine_speed(
    runners: Mapping[str, Runner],
    feeds: Mapping[int, Array],
    *,
    rounds: int,
    clock: Clock = time.perf_counter,
) -> list[dict[str, Any]]:
    """Latency of each runner (`unmerged` among them) at each batch, in turn in one process.

    feeds: one input by batch size. Times are from host memory to host memory, in ms.
    """
    rows = []
    for batch, feed in feeds.items():
        seconds = interleave(runners, [dict.fromkeys(runners, feed)], rounds, clock)
        base = np.asarray(seconds["unmerged"])
        rows.append(
            {
                "batch": batch,
                "rounds": rounds,
                "runners": {
                    name: {
                        **_percentiles(np.asarray(taken)),
                        "images_per_second": round(batch / float(np.median(taken)), 1),
                        "speedup": round(float(np.median(base / np.asarray(taken))), 3),
                    }
                    for name, taken in seconds.items()
                },
            }
        )
    return rows


def recommend(rows: Sequence[Mapping[str, Any]], gpu: str) -> str:
    """One sentence: what to run at which batch."""
    best = [(row["batch"], *_fastest(row["runners"])) for row in rows]
    parts = [
        f"{name} at batch {batch}"
        + (f" ({gain:.2f} times the unmerged engine)" if name != "unmerged" else "")
        for batch, name, gain in best
    ]
    return f"On {gpu}: {', '.join(parts)}."


def _fastest(runners: Mapping[str, Mapping[str, float]]) -> tuple[str, float]:
    """The runner with the best median; a gain under 2 % is noise, and no merging is simpler."""
    name = max(sorted(runners), key=lambda each: runners[each]["speedup"])
    gain = runners[name]["speedup"]
    return (name, gain) if gain >= 1.02 else ("unmerged", 1.0)


def _percentiles(seconds: np.ndarray) -> dict[str, float]:
    p50, p90, p99 = np.percentile(1e3 * seconds, (50, 90, 99))
    return {"p50_ms": round(p50, 3), "p90_ms": round(p90, 3), "p99_ms": round(p99, 3)}
