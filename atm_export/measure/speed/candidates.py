"""What a benchmark compares: the run, its merge policies, another run or ToMe, and no merging."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch

from atm_export.backends import backends
from atm_export.backends.base import FP32, Backend, choose_artifact
from atm_export.backends.runner import Array, Runner
from atm_export.errors import ConfigError
from atm_export.graph.optimize import with_outputs
from atm_export.graph.saving import in_memory
from atm_export.methods import methods
from atm_export.methods.plan import MergePlan
from atm_export.model.backbone import Answer
from atm_export.model.calibrate import measured_r
from atm_export.model.plan import plan_for
from atm_export.model.reference import run_reference
from atm_export.prove.low import BF16, INT8, calibration_feeds, low_graph
from atm_export.runs.graphs import read_graph
from atm_export.runs.reading import Run, open_run
from atm_export.subject import Pixels, Subject, exported_subject
from atm_export.tasks.base import names

UNMERGED = "unmerged"
PRECISIONS = (FP32, BF16, INT8)
EAGER = ("eager", "torch.compile")


@dataclass(frozen=True)
class Candidate:
    """A way to run the model. run: that holds it exported; None: made for this; compared: measured
    beside what may be recommended. precision: what it runs in; calibration: pictures for one below
    FP32 that no run holds."""

    name: str
    plan: MergePlan
    subject: Subject
    run: Run | None = None
    compared: bool = False
    precision: str = FP32
    calibration: Pixels | None = None

    @property
    def in_fp32(self) -> str:
        """Name of the same in FP32."""
        return self.name.removesuffix(f" {self.precision}")

    @property
    def baseline(self) -> str:
        """Name of what it is compared with: no merging, in the same precision."""
        return UNMERGED if self.precision == FP32 else f"{UNMERGED} {self.precision}"


def in_precisions(
    found: Sequence[Candidate], precisions: Sequence[str], pixels: Pixels
) -> list[Candidate]:
    """All candidates in each precision, with its name behind theirs below FP32; calibrated on
    `pixels`."""
    return [
        each
        if precision == FP32
        else replace(each, name=f"{each.name} {precision}", precision=precision, calibration=pixels)
        for precision in precisions
        for each in found
    ]


def candidates(
    run: Run, subject: Subject, pixels: Pixels, against: str | None, policies: bool
) -> list[Candidate]:
    """The unmerged baseline first, the run, its other merge policies, and what it is compared
    with (a run folder, a preset of the model, none, or tome:r). Frozen schedules are measured on
    `pixels`."""
    found = [Candidate(UNMERGED, subject.unmerged, subject)]
    policy = subject.config.method.policy
    name = subject.config.method.name if policy is None else policy.value
    if subject.plan.merges:
        found.append(Candidate(name, subject.plan, subject, run))
    if policies and policy is not None:
        found += [
            Candidate(policy, plan, subject)
            for policy, plan in _policies(subject, pixels).items()
            if policy != name
        ]
    if against not in (None, "none"):
        assert against is not None
        found.append(_other(run, subject, against))
    return found


def _policies(subject: Subject, pixels: Pixels) -> dict[str, MergePlan]:
    backbone = subject.model.backbone
    plan = plan_for(backbone, subject.config.method)
    frozen = plan.frozen(measured_r(backbone, plan, [subject.tensor(pixels)]))
    return {
        "adaptive": replace(plan, per_image=False),
        "frozen": frozen,
        "per-image": replace(plan, per_image=True),
    }


def _other(run: Run, subject: Subject, against: str) -> Candidate:
    presets = subject.config.model.config.presets
    if against in presets:
        chosen = presets[against].chosen
        return Candidate(against, plan_for(subject.model.backbone, chosen), subject)
    name, colon, text = against.partition(":")
    if colon and name in methods:
        try:
            method = methods[name].shorthand(text)
        except ConfigError as error:
            raise ConfigError(f"--against {against}: {error}") from None
        return Candidate(against, plan_for(subject.model.backbone, method), subject, compared=True)
    folder = open_run(Path(against))
    if folder.input.facts() != run.input.facts():
        raise ConfigError(f"--against {against}: its input differs from this run's")
    other = exported_subject(folder.manifest, f"{against}/manifest.json")
    return Candidate(Path(against).name, other.plan, other, folder, compared=True)


class _Function:
    """A function of pixels as a Runner; the outputs are what keeps compilers honest."""

    def __init__(self, function: Callable[[torch.Tensor], Answer]) -> None:
        self.function = function

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...

    def run(self, image: Array) -> Mapping[str, Array]:
        with torch.inference_mode():
            answer = self.function(torch.from_numpy(image))
        values = answer if isinstance(answer, tuple) else (answer,)
        return {str(i): value.numpy() for i, value in enumerate(values)}


def backend_names() -> list[str]:
    """What bench can measure on."""
    return [*backends, *EAGER]


def open_runner(backend: str, candidate: Candidate, stack: ExitStack) -> Runner:
    """Enter a runner of the candidate; ConfigError where the backend cannot run it."""
    known = (FP32,) if backend in EAGER else backends[backend].precisions
    if candidate.precision not in known:
        raise ConfigError(f"{backend} runs no graph in {candidate.precision}")
    if backend == "eager":
        return stack.enter_context(_Function(_eager(candidate)))
    if backend == "torch.compile":
        return stack.enter_context(_Function(torch.compile(_eager(candidate), dynamic=True)))
    return stack.enter_context(_on(backends[backend], candidate))


def feed_of(backend: str, candidate: Candidate, pixels: Pixels) -> Array:
    """Pixels [B, H, W, 3] as this backend takes them."""
    if backend in EAGER:
        return np.asarray(candidate.subject.tensor(pixels).numpy())
    return candidate.subject.feed(pixels)


def _eager(candidate: Candidate) -> Callable[[torch.Tensor], Answer]:
    backbone, plan = candidate.subject.model.backbone, candidate.plan
    if not plan.merges:
        return backbone.plain
    return lambda image: tuple(run_reference(backbone, plan, image).outputs.values())


def _on(backend: Backend, candidate: Candidate) -> Runner:
    """What ships of a candidate, the graph of its run or the same made now; or its engine."""
    run, subject = candidate.run, candidate.subject
    if backend.engines:
        if run is None or not backend.artifacts(run):
            raise ConfigError(
                "no engine; export with --trt (an unmerged one: --method none --trt, then "
                "--against it)"
            )
        backend.require()
        return backend.open_artifact(run, choose_artifact(backend, run))
    backend.require()
    file = None if run is None else _file(backend, run, candidate.precision)
    precision = candidate.precision
    if run is not None and file is not None:
        return backend.open_measured(read_graph(run, file), precision, alone=True)
    answers = names(subject.model.backbone.outputs)
    graph = subject.graph(candidate.plan, backend.form)
    if precision == FP32:
        return backend.open_measured(in_memory(with_outputs(graph, answers)), alone=True)
    assert candidate.calibration is not None
    feeds = calibration_feeds(subject, candidate.calibration)
    low = low_graph(backend, graph, precision, feeds)
    low = replace(low, model=with_outputs(low.model, answers))
    return backend.open_measured(low.for_backend(backend), precision, alone=True)


def _file(backend: Backend, run: Run, precision: str) -> str | None:
    """What the run holds in a precision."""
    if precision == FP32:
        return choose_artifact(backend, run)
    return run.manifest.low_precision_of(backend.name).get(precision)
