"""Engines for a finished run: typed graph -> proof -> lint -> build -> run folder, one precision
after the other. Each engine is added to the run when it is whole, so an interrupted build resumes
at the next one, and a second identical run reuses what is there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from atm_export import place
from atm_export.backends.runner import Array
from atm_export.backends.tensorrt.api import Api, gpu_sm, load_api
from atm_export.backends.tensorrt.build import BuildFailedError, engine_from_onnx
from atm_export.backends.tensorrt.by_hand import command_lines
from atm_export.backends.tensorrt.cache import timing_cache_file
from atm_export.backends.tensorrt.cut import FailingPart, failing_part
from atm_export.backends.tensorrt.runner import TensorRTRunner
from atm_export.backends.tensorrt.settings import EngineSettings, Precision
from atm_export.errors import EngineBuildError, OutputError, ParityError
from atm_export.graph import lint
from atm_export.graph.optimize import emulated, quantized, with_facts, with_outputs, with_precision
from atm_export.measure.engine import (
    BATCHES,
    ROUNDS,
    Expected,
    engine_parity,
    engine_speed,
    recommend,
)
from atm_export.measure.job import Job, Progress
from atm_export.model.calibrate import measured_r
from atm_export.model.reference import run_reference
from atm_export.prove.calibration import linear_inputs, ranges
from atm_export.prove.inputs import cases
from atm_export.prove.matching import require_matching
from atm_export.prove.precision import PrecisionProof, compare_precision
from atm_export.runs import writing
from atm_export.runs.reading import load_manifest, sha256
from atm_export.runs.writing import WorkFolder
from atm_export.tasks.base import Output, names

IMAGES = 32  # that lower precisions are calibrated on and compared with FP32
NOT_RUN = "built ahead of time; not run: no GPU"


@dataclass(frozen=True)
class EngineSource:
    """What engines are made of.

    traced: the run's FP32 graph with trace outputs, made when asked for. outputs: what ships;
    specs: what of it answers. feeds: graph inputs of real images, in batches. For a GPU that is
    there: alternatives: FP32 traced graphs of other policies by name, `unmerged` among them;
    expected: the ladder's inputs with the eager reference's answers; policy: what this run merges
    by.
    """

    traced: Callable[[], onnx.ModelProto]
    outputs: Sequence[str]
    specs: Sequence[Output]
    facts: Mapping[str, Any]
    feeds: Sequence[Array]
    alternatives: Callable[[], Mapping[str, onnx.ModelProto]]
    expected: Callable[[], Sequence[Expected]]
    policy: str


@dataclass(frozen=True)
class Build:
    """One engine to build."""

    precision: Precision
    name: str
    settings: EngineSettings
    api: Api
    sms: Sequence[int]


def source_of(job: Job, outputs: Sequence[str], facts: Mapping[str, Any]) -> EngineSource:
    """The engine source of an export."""
    pixels = job.images.pixels[:IMAGES]
    return EngineSource(
        traced=lambda: job.graph(job.plan),
        outputs=outputs,
        specs=job.model.backbone.outputs,
        facts=facts,
        feeds=[job.feed(pixels[i : i + 8]) for i in range(0, len(pixels), 8)],
        alternatives=lambda: _alternatives(job),
        expected=lambda: _expected(job),
        policy=job.policy,
    )


def _alternatives(job: Job) -> dict[str, onnx.ModelProto]:
    """What an engine is compared with: the unmerged model, and the frozen schedule."""
    found = {} if job.policy == "unmerged" else {"unmerged": job.graph(job.unmerged)}
    if job.policy == "adaptive":
        r = measured_r(job.model.backbone, job.plan, job.tensors(job.images.pixels, 8))
        found["frozen"] = job.graph(job.plan.frozen(r))
    return found


def _expected(job: Job) -> list[Expected]:
    """The ladder's inputs, and what the eager reference makes of them."""
    expected = []
    for case in cases(job.images.pixels[:IMAGES]):
        pixels = case.candidates[0]
        (batch,) = job.tensors(pixels, len(pixels))
        trace = run_reference(job.model.backbone, job.plan, batch)
        tokens = trace.tokens_out if job.plan.per_image else trace.tokens_out[:, :1]
        flat = tokens.T if job.plan.per_image else tokens
        answers = {name: value.numpy() for name, value in trace.outputs.items()}
        expected.append(Expected(job.feed(pixels), answers, flat.reshape(-1).numpy()))
    return expected


