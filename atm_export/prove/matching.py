"""Is the matching of a typed graph still FP32? Read from its types, not from its answers.

Similarities in fp16 overflow on their grid, so that half of the tokens differ where counts are
decided at run time; but a frozen schedule has no counts to differ, and similarities that are only
rounded to 11 bits move answers little further than an honest rounding of the keys does (DeiT-T on
the photographs that ship: 0.56 % of the tokens differ, 0.42 % without). Types tell them apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from atm_export.errors import ParityError
from atm_export.graph.reading import copied
from atm_export.rewrite.names import RULE, SIGNAL

LOWERED = (
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
    ir.DataType.FLOAT8E4M3FN,
    ir.DataType.INT8,
    ir.DataType.UINT8,
)
MOVES = frozenset(
    ("Concat", "Gather", "GatherElements", "GatherND", "Reshape", "Slice", "Transpose")
)


def require_matching(model: ir.Model, precision: str) -> None:
    """ParityError if any value of the matching is less than FP32."""
    if lowered := lowered_matching(model):
        raise ParityError(
            f"{precision} lowers the matching ({lowered[0]} and {len(lowered) - 1} other values), "
            "which stays in FP32 in every precision; nothing was built; "
            "take a higher --precision"
        )


def lowered_matching(model: ir.Model) -> list[str]:
    """Names of the values that rules decide by and that are less than FP32, in order; none where
    nothing is decided.

    model: a traced graph, its nodes tagged as they were placed. A rule decides where it makes whole
    numbers or truths of floats: its keys, a comparison. All that leads there from what it was
    handed counts, if the rule computed it; what it was handed (keys, tokens) is as the layers made
    it, and so are rows of it.
    """
    typed = copied(model)
    ShapeInferencePass()(typed)
    seen = _decided_by(typed)
    order = [value for node in typed.graph for value in (*node.inputs, *node.outputs)]
    own = (v for v in dict.fromkeys(order) if v is not None and v in seen and _is_own(v))
    return [str(value.name) for value in own if value.dtype in LOWERED]


def matching_nodes(model: ir.Model) -> list[str]:
    """Names of a traced graph's nodes that make what rules decide by, and that decide."""
    typed = copied(model)
    ShapeInferencePass()(typed)
    seen = _decided_by(typed)
    return [
        str(node.name)
        for node in typed.graph
        if RULE in node.metadata_props
        and (_decides(node) or any(value in seen for value in node.outputs))
    ]


def _decided_by(typed: ir.Model) -> set[ir.Value]:
    """Floats that lead from what a rule was handed to what it decides."""
    seen: set[ir.Value] = set()
    pending = [value for node in typed.graph if _decides(node) for value in _floats(node.inputs)]
    while pending:
        value = pending.pop()
        node = value.producer()
        if value in seen or (node is not None and SIGNAL in node.metadata_props):
            continue
        seen.add(value)
        pending.extend(_floats(() if node is None else node.inputs))
    return seen


def _is_own(value: ir.Value) -> bool:
    """Whether a rule computed it, or it is a number of the graph."""
    node = value.producer()
    return node is None or (RULE in node.metadata_props and not _only_moves(node))


def _only_moves(node: ir.Node) -> bool:
    """Whether it moves what the rule was handed and computes nothing: rows of tokens, say."""
    return node.op_type in MOVES and all(_is_handed(value) for value in _floats(node.inputs))


def _is_handed(value: ir.Value) -> bool:
    node = value.producer()
    while node is not None and node.op_type == "Cast" and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node is not None and (RULE not in node.metadata_props or _only_moves(node))


def _decides(node: ir.Node) -> bool:
    whole = any(out.dtype is not None and not out.dtype.is_floating_point() for out in node.outputs)
    return RULE in node.metadata_props and node.op_type not in ("Shape", "Size") and whole


def _floats(values: Iterable[ir.Value | None]) -> Iterator[ir.Value]:
    """Those that are floats, that were quantized, or of a type that nothing says."""
    for value in values:
        if value is None:
            continue
        kind = value.dtype
        if kind is None or kind.is_floating_point() or kind in LOWERED:
            yield value
