"""What rules and passes read off a graph: findings, constants, integers, names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir


@dataclass(frozen=True)
class Finding:
    """One trap: the rule, the node, and why it is one."""

    rule: str
    node: str
    reason: str


Rule = Callable[[ir.Graph], Iterator[Finding]]


def copied(model: ir.Model) -> ir.Model:
    """A graph to be changed; weights are shared, types are not, as onnx-ir's own clone shares them:
    to set a value's dtype would change the original's."""
    copy = model.clone()
    graph = copy.graph
    values = [*graph.inputs, *graph.initializers.values()]
    for value in [*values, *(value for node in graph for value in node.outputs)]:
        if isinstance(value.type, ir.TensorType):
            value.type = ir.TensorType(value.type.dtype, denotation=value.type.denotation)
    return copy


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The array of a constant or initializer, else None."""
    if value is None:
        return None
    if value.const_value is not None:
        return value.const_value.numpy()
    made = value.producer()
    if made is not None and made.op_type == "Constant" and "value" in made.attributes:
        return made.attributes["value"].as_tensor().numpy()
    return None


def is_int(value: ir.Value) -> bool:
    """Whether a value holds integers, read off its type or what made it."""
    if value.dtype is not None:
        return not value.dtype.is_floating_point()
    made = value.producer()
    if made is None:
        return False
    if made.op_type == "Cast":
        return made.attributes["to"].as_int() in (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
    if made.op_type == "TopK" and value is made.outputs[1]:
        return True
    data = made.inputs[1:] if made.op_type == "Where" else made.inputs[:1]
    return all(v is not None and is_int(v) for v in data)


def name_of(node: ir.Node) -> str:
    """How messages call a node."""
    return str(node.name or node.outputs[0].name)
