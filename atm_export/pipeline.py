"""The main path: config -> model -> graph -> proof -> measurement -> run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import CheckerPass

from atm_export import place
from atm_export.backends import ONNXRUNTIME, backends
from atm_export.backends.base import GRAPH
from atm_export.backends.tensorrt.settings import EngineSettings
from atm_export.backends.threads import use_threads
from atm_export.bounds import checked_threads
from atm_export.config import RunConfig, of_format_2, stamped
from atm_export.errors import ConfigError
from atm_export.graph import lint
from atm_export.graph.optimize import with_facts, with_outputs
from atm_export.graph.reading import copied
from atm_export.graph.saving import SUFFIX, graph_from_file, is_beside, save_graph
from atm_export.low_precision import Material, add_low_precision, file_of, is_there
from atm_export.measure.data.images import ImageSet, load_images
from atm_export.measure.export import measure, measure_latency
from atm_export.measure.insight import STUDIED, study
from atm_export.model.backbone import LoadedModel
from atm_export.model.zoo import load_model
from atm_export.prove.golden_vectors import FILE as GOLDEN
from atm_export.prove.golden_vectors import golden_vectors
from atm_export.prove.ladder import climb
from atm_export.prove.results import LadderResult
from atm_export.report.documents import read_report
from atm_export.report.facts import (
    graph_facts,
    manifest_facts,
    shipped_outputs,
    summarize_method,
    task_of,
)
from atm_export.report.page import FILE as REPORT
from atm_export.report.results import add_results, draw_report, pictures_of
from atm_export.runs import writing
from atm_export.runs.graphs import locations
from atm_export.runs.manifest import PROVEN, Manifest
from atm_export.runs.reading import checked_manifest, read_manifest
from atm_export.runs.writing import WorkFolder
from atm_export.subject import Progress, Subject, subject_of

PROVEN_ON = 32  # real images
STAGE = "traced.onnx"
FILES = (GRAPH, "config.yaml", "report.json", GOLDEN, REPORT)


@dataclass(frozen=True)
class Outcome:
    """A finished run: its folder, its report, and whether an earlier run was reused."""

    out: Path
    report: dict[str, Any]
    manifest: Manifest
    reused: bool


@dataclass(frozen=True)
class Wanted:
    """What is asked of an export beside its config. on: backends that the graph is proven on,
    beside ONNX Runtime; engines: to be built of it; low: precisions of the graph below FP32, for
    ONNX Runtime."""

    on: tuple[str, ...] = ()
    engines: EngineSettings | None = None
    low: tuple[str, ...] = ()
    benchmark: bool = True
    threads: int = 0
    force: bool = False

    @property
    def graphs_on(self) -> tuple[str, ...]:
        """Backends that run the graph itself, ONNX Runtime first."""
        chosen = dict.fromkeys((ONNXRUNTIME, *self.on))
        return tuple(name for name in chosen if not backends[name].engines)

    def missing(self, manifest: Manifest) -> list[str]:
        """Low precisions that a run has not."""
        return [name for name in self.low if not is_there(manifest, name)]

    def more(self, manifest: Manifest) -> bool:
        """Whether more is made of a run than its graph."""
        return self.engines is not None or bool(self.missing(manifest))


def export(
    config: RunConfig,
    out: Path,
    *,
    force: bool = False,
    threads: int = 0,
    benchmark: bool = True,
    on: Sequence[str] = (),
    engines: EngineSettings | None = None,
    low: Sequence[str] = (),
    progress: Progress = lambda text: None,
) -> Outcome:
    """Export, prove and measure one model, and build its engines if asked for; returns what is in
    `out`. on: backends to prove the graph on, beside ONNX Runtime; low: precisions below FP32 to
    add for that.

    Raises OutputError before anything is loaded if the run would replace files of others in `out`,
    or changed ones without `force`; ConfigError for threads; ParityError after writing the
    artifacts marked "unproven".
    """
    checked_threads(threads)
    writing.refuse_loss(out, [*FILES, *map(file_of, low)], force=force)
    out = place.plain(out)
    wanted = Wanted(tuple(on), engines, tuple(low), benchmark, use_threads(threads), force)
    _check_backends(wanted)
    model = _model(config, out, wanted, progress)
    images, calibration = _images(config, model)
    key = _run_key(config, model, images, calibration)
    finished = None if force else _reusable(config, out, key, wanted.graphs_on)
    if finished is not None:
        writing.drop_leftovers(out)
        if not wanted.more(finished.manifest):
            return finished
        traced, subject = None, subject_of(config, model, calibration.pixels, progress)
    else:
        with writing.working(out, key) as work:
            subject = subject_of(config, model, calibration.pixels, progress)
            finished, traced = _export(subject, images, out, work, wanted, progress)
    if not wanted.more(finished.manifest):
        return finished
    return _with_more(finished, subject, (images, calibration), wanted, traced, progress)


def _model(config: RunConfig, out: Path, wanted: Wanted, progress: Progress) -> LoadedModel:
    """The model; OutputError if weights beside the graph would replace what is not the run's."""
    progress("loading the model")
    model = load_model(config.model)
    if is_beside(model.backbone.weight_bytes, config.external_data):
        writing.refuse_loss(out, [GRAPH + SUFFIX], force=wanted.force)
    return model