def add_engines(
    out: Path, source: EngineSource, settings: EngineSettings, progress: Progress
) -> dict[str, Any]:
    """Build the engines that `out` does not hold yet; returns their manifest entries.

    Raises MissingDependencyError, ConfigError, ParityError, GraphLintError, EngineBuildError.
    """
    api = load_api(settings.flavor)
    sms = {p: api.targets(settings, p, gpu_sm()) for p in settings.precisions}
    manifest = load_manifest(out)
    wanted = {p: _engine_name(p, api, sms[p]) for p in settings.precisions}
    keys = {p: _key(p, manifest, api, settings, sms[p]) for p in settings.precisions}
    entries = dict(manifest.get("engines", {}))
    missing = [p for p in settings.precisions if not _there(out, entries.get(wanted[p]), keys[p])]
    if missing:
        with writing.working(out, str(manifest["run_key"])) as work:
            for precision in missing:
                name = wanted[precision]
                build = Build(precision, name, settings, api, sms[precision])
                entry = _add_one(work, out, source, build, progress)
                entries[name] = {"key": keys[precision], **entry}
                files = [name, *([] if precision is Precision.FP32 else [_graph_name(precision)])]
                writing.extend(work, out, files, {"engines": entries})
    return {name: entries[name] for name in wanted.values()}


def _add_one(
    work: WorkFolder, out: Path, source: EngineSource, build: Build, progress: Progress
) -> dict[str, Any]:
    """Write the typed graph and the plan into the work folder; returns the manifest entry."""
    precision, name, api, settings = build.precision, build.name, build.api, build.settings
    progress(f"writing {precision.value} into the graph")
    reference = source.traced()
    traced, proof = typed_graph(reference, source, precision, progress)
    proof.require()
    facts = {**source.facts, "precision": precision.value}
    shipped = with_facts(with_outputs(traced, source.outputs), facts)
    lint.check(shipped)
    graph = _graph_name(precision)
    data = bytes(shipped.SerializeToString(deterministic=True))
    work.write(graph, data)
    progress(f"building {name}")
    cache = settings.timing_cache or str(timing_cache_file(api, build.sms))
    alone = settings.model_copy(update={"precisions": (precision,)})
    try:
        engine = engine_from_onnx(
            shipped, alone.model_copy(update={"timing_cache": cache}), api=api
        )
    except BuildFailedError as error:
        part = failing_part(shipped, alone, api, error, progress)
        raise build_failed(out, name, error, part) from error
    plan = work.write(name, engine.plan)
    image = engine.facts["tensors"]["image"]["shape"][1:]
    gpu = gpu_sm()
    here = gpu is not None and gpu in build.sms
    run: dict[str, Any] = {"status": NOT_RUN}
    if here:
        run = _run_here(work, source, build, traced, plan, engine.facts, progress)
    elif gpu is not None:
        run = {"status": f"built ahead of time; not run: this GPU is SM{gpu}"}
    return {
        "precision": precision.value,
        **engine.facts,
        "bytes": len(engine.plan),
        "sha256": sha256(plan),
        "source": {"file": graph, "sha256": sha256(work.path / graph)},
        "validation": proof.facts(),
        "run": run,
        "by_hand": command_lines(api.flavor, graph, name, image, settings.profiles),
    }


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
        place.put_files(out, files)
        where = f"saved: {', '.join(str(out / file) for file in files)}"
    except OutputError as refused:
        where = f"the log is not saved: {refused}"
    return EngineBuildError(f"{told}; {where}")


