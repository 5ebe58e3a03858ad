"""The ordered list of passes from the assembled graph to the one that ships."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript import optimizer

from atm_export.graph.passes.cancel_reshapes import CancelReshapes
from atm_export.graph.passes.fold_weights import FoldTransposedWeights
from atm_export.graph.passes.keep_outputs import KeepOutputs
from atm_export.graph.passes.name_nodes import NameNodes
from atm_export.graph.passes.one_batch import OneBatch
from atm_export.graph.passes.stamp import Stamp

SMALL = 1024  # elements; folding larger constants would swell the file
LARGE = 8192  # elements; above the ramps of the merges, below the weights


class FoldConstants(ir.passes.InPlacePass):
    """onnxscript's constant folding with shape inference; makes a frozen token axis static."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        before = len(model.graph)
        optimizer.fold_constants(
            model, onnx_shape_inference=True, input_size_limit=SMALL, output_size_limit=SMALL
        )
        return ir.passes.PassResult(model, modified=len(model.graph) != before)


# Lengths become known one after the other: a shape gives a length, which gives the next shape.
STATIC_SHAPES = (common.ShapeInferencePass(data_prop=True), FoldConstants())


def optimize(model: onnx.ModelProto) -> onnx.ModelProto:
    """Fold, fuse and tidy the traced graph; the result computes the same outputs."""
    return _run(
        model,
        [
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            FoldTransposedWeights(),
            OneBatch(),
            *STATIC_SHAPES * 3,
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
            common.DeduplicateInitializersPass(size_limit=LARGE),
            common.CommonSubexpressionEliminationPass(),
            CancelReshapes(),
            common.IdentityEliminationPass(),
            common.RemoveUnusedNodesPass(),
            NameNodes(),
        ],
    )


def with_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The same graph with only these outputs."""
    return _run(model, [KeepOutputs(names)])


def with_facts(model: onnx.ModelProto, facts: Mapping[str, Any]) -> onnx.ModelProto:
    """The same graph with facts in its metadata."""
    return _run(model, [Stamp(facts)])


def _run(model: onnx.ModelProto, passes: Sequence[Callable[..., Any]]) -> onnx.ModelProto:
    for library in ("onnxscript", "onnx_ir"):
        logging.getLogger(library).setLevel(logging.ERROR)
    graph = ir.from_proto(model)
    for step in passes:
        step(graph)
    return ir.to_proto(graph)
