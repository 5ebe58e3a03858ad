"""The parity ladder: eager reference -> export-friendly twin -> ONNX in ONNX Runtime.

Every rung is compared with the reference, never with the rung below it: token counts per block,
which tokens merged, logits, top-1. The graph that ships and the traced one must agree too.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from atm_export.backends.onnxruntime import OnnxRuntimeRunner
from atm_export.comparison import Comparison, flips, largest, smallest
from atm_export.errors import ParityError
from atm_export.model.backbone import Backbone
from atm_export.model.reference import Trace, run_reference
from atm_export.model.schedule import MergePlan
from atm_export.preprocess import Preprocessing, normalize
from atm_export.rewrite.operators import similarity_limit
from atm_export.rewrite.twin import Twin
from atm_export.validate.follow import NotAMerge, follow
from atm_export.validate.inputs import Case, Pixels, cases
from atm_export.validate.margins import decision_margin, first_difference, trace_margin
from atm_export.validate.tolerances import FP32_LOGITS, MARGIN, MARGIN_REASON

Progress = Callable[[str], None]
MOST_CANDIDATES = 4  # with random weights hardly any input has a margin, and each try is a run


@dataclass(frozen=True)
class Difference:
    """Where one rung leaves the reference."""

    rung: str
    case: str
    what: str


@dataclass(frozen=True)
class Rung:
    """How far one rung was from the reference on one input."""

    name: str
    case: str
    logits_max_abs: float
    cosine: float
    top1_agreement: float
    merged_tokens: int


@dataclass(frozen=True)
class LadderResult:
    """The proof, or what speaks against it."""

    rungs: tuple[Rung, ...]
    differences: tuple[Difference, ...]
    margins: dict[str, float] = field(default_factory=dict)
    undecided: dict[str, float] = field(default_factory=dict)

    @property
    def proven(self) -> bool:
        return not self.differences

    def facts(self) -> dict[str, Any]:
        """As the report states it."""
        return {
            "proven": self.proven,
            "inputs": len(self.margins),
            "comparisons": len(self.rungs),
            "logits_max_abs": _finite(largest(r.logits_max_abs for r in self.rungs)),
            "cosine_min": _finite(smallest((r.cosine for r in self.rungs), default=1.0)),
            "top1_agreement": smallest((r.top1_agreement for r in self.rungs), default=1.0),
            "decisions_that_differ": len(self.differences),
            "tolerance": asdict(FP32_LOGITS),
            "margin": {"least": MARGIN, "reason": MARGIN_REASON},
            "ties_within_noise": self.undecided,
            "differences": [asdict(d) for d in self.differences],
            "rungs": [
                {name: _finite(value) for name, value in asdict(r).items()} for r in self.rungs
            ],
        }

    def require(self) -> None:
        """ParityError naming the first difference."""
        if self.differences:
            first = self.differences[0]
            raise ParityError(
                f"the export is not proven: {first.rung} differs on {first.case}: {first.what}"
            )


def _finite(value: Any) -> Any:
    """The value; None for a number that JSON cannot state."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Subject:
    """What climbs the ladder: traced graph, shipped graph, and the model they come from."""

    backbone: Backbone
    plan: MergePlan
    traced: onnx.ModelProto
    shipped: onnx.ModelProto
    preprocessing: Preprocessing
    uint8_input: bool


def climb(subject: Subject, images: Pixels, progress: Progress = lambda text: None) -> LadderResult:
    """Compare every rung on every input; `images` [k, H, W, 3] uint8, real ones."""
    rungs: list[Rung] = []
    differences: list[Difference] = []
    margins: dict[str, float] = {}
    undecided: dict[str, float] = {}
    for label, plan, traced, shipped in _variants(subject):
        chosen = list(cases(images))
        if label:
            chosen = [case for case in chosen if case.kind in ("images", "flat")]
        twin = Twin(subject.backbone, plan).eval() if plan.merges else None
        with OnnxRuntimeRunner(traced) as onnx_traced, OnnxRuntimeRunner(shipped) as onnx_shipped:
            for case in chosen:
                name = f"{label}{case.kind}, batch {case.batch}"
                progress(name)
                pixels, trace, margins[name] = _with_margin(subject, plan, case)
                feed = pixels if subject.uint8_input else normalize(pixels, subject.preprocessing)
                out = onnx_traced.run(feed)
                told = [out["tokens_per_block"], out["token_maps"]]
                results = [("onnx", out["logits"], told)]
                if not label or case.batch == 1:  # the same operators at every threshold
                    results.append(("shipped onnx", onnx_shipped.run(feed)["logits"], told))
                    if twin is not None:
                        values = _run_twin(twin, pixels, subject.preprocessing)
                        results.insert(0, ("twin", values[0], values[1:]))
                for rung, logits, (counts, maps) in results:
                    judged = _judge(subject, plan, pixels, trace, margins[name], maps)
                    if judged is not trace:
                        undecided[f"{rung}: {name}"] = margins[name]
                    rungs.append(_measure(rung, name, judged, logits))
                    noise = partial(_own_noise, subject, plan, pixels, judged)
                    found = _compare(judged, logits, counts, maps, noise)
                    if found:
                        differences.append(Difference(rung, name, found))
    return LadderResult(tuple(rungs), tuple(differences), margins, undecided)


def _variants(
    subject: Subject,
) -> list[tuple[str, MergePlan, onnx.ModelProto, onnx.ModelProto]]:
    """As configured; and where thresholds decide, with those that merge nothing and everything."""
    variants = [("", subject.plan, subject.traced, subject.shipped)]
    if subject.plan.adaptive:
        for label, theta in (("r = 0, ", 2.0), ("r = max, ", -2.0)):
            graphs = [
                _with_limit(g, similarity_limit(theta)) for g in (subject.traced, subject.shipped)
            ]
            variants.append((label, subject.plan.with_theta(theta), graphs[0], graphs[1]))
    return variants