def _images(config: RunConfig, model: LoadedModel) -> tuple[ImageSet, ImageSet]:
    """The images to prove and measure on, and those to calibrate a frozen schedule on."""
    how, own = model.preprocessing, model.own_images
    images = load_images(config.images or config.calibrate, how, own)
    if config.images is None or config.calibrate is None:
        return images, images
    return images, load_images(config.calibrate, how, own)


def _export(
    subject: Subject,
    images: ImageSet,
    out: Path,
    work: WorkFolder,
    wanted: Wanted,
    progress: Progress,
) -> tuple[Outcome, ir.Model]:
    """The run, written and published, and its graph with trace outputs; ParityError."""
    traced, shipped = translate(subject, work, progress)
    for name in dict.fromkeys((ONNXRUNTIME, *wanted.on)):
        backends[name].check_graph(shipped)
    progress("proving parity")
    proof = climb(
        subject,
        traced,
        shipped,
        images.pixels[:PROVEN_ON],
        lambda text: progress(f"proving parity: {text}"),
        wanted.graphs_on,
    )
    progress("measuring")
    report, pictures = _measured(subject, images, proof)
    if wanted.benchmark:
        report["latency"] = measure_latency(
            subject, shipped, images.pixels, wanted.threads, progress
        )
    manifest = write(subject, shipped, report, pictures, work, out, force=wanted.force)
    proof.require()
    return Outcome(out, report, manifest, reused=False), traced


def _measured(
    subject: Subject, images: ImageSet, proof: LadderResult
) -> tuple[dict[str, Any], str]:
    """The report but for latency, and its pictures."""
    backbone, plan = subject.model.backbone, subject.plan
    report = facts_of(subject, images, proof) | measure(subject, images)
    facts, fate = study(backbone, plan, subject.tensors(images.pixels, STUDIED)[0])
    pictures = pictures_of(
        images.pixels,
        images.names,
        fate,
        backbone.grid,
        backbone.prefix,
        decided_per_image=plan.adaptive,
    )
    return report | facts, pictures


def _check_backends(wanted: Wanted) -> None:
    """Fail before the long export, not after it."""
    for name in wanted.graphs_on:
        backends[name].require()
    if wanted.engines is None:
        return
    from atm_export.backends.tensorrt.api import gpu_sm, load_api
    from atm_export.backends.tensorrt.build import check_timing_cache

    settings = wanted.engines
    api, gpu = load_api(settings.flavor), gpu_sm()
    if settings.timing_cache and api.keeps_timings:
        check_timing_cache(Path(settings.timing_cache))
    for precision in settings.precisions:
        api.targets(settings, precision, gpu)


def _with_more(
    outcome: Outcome,
    subject: Subject,
    images: tuple[ImageSet, ImageSet],
    wanted: Wanted,
    traced: ir.Model | None,
    progress: Progress,
) -> Outcome:
    """The finished run with low precisions and engines beside its graph. images: that it was proven
    on, and calibrated on; traced: None: to be translated anew."""
    from atm_export.engines import Export, add_engines

    if traced is None:
        progress("translating to ONNX")
        traced = subject.graph(subject.plan)
    material = Material(subject, traced, images[1].pixels, images[0].pixels)
    for precision in wanted.missing(outcome.manifest):
        add_low_precision(outcome.out, material, precision, progress)
    report = outcome.report
    if wanted.engines is not None:
        export = Export(subject, traced, images[0].pixels)
        entries = add_engines(outcome.out, export, wanted.engines, progress)
        report = {**report, "engines": entries}
    manifest = add_results(outcome.out, {})  # the report now shows them
    return replace(outcome, report=report, manifest=manifest)


