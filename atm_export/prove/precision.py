"""Is a typed graph still the model? Compared with the FP32 graph before any engine is built.

Lower precision moves keys, so that pairs close to a threshold may merge or not; what counts is that
few do, and that the answers stay. One pair that merges or not moves an image's logits further than
rounding does, so that a single image says little: a tenth of the images may lie below the bound
that holds for the others, and a share of images or tokens breaks its bound where its 95 % interval
excludes it. The typed graph is emulated (see `EmulateLow`): each value is rounded where an engine
would round it, and sums run in FP32.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from atm_export.backends.onnxruntime.runner import OnnxRuntimeRunner
from atm_export.backends.runner import Array
from atm_export.comparison import largest
from atm_export.errors import ParityError
from atm_export.graph.saving import in_memory
from atm_export.prove.intervals import Share
from atm_export.tasks.base import Output

Floats = NDArray[np.float64]
Pair = tuple[Output, Floats, Floats]  # [images, ...] of reference and typed graph


@dataclass(frozen=True)
class PrecisionTolerance:
    """cosine: of the outputs, which NINE_TENTHS of the images reach. every: least cosine of any
    image. top1: where classes are ranked, least share of equal top-1 classes, among images whose
    FP32 lead exceeds the largest difference allowed to an honest rounding (`lead` times the row's
    spread). tokens: largest share of tokens by which the counts differ."""

    cosine: float
    every: float
    top1: float
    tokens: float
    lead: float
    reason: str


NINE_TENTHS = 0.9
EMULATED = "the FP32 graph, in ONNX Runtime; rounding emulated"
TOLERANCES: Mapping[str, PrecisionTolerance] = {
    "fp32": PrecisionTolerance(
        cosine=0.999999, every=0.999999, top1=1.0, tokens=0.0, lead=0.0, reason="the same graph"
    ),
    "fp16": PrecisionTolerance(
        cosine=0.98,
        every=0.9,
        top1=0.98,
        tokens=0.02,
        lead=0.05,
        reason="11 bits: alone they move logits by 0.2 % of their spread (cosine 0.9999); pairs "
        "within that of a threshold merge or not, which moves them as a neighbouring operating "
        "point does",
    ),
    "bf16": PrecisionTolerance(
        cosine=0.96,
        every=0.9,
        top1=0.95,
        tokens=0.04,
        lead=0.1,
        reason="8 bits: eight times fp16's rounding (cosine 0.999 without merging)",
    ),
    "fp8": PrecisionTolerance(
        cosine=0.9,
        every=0.8,
        top1=0.9,
        tokens=0.12,
        lead=0.2,
        reason="4 bits in the linear layers, scaled",
    ),
    "int8": PrecisionTolerance(
        cosine=0.9,
        every=0.8,
        top1=0.9,
        tokens=0.12,
        lead=0.2,
        reason="256 levels in the linear layers, calibrated",
    ),
}


@dataclass(frozen=True)
class PrecisionProof:
    """What lower precision changes, over `images` images in batches of `batch`.

    main: the main output's name. cosine: of an image's outputs, the least counts; a tenth of the
    images do not reach it; least: of the worst image; reached: images that reach the tolerance's
    cosine; top1: images of equal top-1, of those that count, where classes are ranked; tokens:
    tokens by which the counts differ, of all. failed: what breaks the tolerance. against: what it
    was compared with, and how.
    """

    precision: str
    main: str
    images: int
    batch: int
    max_abs: float
    cosine: float
    least: float
    reached: Share
    top1: Share | None
    tokens: Share
    counts_that_differ: int
    failed: str
    against: str

    @property
    def within(self) -> bool:
        return not self.failed

    def facts(self) -> dict[str, Any]:
        """For manifest and report; shares with their counts and 95 % intervals."""
        tolerance, main = TOLERANCES[self.precision], self.main
        top1 = {} if self.top1 is None else {"top1_agreement": self.top1.facts()}
        return {
            "against": self.against,
            "images": self.images,
            "batch": self.batch,
            f"max_abs_{main}": self.max_abs,
            f"cosine_{main}_of_nine_tenths": self.cosine,
            "images_that_reach_cosine": self.reached.facts(),
            f"min_cosine_{main}": self.least,
            **top1,
            "tokens_differing": self.tokens.facts(),
            "token_counts_differing": self.counts_that_differ,
            "tolerance": {
                f"cosine_{main}": tolerance.cosine,
                "images_that_reach_cosine": NINE_TENTHS,
                f"min_cosine_{main}": tolerance.every,
                **({"top1_agreement": tolerance.top1} if top1 else {}),
                "tokens_differing": tolerance.tokens,
                "reason": tolerance.reason,
            },
            "within": self.within,
            "failed": self.failed,
        }

    def require(self) -> None:
        """ParityError unless everything lies within the tolerance."""
        if not self.within:
            raise ParityError(
                f"{self.precision} changes the model too much: {self.failed}; nothing was built; "
                "take a higher --precision"
            )


def compare_precision(
    reference: ir.Model,
    typed: ir.Model,
    feeds: Sequence[Array],
    precision: str,
    outputs: Sequence[Output],
) -> PrecisionProof:
    """Run both traced graphs on `feeds` (graph inputs, one batch each) and compare."""
    answers: dict[str, list[Mapping[str, Array]]] = {"reference": [], "typed": []}
    counts: dict[str, list[Array]] = {"reference": [], "typed": []}
    for name, graph in (("reference", reference), ("typed", typed)):
        with OnnxRuntimeRunner(
            in_memory(graph), optimizations="none" if name == "typed" else "all"
        ) as runner:
            for feed in feeds:
                found = runner.run(feed)
                answers[name].append(found)
                counts[name].append(np.asarray(found["tokens_per_block"]).reshape(-1))
    n, m = (np.concatenate(counts[name]).astype(np.float64) for name in ("reference", "typed"))
    pairs = paired(outputs, answers["reference"], answers["typed"])
    return judge(precision, pairs, n, m, len(feeds[0]))


def paired(
    outputs: Sequence[Output],
    ours: Sequence[Mapping[str, Any]],
    theirs: Sequence[Mapping[str, Any]],
) -> list[Pair]:
    """Each output of two graphs over all their batches."""

    def joined(batches: Sequence[Mapping[str, Any]], name: str) -> Floats:
        return np.concatenate([found[name] for found in batches]).astype(np.float64)

    return [(each, joined(ours, each.name), joined(theirs, each.name)) for each in outputs]


def judge(
    precision: str,
    pairs: Sequence[Pair],
    n: Floats,
    m: Floats,
    batch: int,
    against: str = EMULATED,
) -> PrecisionProof:
    """pairs: outputs of reference and typed graph, the main one first; n, m: their token counts."""
    tolerance, images = TOLERANCES[precision], len(pairs[0][1])
    cosines = np.stack([_cosines(a, b) for _, a, b in pairs]).min(axis=0)
    shares = [_top1(a, b, tolerance.lead) for output, a, b in pairs if output.rule.ranks]
    proof = PrecisionProof(
        precision=precision,
        main=pairs[0][0].name,
        images=images,
        batch=batch,
        max_abs=largest(float(np.abs(a - b).max()) for _, a, b in pairs),
        cosine=float(np.quantile(cosines, 0.1, method="lower")),
        least=float(cosines.min()),
        reached=Share(int((cosines >= tolerance.cosine).sum()), images),
        top1=shares[0] if shares else None,
        tokens=Share(int(min(np.abs(n - m).sum(), n.sum())), int(n.sum())),
        counts_that_differ=int((n != m).sum()),
        failed="",
        against=against,
    )
    finite = all(bool(np.isfinite(a).all() and np.isfinite(b).all()) for _, a, b in pairs)
    return replace(proof, failed=", ".join(_failures(proof, tolerance, finite)))


def _failures(proof: PrecisionProof, tolerance: PrecisionTolerance, finite: bool) -> Iterator[str]:
    """What breaks the tolerance, in words; whatever is not a number breaks it."""
    if not finite:
        yield f"{proof.main} are not finite"
    if not proof.reached.at_least(NINE_TENTHS):
        reached = f"{tolerance.cosine} is reached by {proof.reached}"
        yield f"{proof.main} cosine {reached}, not nine in ten"
    if not proof.least >= tolerance.every:
        yield f"{proof.main} cosine {proof.least:.5f} of the worst image is below {tolerance.every}"
    if proof.top1 is not None and not proof.top1.at_least(tolerance.top1):
        yield f"top-1 agreement {proof.top1} is below {tolerance.top1:.0%}"
    if not proof.tokens.at_most(tolerance.tokens):
        yield f"tokens that differ, {proof.tokens}, are more than {tolerance.tokens:.0%}"


def _cosines(a: Floats, b: Floats) -> Floats:
    """The least cosine along the last axis, [images]."""
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    found = (a * b).sum(axis=-1) / np.maximum(norms, 1e-30)
    return np.asarray(found.reshape(len(a), -1).min(axis=1))


def _top1(a: Floats, b: Floats, lead: float) -> Share:
    """Rows of equal first choice, of those of `a` that are sure of it."""
    sure = _lead(a) > lead
    same = (a.argmax(axis=1) == b.argmax(axis=1)) & np.isfinite(b).all(axis=1)
    return Share(int(same[sure].sum()), int(sure.sum()))


def _lead(rows: Floats) -> Floats:
    """How far the first class leads the second, in shares of the row's spread."""
    if rows.shape[1] < 2:
        return np.full(len(rows), np.inf)
    ranked = np.sort(rows, axis=1)
    spread = ranked[:, -1] - ranked[:, 0]
    return np.asarray((ranked[:, -1] - ranked[:, -2]) / np.maximum(spread, 1e-30))
