"""The main path: config -> model -> graph -> proof -> measurement -> run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from atm_export import place
from atm_export.backends.tensorrt.settings import EngineSettings
from atm_export.bounds import checked_threads
from atm_export.config import RunConfig
from atm_export.errors import ConfigError
from atm_export.graph import lint
from atm_export.graph.optimize import with_facts, with_outputs
from atm_export.measure.data.images import ImageSet, load_images
from atm_export.measure.export import measure, measure_latency
from atm_export.measure.insight import STUDIED, study
from atm_export.measure.job import Job, Progress, plan_job
from atm_export.model.backbone import LoadedModel
from atm_export.model.zoo import load_model
from atm_export.ort import use_threads
from atm_export.prove.golden_vectors import FILE as GOLDEN
from atm_export.prove.golden_vectors import golden_vectors
from atm_export.prove.ladder import LadderResult, Subject, climb
from atm_export.report.documents import read_report
from atm_export.report.facts import graph_facts, manifest_facts, summarize_method, task_of
from atm_export.report.page import FILE as REPORT
from atm_export.report.results import add_results, draw_report, pictures_of
from atm_export.runs import writing
from atm_export.runs.reading import check_fields
from atm_export.runs.writing import WorkFolder
from atm_export.tasks.base import names

PROVEN_ON = 32  # real images
FILES = ("model.onnx", "config.yaml", "report.json", GOLDEN, REPORT)


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

    Raises OutputError before anything is loaded if the run would replace files of others in `out`,
    or changed ones without `force`; ConfigError for threads; ParityError after writing the
    artifacts marked "unproven".
    """
    checked_threads(threads)
    writing.refuse_loss(out, FILES, force=force)
    out = place.plain(out)
    if engines is not None:
        _check_engines(engines)
    progress("loading the model")
    threads = use_threads(threads)
    model = load_model(config.model)
    images, calibration = _images(config, model)
    key = _run_key(config, model, images, calibration)
    outcome = None if force else _reusable(config, out, key)
    if outcome is not None:
        writing.drop_leftovers(out)
    if outcome is not None and engines is None:
        return outcome
    if outcome is None:
        with writing.working(out, key) as work:
            job = plan_job(config, model, images, calibration, progress)
            outcome = _export(job, out, work, threads, benchmark, progress, force=force)
    else:
        job = plan_job(config, model, images, calibration, progress)
    if engines is not None:
        outcome = _with_engines(outcome, job, engines, progress)
    return outcome


def _images(config: RunConfig, model: LoadedModel) -> tuple[ImageSet, ImageSet]:
    """The images to prove and measure on, and those to calibrate a frozen schedule on."""
    name, how = config.model.name, model.preprocessing
    images = load_images(config.images or config.calibrate, name, how)
    if config.images is None or config.calibrate is None:
        return images, images
    return images, load_images(config.calibrate, name, how)


def _export(
    job: Job,
    out: Path,
    work: WorkFolder,
    threads: int,
    benchmark: bool,
    progress: Progress,
    *,
    force: bool,
) -> Outcome:
    model, images = job.model, job.images
    traced, shipped = translate(job, work, progress)
    progress("proving parity")
    subject = Subject(model, job.plan, traced, shipped, job.config.uint8_input)
    proof = climb(
        subject, images.pixels[:PROVEN_ON], lambda text: progress(f"proving parity: {text}")
    )
    progress("measuring")
    report = facts_of(job, proof) | measure(job)
    facts, fate = study(model.backbone, job.plan, job.tensors(images.pixels, STUDIED)[0])
    report |= facts
    if benchmark:
        report["latency"] = measure_latency(job, shipped, threads, progress)
    pictures = pictures_of(
        images.pixels,
        images.names,
        fate,
        model.backbone.grid,
        model.backbone.prefix,
        decided_per_image=job.plan.adaptive,
    )
    manifest = write(job, shipped, report, pictures, work, out, force=force)
    proof.require()
    return Outcome(out, report, manifest, reused=False)


def _check_engines(settings: EngineSettings) -> None:
    """Fail before the long export, not after it."""
    from atm_export.backends.tensorrt.api import gpu_sm, load_api
    from atm_export.backends.tensorrt.build import check_timing_cache

    api, gpu = load_api(settings.flavor), gpu_sm()
    if settings.timing_cache and api.keeps_timings:
        check_timing_cache(Path(settings.timing_cache))
    for precision in settings.precisions:
        api.targets(settings, precision, gpu)


