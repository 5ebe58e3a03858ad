"""The ordered list of passes from the assembled graph to the one that ships."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import optimizer

from atm_export.graph.passes.emulate import EmulateLow
from atm_export.graph.passes.fold_weights import FoldTransposedWeights
from atm_export.graph.passes.int8_products import Int8Products
from atm_export.graph.passes.keep_outputs import KeepOutputs
from atm_export.graph.passes.name_nodes import NameNodes
from atm_export.graph.passes.one_batch import OneBatch
from atm_export.graph.passes.quantize import LIMITS, Quantize
from atm_export.graph.passes.set_precision import SetPrecision
from atm_export.graph.passes.short_slices import ShortSlices
from atm_export.graph.passes.stamp import Stamp
from atm_export.graph.reading import copied
from atm_export.rewrite.names import is_limit

SMALL = 1024  # elements; folding larger constants would swell the file
MOST_ROUNDS = 64  # a block's lengths may become known only after those of the one before
LARGE = 8192  # elements; above the ramps of the merges, below the weights


class FoldConstants(ir.passes.InPlacePass):
    """onnxscript's constant folding with shape inference; makes a frozen token axis static."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        before = len(model.graph)
        optimizer.fold_constants(
            model, onnx_shape_inference=True, input_size_limit=SMALL, output_size_limit=SMALL
        )
        return ir.passes.PassResult(model, modified=len(model.graph) != before)


class Deduplicate(ir.passes.InPlacePass):
    """One initializer for equal small constants, but thresholds stay apart under their names."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        before, count = list(graph.inputs), len(graph.initializers)
        limits = [v for name, v in graph.initializers.items() if is_limit(name)]
        graph.inputs.extend(limits)  # what is an input is left alone
        common.DeduplicateInitializersPass(size_limit=LARGE)(model)
        graph.inputs[:] = before
        return ir.passes.PassResult(model, modified=len(graph.initializers) != count)


class Fixpoint(ir.passes.InPlacePass):
    """Passes in turn until the last of them finds nothing more to do."""

    def __init__(self, *steps: ir.passes.PassBase) -> None:
        super().__init__()
        self.steps = steps

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for _ in range(MOST_ROUNDS):
            results = [step(model) for step in self.steps]
            if not results[-1].modified:
                return ir.passes.PassResult(model, modified=modified)
            modified = True
        raise RuntimeError(f"{self.steps} have not come to an end in {MOST_ROUNDS} rounds")


# Lengths become known one after the other: a shape gives a length, which gives the next shape.
STATIC_SHAPES = Fixpoint(common.ShapeInferencePass(data_prop=True), FoldConstants())


def optimize(model: ir.Model) -> ir.Model:
    """Fold, fuse and tidy the traced graph; the result computes the same outputs."""
    return _run(
        model,
        [
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            FoldTransposedWeights(),
            OneBatch(),
            STATIC_SHAPES,
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            ShortSlices(),
            Deduplicate(),
            common.CommonSubexpressionEliminationPass(),
            common.IdentityEliminationPass(),
            common.RemoveUnusedNodesPass(),
            NameNodes(),
        ],
    )


def with_outputs(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """The same graph with only these outputs."""
    return _run(model, [KeepOutputs(names)])


def with_facts(model: ir.Model, facts: Mapping[str, Any]) -> ir.Model:
    """The same graph with facts in its metadata."""
    return _run(model, [Stamp(facts)])


def _run(model: ir.Model, passes: Sequence[Callable[..., Any]]) -> ir.Model:
    for library in ("onnxscript", "onnx_ir"):
        logging.getLogger(library).setLevel(logging.ERROR)
    graph = copied(model)
    shapes = {value.name: value.shape for value in graph.graph.outputs}
    for step in passes:
        step(graph)
    for value in graph.graph.outputs:
        value.shape = shapes[value.name]  # inference forgets the names of free axes
    return graph


LOW = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}


def with_precision(model: ir.Model, precision: str) -> ir.Model:
    """The same graph with `fp16` or `bf16` written into it; see `SetPrecision`."""
    passes = [
        common.ShapeInferencePass(),
        SetPrecision(LOW[precision]),
        common.RemoveUnusedNodesPass(),
    ]
    return _run(model, passes)


def emulated(model: ir.Model, precision: str) -> ir.Model:
    """A typed graph rewritten to round in FP32; see `EmulateLow`."""
    return _run(model, [EmulateLow(LOW[precision])])


EIGHT_BITS = {"int8": ir.DataType.INT8, "fp8": ir.DataType.FLOAT8E4M3FN}


def quantized(
    model: ir.Model, ranges: Mapping[str, tuple[float, float]], precision: str
) -> ir.Model:
    """Linear layers in `int8` or `fp8`; ranges: (percentile, largest) input by weight name."""
    kind = EIGHT_BITS[precision]
    # Floating-point steps grow with the value, so fp8 has no need to clip.
    chosen = {
        name: clipped if precision == "int8" else most for name, (clipped, most) in ranges.items()
    }
    scales = {name: max(value, 1e-6) / LIMITS[kind] for name, value in chosen.items()}
    return _run(model, [Quantize(scales, kind), common.RemoveUnusedNodesPass()])


def with_int8_products(model: ir.Model, spans: Mapping[str, tuple[float, float]]) -> ir.Model:
    """Linear layers as ONNX Runtime's CPU provider takes them in 8 bits; see `Int8Products`.

    spans: least and largest input by weight name.
    """
    return _run(model, [Int8Products(spans), common.RemoveUnusedNodesPass()])
