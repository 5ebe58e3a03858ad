"""The main path: config -> model -> graph -> proof -> measurement -> run folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from atm_export import artifacts
from atm_export.artifacts import WorkFolder
from atm_export.backends.onnxruntime import OnnxRuntimeRunner, share_threads
from atm_export.backends.tensorrt.settings import EngineSettings
from atm_export.config import MergePolicy, RunConfig
from atm_export.errors import ConfigError
from atm_export.evaluate import latency
from atm_export.evaluate.engine import Expected
from atm_export.evaluate.images import ImageSet, load_images
from atm_export.evaluate.insight import STUDIED, study
from atm_export.graph import lint
from atm_export.graph.assemble import onnx_from_model
from atm_export.graph.optimize import optimize, with_facts, with_outputs
from atm_export.model.backbone import LoadedModel
from atm_export.model.calibrate import measured_r, paper_r
from atm_export.model.flops import trace_gmacs, unmerged_gmacs
from atm_export.model.reference import run_reference
from atm_export.model.schedule import MergePlan, plan_merges
from atm_export.model.zoo import load_model
from atm_export.preprocess import normalize
from atm_export.report.facts import manifest_facts, summarize_method
from atm_export.report.results import add_results, draw_report, pictures_of
from atm_export.validate.golden import FILE as GOLDEN
from atm_export.validate.golden import golden_vectors
from atm_export.validate.inputs import cases
from atm_export.validate.ladder import LadderResult, Subject, climb

Progress = Callable[[str], None]
ENGINE_IMAGES = 32  # that lower precisions are calibrated on and compared with FP32


@dataclass(frozen=True)
class Outcome:
    """A finished run: its folder, its report, and whether an earlier run was reused."""

    out: Path
    report: dict[str, Any]
    manifest: dict[str, Any]
    reused: bool


def export(
    config: RunConfig,
    out: Path,
    *,
    force: bool = False,
    threads: int = 0,
    benchmark: bool = True,
    engines: EngineSettings | None = None,
    progress: Progress = lambda text: None,
) -> Outcome:
    """Export, prove and measure one model, and build its engines if asked for; returns what is in
    `out`.

    Raises ParityError after writing the artifacts marked "unproven".
    """
    if engines is not None:
        _check_engines(engines)
    progress("loading the model")
    threads = share_threads(threads)
    model = load_model(config.model)
    images = load_images(config.images or config.calibrate, config.model.name, model.preprocessing)
    key = _run_key(config, model, images)
    outcome = None if force else _reusable(config, out, key)
    if outcome is None:
        outcome = _export(config, out, key, model, images, threads, benchmark, progress)
    if engines is not None:
        outcome = _with_engines(outcome, config, model, images, engines, progress)
    return outcome


def _export(
    config: RunConfig,
    out: Path,
    key: str,
    model: LoadedModel,
    images: ImageSet,
    threads: int,
    benchmark: bool,
    progress: Progress,
) -> Outcome:
    with artifacts.working(out, key) as work:
        plan = _plan(config, model, images, progress)
        traced, shipped = _translate(config, model, plan, work, progress)
        subject = Subject(
            model.backbone, plan, traced, shipped, model.preprocessing, config.uint8_input
        )
        progress("proving parity")
        proof = climb(subject, images.pixels[:32], lambda text: progress(f"proving parity: {text}"))
        progress("measuring")
        report = _report(config, model, plan, images, proof)
        facts, fate = study(model.backbone, plan, _batches(model, images.pixels, STUDIED)[0])
        report |= facts
        if benchmark:
            report["latency"] = _latency(config, model, plan, shipped, images, threads, progress)
        pictures = pictures_of(
            images.pixels,
            images.names,
            fate,
            model.backbone.grid,
            model.backbone.prefix,
            decided_per_image=plan.adaptive,
        )
        manifest = _write(config, model, plan, shipped, report, pictures, work, out)
    proof.require()
    return Outcome(out, report, manifest, reused=False)


def _check_engines(settings: EngineSettings) -> None:
    """Fail before the long export, not after it."""
    from atm_export.backends.tensorrt.api import gpu_sm, load_api

    api, gpu = load_api(settings.flavor), gpu_sm()
    for precision in settings.precisions:
        api.targets(settings, precision, gpu)


def _with_engines(
    outcome: Outcome,
    config: RunConfig,
    model: LoadedModel,
    images: ImageSet,
    settings: EngineSettings,
    progress: Progress,
) -> Outcome:
    """The finished run with its engines beside it."""
    from atm_export.engines import EngineSource, add_engines

    plan = _plan(config, model, images, progress)

    @cache
    def traced() -> onnx.ModelProto:
        progress("translating to ONNX for the engines")
        return _traced(config, model, plan)

    pixels = images.pixels[:ENGINE_IMAGES]
    source = EngineSource(
        traced=traced,
        outputs=_outputs(config),
        facts=manifest_facts(config, model, plan),
        feeds=[_feed(config, model, pixels[i : i + 8]) for i in range(0, len(pixels), 8)],
        alternatives=lambda: _alternatives(config, model, plan, images),
        expected=lambda: _expected(config, model, plan, images),
        policy=_policy(plan),
    )
    entries = add_engines(outcome.out, source, settings, progress)
    manifest = add_results(outcome.out, {})  # the report now shows the engines
    return replace(outcome, report={**outcome.report, "engines": entries}, manifest=manifest)


def _alternatives(
    config: RunConfig, model: LoadedModel, plan: MergePlan, images: ImageSet
) -> dict[str, onnx.ModelProto]:
    """What an engine is compared with: the unmerged model, and the frozen schedule."""
    none = MergePlan((None,) * len(plan.blocks), proportional=False)
    found = {} if _policy(plan) == "unmerged" else {"unmerged": _traced(config, model, none)}
    if _policy(plan) == "adaptive":
        counts = measured_r(model.backbone, plan, _batches(model, images.pixels, 8))
        found["frozen"] = _traced(config, model, plan.frozen(counts))
    return found


def _expected(
    config: RunConfig, model: LoadedModel, plan: MergePlan, images: ImageSet
) -> list[Expected]:
    """The ladder's inputs, and what the eager reference makes of them."""
    expected = []
    for case in cases(images.pixels[:ENGINE_IMAGES]):
        pixels = case.candidates[0]
        (batch,) = _batches(model, pixels, len(pixels))
        trace = run_reference(model.backbone, plan, batch)
        tokens = trace.tokens_out if plan.per_image else trace.tokens_out[:, :1]
        flat = tokens.T if plan.per_image else tokens
        expected.append(
            Expected(_feed(config, model, pixels), trace.logits.numpy(), flat.reshape(-1).numpy())
        )
    return expected


