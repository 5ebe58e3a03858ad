"""Is the matching of a typed graph still FP32? Read from its types, not from its answers.

Similarities in fp16 overflow on their grid, so that half of the tokens differ where counts are
decided at run time; but a frozen schedule has no counts to differ, and similarities that are only
rounded to 11 bits move answers little further than an honest rounding of the keys does (DeiT-T on
the photographs that ship: 0.56 % of the tokens differ, 0.42 % without). Types tell them apart.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from atm_export.errors import ParityError
from atm_export.graph.reading import copied

SORTED_BY = "TopK"
METRIC = "LpNormalization"
FLOATS = (
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
    ir.DataType.FLOAT8E4M3FN,
    ir.DataType.INT8,
)


def require_matching(model: ir.Model, precision: str) -> None:
    """ParityError if any value of the matching is less than FP32."""
    if lowered := lowered_matching(model):
        raise ParityError(
            f"{precision} lowers the matching ({lowered[0]} and {len(lowered) - 1} other values), "
            "which stays in FP32 in every precision; no engine was built; "
            "take a higher --precision"
        )


def lowered_matching(model: ir.Model) -> list[str]:
    """Names of the values between a block's metric (what is normalised) and its sorted keys that
    are less than FP32, in order; none where nothing merges."""
    typed = copied(model)
    ShapeInferencePass()(typed)
    seen: set[ir.Value] = set()
    pending = [node.inputs[0] for node in typed.graph if node.op_type == SORTED_BY]
    while pending:
        value = pending.pop()
        if value is None or value in seen:
            continue
        seen.add(value)
        node = value.producer()
        if node is None or node.op_type == "Shape":
            continue
        if node.op_type == METRIC:
            seen.update(given for given in node.inputs if given is not None)
        else:
            pending.extend(node.inputs)
    order = [value for node in typed.graph for value in (*node.inputs, *node.outputs)]
    low = (v for v in dict.fromkeys(order) if v in seen and v is not None and v.dtype in FLOATS)
    return [str(value.name) for value in low]
