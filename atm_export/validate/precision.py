"""Is a typed graph still the model? Compared with the FP32 graph before any engine is built.

Lower precision moves keys, so that pairs close to a threshold may merge or not; what counts is that
few do, and that the answers stay. One pair that merges or not moves an image's logits further than
rounding does, so that a single image says little: a tenth of the images may lie below the bound
that holds for the others. The typed graph is emulated (see `EmulateLow`): each value is rounded
where an engine would round it, and sums run in FP32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from atm_export.backends.onnxruntime import OnnxRuntimeRunner
from atm_export.backends.runner import Array
from atm_export.errors import ParityError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PrecisionTolerance:
    """cosine: least cosine of the logits, of all but a tenth of the images. every: least cosine of
    any image. top1: least share of equal top-1 classes, among images whose FP32 lead exceeds the
    largest logits difference allowed to an honest rounding (`lead` times the logits' spread).
    tokens: largest share of token counts that differ."""

    cosine: float
    every: float
    top1: float
    tokens: float
    lead: float
    reason: str


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
    """What lower precision changes, over `images` images in batches of `batch`."""

    precision: str
    images: int
    batch: int
    max_abs: float
    cosine: float
    least: float
    top1: float
    counted: int
    tokens: float
    counts_that_differ: int
    within: bool
    failed: str

    def facts(self) -> dict[str, Any]:
        """For manifest and report."""
        tolerance = TOLERANCES[self.precision]
        return {
            "against": "the FP32 graph, in ONNX Runtime; rounding emulated",
            "images": self.images,
            "batch": self.batch,
            "max_abs_logits": self.max_abs,
            "cosine_logits_of_nine_tenths": self.cosine,
            "min_cosine_logits": self.least,
            "top1_agreement": self.top1,
            "top1_counted_images": self.counted,
            "token_share_differing": self.tokens,
            "token_counts_differing": self.counts_that_differ,
            "tolerance": {
                "cosine_logits_of_nine_tenths": tolerance.cosine,
                "min_cosine_logits": tolerance.every,
                "top1_agreement": tolerance.top1,
                "token_share_differing": tolerance.tokens,
                "reason": tolerance.reason,
            },
            "within": self.within,
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
    difference = np.abs(a - b)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = (a * b).sum(axis=1) / np.maximum(norms, 1e-30)
    cosine, least = float(np.quantile(cosines, 0.1, method="lower")), float(cosines.min())
    ranked = np.sort(a, axis=1)
    lead = ranked[:, -1] - ranked[:, -2] if a.shape[1] > 1 else np.full(len(a), np.inf)
    sure = lead > tolerance.lead * (ranked[:, -1] - ranked[:, 0])
    same = a.argmax(axis=1) == b.argmax(axis=1)
    top1 = float(same[sure].mean()) if sure.any() else 1.0
    tokens = float(np.abs(n - m).sum() / n.sum())
    found = {
        f"logits cosine {cosine:.5f}, which a tenth of the images do not reach, is below "
        f"{tolerance.cosine}": cosine < tolerance.cosine,
        f"logits cosine {least:.5f} of the worst image is below {tolerance.every}": least
        < tolerance.every,
        f"top-1 agreement {top1:.4f} is below {tolerance.top1}": top1 < tolerance.top1,
        f"{tokens:.1%} of the tokens differ, more than {tolerance.tokens:.0%}": tokens
        > tolerance.tokens,
        "logits are not finite": not np.isfinite(b).all(),
    }
    failed = ", ".join(text for text, wrong in found.items() if wrong)
    return PrecisionProof(
        precision=precision,
        images=len(a),
        batch=batch,
        max_abs=float(difference.max()),
        cosine=cosine,
        least=least,
        top1=top1,
        counted=int(sure.sum()),
        tokens=tokens,
        counts_that_differ=int((n != m).sum()),
        within=not failed,
        failed=failed,
    )
