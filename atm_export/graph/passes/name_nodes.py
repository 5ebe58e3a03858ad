"""Give every node the name of its first output, and drop notes of the translation."""

from __future__ import annotations

import onnx_ir as ir


class NameNodes(ir.passes.InPlacePass):
    """Fires where a node's name is not its first output's."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in model.graph:
            node.doc_string = None
            name = node.outputs[0].name
            if node.name != name:
                node.name = name
                modified = True
        return ir.passes.PassResult(model, modified=modified)
