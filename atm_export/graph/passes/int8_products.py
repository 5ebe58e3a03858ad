"""Linear layers as 8-bit products, in the form that ONNX Runtime's CPU provider runs fastest.

A layer's input becomes uint8 on a grid that was calibrated, its weight int8 (7 bits of it, so that
no CPU's sums saturate) with a scale for each output channel, and
`com.microsoft.MatMulIntegerToFloat` gives FP32 with the bias added. Grids do not depend on the
batch, so that an image's answer does not depend on its neighbours, as it would under
DynamicQuantizeLinear, whose scale all images share.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from atm_export.rewrite.names import RULE

DOMAIN, PRODUCT = "com.microsoft", "MatMulIntegerToFloat"
LEVELS = 255
# Of a weight: CPUs without VNNI add pairs of products in 16 bits, 2 * 255 * 64 > 32767 saturates.
LARGEST = 63
LEAST = 1e-6  # of a scale: layers of zeros

log = logging.getLogger(__name__)


class Int8Products(ir.passes.InPlacePass):
    """Fires on every MatMul whose weight [in, out] is named in `spans`: the least and the largest
    value of its input. Nodes of a rule are left alone."""

    def __init__(self, spans: Mapping[str, tuple[float, float]]) -> None:
        self.spans = spans

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        self.graph = model.graph
        self.inputs: dict[ir.Value, tuple[ir.Value, ir.Value, ir.Value]] = {}
        fired = 0
        for node in list(model.graph):
            weight = node.inputs[1] if node.op_type == "MatMul" else None
            if weight is None or weight.name not in self.spans or RULE in node.metadata_props:
                continue
            self._replace(node, weight)
            fired += 1
        if fired:
            model.graph.opset_imports[DOMAIN] = 1
        else:
            log.info("did not fire: no linear layer has a span")
        return ir.passes.PassResult(model, modified=bool(fired))

    def _replace(self, node: ir.Node, weight: ir.Value) -> None:
        """Put the 8-bit product in the place of a MatMul and of its bias."""
        add, bias = _bias(node)
        last = node if add is None else add
        old = last.outputs[0]
        low, step, zero = self._input(node, *self.spans[str(weight.name)])
        whole, scale = self._weight(weight)
        inputs = [low, whole, step, scale, zero, None, *([] if bias is None else [bias])]
        made = ir.node(PRODUCT, inputs, domain=DOMAIN, name=str(node.name))
        made.metadata_props.update({**node.metadata_props, **last.metadata_props})
        out = made.outputs[0]
        out.name, out.shape, out.dtype = old.name, old.shape, ir.DataType.FLOAT
        self.graph.insert_before(last, made)
        old.replace_all_uses_with(out)
        self.graph.remove(last, safe=True)
        if add is not None:
            self.graph.remove(node, safe=True)

    def _input(self, node: ir.Node, low: float, high: float) -> tuple[ir.Value, ir.Value, ir.Value]:
        """A layer's input as uint8, its scale and zero point; layers that share it share them."""
        value = node.inputs[0]
        assert value is not None
        if value not in self.inputs:
            low, high = min(low, 0.0), max(high, 0.0)
            size = max((high - low) / LEVELS, LEAST)
            step = self._constant(f"{value.name}.scale", np.array(size, np.float32))
            at_zero = np.array(np.clip(np.rint(-low / size), 0, LEVELS), np.uint8)
            zero = self._constant(f"{value.name}.zero", at_zero)
            name = f"{value.name}.uint8"
            made = ir.node("QuantizeLinear", [value, step, zero], name=name)
            out = made.outputs[0]
            out.name, out.shape, out.dtype = name, value.shape, ir.DataType.UINT8
            self.graph.insert_before(node, made)
            self.inputs[value] = out, step, zero
        return self.inputs[value]

    def _weight(self, weight: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The weight as int8, and the scale of each output channel."""
        assert weight.const_value is not None
        array = weight.const_value.numpy().astype(np.float32)
        scale = np.maximum(np.abs(array).max(axis=0) / LARGEST, LEAST).astype(np.float32)
        whole = np.clip(np.rint(array / scale), -LARGEST, LARGEST).astype(np.int8)
        return self._constant(f"{weight.name}.int8", whole), self._constant(
            f"{weight.name}.scale", scale
        )

    def _constant(self, name: str, array: NDArray[np.generic]) -> ir.Value:
        if name not in self.graph.initializers:
            tensor = ir.tensor(array, name=name)
            value = ir.Value(name=name, const_value=tensor)
            value.shape, value.dtype = ir.Shape(array.shape), tensor.dtype
            self.graph.initializers[name] = value
        return self.graph.initializers[name]


def _bias(product: ir.Node) -> tuple[ir.Node | None, ir.Value | None]:
    """The Add of a constant row that alone reads the product, and that row; else (None, None)."""
    value = product.outputs[0]
    uses = list(value.uses())
    weight = product.inputs[1]
    assert weight is not None and weight.shape is not None
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.op_type != "Add":
        return None, None
    add = uses[0].node
    other = add.inputs[1 - uses[0].idx]
    if other is None or not other.is_initializer() or RULE in add.metadata_props:
        return None, None
    row = other.shape is not None and list(other.shape) == [weight.shape[-1]]
    return (add, other) if row else (None, None)
