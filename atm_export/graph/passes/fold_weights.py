"""Fold `Transpose(weight)` into the weight, so that no backend transposes it at run time."""

from __future__ import annotations

import logging

import onnx_ir as ir

log = logging.getLogger(__name__)


class FoldTransposedWeights(ir.passes.InPlacePass):
    """Fires on every Transpose whose input is an initializer; other nodes are left alone."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        folded = 0
        for node in list(graph):
            source = node.inputs[0] if node.op_type == "Transpose" else None
            if source is None or not source.is_initializer() or source.const_value is None:
                continue
            if node.outputs[0].is_graph_output():
                continue
            perm = node.attributes["perm"].as_ints() if "perm" in node.attributes else None
            array = source.const_value.numpy().transpose(perm)  # a view: saving puts it in order
            name = f"{source.name}.T" + ("" if array.ndim == 2 else "".join(map(str, perm or ())))
            value = graph.initializers.get(name)
            if value is None:
                tensor = ir.tensor(array, name=name)
                value = ir.Value(
                    name=name,
                    shape=ir.Shape(array.shape),
                    type=ir.TensorType(tensor.dtype),
                    const_value=tensor,
                )
                graph.register_initializer(value)
            node.outputs[0].replace_all_uses_with(value)
            graph.remove(node, safe=True)
            if not source.uses():
                del graph.initializers[str(source.name)]
            folded += 1
        if not folded:
            log.info("did not fire: no Transpose of an initializer")
        return ir.passes.PassResult(model, modified=bool(folded))
