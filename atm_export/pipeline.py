"""The main path: config -> model -> graph -> proof -> measurement -> run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from atm_export import place
from atm_export.backends import ONNXRUNTIME, backends
from atm_export.backends.base import GRAPH
from atm_export.backends.tensorrt.settings import EngineSettings
from atm_export.backends.threads import use_threads
from atm_export.bounds import checked_threads
from atm_export.config import RunConfig
from atm_export.graph.optimize import with_facts
from atm_export.graph.saving import SUFFIX, is_beside, save_graph
from atm_export.low_precision import Low, Material, add_low_precision
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
    manifest_facts,
    summarize_method,
    task_of,
)
from atm_export.report.page import FILE as REPORT
from atm_export.report.results import add_results, draw_report, features_section, pictures_of
from atm_export.reuse import finished_run, key_of
from atm_export.runs import writing
from atm_export.runs.manifest import PROVEN, Manifest
from atm_export.runs.reading import read_manifest
from atm_export.runs.writing import WorkFolder
from atm_export.subject import Progress, Subject, subject_of
from atm_export.translation import own_graphs, translate

PROVEN_ON = 32  # real images
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
    beside ONNX Runtime; engines: to be built of it; low: precisions below FP32."""

    on: tuple[str, ...] = ()
    engines: EngineSettings | None = None
    low: tuple[Low, ...] = ()
    benchmark: bool = True
    threads: int = 0
    force: bool = False

    @property
    def own(self) -> list[str]:
        """Files of graphs for one of the backends alone, where the plan has their form."""
        every = [backends[name] for name in self.graphs_on]
        return [each.own_graph() for each in every if each.form != "plain"]

    @property
    def files(self) -> list[str]:
        """Files that it may add to a run folder."""
        return [*self.own, *(file for low in self.low for file in low.files)]

    @property
    def graphs_on(self) -> tuple[str, ...]:
        """Backends that run the graph itself, ONNX Runtime first."""
        chosen = dict.fromkeys((ONNXRUNTIME, *self.on))
        return tuple(name for name in chosen if not backends[name].engines)

    def missing(self, manifest: Manifest) -> list[Low]:
        """Low precisions that a run has not."""
        return [low for low in self.low if not low.is_there(manifest)]

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
    low: Sequence[Low] = (),
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
    wanted = Wanted(tuple(on), engines, tuple(low), benchmark, threads, force)
    writing.refuse_loss(out, [*FILES, *wanted.files], force=force)
    out, wanted = place.plain(out), replace(wanted, threads=use_threads(threads))
    _check_backends(wanted)
    model = _model(config, out, wanted, progress)
    images, calibration = _images(config, model)
    key = key_of(config, model, images, calibration)
    found = None if force else finished_run(config, out, key, wanted.graphs_on)
    if found is not None:
        writing.drop_leftovers(out)
        finished = Outcome(out, read_report(out), found, reused=True)
        if not wanted.more(found):
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
        names = [GRAPH, *wanted.own]
        writing.refuse_loss(out, [name + SUFFIX for name in names], force=wanted.force)
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
    graphs = translate(subject, work, progress)
    own = own_graphs(subject, wanted.graphs_on, progress)
    for name in dict.fromkeys((ONNXRUNTIME, *wanted.on)):
        backends[name].check_graph(own.get(name, graphs).shipped)
    progress("proving parity")
    proof = climb(
        subject,
        graphs.traced,
        graphs.shipped,
        images.pixels[:PROVEN_ON],
        lambda text: progress(f"proving parity: {text}"),
        wanted.graphs_on,
        own,
    )
    progress("measuring")
    report, pictures = _measured(subject, images, proof)
    if wanted.benchmark:
        report["latency"] = measure_latency(
            subject, graphs.shipped, images.pixels, wanted.threads, progress
        )
    saved = {GRAPH: graphs.shipped}
    saved |= {backends[name].own_graph(): each.shipped for name, each in own.items()}
    manifest = write(subject, saved, report, pictures, work, out, force=wanted.force)
    proof.require()
    return Outcome(out, report, manifest, reused=False), graphs.traced


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
    return report | facts, pictures + features_section(subject, images)


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
    for low in wanted.missing(outcome.manifest):
        add_low_precision(outcome.out, material, low, progress)
    report = outcome.report
    if wanted.engines is not None:
        export = Export(subject, traced, images[0].pixels)
        entries = add_engines(outcome.out, export, wanted.engines, progress)
        report = {**report, "engines": entries}
    manifest = add_results(outcome.out, {})  # the report now shows them
    return replace(outcome, report=report, manifest=manifest)


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
    graphs: Mapping[str, ir.Model],
    report: Mapping[str, Any],
    pictures: str,
    work: WorkFolder,
    out: Path,
    *,
    force: bool = False,
) -> Manifest:
    """Write and publish the run folder, `graphs` by the names of their files; returns its
    manifest."""
    proven = report["parity"]["proven"]
    saved: list[str] = []
    for file, graph in graphs.items():
        shipped = graph if proven else with_facts(graph, {"status": "unproven"})
        for name, data in save_graph(shipped, file, subject.config.external_data).items():
            work.write(name, data)
            saved.append(name)
    work.write("config.yaml", subject.config.to_yaml().encode())
    text = json.dumps(report, indent=1, sort_keys=True, ensure_ascii=False)
    work.write("report.json", (text + "\n").encode())
    golden, golden_facts = golden_vectors(subject.model, subject.plan)
    work.write(GOLDEN, golden)
    own = ((name, backends[name].own_graph()) for name in backends)
    facts = {
        "status": PROVEN if proven else "unproven",
        "proven_on": report["parity"]["backends"] if proven else {},
        "versions": writing.versions(),
        "golden": golden_facts,
        "graphs": {name: file for name, file in own if file in graphs},
        **manifest_facts(subject.config, subject.model, subject.plan),
    }
    names = [*saved, *(name for name in FILES if name not in saved)]
    draw_report(work, [name for name in names if name != REPORT], facts, pictures)
    writing.publish(work, out, names, facts, force=force)
    return read_manifest(out)
