"""Known traps in exported graphs, refused with the node and the reason.

Each rule is a function (graph) -> findings; `RULES` is the list that runs, in order.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from atm_export.errors import GraphLintError
from atm_export.graph.lint_bounds import fits_32_bits
from atm_export.graph.reading import Finding, Rule, constant, is_int, name_of

ALLOWED = frozenset(
    """
    Add And AveragePool BatchNormalization Cast CastLike Clip Concat Constant ConstantOfShape Conv
    CumSum DequantizeLinear Div Equal Erf Exp Expand Flatten Floor Gather GatherElements GatherND
    Gelu Gemm GlobalAveragePool Greater GreaterOrEqual GroupNormalization HardSigmoid HardSwish
    Identity InstanceNormalization LayerNormalization Less LessOrEqual Log LpNormalization MatMul
    Max MaxPool Min Mul Neg Not Or Pad Pow QuantizeLinear RMSNormalization Range Reciprocal ReduceL2
    ReduceMax ReduceMean ReduceMin ReduceSum Relu Reshape Round Shape Sigmoid Size Slice Softmax
    Softplus Split Sqrt Squeeze Sub Swish Tanh Tile TopK Transpose Unsqueeze Where
    """.split()  # noqa: SIM905  (a list that long reads as text)
)
CUSTOM = "custom operator"
SHAPE_TAKERS = ("Reshape", "Expand")


def lint(model: ir.Model) -> list[Finding]:
    """Every trap in `model`."""
    return [finding for rule in RULES for finding in rule(model.graph)]


def check(model: ir.Model) -> None:
    """GraphLintError for the first trap."""
    report(lint(model))


def report(findings: list[Finding]) -> None:
    """GraphLintError for the first of `findings`, if any."""
    if findings:
        first, more = findings[0], len(findings) - 1
        raise GraphLintError(
            f"{first.rule} at node {first.node}: {first.reason}"
            + (f" (and {more} more)" if more else "")
        )


def standard_operators(graph: ir.Graph) -> Iterator[Finding]:
    """Operators of ONNX itself, and of those the ones that parsers are known to take."""
    for node in graph:
        if node.domain not in ("", "ai.onnx"):
            yield Finding(CUSTOM, name_of(node), f"{node.domain}::{node.op_type}")
        elif node.op_type.startswith("Scatter"):
            continue
        elif node.op_type not in ALLOWED:
            yield Finding("operator outside the allow-list", name_of(node), node.op_type)


def no_scatter(graph: ir.Graph) -> Iterator[Finding]:
    """Scatter loses its reduction in some exporters ("mean" becomes "none") and builders."""
    for node in graph:
        if node.op_type.startswith("Scatter"):
            how = node.attributes.get("reduction")
            reduction = how.as_string() if how is not None else "none"
            yield Finding(
                "scatter",
                name_of(node),
                f"{node.op_type} with reduction '{reduction}' keeps one of several values where a "
                "reduction is meant, or is not supported; use a one-hot matrix product",
            )


def unique_sort_keys(graph: ir.Graph) -> Iterator[Finding]:
    """Sorts of floats may tie, and each backend breaks ties in its own way."""
    for node in graph:
        key = node.inputs[0] if node.inputs else None
        if node.op_type in ("ArgMax", "ArgMin"):
            yield Finding(
                "sort with ties", name_of(node), f"{node.op_type} has no defined order of equals"
            )
        if node.op_type == "TopK" and key is not None and not is_int(key):
            yield Finding(
                "sort with ties", name_of(node), "TopK of a float key; use value * N + position"
            )


def dynamic_batch(graph: ir.Graph) -> Iterator[Finding]:
    """The batch is free at the inputs and outputs, and in every shape on the way."""
    for value in [*graph.inputs, *graph.outputs]:
        if value.name == "tokens_per_block" or value.shape is None:
            continue
        axis = 1 if value.name == "token_maps" else 0
        if isinstance(value.shape[axis], int):
            yield Finding("baked batch", str(value.name), f"batch is fixed at {value.shape[axis]}")
    moving = _dependent(graph, set(graph.inputs))
    for node, target in _constant_shapes(graph):
        if node.inputs[0] in moving and target and target[0] > 0:
            yield Finding(
                "baked batch", name_of(node), f"{node.op_type} to the constant shape {target}"
            )


def free_token_axis(graph: ir.Graph) -> Iterator[Finding]:
    """Where the token count is decided at run time, no shape may pin it."""
    starts = {
        out
        for node in graph
        if node.op_type == "TopK" and constant(node.inputs[1]) is None
        for out in node.outputs
    }
    sized = _dependent(graph, starts)
    for node, target in _constant_shapes(graph):
        if node.inputs[0] in sized and len(target) > 2 and target[1] > 1:
            yield Finding("pinned token axis", name_of(node), f"{node.op_type} to {target}")


def positive_logs(graph: ir.Graph) -> Iterator[Finding]:
    """log(0) is -inf, and turns into NaN one step later."""
    signs = _signs(graph)
    for node in graph:
        given = node.inputs[0] if node.op_type == "Log" else None
        if given is not None and signs.get(given, UNKNOWN) < POSITIVE:
            yield Finding(
                "log of zero", name_of(node), f"nothing keeps {given.name} above 0; add Max"
            )


RULES: tuple[Rule, ...] = (
    standard_operators,
    no_scatter,
    unique_sort_keys,
    dynamic_batch,
    free_token_axis,
    positive_logs,
    fits_32_bits,
)

UNKNOWN, NON_NEGATIVE, POSITIVE = 0, 1, 2
_PASS = frozenset(
    """
    Cast CastLike Expand Gather GatherElements GatherND Identity ReduceMax ReduceMean ReduceMin
    ReduceSum Reshape Slice Split Squeeze Tile Transpose Unsqueeze
    """.split()  # noqa: SIM905
)


def _signs(graph: ir.Graph) -> dict[ir.Value, int]:
    """What is known of the sign of every value."""
    signs: dict[ir.Value, int] = {}
    for value in graph.initializers.values():
        signs[value] = _sign_of(constant(value))
    for node in graph:
        given = [signs.get(v, UNKNOWN) for v in node.inputs if v is not None]
        sign = UNKNOWN
        if node.op_type == "Constant":
            sign = _sign_of(constant(node.outputs[0]))
        elif node.op_type == "Exp":
            sign = POSITIVE
        elif node.op_type in ("Softmax", "Sigmoid", "Relu", "Shape"):
            sign = NON_NEGATIVE
        elif node.op_type == "Concat":
            sign = min(given)
        elif node.op_type in _PASS and given:
            sign = given[0]
        elif node.op_type == "Where":
            sign = min(given[1:])
        elif node.op_type == "Add":
            sign = max(given) if min(given) >= NON_NEGATIVE else UNKNOWN
        elif node.op_type in ("Mul", "Div"):
            sign = min(given)
        elif node.op_type == "Max":
            sign = max(given)
        elif node.op_type == "Clip" and len(given) > 1:
            sign = given[1]
        signs.update(dict.fromkeys(node.outputs, sign))
    return signs


def _sign_of(array: np.ndarray | None) -> int:
    if array is None or array.dtype.kind not in "fiu" or not array.size:
        return UNKNOWN
    low = array.min()
    return POSITIVE if low > 0 else NON_NEGATIVE if low == 0 else UNKNOWN


def _dependent(graph: ir.Graph, starts: set[ir.Value]) -> set[ir.Value]:
    """Values computed from the data of `starts` (shapes read off them do not count)."""
    found = set(starts)
    for node in graph:
        if node.op_type != "Shape" and any(v in found for v in node.inputs):
            found.update(node.outputs)
    return found


def _constant_shapes(graph: ir.Graph) -> Iterator[tuple[ir.Node, list[int]]]:
    for node in graph:
        if node.op_type in SHAPE_TAKERS:
            target = constant(node.inputs[1])
            if target is not None:
                yield node, [int(dim) for dim in target]
