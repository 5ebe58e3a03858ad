"""Known traps are refused with the rule, the node and the reason; good graphs are clean."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from onnx import parser

from atm_export.errors import GraphLintError
from atm_export.graph.lint import RULES, check, lint
from tests.exports import VARIANTS, exported
from tests.graphs import proto

TRAPS = {
    "custom operator": (
        "g (float[batch, 4] x) => (float[batch, 4] y) { y = com.mine.Merge (x) }",
        "y",
        "com.mine::Merge",
    ),
    "operator outside the allow-list": (
        "g (float[batch, 4] x) => (float[batch, 4] y)"
        " { i = NonZero (x)\n f = Cast <to: int = 1> (i)\n s = ReduceSum <keepdims: int = 0> (f)\n"
        " y = Add (x, s) }",
        "i",
        "NonZero",
    ),
    "scatter": (
        "g (float[batch, 4] x, int64[batch, 2] i, float[batch, 2] u) => (float[batch, 4] y)"
        " { y = ScatterElements <axis: int = 1> (x, i, u) }",
        "y",
        "reduction 'none'",
    ),
    "sort with ties": (
        "g (float[batch, 4] x) => (float[batch, 2] v, int64[batch, 2] y) <int64[1] k = {2}>"
        " { v, y = TopK (x, k) }",
        "v",
        "float key",
    ),
    "baked batch": (
        "g (float[batch, 4] x) => (float[batch, 2, 2] y) <int64[3] s = {8, 2, 2}>"
        " { y = Reshape (x, s) }",
        "y",
        "[8, 2, 2]",
    ),
    "pinned token axis": (
        "g (float[batch, 8] x) => (float[batch, 5, 1] z) <int64[3] s = {-1, 5, 1}>"
        " { p = Sigmoid (x)\n i = Cast <to: int = 7> (p)\n"
        " k = Shape <start: int = 1, end: int = 2> (x)\n"
        " v, y = TopK (i, k)\n w = Reshape (v, s)\n z = Cast <to: int = 1> (w) }",
        "w",
        "[-1, 5, 1]",
    ),
    "beyond 32 bits": (
        "g (float[batch, 4] x) => (float[batch, 2] y) <int64[1] k = {2}>"
        " { i = Cast <to: int = 7> (x)\n v, j = TopK (i, k)\n y = Cast <to: int = 1> (j) }",
        "v",
        "nothing bounds the sort key",
    ),
    "log of zero": (
        "g (float[batch, 4] x) => (float[batch, 4] y) { r = Relu (x)\n y = Log (r) }",
        "y",
        "r above 0",
    ),
}
MORE_TRAPS = {
    "scatter": (
        "g (float[batch, 4] x, int64[batch, 2] i, float[batch, 2] u) => (float[batch, 4] y)"
        ' { y = ScatterElements <axis: int = 1, reduction: string = "mul"> (x, i, u) }',
        "y",
        "reduction 'mul'",
    ),
    "baked batch": ("g (float[1, 4] x) => (float[batch, 4] y) { y = Relu (x) }", "x", "fixed at 1"),
    "log of zero": (
        "g (float[batch, 4] x) => (float[batch, 4] y) { y = Log (x) }",
        "y",
        "x above 0",
    ),
    "operator outside the allow-list": (
        "g (float[batch, 4] x) => (float[batch, 4] y) { y = Dropout (x) }",
        "y",
        "Dropout",
    ),
}
CLEAN = {
    "integer sort keys": (
        "g (float[batch, 4] x) => (int64[batch, 2] y) <int64[1] k = {2}>"
        " { p = Sigmoid (x)\n i = Cast <to: int = 7> (p)\n v, j = TopK (i, k)\n y = Identity (v) }"
    ),
    "log of sums of exponentials": (
        "g (float[batch, 4] x) => (float[batch, 1] y)"
        " { e = Exp (x)\n s = ReduceSum (e)\n y = Log (s) }"
    ),
    "log above a bound": (
        "g (float[batch, 4] x) => (float[batch, 4] y) <float tiny = {0.001}>"
        " { m = Max (x, tiny)\n y = Log (m) }"
    ),
    "free shapes": (
        "g (float[batch, 4] x) => (float[batch, 2, 2] y) <int64[3] s = {-1, 2, 2}>"
        " { y = Reshape (x, s) }"
    ),
    "shapes of constants": (
        "g (float[batch, 4] x) => (float[batch, 4] y)"
        " <float[4] c = {1, 2, 3, 4}, int64[2] s = {1, 4}>"
        " { r = Reshape (c, s)\n y = Add (x, r) }"
    ),
}


def graph(text: str) -> ir.Model:
    """A model from ONNX's own notation, nodes named after their outputs."""
    imports = '["": 20, "com.mine": 1]' if "com.mine" in text else '["": 20]'
    model = parser.parse_model(f"<ir_version: 10, opset_import: {imports}>\n{text}")
    for node in model.graph.node:
        node.name = node.output[0]
    return ir.from_proto(model)


@pytest.mark.parametrize(
    ("rule", "text", "node", "says"),
    [(rule, *trap) for traps in (TRAPS, MORE_TRAPS) for rule, trap in traps.items()],
    ids=[*TRAPS, *(f"{rule}, again" for rule in MORE_TRAPS)],
)
def test_a_trap_is_refused_with_rule_and_node(rule: str, text: str, node: str, says: str) -> None:
    model = graph(text)
    findings = lint(model)
    assert [(finding.rule, finding.node) for finding in findings] == [(rule, node)]
    assert says in findings[0].reason
    with pytest.raises(GraphLintError) as caught:
        check(model)
    assert str(caught.value).startswith(f"{rule} at node {node}: ")
    assert caught.value.exit_code == 6


def test_every_rule_has_a_trap() -> None:
    """So that a rule that never fires is noticed."""
    fired = set()
    for text, _, _ in TRAPS.values():
        nodes = graph(text)
        fired |= {rule.__name__ for rule in RULES if any(True for _ in rule(nodes.graph))}
    assert fired == {rule.__name__ for rule in RULES}


@pytest.mark.parametrize("name", CLEAN)
def test_what_is_no_trap_passes(name: str) -> None:
    assert lint(graph(CLEAN[name])) == []


def test_the_index_of_a_maximum_is_a_sort_with_ties() -> None:
    model = graph("g (float[batch, 4] x) => (int64[batch] y) { y = ArgMax <axis: int = 1> (x) }")
    assert ("sort with ties", "y") in [(f.rule, f.node) for f in lint(model)]


def test_several_traps_are_counted() -> None:
    model = graph("g (float[batch, 4] x) => (float[batch, 4] y) { l = Log (x)\n y = Log (l) }")
    with pytest.raises(GraphLintError, match=r"\(and 1 more\)"):
        check(model)


@pytest.mark.parametrize("name", VARIANTS)
def test_exports_are_clean(name: str) -> None:
    made = exported(name)
    assert lint(made.traced) == []
    assert lint(made.shipped) == []


def test_a_spoilt_export_is_refused() -> None:
    """The rules see into a whole graph: one dimension or one node is enough."""
    model = proto(exported("class token").traced)
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 2
    assert {(f.rule, f.node) for f in lint(ir.from_proto(model))} == {("baked batch", "logits")}
    model = proto(exported("class token").traced)
    node = next(n for n in model.graph.node if n.op_type == "Softmax")
    node.op_type = "Hardmax"
    assert next((f.rule, f.node) for f in lint(ir.from_proto(model))) == (
        "operator outside the allow-list",
        node.name,
    )
