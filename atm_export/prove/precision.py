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
import onnx
from numpy.typing import NDArray

from atm_export.backends.base import Array
from atm_export.backends.onnxruntime.runner import OnnxRuntimeRunner
from atm_export.errors import ParityError
from atm_export.prove.intervals import Share

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PrecisionTolerance:
    """cosine: of the logits, which NINE_TENTHS of the images reach. every: least cosine of any
    image. top1: least share of equal top-1 classes, among images whose FP32 lead exceeds the
    largest logits difference allowed to an honest rounding (`lead` times the logits' spread).
    tokens: largest share of tokens by which the counts differ."""

    cosine: float
    every: float
    top1: float
    tokens: float
    lead: float
    reason: str


NINE_TENTHS = 0.9
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

    cosine: of the logits, which a tenth of the images do not reach; least: of the worst image;
    reached: images that reach the tolerance's cosine; top1: images of equal top-1, of those that
    count; tokens: tokens by which the counts differ, of all. failed: what breaks the tolerance.
    """

    precision: str
    images: int
    batch: int
    max_abs: float
    cosine: float
    least: float
    reached: Share
    top1: Share
    tokens: Share
    counts_that_differ: int
    failed: str

    @property
    def within(self) -> bool:
        return not self.failed

    def facts(self) -> dict[str, Any]:
        """For manifest and report; shares with their counts and 95 % intervals."""
        tolerance = TOLERANCES[self.precision]
        return {
            "against": "the FP32 graph, in ONNX Runtime; rounding emulated",
            "images": self.images,
            "batch": self.batch,
            "max_abs_logits": self.max_abs,
            "cosine_logits_of_nine_tenths": self.cosine,
            "images_that_reach_cosine": self.reached.facts(),
            "min_cosine_logits": self.least,
            "top1_agreement": self.top1.facts(),
            "tokens_differing": self.tokens.facts(),
            "token_counts_differing": self.counts_that_differ,
            "tolerance": {
                "cosine_logits": tolerance.cosine,
                "images_that_reach_cosine": NINE_TENTHS,
                "min_cosine_logits": tolerance.every,
                "top1_agreement": tolerance.top1,
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
                f"{self.precision} changes the model too much: {self.failed}; no engine was built; "
                "take a higher --precision"
            )


def compare_precision(
    reference: onnx.ModelProto,
    typed: onnx.ModelProto,
    feeds: Sequence[Array],
    precision: str,
) -> PrecisionProof:
    """Run both traced graphs on `feeds` (graph inputs, one batch each) and compare."""
    logits: dict[str, list[Array]] = {"reference": [], "typed": []}
    counts: dict[str, list[Array]] = {"reference": [], "typed": []}
    for name, graph in (("reference", reference), ("typed", typed)):
        with OnnxRuntimeRunner(graph, optimizations="none" if name == "typed" else "all") as runner:
            for feed in feeds:
                found = runner.run(feed)
                logits[name].append(found["logits"])
                counts[name].append(np.asarray(found["tokens_per_block"]).reshape(-1))
    a, b = (np.concatenate(logits[name]).astype(np.float64) for name in ("reference", "typed"))
    n, m = (np.concatenate(counts[name]).astype(np.float64) for name in ("reference", "typed"))
    return judge(precision, a, b, n, m, len(feeds[0]))


def judge(precision: str, a: Floats, b: Floats, n: Floats, m: Floats, batch: int) -> PrecisionProof:
    """a, b: logits [images, classes] of reference and typed graph; n, m: their token counts."""
    tolerance = TOLERANCES[precision]
    cosines = _cosines(a, b)
    sure = _lead(a) > tolerance.lead
    same = (a.argmax(axis=1) == b.argmax(axis=1)) & np.isfinite(b).all(axis=1)
    proof = PrecisionProof(
        precision=precision,
        images=len(a),
        batch=batch,
        max_abs=float(np.abs(a - b).max()),
        cosine=float(np.quantile(cosines, 0.1, method="lower")),
        least=float(cosines.min()),
        reached=Share(int((cosines >= tolerance.cosine).sum()), len(a)),
        top1=Share(int(same[sure].sum()), int(sure.sum())),
        tokens=Share(int(min(np.abs(n - m).sum(), n.sum())), int(n.sum())),
        counts_that_differ=int((n != m).sum()),
        failed="",
    )
    finite = bool(np.isfinite(a).all() and np.isfinite(b).all())
    return replace(proof, failed=", ".join(_failures(proof, tolerance, finite)))


def _failures(proof: PrecisionProof, tolerance: PrecisionTolerance, finite: bool) -> Iterator[str]:
    """What breaks the tolerance, in words; whatever is not a number breaks it."""
    if not finite:
        yield "logits are not finite"
    if not proof.reached.at_least(NINE_TENTHS):
        yield f"logits cosine {tolerance.cosine} is reached by {proof.reached}, not nine in ten"
    if not proof.least >= tolerance.every:
        yield f"logits cosine {proof.least:.5f} of the worst image is below {tolerance.every}"
    if not proof.top1.at_least(tolerance.top1):
        yield f"top-1 agreement {proof.top1} is below {tolerance.top1:.0%}"
    if not proof.tokens.at_most(tolerance.tokens):
        yield f"tokens that differ, {proof.tokens}, are more than {tolerance.tokens:.0%}"


def _cosines(a: Floats, b: Floats) -> Floats:
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(axis=1) / np.maximum(norms, 1e-30))


def _lead(logits: Floats) -> Floats:
    """How far the first class leads the second, in shares of the logits' spread."""
    if logits.shape[1] < 2:
        return np.full(len(logits), np.inf)
    ranked = np.sort(logits, axis=1)
    spread = ranked[:, -1] - ranked[:, 0]
    return np.asarray((ranked[:, -1] - ranked[:, -2]) / np.maximum(spread, 1e-30))
