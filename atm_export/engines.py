"""Engines for a finished run: typed graph -> proof -> lint -> build -> run folder, one precision
after the other. Each engine is added to the run when it is whole, so an interrupted build resumes
at the next one, and a second identical run reuses what is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from atm_export import loose_files
from atm_export.backends import TENSORRT
from atm_export.backends.runner import Array, Runner
from atm_export.backends.tensorrt.api import Api, gpu_sm, load_api
from atm_export.backends.tensorrt.build import BuildFailedError, Engine, engine_from_onnx
from atm_export.backends.tensorrt.by_hand import command_lines
from atm_export.backends.tensorrt.cache import timing_cache_file
from atm_export.backends.tensorrt.cut import FailingPart, failing_part
from atm_export.backends.tensorrt.runner import TensorRTRunner
from atm_export.backends.tensorrt.settings import EngineSettings, Precision
from atm_export.errors import EngineBuildError, OutputError, ParityError
from atm_export.graph import lint
from atm_export.graph.optimize import with_facts, with_outputs
from atm_export.graph.saving import save_graph
from atm_export.measure.speed.engines import (
    BATCHES,
    ROUNDS,
    Expected,
    engine_parity,
    engine_speed,
    recommend,
)
from atm_export.model.calibrate import measured_r
from atm_export.model.reference import run_reference
from atm_export.prove.inputs import cases
from atm_export.prove.typed import typed_graph
from atm_export.report.facts import graph_facts, shipped_outputs
from atm_export.runs import writing
from atm_export.runs.manifest import Manifest
from atm_export.runs.reading import read_manifest
from atm_export.runs.seal import sha256
from atm_export.runs.writing import WorkFolder
from atm_export.subject import Pixels, Progress, Subject
from atm_export.tasks.base import OutputSpec, names

IMAGES = 32  # that lower precisions are calibrated on and compared with FP32
STATIC = ("unmerged", "frozen")  # engines whose token axis is fixed
NOT_RUN = "built ahead of time; not run: no GPU"


@dataclass(frozen=True)
class Export:
    """What engines are made of: a finished export's subject, its FP32 graph with trace outputs, and
    the images [k, H, W, C] that it was proven on."""

    subject: Subject
    traced: ir.Model
    pixels: Pixels

    @property
    def outputs(self) -> tuple[OutputSpec, ...]:
        """What the model answers."""
        return self.subject.model.backbone.outputs

    @property
    def feeds(self) -> list[Array]:
        """Graph inputs that lower precisions are calibrated on and compared with FP32."""
        pixels = self.pixels[:IMAGES]
        return [self.subject.feed(pixels[i : i + 8]) for i in range(0, len(pixels), 8)]


@dataclass(frozen=True)
class Build:
    """One engine to build."""

    precision: Precision
    name: str
    settings: EngineSettings
    api: Api
    sms: Sequence[int]


def alternatives(export: Export) -> dict[str, ir.Model]:
    """What an engine is compared with, with trace outputs: the unmerged model, and where counts are
    decided by the batch the frozen schedule."""
    subject, plan = export.subject, export.subject.plan
    found = {} if subject.policy == "unmerged" else {"unmerged": subject.graph(subject.unmerged)}
    if subject.policy == "adaptive":
        r = measured_r(subject.model.backbone, plan, subject.tensors(export.pixels, 8))
        found["frozen"] = subject.graph(plan.frozen(r))
    return found


def expected_answers(export: Export) -> list[Expected]:
    """The ladder's inputs, and what the eager reference makes of them."""
    subject, expected = export.subject, []
    for case in cases(export.pixels[:IMAGES]):
        pixels = case.candidates[0]
        trace = run_reference(subject.model.backbone, subject.plan, subject.tensor(pixels))
        tokens = trace.tokens_out if subject.plan.per_image else trace.tokens_out[:, :1]
        flat = (tokens.T if subject.plan.per_image else tokens).reshape(-1)
        answers = {name: value.numpy() for name, value in trace.outputs.items()}
        expected.append(Expected(subject.feed(pixels), answers, flat.numpy()))
    return expected


