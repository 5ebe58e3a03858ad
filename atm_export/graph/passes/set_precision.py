"""Write half precision into the graph, node by node; strongly typed builders follow it literally.

What stays in FP32, whatever the precision: the matching path (metric, similarities, thresholds,
keys), merging sizes and their logarithm, LayerNorm, softmax, and every reduction. The rest, linear
layers, convolutions, attention products, activations and the residual stream, is low.
"""

from __future__ import annotations

import logging
from functools import cache

import numpy as np
import onnx
import onnx_ir as ir

HIGH_ONLY = frozenset(
    """
    BatchNormalization CumSum Equal Exp GroupNormalization Greater GreaterOrEqual
    InstanceNormalization LayerNormalization Less LessOrEqual Log LpNormalization Pow
    RMSNormalization Reciprocal ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum Round Softmax
    Sqrt TopK
    """.split()  # noqa: SIM905  (a list that long reads as text)
)
WEIGHTED = ("Conv", "Gemm")
FITS_LOW = ("Softmax", "Div")  # makers of factors between 0 and 1: attention and merging weights
JOINS_HIGH = ("Add", "Sub", "Div", "Max", "Min", "Pow")

log = logging.getLogger(__name__)


class SetPrecision(ir.passes.InPlacePass):
    """Fires wherever a linear layer, a convolution or what follows them can be `low`."""

    def __init__(self, low: ir.DataType) -> None:
        self.low = low

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        self.graph, self.opset = graph, graph.opset_imports[""]
        self.types: dict[ir.Value, ir.DataType] = {}
        self.casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        modified = False
        for node in list(graph):
            kind = self._kind(node)
            if kind is None:
                continue
            self._feed(node, kind)
            modified |= kind is self.low
            for value in node.outputs:
                if value.dtype == ir.DataType.FLOAT:
                    self.types[value] = kind
                    value.dtype = kind
        self._restore_outputs()
        if not modified:
            log.info("did not fire: no linear layer or convolution")
        return ir.passes.PassResult(model, modified=modified)

    def _kind(self, node: ir.Node) -> ir.DataType | None:
        """The type this node computes in, or None where no float is concerned."""
        high = ir.DataType.FLOAT
        given = [v for v in node.inputs if v is not None and _is_float(v)]
        if node.op_type in ("Cast", "Shape", "Size") or not given:
            return None
        if not _allowed(node.op_type, self.opset, self.low):
            return high
        computed = [v for v in given if v.producer() is not None or v.is_graph_input()]
        weighted = node.op_type in WEIGHTED or (
            node.op_type == "MatMul" and len(computed) < len(given)
        )
        if weighted:
            return self.low
        kinds = {self.types.get(v, high) for v in computed}
        if node.op_type in HIGH_ONLY or self.low not in kinds:
            return high
        if len(kinds) == 1:
            return self.low
        if node.op_type == "MatMul":
            highs = [v.producer() for v in computed if self.types.get(v, high) is high]
            fits = all(made is not None and _maker(made) in FITS_LOW for made in highs)
            return self.low if fits else high
        return high if node.op_type in JOINS_HIGH else self.low

    def _feed(self, node: ir.Node, kind: ir.DataType) -> None:
        """Give `node` every float input in `kind`."""
        for i, value in enumerate(node.inputs):
            if value is None or not _is_float(value):
                continue
            if self.types.get(value, ir.DataType.FLOAT) is not kind:
                node.replace_input_with(i, self._converted(node, value, kind))

    def _converted(self, node: ir.Node, value: ir.Value, kind: ir.DataType) -> ir.Value:
        key = (value, kind)
        if key in self.casts:
            return self.casts[key]
        suffix = "low" if kind is self.low else "high"
        name = f"{value.name}.{suffix}"
        if value.const_value is not None and value.producer() is None:
            made = ir.Value(name=name, const_value=_rounded(value, kind, name))
            made.shape, made.dtype = value.shape, kind
            self.graph.initializers[name] = made
        else:
            cast = ir.node("Cast", [value], attributes={"to": kind}, name=name)
            made = cast.outputs[0]
            made.name, made.shape, made.dtype = name, value.shape, kind
            self.graph.insert_before(node, cast)
        self.types[made] = kind
        self.casts[key] = made
        return made

    def _restore_outputs(self) -> None:
        """Graph outputs keep their names and stay FP32."""
        for i, value in enumerate(self.graph.outputs):
            if self.types.get(value) is not self.low:
                continue
            name = value.name
            value.name = f"{name}.low"
            if (made := value.producer()) is not None:
                made.name = value.name
            cast = ir.node("Cast", [value], attributes={"to": ir.DataType.FLOAT}, name=name)
            out = cast.outputs[0]
            out.name, out.shape, out.dtype = name, value.shape, ir.DataType.FLOAT
            self.graph.append(cast)
            self.graph.outputs[i] = out


@cache
def _allowed(operator: str, opset: int, low: ir.DataType) -> bool:
    """Whether ONNX defines the operator for `low` (bfloat16 convolutions only came late)."""
    schema = onnx.defs.get_schema(operator, opset)
    text = f"tensor({low.name.lower()})"
    return any(text in constraint.allowed_type_strs for constraint in schema.type_constraints)


def _maker(node: ir.Node) -> str:
    """The operator that made a value, seen through changes of layout."""
    while node.op_type in ("Transpose", "Reshape", "Identity", "Cast"):
        source = node.inputs[0]
        made = source.producer() if source is not None else None
        if made is None:
            break
        node = made
    return node.op_type


def _is_float(value: ir.Value) -> bool:
    return value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def _rounded(value: ir.Value, kind: ir.DataType, name: str) -> ir.TensorProtocol:
    """The constant in another type; too large for it is an error, never an infinity."""
    assert value.const_value is not None
    array = value.const_value.numpy().astype(np.float32)
    most = 65504.0 if kind is ir.DataType.FLOAT16 else float(np.finfo(np.float32).max)
    if array.size and float(np.abs(array[np.isfinite(array)]).max(initial=0)) > most:
        raise OverflowError(f"{value.name} does not fit {kind.name}")
    return ir.tensor(array.astype(kind.numpy()), dtype=kind, name=name)