def _policy(plan: MergePlan) -> str:
    if not plan.merges:
        return "unmerged"
    if plan.per_image:
        return "per-image"
    return "adaptive" if plan.adaptive else "frozen"


def _feed(config: RunConfig, model: LoadedModel, pixels: np.ndarray) -> np.ndarray:
    """Pixels [k, H, W, 3] uint8 as the graph wants them."""
    return pixels if config.uint8_input else normalize(pixels, model.preprocessing)


def _plan(config: RunConfig, model: LoadedModel, images: ImageSet, progress: Progress) -> MergePlan:
    backbone, method = model.backbone, config.method
    plan = plan_merges(
        method,
        len(backbone.parts()),
        pooled=backbone.pooled,
        proportional=backbone.proportional,
    )
    if method.merge is not MergePolicy.FROZEN:
        return plan
    if config.calibrate is not None or (config.model.name == "demo" and config.images is None):
        progress(f"calibrating the frozen schedule on {len(images.pixels)} images")
        return plan.frozen(measured_r(backbone, plan, _batches(model, images.pixels, 8)))
    presets = config.model.config.presets
    preset = presets.get(method.preset or "")
    if preset is None or preset.gflops is None:
        raise ConfigError(
            "--merge frozen needs images to calibrate on (--calibrate DIR), or a preset whose "
            "GFLOPs the paper gives"
        )
    return plan.frozen(paper_r(backbone, plan, preset.gflops))