def _run_here(
    work: WorkFolder,
    source: EngineSource,
    build: Build,
    traced: onnx.ModelProto,
    plan: Path,
    facts: Mapping[str, Any],
    progress: Progress,
) -> dict[str, Any]:
    """Parity and latency of a fresh engine on the GPU that is there; ParityError if it fails."""
    import torch

    gpu = torch.cuda.get_device_name()
    others = {
        name: typed_graph(graph, source, build.precision, progress)[0]
        for name, graph in source.alternatives().items()
    }
    graphs = {"traced": traced}
    graphs |= {name: with_outputs(graph, names(source.specs)) for name, graph in others.items()}
    with ExitStack() as stack:
        runners: dict[str, Any] = {}
        for name, graph in graphs.items():
            progress(f"building {name} to compare with")
            made = engine_from_onnx(graph, build.settings, api=build.api)
            file = work.path / f"{name}.probe"
            file.write_bytes(made.plan)
            static = name in ("unmerged", "frozen")
            runners[name] = stack.enter_context(TensorRTRunner(file, made.facts, static=static))
        static = source.policy in ("unmerged", "frozen")
        shipped = stack.enter_context(TensorRTRunner(plan, facts, static=static))
        progress(f"proving the engine on {gpu}")
        parity = engine_parity(
            runners.pop("traced"),
            shipped,
            source.expected(),
            build.precision.value,
            source.specs,
        )
        if not parity["within"]:
            raise ParityError(
                f"{build.name} disagrees with the eager reference on {gpu}: {parity['failed']}"
            )
        progress(f"measuring the engine on {gpu}")
        largest = max(profile.max for profile in build.settings.profiles)
        feeds = {
            batch: np.resize(source.feeds[0], (batch, *source.feeds[0].shape[1:]))
            for batch in BATCHES
            if batch <= largest
        }
        rows = engine_speed({source.policy: shipped, **runners}, feeds, rounds=ROUNDS)
    return {
        "status": f"run on {gpu}",
        "parity": parity,
        "latency": rows,
        "recommendation": recommend(rows, gpu),
    }


def typed_graph(
    reference: onnx.ModelProto, source: EngineSource, precision: Precision, progress: Progress
) -> tuple[onnx.ModelProto, PrecisionProof]:
    """The traced graph in `precision`, and how it compares with the FP32 one."""
    name, feeds = precision.value, source.feeds
    if precision is Precision.FP32:
        return reference, compare_precision(reference, reference, feeds, name, source.specs)
    low = "fp16" if precision in (Precision.INT8, Precision.FP8) else name
    try:
        typed = with_precision(reference, low)
    except OverflowError as error:
        raise ParityError(
            f"{low} cannot hold this model: {error}; no engine was built; "
            "take --precision bf16 or fp32"
        ) from error
    if low != name:
        progress(f"calibrating {name}")
        typed = quantized(typed, ranges(reference, linear_inputs(reference), feeds), name)
    require_matching(typed, name)
    progress(f"comparing {name} with FP32")
    return typed, compare_precision(reference, emulated(typed, low), feeds, name, source.specs)


def _graph_name(precision: Precision) -> str:
    return "model.onnx" if precision is Precision.FP32 else f"model.{precision.value}.onnx"


def _engine_name(precision: Precision, api: Api, sms: Sequence[int]) -> str:
    targets = "-".join(f"sm{sm}" for sm in sms)
    return f"model.{precision.value}.{api.flavor.value}.{targets}.plan"


def _key(
    precision: Precision,
    manifest: Mapping[str, Any],
    api: Api,
    settings: EngineSettings,
    sms: Sequence[int],
) -> str:
    return writing.run_key(
        {
            "run": manifest["run_key"],
            "precision": precision.value,
            "settings": settings.digest(),
            "tensorrt": api.version,
            "flavor": api.flavor.value,
            "sms": list(sms),
        }
    )


def _there(out: Path, entry: Mapping[str, Any] | None, key: str) -> bool:
    """Whether the engine of `entry` is this one and whole (the run's files were checked before)."""
    return entry is not None and entry.get("key") == key
