"""Reshape(Reshape(x)) back to x's own shape is x."""

from __future__ import annotations

import logging

import onnx_ir as ir

log = logging.getLogger(__name__)


class CancelReshapes(ir.passes.InPlacePass):
    """Fires on Reshape(Reshape(x [m, D]), [-1, D]) for x of rank 2."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        cancelled = 0
        for node in list(graph):
            x = _source(node)
            if x is not None and not node.outputs[0].is_graph_output():
                node.outputs[0].replace_all_uses_with(x)
                graph.remove(node, safe=True)
                cancelled += 1
        if not cancelled:
            log.info("did not fire: no pair of reshapes")
        return ir.passes.PassResult(model, modified=bool(cancelled))


def _source(node: ir.Node) -> ir.Value | None:
    if node.op_type != "Reshape":
        return None
    middle, shape = node.inputs[0], node.inputs[1]
    first = middle.producer() if middle is not None else None
    if first is None or first.op_type != "Reshape" or shape is None or shape.const_value is None:
        return None
    x = first.inputs[0]
    if x is None or x.shape is None or len(x.shape) != 2:
        return None
    target = shape.const_value.numpy().tolist()
    return x if target == [-1, x.shape[1]] else None