def _translate(
    config: RunConfig, model: LoadedModel, plan: MergePlan, work: WorkFolder, progress: Progress
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The traced graph and the one that ships; picks up the stage of an interrupted run."""
    done = work.finished("traced.onnx")
    if done is not None:
        progress("translating to ONNX: found finished")
        traced = onnx.load(done)
    else:
        progress("translating to ONNX")
        traced = _traced(config, model, plan)
        work.write("traced.onnx", serialized(traced))
    facts = manifest_facts(config, model, plan)
    shipped = with_facts(with_outputs(traced, _outputs(config)), facts)
    for graph in (traced, shipped):
        lint.check(graph)
    onnx.checker.check_model(shipped)
    return traced, shipped


def _traced(config: RunConfig, model: LoadedModel, plan: MergePlan) -> onnx.ModelProto:
    """The FP32 graph with its trace outputs."""
    how = model.preprocessing
    return optimize(
        onnx_from_model(
            model.backbone,
            plan,
            mean=how.mean,
            std=how.std,
            uint8_input=config.uint8_input,
            opset=config.opset,
        )
    )


def _outputs(config: RunConfig) -> list[str]:
    return ["logits", *(["tokens_per_block", "patch_to_token"] if config.trace else [])]


def serialized(model: onnx.ModelProto) -> bytes:
    """Bytes of a model, the same for the same model."""
    return bytes(model.SerializeToString(deterministic=True))


def _report(
    config: RunConfig, model: LoadedModel, plan: MergePlan, images: ImageSet, proof: LadderResult
) -> dict[str, Any]:
    """Tokens, GFLOPs and accuracy by the eager reference, which the proof ties to the graph."""
    backbone = model.backbone
    traces = [run_reference(backbone, plan, batch) for batch in _batches(model, images.pixels, 8)]
    gmacs = torch.cat([trace_gmacs(backbone, trace, plan.merges) for trace in traces])
    tokens = torch.cat([trace.tokens_out for trace in traces], dim=1).double()
    merged = torch.cat([trace.tokens_in for trace in traces], dim=1) - tokens
    preset = config.model.config.presets.get(config.method.preset or "")
    report: dict[str, Any] = {
        "model": model.name,
        "method": summarize_method(config, plan),
        "weights": model.weights,
        "notes": list(model.notes),
        "images": {"source": images.source, "count": len(images.pixels)},
        "parity": proof.facts(),
        "gflops": {
            "unit": "1e9 multiply-adds an image",
            "mean": float(gmacs.mean()),
            "min": float(gmacs.min()),
            "max": float(gmacs.max()),
            "unmerged": unmerged_gmacs(backbone),
            "paper": preset.gflops if preset else None,
            "images": len(gmacs),
            "batch": 8,
        },
        "tokens": {
            "mean_after_block": tokens.mean(dim=1).tolist(),
            "mean_merged_in_block": merged.mean(dim=1).tolist(),
        },
        "versions": artifacts.versions(),
    }
    if images.labels is not None:
        report["accuracy"] = _accuracy(model, traces, images)
    return report


def _accuracy(model: LoadedModel, traces: list[Any], images: ImageSet) -> dict[str, Any]:
    with torch.inference_mode():
        batches = _batches(model, images.pixels, 8)
        plain = torch.cat([model.backbone.plain(batch).argmax(dim=1) for batch in batches])
    merged = torch.cat([trace.logits.argmax(dim=1) for trace in traces])
    labels = torch.as_tensor(images.labels)

    def percent(hits: Tensor) -> float:
        return round(100 * float(hits.double().mean()), 3)

    return {
        "images": len(labels),
        "top1": percent(merged == labels),
        "unmerged_top1": percent(plain == labels),
        "agreement": percent(merged == plain),
    }


def _latency(
    config: RunConfig,
    model: LoadedModel,
    plan: MergePlan,
    shipped: onnx.ModelProto,
    images: ImageSet,
    threads: int,
    progress: Progress,
) -> dict[str, Any]:
    """Speed-up over the model's own unmerged export: same exporter, same optimisations."""
    progress("measuring latency: exporting the unmerged model")
    backbone = model.backbone
    none = MergePlan((None,) * len(plan.blocks), proportional=False)
    baseline = with_outputs(_traced(config, model, none), ["logits"])
    rows = []
    with (
        OnnxRuntimeRunner(baseline) as unmerged,
        OnnxRuntimeRunner(shipped) as merged,
    ):
        for batch, rounds in ((1, 12), (8, 4)):
            progress(f"measuring latency: batch {batch}")
            pixels = images.pixels[np.arange(2 * batch) % len(images.pixels)]
            feeds = [
                _feed(config, model, pixels[i : i + batch]) for i in range(0, 2 * batch, batch)
            ]
            paired = [{"unmerged": feed, "merged": feed} for feed in feeds]
            seconds = latency.interleave({"unmerged": unmerged, "merged": merged}, paired, rounds)
            row = latency.compare(seconds, "unmerged", batch)
            traces = [run_reference(backbone, plan, b) for b in _batches(model, pixels, batch)]
            gmacs = float(torch.cat([trace_gmacs(backbone, t, plan.merges) for t in traces]).mean())
            row["flops_ratio"] = round(unmerged_gmacs(backbone) / gmacs, 4)
            rows.append(row)
    return {"runner": "ONNX Runtime, CPU", "threads": threads, "interleaved": True, "rows": rows}


def _write(
    config: RunConfig,
    model: LoadedModel,
    plan: MergePlan,
    shipped: onnx.ModelProto,
    report: Mapping[str, Any],
    pictures: str,
    work: WorkFolder,
    out: Path,
) -> dict[str, Any]:
    proven = report["parity"]["proven"]
    if not proven:
        shipped = with_facts(shipped, {"status": "unproven"})
    work.write("model.onnx", serialized(shipped))
    work.write("config.yaml", config.to_yaml().encode())
    text = json.dumps(report, indent=1, sort_keys=True, ensure_ascii=False)
    work.write("report.json", (text + "\n").encode())
    golden, golden_facts = golden_vectors(model, plan)
    work.write(GOLDEN, golden)
    facts = {
        "status": "proven" if proven else "unproven",
        "versions": artifacts.versions(),
        "golden": golden_facts,
        **manifest_facts(config, model, plan),
    }
    names = ["model.onnx", "config.yaml", "report.json", GOLDEN]
    draw_report(work, names, facts, pictures)
    return artifacts.publish(work, out, [*names, "report.html"], facts)


def _batches(model: LoadedModel, pixels: np.ndarray, size: int) -> list[Tensor]:
    how = model.preprocessing
    return [
        torch.from_numpy(normalize(pixels[i : i + size], how)) for i in range(0, len(pixels), size)
    ]


def _run_key(config: RunConfig, model: LoadedModel, images: ImageSet) -> str:
    return artifacts.run_key(
        {
            "config": config.digest(),
            "weights": model.weights["sha256"],
            "images": images.digest(),
            "versions": artifacts.versions(),
        }
    )


def _reusable(config: RunConfig, out: Path, key: str) -> Outcome | None:
    """The finished, proven run in `out` if it is this one; ConfigError if it is another."""
    manifest = artifacts.read_manifest(out)
    if manifest is None or artifacts.broken_files(out, manifest):
        return None
    if manifest.get("run_key") == key and manifest.get("status") == "proven":
        report = json.loads((out / "report.json").read_text(encoding="utf-8"))
        return Outcome(out, report, manifest, reused=True)
    if manifest.get("status") == "proven":
        differs = [
            name
            for name, value in config.model_dump(mode="json").items()
            if manifest.get("config", {}).get(name) != value
        ]
        what = ", ".join(differs) or "weights, images or versions"
        raise ConfigError(
            f"{out} holds a finished run that differs in: {what}; "
            "give --force to replace it, or another --out"
        )
    return None
