"""What real TensorRT parsers and builders refuse, found before they say it cryptically.

One rule for each violation that was seen to fail (or to cost memory) in TensorRT-RTX 1.7; each is
a function (graph) -> findings. Lengths are the inputs that size a tensor: K of TopK, ends of Slice,
limits of Range, targets of shapes.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from atm_export.graph.lint import Finding, Rule, constant, name_of, report

LENGTHS = {
    "TopK": (1,),
    "Slice": (1, 2),
    "Range": (0, 1, 2),
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Reshape": (1,),
    "Tile": (1,),
    "Pad": (1,),
}
ARITHMETIC = frozenset(
    [
        "Add",
        "Sub",
        "Mul",
        "Max",
        "Min",
        "Concat",
        "Squeeze",
        "Unsqueeze",
        "Reshape",
        "Identity",
        "Neg",
    ]
)
INTEGERS = (ir.DataType.INT32, ir.DataType.INT64)
MOST_TOPK = 3840


def check_for_tensorrt(model: ir.Model) -> None:
    """GraphLintError for the first construct that TensorRT would refuse."""
    report([finding for rule in RULES for finding in rule(model.graph)])


def bounded_lengths(graph: ir.Graph) -> Iterator[Finding]:
    """A length that comes from data needs Max(length, 0) for the builder to bound it."""
    for node, length in _lengths(graph):
        if node.op_type != "Range" and _unbounded(length):  # Range never gives fewer than 0
            yield Finding(
                "unbounded length",
                name_of(node),
                f"{node.op_type} is sized by data without a lower bound; the builder fails with "
                "'dimensions have overflown'; put Max(length, 0) in front",
            )


def float_counts(graph: ir.Graph) -> Iterator[Finding]:
    """Counts are reduced in float and cast, or the builder loses their bounds."""
    for node, length in _lengths(graph):
        for value in _reached(length):
            made = value.producer()
            if made is None or not made.op_type.startswith("Reduce"):
                continue
            if made.inputs[0] is not None and _type(made.inputs[0]) in INTEGERS:
                yield Finding(
                    "integer count",
                    name_of(made),
                    f"{node.op_type} {name_of(node)} is sized by an integer {made.op_type}; the "
                    "builder fails with 'Assertion x != nullptr'; reduce in float, then cast",
                )


def tight_halves(graph: ir.Graph) -> Iterator[Finding]:
    """Half of a length is read off a strided Slice; a quotient leaves loose bounds."""
    for node, length in _lengths(graph):
        for value in _reached(length):
            made = value.producer()
            if made is None or made.op_type != "Div" or constant(made.inputs[0]) is not None:
                continue
            if _from_shape(made.inputs[0]):
                yield Finding(
                    "loose length",
                    name_of(node),
                    f"{node.op_type} is sized by the quotient {name_of(made)}; activation memory "
                    "grows severalfold; take the length of a strided Slice",
                )


def one_free_axis(graph: ir.Graph) -> Iterator[Finding]:
    """A graph whose lengths come from data needs a symbolic axis."""
    free = any(not isinstance(d, int) for v in graph.inputs if v.shape for d in v.shape)
    for node, length in _lengths(graph):
        if not free and constant(length) is None and not _from_shape(length):
            yield Finding(
                "static input",
                name_of(node),
                f"{node.op_type} is sized by data while every input axis is fixed, which does not "
                "parse; leave the batch free (a profile of 1:1:1 will do)",
            )
            return


def native_operators(graph: ir.Graph) -> Iterator[Finding]:
    """Operators that some TensorRT has no kernel for."""
    missing = {
        "NonZero": "TensorRT-RTX asks for a plugin; rank by TopK of a unique key instead",
        "Compress": "it is not supported; gather at the positions of a TopK instead",
        "Unique": "it is not supported; sort by a unique key instead",
    }
    for node in graph:
        if node.op_type in missing:
            yield Finding("operator without a kernel", name_of(node), missing[node.op_type])


def no_reduced_scatter(graph: ir.Graph) -> Iterator[Finding]:
    for node in graph:
        how = node.attributes.get("reduction") if node.op_type.startswith("Scatter") else None
        if how is not None and how.as_string() != "none":
            yield Finding(
                "scatter with a reduction",
                name_of(node),
                f"{node.op_type} with reduction '{how.as_string()}' is not supported; use a "
                "one-hot matrix product",
            )


def equal_branches(graph: ir.Graph) -> Iterator[Finding]:
    for node in graph:
        if node.op_type != "If":
            continue
        branches = [attribute.as_graph() for attribute in node.attributes.values()]
        shapes = [[str(output.shape) for output in branch.outputs] for branch in branches]
        if any(shape != shapes[0] for shape in shapes):
            yield Finding(
                "branches of different shapes",
                name_of(node),
                "If with branches of different shapes does not build; bound the lengths instead",
            )


def attention_kernels(graph: ir.Graph) -> Iterator[Finding]:
    """Opset 23's Attention builds in half precision, for more than one query."""
    for node in graph:
        if node.op_type != "Attention":
            continue
        query = node.inputs[0]
        single = query is not None and query.shape is not None and query.shape[-2] == 1
        if query is None or _type(query) in (ir.DataType.FLOAT, None) or single:
            yield Finding(
                "attention without a kernel",
                name_of(node),
                "the Attention operator in FP32, or with one query, has no kernel; use MatMul and "
                "Softmax",
            )


