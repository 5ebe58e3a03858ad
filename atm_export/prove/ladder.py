"""The parity ladder: eager reference -> export-friendly twin -> ONNX on every backend asked for.

Every rung is compared with the reference, never with the rung below it: token counts per block,
which tokens merged, every output. The graph that ships and the traced one must agree too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import onnx_ir as ir
import torch

from atm_export.backends import ONNXRUNTIME, backends
from atm_export.graph.saving import in_memory
from atm_export.methods.plan import Form, MergePlan
from atm_export.model.reference import Trace
from atm_export.prove.compare import compare, measure
from atm_export.prove.inputs import Case, Pixels, cases
from atm_export.prove.judging import judge, own_noise, with_margin
from atm_export.prove.results import Difference, LadderResult, Rung
from atm_export.prove.variants import Constants, variants, with_constants
from atm_export.rewrite.twin import Twin
from atm_export.subject import Subject

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Graphs:
    """One translation of a subject: with its trace outputs, and as it ships."""

    traced: ir.Model
    shipped: ir.Model

    def with_constants(self, constants: Constants) -> Graphs:
        """The same with other numbers in its blocks."""
        both = (with_constants(graph, constants) for graph in (self.traced, self.shipped))
        return Graphs(*both)


NO_GRAPHS: Mapping[str, Graphs] = {}


@dataclass(frozen=True)
class Answer:
    """What rungs that share their decisions make of an input: outputs by name of each rung, token
    counts, token maps."""

    rungs: Mapping[str, Mapping[str, Any]]
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
    own: Mapping[str, Graphs] = NO_GRAPHS,
) -> LadderResult:
    """Compare every rung on every input. traced, shipped: graphs of the subject; images
    [k, H, W, C] uint8, real ones; on: names of backends; own: graphs of those that have their own.
    """
    usual, steps = Graphs(traced, shipped), list[Step]()
    graphs = {name: own.get(name, usual) for name in on}
    for label, plan, constants in variants(subject.plan):
        inputs = [_decided(subject, plan, label, case, progress) for case in _cases(images, label)]
        answers = [
            _on(name, subject, each.with_constants(constants), inputs, progress)
            for name, each in graphs.items()
        ]
        if plan.merges:
            forms = dict.fromkeys(backends[name].form for name in on if name in own)
            answers[:0] = [_twin(subject, plan, form, inputs) for form in ("plain", *forms)]
        for given, *found in zip(inputs, *answers, strict=True):
            steps.append(_step(subject, plan, given, [each for each in found if each is not None]))
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
        noise = partial(own_noise, subject.model, plan, pixels, judged)
        for rung, outputs in answer.rungs.items():
            rungs.append(measure(rung, given.name, judged, outputs))
            if judged is not trace:
                undecided.append(f"{rung}: {given.name}")
            found = compare(judged, outputs, answer.counts, answer.maps, noise)
            if found:
                differences.append(Difference(rung, given.name, found))
    return Step(given.name, margin, tuple(rungs), tuple(differences), tuple(undecided))


def _on(
    name: str,
    subject: Subject,
    graphs: Graphs,
    inputs: Sequence[Decided],
    progress: Progress,
) -> list[Answer | None]:
    """Both graphs on a backend, one after the other, for each holds all weights; what ships tells
    no tokens, the traced one does."""
    kind = "onnx" if name == ONNXRUNTIME else f"{name} onnx"
    feeds = [subject.feed(given.pixels) for given in inputs]
    progress(f"the traced graph, {backends[name].title}")
    with backends[name].open_graph(in_memory(graphs.traced)) as runner:
        told = [runner.run(feed) for feed in feeds]
    progress(f"the graph that ships, {backends[name].title}")
    with backends[name].open_graph(in_memory(graphs.shipped)) as runner:
        plain = [
            {f"shipped {kind}": runner.run(feed)} if given.everything else {}
            for given, feed in zip(inputs, feeds, strict=True)
        ]
    return [
        Answer({kind: out, **also}, out["tokens_per_block"], out["token_maps"])
        for out, also in zip(told, plain, strict=True)
    ]


def _twin(
    subject: Subject, plan: MergePlan, form: Form, inputs: Sequence[Decided]
) -> list[Answer | None]:
    """None where the twin has nothing to show that it has not shown."""
    twin = Twin(subject.model.backbone, plan, form).eval()
    rung = "twin" if form == "plain" else f"{form} twin"

    def answer(pixels: Pixels) -> Answer:
        with torch.inference_mode():
            found, counts, maps = twin(subject.tensor(pixels))
        named = subject.model.backbone.named(found)
        outputs = {name: value.numpy() for name, value in named.items()}
        return Answer({rung: outputs}, counts.numpy(), maps.numpy())

    return [answer(given.pixels) if given.everything else None for given in inputs]