def add_engines(
    out: Path, export: Export, settings: EngineSettings, progress: Progress
) -> dict[str, Any]:
    """Build the engines that `out` does not hold yet; returns their manifest entries.

    Raises MissingDependencyError, ConfigError, ParityError, GraphLintError, EngineBuildError.
    """
    api = load_api(settings.flavor)
    sms = {p: api.targets(settings, p, gpu_sm()) for p in settings.precisions}
    manifest = read_manifest(out)
    wanted = {p: _engine_name(p, api, sms[p]) for p in settings.precisions}
    keys = {p: _key(p, manifest, api, settings, sms[p]) for p in settings.precisions}
    entries = {name: facts.document for name, facts in manifest.engines.items()}
    missing = [p for p in settings.precisions if not _there(entries.get(wanted[p]), keys[p])]
    if missing:
        with writing.working(out, manifest.run_key) as work:
            for precision in missing:
                name = wanted[precision]
                build = Build(precision, name, settings, api, sms[precision])
                entry, files = _add_one(work, out, export, build, progress)
                entries[name] = {"key": keys[precision], **entry}
                facts = {"engines": entries, "proven_on": _proven_on(manifest, entries)}
                writing.extend(work, out, [name, *files], facts)
    return {name: entries[name] for name in wanted.values()}


def _proven_on(manifest: Manifest, entries: Mapping[str, Any]) -> dict[str, str]:
    """What the run was proven on, engines that ran on a GPU among it."""
    ran = [name for name, entry in entries.items() if "parity" in entry["run"]]
    return {**manifest.proven_on, **({TENSORRT: ", ".join(sorted(ran))} if ran else {})}


def _add_one(
    work: WorkFolder, out: Path, export: Export, build: Build, progress: Progress
) -> tuple[dict[str, Any], list[str]]:
    """Write the typed graph and the plan into the work folder; returns the manifest entry, and the
    graph's files where the run does not hold them."""
    precision, graph = build.precision, _graph_name(build.precision)
    progress(f"writing {precision.value} into the graph")
    traced, proof = typed_graph(export.traced, export.feeds, precision, export.outputs, progress)
    proof.require()
    shipped = _shipped(export.subject, traced, precision)
    files = save_graph(shipped, graph, export.subject.config.external_data)
    for file, data in files.items():
        work.write(file, data)
    engine = _built(out, shipped, build, progress)
    plan = work.write(build.name, engine.plan)
    tensors = engine.facts["tensors"].values()
    image = next(each["shape"][1:] for each in tensors if each["mode"] == "input")
    entry = {
        "backend": TENSORRT,
        "precision": precision.value,
        **engine.facts,
        "bytes": len(engine.plan),
        "sha256": sha256(plan),
        "source": {"file": graph, "sha256": sha256(work.path / graph)},
        "validation": proof.facts(),
        "run": _run_where_it_fits(work, export, build, traced, plan, engine.facts, progress),
        "by_hand": command_lines(
            build.api.flavor, graph, build.name, image, build.settings.profiles
        ),
    }
    return entry, [] if precision is Precision.FP32 else list(files)


def _shipped(subject: Subject, traced: ir.Model, precision: Precision) -> ir.Model:
    """The typed graph with its outputs and facts; GraphLintError for a known trap."""
    facts = graph_facts(subject.config, subject.model, subject.plan)
    facts["precision"] = precision.value
    shipped = with_facts(with_outputs(traced, shipped_outputs(subject)), facts)
    lint.check(shipped)
    return shipped


def _built(out: Path, shipped: ir.Model, build: Build, progress: Progress) -> Engine:
    """The engine; EngineBuildError with the smallest part that fails, saved beside the run."""
    progress(f"building {build.name}")
    cache = build.settings.timing_cache or str(timing_cache_file(build.api, build.sms))
    alone = build.settings.model_copy(update={"precisions": (build.precision,)})
    try:
        return engine_from_onnx(
            shipped, alone.model_copy(update={"timing_cache": cache}), api=build.api
        )
    except BuildFailedError as error:
        part = failing_part(shipped, alone, build.api, error, progress)
        raise build_failed(out, build.name, error, part) from error


