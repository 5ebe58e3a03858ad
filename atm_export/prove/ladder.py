"""The parity ladder: eager reference -> export-friendly twin -> ONNX on every backend asked for.

Every rung is compared with the reference, never with the rung below it: token counts per block,
which tokens merged, every output. The graph that ships and the traced one must agree too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import onnx_ir as ir
import torch

from atm_export.backends import ONNXRUNTIME, backends
from atm_export.graph.saving import in_memory
from atm_export.methods.plan import MergePlan
from atm_export.model.reference import Trace
from atm_export.prove.compare import compare, measure
from atm_export.prove.inputs import Case, Pixels, cases
from atm_export.prove.judging import judge, own_noise, with_margin
from atm_export.prove.results import Difference, LadderResult, Rung
from atm_export.prove.variants import variants
from atm_export.rewrite.twin import Twin
from atm_export.subject import Subject

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Answer:
    """What one rung makes of an input: outputs by name, token counts, token maps."""

    rung: str
    outputs: Mapping[str, Any]
    counts: Any
    maps: Any


@dataclass(frozen=True)
class Decided:
    """An input, and what the reference makes of it. everything: every rung runs it, not the traced
    graph alone."""

    name: str
    pixels: Pixels
    trace: Trace
    margin: float
    everything: bool


Rungs = Sequence[Sequence[Answer]]  # the answers of some rungs, by input


@dataclass(frozen=True)
class Step:
    """One input, compared on every rung."""

    case: str
    margin: float
    rungs: tuple[Rung, ...]
    differences: tuple[Difference, ...]
    undecided: tuple[str, ...]


def climb(
    subject: Subject,
    traced: ir.Model,
    shipped: ir.Model,
    images: Pixels,
    progress: Progress = lambda text: None,
    on: Sequence[str] = (ONNXRUNTIME,),
) -> LadderResult:
    """Compare every rung on every input. traced, shipped: graphs of the subject; images
    [k, H, W, C] uint8, real ones; on: names of backends."""
    steps: list[Step] = []
    for label, plan, with_trace, plain in variants(subject.plan, traced, shipped):
        inputs = [_decided(subject, plan, label, case, progress) for case in _cases(images, label)]
        answers = [_on(name, subject, with_trace, plain, inputs, progress) for name in on]
        if plan.merges:
            answers.insert(0, _twin(subject, plan, inputs))
        for k, given in enumerate(inputs):
            found = [answer for rungs in answers for answer in rungs[k]]
            steps.append(_step(subject, plan, given, found))
    return LadderResult(
        tuple(rung for step in steps for rung in step.rungs),
        tuple(each for step in steps for each in step.differences),
        {step.case: step.margin for step in steps},
        {name: step.margin for step in steps for name in step.undecided},
        {name: backends[name].about() for name in on},
        subject.model.backbone.outputs,
    )


def _cases(images: Pixels, label: str) -> Iterator[Case]:
    """All inputs; at the extremes of what is decided, images and flat ones."""
    return (case for case in cases(images) if not label or case.kind in ("images", "flat"))


def _decided(
    subject: Subject, plan: MergePlan, label: str, case: Case, progress: Progress
) -> Decided:
    name = f"{label}{case.kind}, batch {case.batch}"
    progress(name)
    everything = not label or case.batch == 1  # the same operators at every threshold
    return Decided(name, *with_margin(subject.model, plan, case), everything)


def _step(subject: Subject, plan: MergePlan, given: Decided, answers: Sequence[Answer]) -> Step:
    pixels, trace, margin = given.pixels, given.trace, given.margin
    rungs, differences, undecided = [], [], []
    for answer in answers:
        judged = judge(subject.model, plan, pixels, trace, margin, answer.maps)
        if judged is not trace:
            undecided.append(f"{answer.rung}: {given.name}")
        rungs.append(measure(answer.rung, given.name, judged, answer.outputs))
        noise = partial(own_noise, subject.model, plan, pixels, judged)
        found = compare(judged, answer.outputs, answer.counts, answer.maps, noise)
        if found:
            differences.append(Difference(answer.rung, given.name, found))
    return Step(given.name, margin, tuple(rungs), tuple(differences), tuple(undecided))


def _on(
    name: str,
    subject: Subject,
    traced: ir.Model,
    shipped: ir.Model,
    inputs: Sequence[Decided],
    progress: Progress,
) -> Rungs:
    """Both graphs on a backend, one after the other, for each holds all weights; what ships tells
    no tokens, the traced one does."""
    kind = "onnx" if name == ONNXRUNTIME else f"{name} onnx"
    progress(f"the traced graph, {backends[name].title}")
    with backends[name].open_graph(in_memory(traced)) as runner:
        whole = [runner.run(subject.feed(given.pixels)) for given in inputs]
    found = [[Answer(kind, out, out["tokens_per_block"], out["token_maps"])] for out in whole]
    progress(f"the graph that ships, {backends[name].title}")
    with backends[name].open_graph(in_memory(shipped)) as runner:
        for given, answers in zip(inputs, found, strict=True):
            if given.everything:
                out = runner.run(subject.feed(given.pixels))
                answers.append(replace(answers[0], rung=f"shipped {kind}", outputs=out))
    return found


def _twin(subject: Subject, plan: MergePlan, inputs: Sequence[Decided]) -> Rungs:
    twin = Twin(subject.model.backbone, plan).eval()

    def answer(pixels: Pixels) -> Answer:
        with torch.inference_mode():
            answer, counts, maps = twin(subject.tensor(pixels))
        named = subject.model.backbone.named(answer)
        outputs = {name: value.numpy() for name, value in named.items()}
        return Answer("twin", outputs, counts.numpy(), maps.numpy())

    return [[answer(given.pixels)] if given.everything else [] for given in inputs]
