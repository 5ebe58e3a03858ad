"""What an export costs and keeps: tokens, GFLOPs, accuracy, latency against no merging."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from atm_export.backends.onnxruntime import OnnxRuntimeRunner
from atm_export.graph.optimize import with_outputs
from atm_export.measure.job import Job, Progress
from atm_export.measure.speed import latency
from atm_export.model.backbone import Backbone
from atm_export.model.flops import trace_gmacs, unmerged_gmacs
from atm_export.model.reference import Trace, run_reference
from atm_export.tasks.base import names

BATCH = 8
LATENCY_ROUNDS = {1: 12, 8: 4}  # by batch


def measure(job: Job) -> dict[str, Any]:
    """GFLOPs, tokens and accuracy by the eager reference, which the proof ties to the graph."""
    backbone, plan, images = job.model.backbone, job.plan, job.images
    traces = [run_reference(backbone, plan, batch) for batch in job.tensors(images.pixels, BATCH)]
    gmacs = torch.cat([trace_gmacs(backbone, trace, plan.merges) for trace in traces])
    tokens = torch.cat([trace.tokens_out for trace in traces], dim=1).double()
    merged = torch.cat([trace.tokens_in for trace in traces], dim=1) - tokens
    preset = job.config.model.config.presets.get(job.config.method.preset or "")
    found: dict[str, Any] = {
        "gflops": {
            "unit": "1e9 multiply-adds an image",
            "mean": float(gmacs.mean()),
            "min": float(gmacs.min()),
            "max": float(gmacs.max()),
            "unmerged": unmerged_gmacs(backbone),
            "paper": preset.gflops if preset else None,
            "images": len(gmacs),
            "batch": BATCH,
        },
        "tokens": {
            "mean_after_block": tokens.mean(dim=1).tolist(),
            "mean_merged_in_block": merged.mean(dim=1).tolist(),
        },
    }
    if plan.merges and not bool(merged.any()):
        found["gflops"]["note"] = _nothing_merges(backbone, float(gmacs.mean()))
    if images.labels is not None:
        found |= _accuracy(job, traces, images.labels)
    return found


def _nothing_merges(backbone: Backbone, mean: float) -> str:
    """Why the export may cost less than the unmerged model though nothing merges."""
    saved = 100 * (mean / unmerged_gmacs(backbone) - 1)
    if backbone.head_rows is None:
        return f"no token merges on these images ({saved:+.1f} %)"
    rows = "class token" if backbone.head_rows == 1 else f"{backbone.head_rows} tokens"
    return (
        f"no token merges on these images; the {saved:+.1f} % is the last block's MLP, which the "
        f"export runs on the {rows} that the head reads alone"
    )


def _accuracy(job: Job, traces: Sequence[Trace], right: Any) -> dict[str, Any]:
    """First choices, merged and not, against what is right; nothing where no class is ranked."""
    backbone = job.model.backbone
    ranks = backbone.ranks
    if ranks is None:
        return {}
    with torch.inference_mode():
        batches = job.tensors(job.images.pixels, BATCH)
        answers = [backbone.named(backbone.plain(batch))[ranks] for batch in batches]
    plain = torch.cat(answers).argmax(dim=1)
    merged = torch.cat([trace.outputs[ranks].argmax(dim=1) for trace in traces])
    labels = torch.as_tensor(right)

    def percent(hits: Tensor) -> float:
        return round(100 * float(hits.double().mean()), 3)

    facts = {
        "images": len(labels),
        "top1": percent(merged == labels),
        "unmerged_top1": percent(plain == labels),
        "agreement": percent(merged == plain),
    }
    return {"accuracy": facts}


def measure_latency(
    job: Job, shipped: onnx.ModelProto, threads: int, progress: Progress
) -> dict[str, Any]:
    """Speed-up over the model's own unmerged export: same exporter, same optimisations."""
    progress("measuring latency: exporting the unmerged model")
    backbone, plan = job.model.backbone, job.plan
    baseline = with_outputs(job.graph(job.unmerged), names(backbone.outputs))
    rows = []
    runners = (
        OnnxRuntimeRunner(graph, waiting="spin while running") for graph in (baseline, shipped)
    )
    with next(runners) as unmerged, next(runners) as merged:
        for batch, rounds in LATENCY_ROUNDS.items():
            progress(f"measuring latency: batch {batch}")
            pixels = job.images.pixels[np.arange(2 * batch) % len(job.images.pixels)]
            feeds = [job.feed(pixels[i : i + batch]) for i in range(0, 2 * batch, batch)]
            paired = [{"unmerged": feed, "merged": feed} for feed in feeds]
            seconds = latency.interleave({"unmerged": unmerged, "merged": merged}, paired, rounds)
            row = latency.compare(seconds, "unmerged", batch)
            traces = [run_reference(backbone, plan, b) for b in job.tensors(pixels, batch)]
            gmacs = float(torch.cat([trace_gmacs(backbone, t, plan.merges) for t in traces]).mean())
            row["flops_ratio"] = round(unmerged_gmacs(backbone) / gmacs, 4)
            rows.append(row)
    return {"runner": "ONNX Runtime, CPU", "threads": threads, "interleaved": True, "rows": rows}
