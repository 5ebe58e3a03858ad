"""Integers fit 32 bits: bounds are derived through the graph, value by value.

Some backends compute int64 as int32 and say nothing (OpenVINO's CPU plugin, openvino #35824;
TensorRT 8): a sort key beyond 2**31 then merges other tokens, or none. So no integer may exceed
32 bits, and the bound of every sort key must be derivable.

Taken for granted: an axis is at most LENGTH long, and what is counted in a batch is at most COUNT.
Similarities have a bound because rows of norm 1 meet in a product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product

import onnx_ir as ir

from atm_export.graph.reading import Finding, constant, is_int, name_of

LENGTH, COUNT = 2**14, 2**28
LOW, HIGH = -(2**31), 2**31 - 1
ROUNDED = 1 + 2**-8  # products of unit rows may exceed 1 by rounding, TF32's included
LAYOUT = frozenset(
    """
    Cast CastLike Expand Gather GatherElements GatherND Identity Reshape Slice Squeeze Tile
    Transpose Unsqueeze
    """.split()  # noqa: SIM905  (a list that long reads as text)
)
SAME = LAYOUT | {"Floor", "Round", "ReduceMax", "ReduceMin", "ReduceMean", "Split"}
SHARES = frozenset(
    [
        "And",
        "Equal",
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "Not",
        "Or",
        "Sigmoid",
        "Softmax",
    ]
)


@dataclass(frozen=True)
class Bounds:
    """A closed interval that holds every element of a value."""

    low: float = -math.inf
    high: float = math.inf

    @property
    def known(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def fits(self) -> bool:
        """False only where a bound that is known leaves 32 bits."""
        low, high = (x if math.isfinite(x) else 0.0 for x in (self.low, self.high))
        return min(low, high) >= LOW and max(low, high) <= HIGH


UNKNOWN = Bounds()


@dataclass
class Known:
    """What was derived so far: intervals, and the L2 norm of rows (or columns, transposed)."""

    bounds: dict[ir.Value, Bounds] = field(default_factory=dict)
    norms: dict[ir.Value, float] = field(default_factory=dict)

    def of(self, value: ir.Value | None) -> Bounds:
        if value is None:
            return UNKNOWN
        if value not in self.bounds:
            array = constant(value)
            if array is not None and array.dtype.kind in "biuf":
                low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
                self.bounds[value] = Bounds(low, high)
        return self.bounds.get(value, UNKNOWN)


def fits_32_bits(graph: ir.Graph) -> Iterator[Finding]:
    """No integer constant or derived bound beyond 32 bits; every sort key has a bound."""
    known = Known()
    for value in graph.initializers.values():
        if is_int(value) and not known.of(value).fits:
            yield Finding("beyond 32 bits", str(value.name), _says(known.of(value)))
    for node in graph:
        _derive(node, known)
        for value in node.outputs:
            if is_int(value) and not known.of(value).fits:
                yield Finding("beyond 32 bits", name_of(node), _says(known.of(value)))
        key = node.inputs[0] if node.op_type == "TopK" else None
        if key is not None and is_int(key) and not known.of(key).known:
            yield Finding(
                "beyond 32 bits", name_of(node), "nothing bounds the sort key; clip what it is of"
            )


def _says(bounds: Bounds) -> str:
    return (
        f"values from {bounds.low:.0f} to {bounds.high:.0f}; backends that compute int64 as int32 "
        "(OpenVINO, TensorRT 8) sort and merge otherwise, in silence"
    )


def _derive(node: ir.Node, known: Known) -> None:
    given = [known.of(value) for value in node.inputs]
    rule = RULES.get(node.op_type)
    found = rule(given) if rule is not None and given else UNKNOWN
    if node.op_type == "Constant":
        found = known.of(node.outputs[0])
    elif node.op_type in SAME:
        found = given[0]
    elif node.op_type in SHARES:
        found = Bounds(0, 1)
    norms = [known.norms.get(value) if value is not None else None for value in node.inputs]
    if node.op_type == "LpNormalization":
        found, norms = Bounds(-ROUNDED, ROUNDED), [1.0]
    elif node.op_type == "MatMul":
        found = _product(norms)
        norms = [None]
    norm = _norm(node, norms, given)
    for i, value in enumerate(node.outputs):
        known.bounds[value] = Bounds(0, LENGTH) if node.op_type == "TopK" and i else found
        if norm is not None:
            known.norms[value] = norm


def _norm(node: ir.Node, norms: list[float | None], given: list[Bounds]) -> float | None:
    """The norm of a node's rows, where it keeps them whole."""
    kept = [norm for norm in norms if norm is not None]
    if not kept or node.op_type == "LpNormalization":
        return kept[0] if kept else None
    if node.op_type in LAYOUT:
        return norms[0]
    if node.op_type == "Concat" and len(kept) == len(norms):
        return max(kept)
    if node.op_type == "Mul" and len(kept) == 1:
        factor = given[1 - norms.index(kept[0])]
        return kept[0] * max(abs(factor.low), abs(factor.high)) if factor.known else None
    return None


def _product(norms: list[float | None]) -> Bounds:
    a, b = norms
    if a is None or b is None:
        return UNKNOWN
    return Bounds(-a * b * ROUNDED, a * b * ROUNDED)


def _corners(combine: Callable[[float, float], float]) -> Callable[[list[Bounds]], Bounds]:
    """The interval of a monotonic operator of two values, off the corners."""

    def rule(given: list[Bounds]) -> Bounds:
        a, b = given
        if not (a.known and b.known):
            return UNKNOWN
        corners = [combine(x, y) for x, y in product((a.low, a.high), (b.low, b.high))]
        return Bounds(min(corners), max(corners))

    return rule


def _sum(given: list[Bounds]) -> Bounds:
    """A sum of counts is a count."""
    counts = given[0].low >= 0 and given[0].high <= COUNT
    return Bounds(0, COUNT) if counts else UNKNOWN


def _multiply(given: list[Bounds]) -> Bounds:
    """Nothing times anything is nothing."""
    zero = Bounds(0, 0)
    return zero if zero in given else _corners(lambda x, y: x * y)(given)


def _divide(given: list[Bounds]) -> Bounds:
    if given[1].low <= 0:
        return UNKNOWN
    return _corners(lambda x, y: x / y)(given)


def _union(given: list[Bounds]) -> Bounds:
    return Bounds(min(b.low for b in given), max(b.high for b in given))


RULES: Mapping[str, Callable[[list[Bounds]], Bounds]] = {
    "Add": _corners(lambda x, y: x + y),
    "Sub": _corners(lambda x, y: x - y),
    "Mul": _multiply,
    "Div": _divide,
    "Neg": lambda given: Bounds(-given[0].high, -given[0].low),
    "Min": lambda given: Bounds(min(b.low for b in given), min(b.high for b in given)),
    "Max": lambda given: Bounds(max(b.low for b in given), max(b.high for b in given)),
    "Clip": lambda given: Bounds(given[1].low, given[2].high) if len(given) > 2 else UNKNOWN,
    "Concat": _union,
    "Where": lambda given: _union(given[1:]),
    "Range": lambda given: Bounds(given[0].low, max(given[0].high, given[1].high)),
    "Shape": lambda given: Bounds(0, LENGTH),
    "Size": lambda given: Bounds(0, COUNT),
    "ReduceSum": _sum,
    "CumSum": _sum,
    "TopK": lambda given: given[0],
}
