"""Is the matching of a typed graph still FP32? Read from its types, not from its answers.

Similarities in fp16 overflow on their grid, so that half of the tokens differ where counts are
decided at run time; but a frozen schedule has no counts to differ, and similarities that are only
rounded to 11 bits move answers little further than an honest rounding of the keys does (DeiT-T on
the photographs that ship: 0.56 % of the tokens differ, 0.42 % without). Types tell them apart.
"""

from __future__ import annotations

import onnx

from atm_export.errors import ParityError

SORTED_BY = "TopK"
# Metrics; attention weights and norms of values as scores.
BEGINS = ("LpNormalization", "Softmax", "ReduceL2")
FLOATS = (
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.FLOAT8E4M3FN,
    onnx.TensorProto.INT8,
)


def require_matching(model: onnx.ModelProto, precision: str) -> None:
    """ParityError if any value of the matching is less than FP32."""
    if lowered := lowered_matching(model):
        raise ParityError(
            f"{precision} lowers the matching ({lowered[0]} and {len(lowered) - 1} other values), "
            "which stays in FP32 in every precision; no engine was built; "
            "take a higher --precision"
        )


def lowered_matching(model: onnx.ModelProto) -> list[str]:
    """Names of the values between a block's metric (what is normalised), or other scores, and its
    sorted keys that are less than FP32, in order; none where nothing merges."""
    kinds = _types(model)
    makers = {out: node for node in model.graph.node for out in node.output}
    seen: set[str] = set()
    pending = [node.input[0] for node in model.graph.node if node.op_type == SORTED_BY]
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        node = makers.get(name)
        if node is None or node.op_type == "Shape":
            continue
        if node.op_type in BEGINS:
            seen.update(node.input)
        else:
            pending.extend(value for value in node.input if value)
    order = [value for node in model.graph.node for value in (*node.input, *node.output)]
    return [name for name in dict.fromkeys(order) if name in seen and kinds.get(name) in FLOATS]


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every value and constant."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    known = {value.name: value.type.tensor_type.elem_type for value in values}
    return known | {tensor.name: tensor.data_type for tensor in inferred.initializer}
