"""The parity ladder: eager reference -> export-friendly twin -> ONNX on every backend asked for.

Every rung is compared with the reference, never with the rung below it: token counts per block,
which tokens merged, every output. The graph that ships and the traced one must agree too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import onnx
import torch

from atm_export.backends import ONNXRUNTIME, backends
from atm_export.backends.runner import Runner
from atm_export.methods.plan import MergePlan
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


Contender = Callable[[Pixels, bool], Iterator[Answer]]  # the flag: all rungs, not the traced alone


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
    traced: onnx.ModelProto,
    shipped: onnx.ModelProto,
    images: Pixels,
    progress: Progress = lambda text: None,
    on: Sequence[str] = (ONNXRUNTIME,),
) -> LadderResult:
    """Compare every rung on every input. traced, shipped: graphs of the subject; images
    [k, H, W, C] uint8, real ones; on: names of backends."""
    steps: list[Step] = []
    for label, plan, with_trace, plain in variants(subject.plan, traced, shipped):
        with ExitStack() as stack:
            contenders = [_on(name, subject, with_trace, plain, stack) for name in on]
            if plan.merges:
                contenders.insert(0, _twin(subject, plan))
            for case in _cases(images, label):
                progress(f"{label}{case.kind}, batch {case.batch}")
                steps.append(_step(subject, plan, label, case, contenders))
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


def _step(
    subject: Subject, plan: MergePlan, label: str, case: Case, contenders: Sequence[Contender]
) -> Step:
    name = f"{label}{case.kind}, batch {case.batch}"
    pixels, trace, margin = with_margin(subject.model, plan, case)
    everything = not label or case.batch == 1  # the same operators at every threshold
    rungs, differences, undecided = [], [], []
    for answer in (a for contender in contenders for a in contender(pixels, everything)):
        judged = judge(subject.model, plan, pixels, trace, margin, answer.maps)
        if judged is not trace:
            undecided.append(f"{answer.rung}: {name}")
        rungs.append(measure(answer.rung, name, judged, answer.outputs))
        noise = partial(own_noise, subject.model, plan, pixels, judged)
        found = compare(judged, answer.outputs, answer.counts, answer.maps, noise)
        if found:
            differences.append(Difference(answer.rung, name, found))
    return Step(name, margin, tuple(rungs), tuple(differences), tuple(undecided))


def _on(
    name: str,
    subject: Subject,
    traced: onnx.ModelProto,
    shipped: onnx.ModelProto,
    stack: ExitStack,
) -> Contender:
    """Both graphs on a backend; what ships tells no tokens, the traced one does."""
    whole: Runner = stack.enter_context(backends[name].open_graph(traced))
    plain: Runner = stack.enter_context(backends[name].open_graph(shipped))
    kind = "onnx" if name == ONNXRUNTIME else f"{name} onnx"

    def answers(pixels: Pixels, everything: bool) -> Iterator[Answer]:
        feed = subject.feed(pixels)
        out = whole.run(feed)
        told = out["tokens_per_block"], out["token_maps"]
        yield Answer(kind, out, *told)
        if everything:
            yield Answer(f"shipped {kind}", plain.run(feed), *told)

    return answers


def _twin(subject: Subject, plan: MergePlan) -> Contender:
    twin = Twin(subject.model.backbone, plan).eval()

    def answers(pixels: Pixels, everything: bool) -> Iterator[Answer]:
        if everything:
            with torch.inference_mode():
                answer, counts, maps = twin(subject.tensor(pixels))
            named = subject.model.backbone.named(answer)
            outputs = {name: value.numpy() for name, value in named.items()}
            yield Answer("twin", outputs, counts.numpy(), maps.numpy())

    return answers