def attention_masks(graph: ir.Graph) -> Iterator[Finding]:
    """A mask [B, 1, 1, N] builds in TensorRT-RTX, but ONNX Runtime cannot prove it."""
    for node in graph:
        mask = node.inputs[3] if node.op_type == "Attention" and len(node.inputs) > 3 else None
        if mask is not None and mask.shape is not None and mask.shape[-2] == 1:
            yield Finding(
                "mask without queries",
                name_of(node),
                f"the attention mask {mask.name} has one row; expand it over the queries",
            )


def no_empty_tensors(graph: ir.Graph) -> Iterator[Finding]:
    """TopK and a head Slice that data sizes keep one element, or backends fail at r = max."""
    for node, length in _lengths(graph):
        tops = node.op_type == "TopK" and length is node.inputs[1]
        heads = node.op_type == "Slice" and length is node.inputs[2]
        made = length.producer()
        if not (tops or heads) or made is None or made.op_type != "Max":
            continue
        low = max((int(b.min()) for b in map(constant, made.inputs) if b is not None), default=0)
        if low < 1 and _depends_on_data(length):
            yield Finding(
                "empty tensor",
                name_of(node),
                f"{node.op_type} may keep no element; bound its length with Max(length, 1)",
            )


def small_topk(graph: ir.Graph) -> Iterator[Finding]:
    for node in graph:
        k = constant(node.inputs[1]) if node.op_type == "TopK" else None
        if k is not None and int(k.max()) > MOST_TOPK:
            yield Finding(
                "TopK too large",
                name_of(node),
                f"K = {int(k.max())} is above {MOST_TOPK}; choose a smaller --image-size",
            )


RULES: tuple[Rule, ...] = (
    bounded_lengths,
    float_counts,
    tight_halves,
    one_free_axis,
    native_operators,
    no_reduced_scatter,
    equal_branches,
    attention_kernels,
    attention_masks,
    no_empty_tensors,
    small_topk,
)


def _lengths(graph: ir.Graph) -> Iterator[tuple[ir.Node, ir.Value]]:
    for node in graph:
        for i in LENGTHS.get(node.op_type, ()):
            value = node.inputs[i] if i < len(node.inputs) else None
            if value is not None and constant(value) is None:
                yield node, value


def _unbounded(value: ir.Value) -> bool:
    """Whether data reaches this length without passing a Max with a constant >= 0."""
    made = value.producer()
    if made is None:
        return False
    if made.op_type == "Max":
        bounds = [constant(v) for v in made.inputs]
        if any(bound is not None and bound.min() >= 0 for bound in bounds):
            return False
    if made.op_type in ARITHMETIC or made.op_type == "Max":
        return any(_unbounded(v) for v in made.inputs if v is not None)
    return _from_data(made)


def _reached(value: ir.Value) -> Iterator[ir.Value]:
    """The values that a length is computed from, up to shapes and to the counts themselves."""
    pending, seen = [value], {value}
    while pending:
        current = pending.pop()
        yield current
        made = current.producer()
        walks = made is not None and (
            made.op_type in ARITHMETIC or made.op_type in ("Cast", "Floor", "Div", "Round")
        )
        if walks and made is not None:
            fresh = [v for v in made.inputs if v is not None and v not in seen]
            seen.update(fresh)
            pending.extend(fresh)


def _depends_on_data(value: ir.Value) -> bool:
    makers = (reached.producer() for reached in _reached(value))
    return any(made is not None and _from_data(made) for made in makers)


def _from_data(made: ir.Node) -> bool:
    """Whether a node turns data into a number: a reduction, or a cast of one."""
    if made.op_type.startswith("Reduce"):
        return not _from_shape(made.inputs[0])
    if made.op_type in ("Cast", "Floor", "Div", "Mul"):
        return any(
            _from_data(maker)
            for v in made.inputs
            if v is not None and (maker := v.producer()) is not None
        )
    return False


def _from_shape(value: ir.Value | None) -> bool:
    """Whether a value is computed from shapes and constants alone."""
    if value is None or constant(value) is not None:
        return True
    made = value.producer()
    if made is None:
        return False
    if made.op_type in ("Shape", "Size"):
        return True
    cheap = made.op_type in ARITHMETIC or made.op_type in (
        "Cast",
        "Floor",
        "Div",
        "Gather",
        "Slice",
    )
    return cheap and all(_from_shape(v) for v in made.inputs)


def _type(value: ir.Value) -> ir.DataType | None:
    if value.dtype is not None:
        return value.dtype
    made = value.producer()
    if made is not None and made.op_type == "Cast":
        return ir.DataType(made.attributes["to"].as_int())
    return None
