"""What a benchmark compares: the run, its merge policies, another run or ToMe, and no merging."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from atm_export.backends.onnxruntime import OnnxRuntimeRunner
from atm_export.backends.runner import Array, Runner
from atm_export.errors import ConfigError
from atm_export.graph.optimize import with_outputs
from atm_export.measure.accuracy.runners import best_providers
from atm_export.measure.engine import choose_engine
from atm_export.measure.subject import Pixels, Subject, load_subject
from atm_export.methods import methods
from atm_export.methods.plan import MergePlan
from atm_export.model.backbone import Answer
from atm_export.model.calibrate import measured_r
from atm_export.model.plan import plan_for
from atm_export.model.reference import run_reference
from atm_export.runs.reading import open_run
from atm_export.tasks.base import names

UNMERGED = "unmerged"
BACKENDS = ("onnxruntime", "eager", "torch.compile", "tensorrt")


@dataclass(frozen=True)
class Candidate:
    """A way to run the model. folder: the run that holds it exported; None: made for this."""

    name: str
    plan: MergePlan
    subject: Subject
    exported: bool = False


def candidates(
    subject: Subject, pixels: Pixels, against: str | None, policies: bool
) -> list[Candidate]:
    """The unmerged baseline first, the run, its other merge policies, and what it is compared
    with (a run folder, none, or tome:r). Frozen schedules are measured on `pixels`."""
    found = [Candidate(UNMERGED, subject.unmerged, subject)]
    policy = subject.config.method.policy
    name = subject.config.method.name if policy is None else policy.value
    if subject.plan.merges:
        found.append(Candidate(name, subject.plan, subject, exported=True))
    if policies and policy is not None:
        found += [
            Candidate(policy, plan, subject)
            for policy, plan in _policies(subject, pixels).items()
            if policy != name
        ]
    if against not in (None, "none"):
        assert against is not None
        found.append(_other(subject, against))
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


def _other(subject: Subject, against: str) -> Candidate:
    name, colon, text = against.partition(":")
    if colon and name in methods:
        try:
            method = methods[name].shorthand(text)
        except ConfigError as error:
            raise ConfigError(f"--against {against}: {error}") from None
        return Candidate(against, plan_for(subject.model.backbone, method), subject)
    other = load_subject(open_run(Path(against)))
    if other.run.input != subject.run.input:
        raise ConfigError(f"--against {against}: its input differs from this run's")
    return Candidate(Path(against).name, other.plan, other, exported=True)


class _Function:
    """A function of pixels as a Runner; the outputs are what keeps compilers honest."""

    def __init__(self, function: Callable[[torch.Tensor], Answer]) -> None:
        self.function = function

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def run(self, image: Array) -> Mapping[str, Array]:
        with torch.inference_mode():
            answer = self.function(torch.from_numpy(image))
        values = answer if isinstance(answer, tuple) else (answer,)
        return {str(i): value.numpy() for i, value in enumerate(values)}


def open_runner(backend: str, candidate: Candidate, stack: ExitStack) -> Runner:
    """Enter a runner of the candidate; raises ConfigError where the backend cannot run it."""
    opener: Mapping[str, Callable[[Candidate], AbstractContextManager[Any]]] = {
        "onnxruntime": _onnxruntime,
        "eager": lambda c: _Function(_eager(c)),
        "torch.compile": lambda c: _Function(torch.compile(_eager(c), dynamic=True)),
        "tensorrt": _tensorrt,
    }
    runner: Runner = stack.enter_context(opener[backend](candidate))
    return runner


def feed_of(backend: str, candidate: Candidate, pixels: Pixels) -> Array:
    """Pixels [B, H, W, 3] as this backend takes them."""
    if backend in ("eager", "torch.compile"):
        return np.asarray(candidate.subject.tensor(pixels).numpy())
    return candidate.subject.feed(pixels)


def _eager(candidate: Candidate) -> Callable[[torch.Tensor], Answer]:
    backbone, plan = candidate.subject.model.backbone, candidate.plan
    if not plan.merges:
        return backbone.plain
    return lambda image: tuple(run_reference(backbone, plan, image).outputs.values())


def _onnxruntime(candidate: Candidate) -> OnnxRuntimeRunner:
    providers = best_providers()
    if candidate.exported:
        return OnnxRuntimeRunner(
            candidate.subject.run.graph, providers=providers, waiting="spin while running"
        )
    outputs = names(candidate.subject.model.backbone.outputs)
    graph = with_outputs(candidate.subject.graph(candidate.plan), outputs)
    return OnnxRuntimeRunner(graph, providers=providers, waiting="spin while running")


def _tensorrt(candidate: Candidate) -> Any:
    from atm_export.backends.tensorrt.runner import TensorRTRunner

    run = candidate.subject.run
    name = choose_engine(run) if candidate.exported else None
    if name is None:
        raise ConfigError(
            "no engine; export with --trt (an unmerged one: --method none --trt, then --against it)"
        )
    facts = run.manifest["engines"][name]
    return TensorRTRunner(run.folder / name, facts, static=not candidate.plan.adaptive)