def translate(subject: Subject, work: WorkFolder, progress: Progress) -> tuple[ir.Model, ir.Model]:
    """The traced graph and the one that ships; picks up the stage of an interrupted run."""
    done = _finished_stage(work)
    if done is not None:
        progress("translating to ONNX: found finished")
        traced = graph_from_file(done)
    else:
        progress("translating to ONNX")
        traced = subject.graph(subject.plan)
        files = save_graph(traced, STAGE, subject.config.external_data)
        for name, data in files.items():
            work.write(name, data)
        if len(files) > 1:  # the weights of the file are mapped: memory has them once
            traced = graph_from_file(work.path / STAGE)
    facts = graph_facts(subject.config, subject.model, subject.plan)
    shipped = with_facts(with_outputs(traced, shipped_outputs(subject)), facts)
    for graph in (traced, shipped):
        lint.check(graph)
    CheckerPass()(copied(shipped))  # it moves weights about
    return traced, shipped


def _finished_stage(work: WorkFolder) -> Path | None:
    """The traced graph of an interrupted run, if it is whole with the weights beside it."""
    done = work.finished(STAGE)
    whole = done is not None and all(work.finished(name) for name in locations(done.read_bytes()))
    return done if whole else None


def facts_of(subject: Subject, images: ImageSet, proof: LadderResult) -> dict[str, Any]:
    """What the report says beside its measurements."""
    model = subject.model
    return {
        "model": model.name,
        "task": task_of(subject.model),
        "method": summarize_method(subject.config, subject.plan),
        "weights": model.weights,
        "notes": list(model.notes),
        "images": {"source": images.source, "count": len(images.pixels)},
        "parity": proof.facts(),
        "versions": writing.versions(),
    }


def write(
    subject: Subject,
    shipped: ir.Model,
    report: Mapping[str, Any],
    pictures: str,
    work: WorkFolder,
    out: Path,
    *,
    force: bool = False,
) -> Manifest:
    """Write and publish the run folder; returns its manifest."""
    proven = report["parity"]["proven"]
    if not proven:
        shipped = with_facts(shipped, {"status": "unproven"})
    graph = save_graph(shipped, GRAPH, subject.config.external_data)
    for name, data in graph.items():
        work.write(name, data)
    work.write("config.yaml", subject.config.to_yaml().encode())
    text = json.dumps(report, indent=1, sort_keys=True, ensure_ascii=False)
    work.write("report.json", (text + "\n").encode())
    golden, golden_facts = golden_vectors(subject.model, subject.plan)
    work.write(GOLDEN, golden)
    facts = {
        "status": PROVEN if proven else "unproven",
        "proven_on": report["parity"]["backends"] if proven else {},
        "versions": writing.versions(),
        "golden": golden_facts,
        **manifest_facts(subject.config, subject.model, subject.plan),
    }
    names = [*graph, *(name for name in FILES if name not in graph)]
    draw_report(work, [name for name in names if name != REPORT], facts, pictures)
    writing.publish(work, out, names, facts, force=force)
    return read_manifest(out)


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


def _reusable(config: RunConfig, out: Path, key: str, on: Sequence[str]) -> Outcome | None:
    """The finished run in `out` if it is this one, proven on these backends; ConfigError if it is
    another."""
    document = writing.finished_document(out)
    if document is None and (out / writing.MANIFEST).exists():
        raise ConfigError(
            f"{out} holds a run that this atm-export cannot read; "
            "give --force to replace it, or another --out"
        )
    if document is None or writing.broken_files(out, document):
        return None
    if document.get("status") != PROVEN:
        return None
    if document.get("run_key") == key:
        manifest = checked_manifest(out, document)
        if not set(on) <= {ONNXRUNTIME, *manifest.proven_on}:
            return None
        return Outcome(out, read_report(out), manifest, reused=True)
    values = {**config.model_dump(mode="json"), "method": stamped(config)["method"]}
    differs = [name for name, value in values.items() if _setting(document, name) != value]
    what = ", ".join(differs) or "weights, images or versions"
    raise ConfigError(
        f"{out} holds a finished run that differs in: {what}; "
        "give --force to replace it, or another --out"
    )


def _setting(document: Mapping[str, Any], name: str) -> Any:
    """One setting of a finished run, as graphs state it; None where the manifest has none."""
    config = document.get("config")
    usual = "auto" if name == "external_data" else None  # older runs know no other way
    value = config.get(name, usual) if isinstance(config, dict) else None
    return of_format_2(value) if name == "method" else value
