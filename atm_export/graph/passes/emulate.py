"""Emulate half precision in FP32: round where the typed graph would, and compute in FP32.

ONNX Runtime's CPU has no bfloat16 kernels; the result of this pass runs there and rounds each value
as a typed graph does (accumulation within one operator stays in FP32, as on a GPU).
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir


class EmulateLow(ir.passes.InPlacePass):
    """Fires on every value and constant of type `low` in a typed graph."""

    def __init__(self, low: ir.DataType) -> None:
        self.low = low

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph, high = model.graph, ir.DataType.FLOAT
        touched = 0
        for value in list(graph.initializers.values()):
            if value.dtype is self.low and value.const_value is not None:
                array = value.const_value.numpy().astype("float32")
                value.const_value = ir.tensor(array, dtype=high, name=value.name)
                value.dtype = high
                touched += 1
        for node in list(graph):
            if node.op_type == "Cast":
                to = node.attributes["to"].as_int()
                if to == self.low:
                    self._round(graph, node)
                    touched += 1
                continue
            for value in node.outputs:
                if value.dtype is not self.low:
                    continue
                value.dtype = high
                touched += 1
                if node.op_type not in _COPIES:
                    self._round_after(graph, node, value)
        return ir.passes.PassResult(model, modified=bool(touched))

    def _round(self, graph: ir.Graph, cast: ir.Node) -> None:
        """A cast down stays, and is followed by one up."""
        value = cast.outputs[0]
        self._up(graph, cast, value)

    def _round_after(self, graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
        uses = list(value.uses())
        down = ir.node("Cast", [value], attributes={"to": self.low}, name=f"{value.name}.down")
        graph.insert_after(node, down)
        down.outputs[0].name, down.outputs[0].dtype = f"{value.name}.down", self.low
        down.outputs[0].shape = value.shape
        self._up(graph, down, down.outputs[0], uses)

    def _up(
        self,
        graph: ir.Graph,
        after: ir.Node,
        value: ir.Value,
        uses: list[Any] | None = None,
    ) -> None:
        uses = list(value.uses()) if uses is None else uses
        name = f"{value.name}.up"
        up = ir.node("Cast", [value], attributes={"to": ir.DataType.FLOAT}, name=name)
        up.outputs[0].name, up.outputs[0].dtype = name, ir.DataType.FLOAT
        up.outputs[0].shape = value.shape
        graph.insert_after(after, up)
        for user, i in uses:
            user.replace_input_with(i, up.outputs[0])


_COPIES = ("Reshape", "Transpose", "Slice", "Gather", "GatherND", "GatherElements", "Concat",
           "Squeeze", "Unsqueeze", "Expand", "Identity", "Split", "Where", "Flatten")  # fmt: skip
