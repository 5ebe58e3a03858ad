"""A graph in int8 for ONNX Runtime's CPU provider, and how far it is from the eager reference.

Nothing is emulated: the graph runs where it will be served, fused as it will be there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from atm_export.backends.onnxruntime.runner import OnnxRuntimeRunner
from atm_export.backends.runner import Array
from atm_export.graph.optimize import with_int8_products
from atm_export.graph.saving import in_memory
from atm_export.model.reference import run_reference
from atm_export.prove.calibration import linear_inputs, spans
from atm_export.prove.matching import require_matching
from atm_export.prove.precision import PrecisionProof, judge, paired
from atm_export.subject import Pixels, Subject

INT8 = "int8"
IMAGES = 32  # that it is calibrated on and, of those it was proven on, compared over
BATCH = 8
AGAINST = "the eager reference, in ONNX Runtime on the CPU"


def int8_graph(traced: ir.Model, feeds: Sequence[Array], *, keys: bool = True) -> ir.Model:
    """The traced FP32 graph with the blocks' linear layers in 8 bits, calibrated on `feeds`, graph
    inputs of a batch each. keys: those that make keys too; what is decided by them is computed in
    FP32 either way. ParityError if that would lower the matching."""
    layers = linear_inputs(traced, keys=keys)
    typed = with_int8_products(traced, spans(traced, layers, feeds))
    require_matching(typed, INT8)
    return typed


def calibration_feeds(subject: Subject, pixels: Pixels) -> list[Array]:
    """Graph inputs of the first pictures of [k, H, W, C], in batches."""
    return [subject.feed(chunk) for chunk in _chunks(pixels)]


def compare_int8(subject: Subject, typed: ir.Model, pixels: Pixels) -> PrecisionProof:
    """Run the int8 graph with its trace outputs, and the eager reference, on the first pictures of
    [k, H, W, C], and compare."""
    theirs: list[Mapping[str, Any]] = []
    ours: list[Mapping[str, Array]] = []
    counts: dict[str, list[Array]] = {"reference": [], "typed": []}
    plan, backbone = subject.plan, subject.model.backbone
    with OnnxRuntimeRunner(in_memory(typed)) as runner:
        for chunk in _chunks(pixels):
            trace = run_reference(backbone, plan, subject.tensor(chunk))
            theirs.append({name: value.numpy() for name, value in trace.outputs.items()})
            tokens = trace.tokens_out.T if plan.per_image else trace.tokens_out[:, 0]
            ours.append(runner.run(subject.feed(chunk)))
            counts["reference"].append(tokens.reshape(-1).numpy())
            counts["typed"].append(np.asarray(ours[-1]["tokens_per_block"]).reshape(-1))
    n, m = (np.concatenate(each).astype(np.float64) for each in counts.values())
    return judge(INT8, paired(backbone.outputs, theirs, ours), n, m, BATCH, AGAINST)


def judged_int8(
    subject: Subject, traced: ir.Model, calibration: Pixels, pixels: Pixels
) -> tuple[ir.Model, PrecisionProof, bool]:
    """The int8 graph, how it compares on `pixels`, and whether its keys are of 8 bits: only where
    what they decide stays within the tolerance. ParityError where even FP32 keys do not."""
    feeds = calibration_feeds(subject, calibration)
    for keys in (True, False):
        typed = int8_graph(traced, feeds, keys=keys)
        proof = compare_int8(subject, typed, pixels)
        if proof.within or not keys:
            break
    proof.require()
    return typed, proof, keys


def _chunks(pixels: Pixels) -> list[Pixels]:
    first = pixels[:IMAGES]
    return [first[i : i + BATCH] for i in range(0, len(first), BATCH)]
