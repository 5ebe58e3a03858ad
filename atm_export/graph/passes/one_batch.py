"""Read the batch size once, off the input: axis 0 is the batch of all that the image becomes."""

from __future__ import annotations

import logging

import onnx_ir as ir

RANK_CHANGES = ("Reshape", "Gather", "Shape", "Unsqueeze")

log = logging.getLogger(__name__)


class OneBatch(ir.passes.InPlacePass):
    """Fires on Shape(x, start=0, end=1) of an x computed from the image, but for rows of linear
    layers, which are [B * n, D]; weights have no batch at all."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        image = graph.inputs[0]
        batch: ir.Value | None = None
        computed, rows = {image}, set[ir.Value]()
        replaced = 0
        for node in list(graph):
            given = {value for value in node.inputs if value is not None}
            if node.op_type != "Shape" and given & computed:
                computed.update(node.outputs)
            if _makes_rows(node) or (node.op_type not in RANK_CHANGES and given & rows):
                rows.update(node.outputs)
            source = node.inputs[0] if _reads_batch(node) else None
            if source not in computed or source in rows or node.outputs[0].is_graph_output():
                continue
            if batch is None and source is image:
                batch = node.outputs[0]
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
        return ir.passes.PassResult(model, modified=bool(replaced))


def _makes_rows(node: ir.Node) -> bool:
    target = node.inputs[1] if node.op_type == "Reshape" else None
    return target is not None and target.const_value is not None and target.const_value.size == 2


def _reads_batch(node: ir.Node) -> bool:
    if node.op_type != "Shape":
        return False
    start = node.attributes.get("start")
    end = node.attributes.get("end")
    return (start is None or start.as_int() == 0) and end is not None and end.as_int() == 1
