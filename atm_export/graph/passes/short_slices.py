"""Ends of slices within 32 bits: "to the end" is written as 2**63 - 1 by torch."""

from __future__ import annotations

import logging

import numpy as np
import onnx_ir as ir

from atm_export.graph.lint_bounds import HIGH, LOW
from atm_export.graph.reading import constant

BOUNDS = (1, 2)  # inputs of Slice: starts, ends

log = logging.getLogger(__name__)


class ShortSlices(ir.passes.InPlacePass):
    """Fires on Slice with a constant start or end beyond 32 bits; no axis is that long."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        shortened = 0
        for node in graph:
            if node.op_type != "Slice":
                continue
            for i in BOUNDS:
                value = node.inputs[i]
                array = constant(value)
                if value is None or array is None or np.array_equal(array.clip(LOW, HIGH), array):
                    continue
                name = f"{value.name}.short"
                if name not in graph.initializers:
                    tensor = ir.tensor(array.clip(LOW, HIGH), name=name)
                    graph.initializers[name] = ir.Value(
                        name=name,
                        shape=ir.Shape(array.shape),
                        type=ir.TensorType(tensor.dtype),
                        const_value=tensor,
                    )
                node.replace_input_with(i, graph.initializers[name])
                shortened += 1
        if not shortened:
            log.info("did not fire: no slice goes beyond 32 bits")
        return ir.passes.PassResult(model, modified=bool(shortened))
