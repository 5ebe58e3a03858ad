"""A graph in low precision for a backend that runs graphs, and how far it is from the reference.

Nothing is emulated: the graph runs where it will be served, fused as it will be there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from atm_export.backends.base import Backend
from atm_export.backends.runner import Array
from atm_export.graph.saving import in_memory
from atm_export.model.reference import run_reference
from atm_export.prove.calibration import linear_inputs, spans
from atm_export.prove.matching import matching_nodes, require_matching
from atm_export.prove.precision import PrecisionProof, judge, paired
from atm_export.runs.graphs import SavedGraph
from atm_export.subject import Pixels, Subject

BF16, INT8 = "bf16", "int8"
IMAGES = 32  # that int8 is calibrated on and, of those it was proven on, compared over
BATCH = 8


@dataclass(frozen=True)
class LowGraph:
    """A graph with trace outputs in a precision below FP32, as ONNX. keys: whether layers that make
    keys are low too; matching: names of the nodes that stay in FP32."""

    model: ir.Model
    precision: str
    keys: bool
    matching: frozenset[str]

    def for_backend(self, backend: Backend) -> SavedGraph:
        """As the backend runs it, in memory."""
        return backend.in_precision(in_memory(self.model), self.precision, self.matching)


def low_graph(
    backend: Backend, traced: ir.Model, precision: str, feeds: Sequence[Array], *, keys: bool = True
) -> LowGraph:
    """The traced FP32 graph in `precision`; int8 is calibrated on `feeds`, graph inputs of a batch
    each. keys: layers that make keys too; what is decided by them is computed in FP32 either way.
    ParityError if that would lower the matching."""
    typed = traced
    if precision == INT8:
        layers = linear_inputs(traced, keys=keys)
        typed = backend.quantized(traced, spans(traced, layers, feeds))
    require_matching(typed, precision)
    return LowGraph(typed, precision, keys, frozenset(matching_nodes(typed)))


def calibration_feeds(subject: Subject, pixels: Pixels) -> list[Array]:
    """Graph inputs of the first pictures of [k, H, W, C], in batches."""
    return [subject.feed(chunk) for chunk in _chunks(pixels)]


def compare_low(
    backend: Backend, subject: Subject, low: LowGraph, pixels: Pixels
) -> PrecisionProof:
    """Run the graph with its trace outputs, and the eager reference, on the first pictures of
    [k, H, W, C], and compare."""
    theirs: list[Mapping[str, Any]] = []
    ours: list[Mapping[str, Array]] = []
    counts: dict[str, list[Array]] = {"reference": [], "typed": []}
    plan, backbone = subject.plan, subject.model.backbone
    with backend.open_graph(low.for_backend(backend), low.precision) as runner:
        for chunk in _chunks(pixels):
            trace = run_reference(backbone, plan, subject.tensor(chunk))
            theirs.append({name: value.numpy() for name, value in trace.outputs.items()})
            tokens = trace.tokens_out.T if plan.per_image else trace.tokens_out[:, 0]
            ours.append(runner.run(subject.feed(chunk)))
            counts["reference"].append(tokens.reshape(-1).numpy())
            counts["typed"].append(np.asarray(ours[-1]["tokens_per_block"]).reshape(-1))
    n, m = (np.concatenate(each).astype(np.float64) for each in counts.values())
    against = f"the eager reference, in {backend.title} on the CPU"
    return judge(low.precision, paired(backbone.outputs, theirs, ours), n, m, BATCH, against)


def judged(
    backend: Backend,
    subject: Subject,
    traced: ir.Model,
    precision: str,
    calibration: Pixels,
    pixels: Pixels,
) -> tuple[LowGraph, PrecisionProof]:
    """The graph in `precision`, and how it compares on `pixels`. Keys of 8 bits are kept only where
    what they decide stays within the tolerance; ParityError where even FP32 keys do not."""
    feeds = calibration_feeds(subject, calibration)
    for keys in (True, False) if precision == INT8 else (True,):
        low = low_graph(backend, traced, precision, feeds, keys=keys)
        proof = compare_low(backend, subject, low, pixels)
        if proof.within:
            break
    proof.require()
    return low, proof


def _chunks(pixels: Pixels) -> list[Pixels]:
    first = pixels[:IMAGES]
    return [first[i : i + BATCH] for i in range(0, len(first), BATCH)]