def _with_limit(model: onnx.ModelProto, limit: int) -> onnx.ModelProto:
    """The same graph with another threshold in every block."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if not tensor.name.endswith(".limit"):
            continue
        old = numpy_helper.to_array(tensor)
        if int(old[0]) < similarity_limit(1.0):  # as `MergePlan.with_theta`
            tensor.CopyFrom(numpy_helper.from_array(np.array([limit], old.dtype), tensor.name))
    return changed


def _with_margin(subject: Subject, plan: MergePlan, case: Case) -> tuple[Pixels, Trace, float]:
    """The first candidate that the reference decides with a margin, or the one with the largest."""
    best: tuple[Pixels, Trace, float] | None = None
    for pixels in case.candidates[:MOST_CANDIDATES]:
        feed = torch.from_numpy(normalize(pixels, subject.preprocessing))
        trace = run_reference(subject.backbone, plan, feed)
        margin = trace_margin(trace)
        if best is None or margin > best[2]:
            best = pixels, trace, margin
        if margin >= MARGIN:
            break
    assert best is not None
    return best


def _judge(
    subject: Subject, plan: MergePlan, pixels: Pixels, trace: Trace, margin: float, maps: Any
) -> Trace:
    """The trace to compare with: the reference's own; or, where the reference decided on less than
    FP32 noise and a choice as good was taken, the reference following that choice."""
    given = torch.as_tensor(np.asarray(maps))
    if margin >= MARGIN or first_difference(trace.maps, given) is None:
        return trace
    feed = torch.from_numpy(normalize(pixels, subject.preprocessing))
    try:
        followed, worst = follow(subject.backbone, plan, feed, given)
    except NotAMerge:
        return trace
    return followed if worst <= MARGIN else trace


@torch.inference_mode()
def _run_twin(twin: Twin, pixels: Pixels, how: Preprocessing) -> list[Any]:
    return [value.numpy() for value in twin(torch.from_numpy(normalize(pixels, how)))]


def _measure(rung: str, case: str, trace: Trace, logits: Any) -> Rung:
    ours, theirs = trace.logits.double(), torch.as_tensor(np.asarray(logits)).double()
    same = ours.argmax(dim=1) == theirs.argmax(dim=1)
    cosine = torch.nn.functional.cosine_similarity(ours, theirs, dim=1)
    merged = int((trace.tokens_in[0] - trace.tokens_out[-1]).sum())
    return Rung(
        rung,
        case,
        float((ours - theirs).abs().max()),
        round(float(cosine.min()), 9),
        float(same.double().mean()),
        merged,
    )


def _own_noise(subject: Subject, plan: MergePlan, pixels: Pixels, trace: Trace) -> Tensor:
    """How far the reference's own FP32 logits are from FP64 ones with the same merges, [B]."""
    exact = copy.deepcopy(subject.backbone).double()
    feed = torch.from_numpy(normalize(pixels, subject.preprocessing)).double()
    logits = follow(exact, plan, feed, trace.maps)[0].logits
    return (trace.logits.double() - logits).abs().amax(dim=1)


def _compare(
    trace: Trace, logits: Any, counts: Any, maps: Any, noise: Callable[[], Tensor]
) -> str | None:
    """What differs, located; None if nothing does."""
    if counts is not None:
        expected = trace.tokens_out
        given = torch.as_tensor(np.asarray(counts))
        given = given.unsqueeze(1) if given.ndim == 1 else given.T
        if not torch.equal(expected, given.expand_as(expected)):
            block, image = torch.nonzero(expected != given)[0].tolist()
            return (
                f"block {block + 1} keeps {int(given.expand_as(expected)[block, image])} tokens of "
                f"image {image}, the reference {int(expected[block, image])}"
                f"{_margin_note(trace, block, image)}"
            )
        where = first_difference(trace.maps, torch.as_tensor(np.asarray(maps)))
        if where is not None:
            return (
                f"block {where[0] + 1} merges other tokens of image {where[1]}"
                f"{_margin_note(trace, *where)}"
            )
    return _compare_logits(trace.logits, torch.as_tensor(np.asarray(logits)), noise)


def _compare_logits(ours: Tensor, theirs: Tensor, noise: Callable[[], Tensor]) -> str | None:
    """What differs: `theirs` [B, K] are not finite, differ by more than is allowed, or have another
    top-1 where `ours`, the reference's, are clear."""
    gap = (ours - theirs).abs().amax(dim=1)
    if not bool(torch.isfinite(gap).all()):
        return "logits are not finite"
    limit = torch.full_like(gap, FP32_LOGITS.logits)
    if not bool((gap <= limit).all()):
        allowed = FP32_LOGITS.noise * noise().to(limit)
        limit = allowed.clamp(FP32_LOGITS.logits, FP32_LOGITS.most)
    image = int((gap - limit).argmax())
    worst = Comparison(f"logits of image {image}", float(gap[image]), float(limit[image]))
    if not worst.ok:
        return f"{worst.what} differ by {worst.difference:.2e} (at most {worst.allowed:.1e})"
    flipped = flips(theirs.numpy(), ours.numpy(), FP32_LOGITS.logits)
    return f"top-1 of image {int(flipped.argmax())} differs" if flipped.any() else None


def _margin_note(trace: Trace, block: int, image: int) -> str:
    found = trace.decisions[block]
    decision = found[image] if len(found) > 1 else found[0]
    if decision is None:
        return ""
    return f" (the reference decided there with a margin of {decision_margin(decision):.1e})"
