"""Explicit quantization: Q/DQ pairs around the inputs and weights of linear layers.

Activations get one scale a tensor, weights one scale an output channel, both symmetric. Builders
fuse the pairs into 8-bit matrix products; everything else keeps the type that it has.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

LIMITS = {ir.DataType.INT8: 127.0, ir.DataType.FLOAT8E4M3FN: 448.0}

log = logging.getLogger(__name__)


class Quantize(ir.passes.InPlacePass):
    """Fires on every Gemm and MatMul whose weight is named in `scales`: its input's scale."""

    def __init__(self, scales: Mapping[str, float], kind: ir.DataType) -> None:
        self.scales, self.kind = scales, kind

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        self.graph = graph
        self.inputs: dict[tuple[ir.Value, float], ir.Value] = {}
        fired = 0
        for node in list(graph):
            weight = node.inputs[1] if node.op_type in ("Gemm", "MatMul") else None
            name = str(weight.name).removesuffix(".low") if weight is not None else ""
            if weight is None or name not in self.scales:
                continue
            turned = node.attributes.get("transB")
            axis = 0 if turned is not None and turned.as_int() else 1
            node.replace_input_with(0, self._activation(node, self.scales[name]))
            node.replace_input_with(1, self._weight(node, weight, axis))
            fired += 1
        if not fired:
            log.info("did not fire: no linear layer has a scale")
        return ir.passes.PassResult(model, modified=bool(fired))

    def _activation(self, node: ir.Node, scale: float) -> ir.Value:
        value = node.inputs[0]
        assert value is not None
        key = (value, scale)
        if key not in self.inputs:
            kind = value.dtype or ir.DataType.FLOAT
            step = self._constant(f"{value.name}.scale", np.array(scale), kind)
            zero = self._constant(f"{value.name}.zero", np.array(0), self.kind)
            down = self._node(node, "QuantizeLinear", [value, step, zero], value, self.kind)
            self.inputs[key] = self._node(node, "DequantizeLinear", [down, step, zero], value, kind)
        return self.inputs[key]

    def _weight(self, node: ir.Node, weight: ir.Value, axis: int) -> ir.Value:
        assert weight.const_value is not None
        kind = weight.dtype or ir.DataType.FLOAT
        array = weight.const_value.numpy().astype(np.float32)
        limit = LIMITS[self.kind]
        scale = np.abs(array).max(axis=1 - axis).clip(1e-6) / limit
        scale = scale.astype(kind.numpy()).astype(
            np.float32
        )  # the grid is that of the stored scale
        whole = np.clip(array / np.expand_dims(scale, 1 - axis), -limit, limit)
        if self.kind is ir.DataType.INT8:
            whole = np.rint(whole)
        stored = self._constant(f"{weight.name}.{self.kind.name.lower()}", whole, self.kind)
        step = self._constant(f"{weight.name}.scale", scale, kind)
        zero = self._constant(f"{weight.name}.zero", np.zeros(scale.shape), self.kind)
        return self._node(node, "DequantizeLinear", [stored, step, zero], weight, kind, axis=axis)

    def _constant(self, name: str, array: np.ndarray, kind: ir.DataType) -> ir.Value:
        if name not in self.graph.initializers:
            tensor = ir.tensor(array.astype(kind.numpy()), dtype=kind, name=name)
            value = ir.Value(name=name, const_value=tensor)
            value.shape, value.dtype = ir.Shape(array.shape), kind
            self.graph.initializers[name] = value
        return self.graph.initializers[name]

    def _node(
        self,
        before: ir.Node,
        operator: str,
        inputs: list[ir.Value],
        like: ir.Value,
        kind: ir.DataType,
        **attributes: int,
    ) -> ir.Value:
        name = f"{like.name}.{'q' if operator[0] == 'Q' else 'dq'}"
        made = ir.node(operator, inputs, attributes=attributes, name=name)
        out = made.outputs[0]
        out.name, out.shape, out.dtype = name, like.shape, kind
        self.graph.insert_before(before, made)
        return out