def _with_engines(
    outcome: Outcome, job: Job, settings: EngineSettings, progress: Progress
) -> Outcome:
    """The finished run with its engines beside it."""
    from atm_export.engines import add_engines, source_of

    source = source_of(
        job, _outputs(job.config, job.model), manifest_facts(job.config, job.model, job.plan)
    )
    entries = add_engines(outcome.out, source, settings, progress)
    manifest = add_results(outcome.out, {})  # the report now shows the engines
    return replace(outcome, report={**outcome.report, "engines": entries}, manifest=manifest)


def translate(
    job: Job, work: WorkFolder, progress: Progress
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The traced graph and the one that ships; picks up the stage of an interrupted run."""
    done = work.finished("traced.onnx")
    if done is not None:
        progress("translating to ONNX: found finished")
        job.graphs[job.plan] = onnx.load(done)
    else:
        progress("translating to ONNX")
        work.write("traced.onnx", serialized(job.graph(job.plan)))
    traced = job.graph(job.plan)
    facts = graph_facts(job.config, job.model, job.plan)
    shipped = with_facts(with_outputs(traced, _outputs(job.config, job.model)), facts)
    for graph in (traced, shipped):
        lint.check(graph)
    onnx.checker.check_model(shipped)
    return traced, shipped


def _outputs(config: RunConfig, model: LoadedModel) -> list[str]:
    answers = names(model.backbone.outputs)
    return [*answers, *(["tokens_per_block", "patch_to_token"] if config.trace else [])]


def serialized(model: onnx.ModelProto) -> bytes:
    """Bytes of a model, the same for the same model."""
    return bytes(model.SerializeToString(deterministic=True))


def facts_of(job: Job, proof: LadderResult) -> dict[str, Any]:
    """What the report says beside its measurements."""
    return {
        "model": job.model.name,
        "task": task_of(job.model),
        "method": summarize_method(job.config, job.plan),
        "weights": job.model.weights,
        "notes": list(job.model.notes),
        "images": {"source": job.images.source, "count": len(job.images.pixels)},
        "parity": proof.facts(),
        "versions": writing.versions(),
    }


def write(
    job: Job,
    shipped: onnx.ModelProto,
    report: Mapping[str, Any],
    pictures: str,
    work: WorkFolder,
    out: Path,
    *,
    force: bool = False,
) -> dict[str, Any]:
    """Write and publish the run folder; returns its manifest."""
    proven = report["parity"]["proven"]
    if not proven:
        shipped = with_facts(shipped, {"status": "unproven"})
    work.write("model.onnx", serialized(shipped))
    work.write("config.yaml", job.config.to_yaml().encode())
    text = json.dumps(report, indent=1, sort_keys=True, ensure_ascii=False)
    work.write("report.json", (text + "\n").encode())
    golden, golden_facts = golden_vectors(job.model, job.plan)
    work.write(GOLDEN, golden)
    facts = {
        "status": "proven" if proven else "unproven",
        "versions": writing.versions(),
        "golden": golden_facts,
        **manifest_facts(job.config, job.model, job.plan),
    }
    draw_report(work, [name for name in FILES if name != REPORT], facts, pictures)
    return writing.publish(work, out, list(FILES), facts, force=force)


def _run_key(config: RunConfig, model: LoadedModel, images: ImageSet, calibration: ImageSet) -> str:
    return writing.run_key(
        {
            "config": config.digest(),
            "weights": model.weights["sha256"],
            "images": images.digest(),
            "calibration": calibration.digest(),
            "versions": writing.versions(),
        }
    )


def _reusable(config: RunConfig, out: Path, key: str) -> Outcome | None:
    """The finished, proven run in `out` if it is this one; ConfigError if it is another."""
    manifest = writing.read_manifest(out)
    if manifest is None and (out / writing.MANIFEST).exists():
        raise ConfigError(
            f"{out} holds a run that this atm-export cannot read; "
            "give --force to replace it, or another --out"
        )
    if manifest is None or writing.broken_files(out, manifest):
        return None
    if manifest.get("run_key") == key and manifest.get("status") == "proven":
        check_fields(out, manifest)
        return Outcome(out, read_report(out), manifest, reused=True)
    if manifest.get("status") == "proven":
        differs = [
            name
            for name, value in config.model_dump(mode="json").items()
            if _setting(manifest, name) != value
        ]
        what = ", ".join(differs) or "weights, images or versions"
        raise ConfigError(
            f"{out} holds a finished run that differs in: {what}; "
            "give --force to replace it, or another --out"
        )
    return None


def _setting(manifest: Mapping[str, Any], name: str) -> Any:
    """One setting of a finished run; None where the manifest has none."""
    config = manifest.get("config")
    return config.get(name) if isinstance(config, dict) else None
