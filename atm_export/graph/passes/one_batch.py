"""Read the batch size once, off the input: axis 0 is the batch of all that the image becomes."""

from __future__ import annotations

import logging

import onnx_ir as ir

log = logging.getLogger(__name__)


class OneBatch(ir.passes.InPlacePass):
    """Fires on every Shape(x, start=0, end=1) of an x that is computed from the image."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        image = graph.inputs[0]
        batch: ir.Value | None = None
        computed = {image}
        replaced = 0
        for node in list(graph):
            if node.op_type != "Shape" and any(value in computed for value in node.inputs):
                computed.update(node.outputs)
            if not _reads_batch(node) or node.inputs[0] not in computed:
                continue
            if batch is None:
                batch = ir.Value(name="batch_size")
                made = ir.node("Shape", [image], attributes={"start": 0, "end": 1}, outputs=[batch])
                graph.insert_before(graph[0], made)
            node.outputs[0].replace_all_uses_with(batch)
            graph.remove(node, safe=True)
            replaced += 1
        if not replaced:
            log.info("did not fire: nothing reads the batch size")
        return ir.passes.PassResult(model, modified=replaced > 1)


def _reads_batch(node: ir.Node) -> bool:
    if node.op_type != "Shape":
        return False
    start = node.attributes.get("start")
    end = node.attributes.get("end")
    return (start is None or start.as_int() == 0) and end is not None and end.as_int() == 1