def build_failed(
    out: Path, name: str, error: BuildFailedError, part: FailingPart | None = None
) -> EngineBuildError:
    """What to raise of a build that failed; its log and the part that fails are saved in `out`."""
    log = "\n".join(f"{kind}: {text}" for kind, text in error.log)
    files = {f"{name}.log": log.encode()}
    told = f"{name}: {error}"
    if part is not None:
        files[f"{name}.failing.onnx"] = part.model.SerializeToString(deterministic=True)
        told += f"; the smallest part that fails is {part}"
    try:
        loose_files.put_files(out, files)
        where = f"saved: {', '.join(str(out / file) for file in files)}"
    except OutputError as refused:
        where = f"the log is not saved: {refused}"
    return EngineBuildError(f"{told}; {where}")


def _run_where_it_fits(
    work: WorkFolder,
    export: Export,
    build: Build,
    traced: ir.Model,
    plan: Path,
    facts: Mapping[str, Any],
    progress: Progress,
) -> dict[str, Any]:
    """Parity and latency on the GPU that is there, or why it was not run."""
    gpu = gpu_sm()
    if gpu is None:
        return {"status": NOT_RUN}
    if gpu not in build.sms:
        return {"status": f"built ahead of time; not run: this GPU is SM{gpu}"}
    import torch

    device = torch.cuda.get_device_name()
    graphs = {"traced": traced}
    for name, graph in alternatives(export).items():
        typed = typed_graph(graph, export.feeds, build.precision, export.outputs, progress)[0]
        graphs[name] = with_outputs(typed, names(export.outputs))
    with ExitStack() as stack:
        runners: dict[str, Runner] = {
            name: stack.enter_context(_probe(work, name, graph, build, progress))
            for name, graph in graphs.items()
        }
        static = export.subject.policy in STATIC
        shipped = stack.enter_context(TensorRTRunner(plan, facts, static=static))
        return _run_here(export, build, shipped, runners, device, progress)


def _probe(
    work: WorkFolder, name: str, graph: ir.Model, build: Build, progress: Progress
) -> TensorRTRunner:
    """An engine to compare with, kept in the work folder."""
    progress(f"building {name} to compare with")
    made = engine_from_onnx(graph, build.settings, api=build.api)
    file = work.path / f"{name}.probe"
    file.write_bytes(made.plan)
    return TensorRTRunner(file, made.facts, static=name in STATIC)


def _run_here(
    export: Export,
    build: Build,
    shipped: Runner,
    runners: Mapping[str, Runner],
    gpu: str,
    progress: Progress,
) -> dict[str, Any]:
    """Parity, then latency, of engines that are entered; ParityError if it fails."""
    progress(f"proving the engine on {gpu}")
    expected, precision = expected_answers(export), build.precision.value
    parity = engine_parity(runners["traced"], shipped, expected, precision, export.outputs)
    if not parity["within"]:
        raise ParityError(
            f"{build.name} disagrees with the eager reference on {gpu}: {parity['failed']}"
        )
    progress(f"measuring the engine on {gpu}")
    largest = max(profile.max for profile in build.settings.profiles)
    first = export.feeds[0]
    feeds = {
        batch: np.resize(first, (batch, *first.shape[1:])) for batch in BATCHES if batch <= largest
    }
    others = {name: runner for name, runner in runners.items() if name != "traced"}
    rows = engine_speed({export.subject.policy: shipped, **others}, feeds, rounds=ROUNDS)
    return {
        "status": f"run on {gpu}",
        "parity": parity,
        "latency": rows,
        "recommendation": recommend(rows, gpu),
    }


def _graph_name(precision: Precision) -> str:
    return "model.onnx" if precision is Precision.FP32 else f"model.{precision.value}.onnx"


def _engine_name(precision: Precision, api: Api, sms: Sequence[int]) -> str:
    targets = "-".join(f"sm{sm}" for sm in sms)
    return f"model.{precision.value}.{api.flavor.value}.{targets}.plan"


def _key(
    precision: Precision,
    manifest: Manifest,
    api: Api,
    settings: EngineSettings,
    sms: Sequence[int],
) -> str:
    return writing.run_key(
        {
            "run": manifest.run_key,
            "precision": precision.value,
            "settings": settings.digest(),
            "tensorrt": api.version,
            "flavor": api.flavor.value,
            "sms": list(sms),
        }
    )


def _there(entry: Mapping[str, Any] | None, key: str) -> bool:
    """Whether the engine of `entry` is this one and whole (the run's files were checked before)."""
    return entry is not None and entry.get("key") == key
