"""What an export costs and keeps: tokens, GFLOPs, accuracy, latency against no merging."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from atm_export.backends.onnxruntime.runner import OnnxRuntimeRunner
from atm_export.graph.optimize import with_outputs
from atm_export.graph.saving import in_memory
from atm_export.measure.data.images import ImageSet
from atm_export.measure.speed import latency
from atm_export.model.backbone import Backbone
from atm_export.model.flops import trace_gmacs, unmerged_gmacs
from atm_export.model.reference import Trace, run_reference
from atm_export.subject import Pixels, Progress, Subject
from atm_export.tasks.base import names

BATCH = 8
LATENCY_ROUNDS = {1: 12, 8: 4}  # by batch


def measure(subject: Subject, images: ImageSet) -> dict[str, Any]:
    """GFLOPs, tokens and accuracy by the eager reference, which the proof ties to the graph."""
    backbone, plan = subject.model.backbone, subject.plan
    traces = [
        run_reference(backbone, plan, batch) for batch in subject.tensors(images.pixels, BATCH)
    ]
    gmacs = torch.cat([trace_gmacs(backbone, trace, plan.merges) for trace in traces])
    tokens = torch.cat([trace.tokens_out for trace in traces], dim=1).double()
    merged = torch.cat([trace.tokens_in for trace in traces], dim=1) - tokens
    config = subject.config
    preset = config.model.config.presets.get(config.method.preset or "")
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
        found |= _accuracy(subject, images, traces)
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


def _accuracy(subject: Subject, images: ImageSet, traces: Sequence[Trace]) -> dict[str, Any]:
    """First choices, merged and not, against what is right; nothing where no class is ranked."""
    backbone = subject.model.backbone
    ranks = backbone.ranks
    if ranks is None:
        return {}
    with torch.inference_mode():
        batches = subject.tensors(images.pixels, BATCH)
        answers = [backbone.named(backbone.plain(batch))[ranks] for batch in batches]
    plain = torch.cat(answers).argmax(dim=1)
    merged = torch.cat([trace.outputs[ranks].argmax(dim=1) for trace in traces])
    labels = torch.as_tensor(images.labels)

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
    subject: Subject,
    shipped: ir.Model,
    pixels: Pixels,
    threads: int,
    progress: Progress,
) -> dict[str, Any]:
    """Speed-up over the model's own unmerged export: same exporter, same optimisations."""
    progress("measuring latency: exporting the unmerged model")
    baseline = with_outputs(subject.graph(subject.unmerged), names(subject.model.backbone.outputs))
    rows = []
    runners = (
        OnnxRuntimeRunner(in_memory(graph), waiting="spin while running")
        for graph in (baseline, shipped)
    )
    with next(runners) as unmerged, next(runners) as merged:
        for batch, rounds in LATENCY_ROUNDS.items():
            progress(f"measuring latency: batch {batch}")
            chosen = pixels[np.arange(2 * batch) % len(pixels)]
            feeds = [subject.feed(chosen[i : i + batch]) for i in range(0, 2 * batch, batch)]
            paired = [{"unmerged": feed, "merged": feed} for feed in feeds]
            seconds = latency.interleave({"unmerged": unmerged, "merged": merged}, paired, rounds)
            row = latency.compare(seconds, "unmerged", batch)
            row["flops_ratio"] = _flops_ratio(subject, chosen, batch)
            rows.append(row)
    return {"runner": "ONNX Runtime, CPU", "threads": threads, "interleaved": True, "rows": rows}


def _flops_ratio(subject: Subject, pixels: Pixels, batch: int) -> float:
    """Multiply-adds of the unmerged model, by those that these images take."""
    backbone, plan = subject.model.backbone, subject.plan
    traces = [run_reference(backbone, plan, part) for part in subject.tensors(pixels, batch)]
    gmacs = torch.cat([trace_gmacs(backbone, trace, plan.merges) for trace in traces])
    return round(unmerged_gmacs(backbone) / float(gmacs.mean()), 4)
