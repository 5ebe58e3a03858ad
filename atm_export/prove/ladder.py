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
    """What rungs that share their decisions make of an input: outputs by name of each rung, token
    counts, token maps."""

    rungs: Mapping[str, Mapping[str, Any]]
    counts: Any
    maps: Any


Contender = Callable[[Pixels, bool], Answer]  # the flag: what ships too, not the traced graph alone


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
            twin = [_twin(subject, plan)] if plan.merges else []
            for case in _cases(images, label):
                name = f"{label}{case.kind}, batch {case.batch}"
                progress(name)
                whole = not label or case.batch == 1  # the same operators at every threshold
                chosen = [*twin, *contenders] if whole else contenders
                steps.append(_step(subject, plan, name, case, chosen, whole))
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
    subject: Subject,
    plan: MergePlan,
    name: str,
    case: Case,
    contenders: Sequence[Contender],
    whole: bool,
) -> Step:
    pixels, trace, margin = with_margin(subject.model, plan, case)
    rungs, differences, undecided = [], [], []
    for answer in (contender(pixels, whole) for contender in contenders):
        judged = judge(subject.model, plan, pixels, trace, margin, answer.maps)
        noise = partial(own_noise, subject.model, plan, pixels, judged)
        for rung, outputs in answer.rungs.items():
            rungs.append(measure(rung, name, judged, outputs))
            if judged is not trace:
                undecided.append(f"{rung}: {name}")
            found = compare(judged, outputs, answer.counts, answer.maps, noise)
            if found:
                differences.append(Difference(rung, name, found))
    return Step(name, margin, tuple(rungs), tuple(differences), tuple(undecided))


def _on(
    name: str,
    subject: Subject,
    traced: onnx.ModelProto,
    shipped: onnx.ModelProto,
    stack: ExitStack,
) -> Contender:
    """Both graphs on a backend; what ships tells no tokens, the traced one does."""
    told: Runner = stack.enter_context(backends[name].open_graph(traced))
    plain: Runner = stack.enter_context(backends[name].open_graph(shipped))
    kind = "onnx" if name == ONNXRUNTIME else f"{name} onnx"

    def answer(pixels: Pixels, whole: bool) -> Answer:
        feed = subject.feed(pixels)
        out = told.run(feed)
        rungs = {kind: out} | ({f"shipped {kind}": plain.run(feed)} if whole else {})
        return Answer(rungs, out["tokens_per_block"], out["token_maps"])

    return answer


def _twin(subject: Subject, plan: MergePlan) -> Contender:
    twin = Twin(subject.model.backbone, plan).eval()

    def answer(pixels: Pixels, whole: bool) -> Answer:
        with torch.inference_mode():
            found, counts, maps = twin(subject.tensor(pixels))
        named = subject.model.backbone.named(found)
        outputs = {name: value.numpy() for name, value in named.items()}
        return Answer({"twin": outputs}, counts.numpy(), maps.numpy())

    return answer
