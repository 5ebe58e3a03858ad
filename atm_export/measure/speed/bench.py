"""A benchmark that one can decide by: interleaved, paired, with intervals, and a recommendation."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from atm_export.backends.runner import Runner
from atm_export.errors import AtmExportError
from atm_export.measure.speed.candidates import FP32, UNMERGED, Candidate, feed_of, open_runner
from atm_export.measure.speed.latency import interleave, paired_ratio, row_of
from atm_export.model.flops import trace_gmacs, unmerged_gmacs
from atm_export.model.reference import run_reference
from atm_export.subject import Pixels

Progress = Callable[[str], None]
# Different batches of images, taken in turn: few would flatter OpenVINO, which keeps what it made
# for the lengths of each.
FEEDS = 16


@dataclass(frozen=True)
class Sweep:
    """What to measure: backends, batch sizes, counted rounds of each."""

    backends: tuple[str, ...]
    batches: tuple[int, ...]
    rounds: int


def bench(
    candidates: Sequence[Candidate], pixels: Pixels, sweep: Sweep, threads: int, progress: Progress
) -> dict[str, Any]:
    """Measure all candidates on all backends and batches; backends that cannot run a candidate
    are named with the reason."""
    rows: list[dict[str, Any]] = []
    missing: list[dict[str, str]] = []
    ratios = {
        (name, batch): _flops_ratio(c, _feeds(pixels, batch))
        for name, c in {c.in_fp32: c for c in candidates}.items()
        for batch in sweep.batches
    }
    for backend in sweep.backends:
        with ExitStack() as stack:
            runners, there = _open(backend, candidates, pixels, stack, missing, progress)
            for batch in sweep.batches if runners else ():
                progress(f"{backend}: batch {batch}")
                chunks = _feeds(pixels, batch)
                feeds = [{c.name: feed_of(backend, c, chunk) for c in there} for chunk in chunks]
                seconds = interleave(runners, feeds, sweep.rounds)
                rows += [_row(backend, c, seconds, batch, ratios[c.in_fp32, batch]) for c in there]
    facts = {"rows": rows, "missing": missing, "images": len(pixels), **machine(threads)}
    return {**facts, "recommendation": recommend(rows)}


def _row(
    backend: str,
    candidate: Candidate,
    seconds: Mapping[str, Sequence[float]],
    batch: int,
    flops_ratio: float,
) -> dict[str, Any]:
    """One line of the table: against no merging in the same precision, and below FP32 against the
    same in FP32."""
    ours, name = seconds[candidate.name], candidate.name
    base = None if name == candidate.baseline else seconds.get(candidate.baseline)
    row = {
        "backend": backend,
        "candidate": name,
        "compared": candidate.compared,
        "precision": candidate.precision,
        **row_of(ours, base, batch, flops_ratio),
    }
    if candidate.precision != FP32 and candidate.in_fp32 in seconds:
        row["over_fp32"] = paired_ratio(seconds[candidate.in_fp32], ours)
    return row


def _open(
    backend: str,
    candidates: Sequence[Candidate],
    pixels: Pixels,
    stack: ExitStack,
    missing: list[dict[str, str]],
    progress: Progress,
) -> tuple[dict[str, Runner], list[Candidate]]:
    runners: dict[str, Runner] = {}
    there = []
    for candidate in candidates:
        progress(f"{backend}: preparing {candidate.name}")
        try:
            runner = open_runner(backend, candidate, stack)
            runner.run(feed_of(backend, candidate, pixels[:1]))
        except AtmExportError as error:
            reason = str(error)
        except Exception as error:  # torch.compile fails in ways of its own
            if backend != "torch.compile":
                raise
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        else:
            runners[candidate.name] = runner
            there.append(candidate)
            continue
        missing.append({"backend": backend, "candidate": candidate.name, "reason": reason})
    return runners, there


def _feeds(pixels: Pixels, batch: int) -> list[Pixels]:
    count = max(1, min(FEEDS, len(pixels) // batch))
    index = np.arange(count * batch) % len(pixels)
    return [pixels[index[i : i + batch]] for i in range(0, count * batch, batch)]


def _flops_ratio(candidate: Candidate, chunks: Sequence[Pixels]) -> float:
    backbone, plan = candidate.subject.model.backbone, candidate.plan
    plain = unmerged_gmacs(backbone)
    if not plan.merges:
        return 1.0
    chunks = chunks if plan.adaptive else [chunks[0][:1]]
    spent = [
        trace_gmacs(backbone, run_reference(backbone, plan, candidate.subject.tensor(chunk)))
        for chunk in chunks
    ]
    return plain / float(torch.cat(spent).mean())


def machine(threads: int) -> dict[str, Any]:
    """Where it was measured."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return {
        "threads": threads,
        "torch_threads": torch.get_num_threads(),
        "cpu_affinity": cores,
        "processor": platform.processor() or platform.machine(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def recommend(rows: Sequence[Mapping[str, Any]]) -> str:
    """One sentence: what to deploy, in the precision that is fastest here, at which batch, and how
    sure that is."""
    if not rows:
        return "Nothing could be measured."
    own = [row for row in rows if not row.get("compared")] or rows
    precision = _precision(max(own, key=lambda row: row["images_per_s"]))
    rows = [row for row in rows if _precision(row) == precision]
    behind = "" if precision == FP32 else f" in {precision}"
    merged = [row for row in rows if "speedup" in row and not row.get("compared")]
    sure = [row for row in merged if row["speedup"]["low"] > 1]
    if not sure:
        plain = [row for row in rows if _name(row) == UNMERGED]
        fastest = max(plain or rows, key=lambda row: row["images_per_s"])
        why = "nothing else was measured"
        if merged:
            best = max(merged, key=lambda row: row["speedup"]["median"])
            why = (
                f"the best merged one, {_name(best)} at batch {best['batch']}, gives "
                f"{best['speedup']['median']:.2f} ({best['speedup']['low']:.2f} to "
                f"{best['speedup']['high']:.2f}) times its speed"
            )
        at = f"at batch {fastest['batch']} in {fastest['backend']}"
        return f"No merging{behind}, {at}: {why}."
    best = max(sure, key=lambda row: row["images_per_s"])
    speed = best["speedup"]
    return (
        f"Take {_name(best)} merging{behind} at batch {best['batch']} in {best['backend']}: "
        f"{speed['median']:.2f} ({speed['low']:.2f} to {speed['high']:.2f}) times as fast as no "
        f"merging, {best['median_ms'] / best['batch']:.1f} ms an image, "
        f"{best['images_per_s']:.1f} images/s."
    )


def _precision(row: Mapping[str, Any]) -> str:
    return str(row.get("precision", FP32))


def _name(row: Mapping[str, Any]) -> str:
    """The candidate without its precision."""
    return str(row["candidate"]).removesuffix(f" {_precision(row)}")
