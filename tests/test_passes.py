"""Each graph pass fires, keeps the numbers, and says when it has nothing to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

from atm_export.graph.optimize import Fixpoint, FoldConstants, optimize, with_facts, with_outputs
from atm_export.graph.passes.fold_weights import FoldTransposedWeights
from atm_export.graph.passes.keep_outputs import KeepOutputs
from atm_export.graph.passes.name_nodes import NameNodes
from atm_export.graph.passes.one_batch import OneBatch
from atm_export.graph.passes.short_slices import ShortSlices
from atm_export.graph.passes.stamp import Stamp
from atm_export.graph.saving import graph_bytes
from tests.exports import exported
from tests.graphs import proto
from tests.tiny import random_images

Pass = Callable[[ir.Model], Any]


def graph(text: str) -> onnx.ModelProto:
    """A model from ONNX's own notation."""
    return parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]>\n{text}')


def run(model: onnx.ModelProto, **feeds: np.ndarray) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, feeds))


def apply(step: Pass, model: onnx.ModelProto) -> tuple[onnx.ModelProto, bool]:
    """The model after the pass, and whether the pass says that it fired."""
    result = step(ir.from_proto(model))
    return ir.to_proto(result.model), bool(result.modified)


def kinds(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


SLICED = """g (float[N, 4] x) => (float[N, 3] y, float[N, 4] z)
<int64[1] first = {1}, int64[1] axis = {1}, int64[1] all = {9223372036854775807},
 int64[1] back = {-1}, int64[1] start = {-9223372036854775808}>
{
    y = Slice (x, first, all, axis)
    z = Slice (x, all, start, axis, back)
}"""


def test_slices_to_the_end_stay_within_32_bits() -> None:
    model = graph(SLICED)
    short, fired = apply(ShortSlices(), model)
    assert fired
    assert not apply(ShortSlices(), short)[1]
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    for made, wanted in zip(run(short, x=x), (x[:, 1:], x[:, ::-1]), strict=True):
        assert np.array_equal(made, wanted)
    ends = {i.name: numpy_helper.to_array(i) for i in short.graph.initializer}
    for node in short.graph.node:
        assert all(abs(int(ends[name][0])) <= 2**31 for name in node.input[1:3])


TRANSPOSED = """g (float[N, 2] x) => (float[N, 3] y, float[N, 3] z)
<float[3, 2] w = {1, 2, 3, 4, 5, 6}>
{
    t = Transpose <perm: ints = [1, 0]> (w)
    y = MatMul (x, t)
    u = Transpose (w)
    z = MatMul (x, u)
}"""
TWICE = """g (float[N, 1, 1, 1] x) => (float[N, 3, 2, 1] y, float[N, 1, 3, 2] z)
<float[1, 2, 3] w = {1, 2, 3, 4, 5, 6}>
{
    t = Transpose <perm: ints = [2, 1, 0]> (w)
    y = Add (x, t)
    u = Transpose <perm: ints = [0, 2, 1]> (w)
    z = Add (x, u)
}"""
RESHAPES = """g (float[N, 6] x) => (float[N, 6] y)
<float[N, 6] a, int64[3] apart = {-1, 3, 2}, int64[2] back = {-1, 6}>
{
    a = Relu (x)
    b = Reshape (a, apart)
    c = Reshape (b, back)
    y = Neg (c)
}"""
BATCHES = """g (float[N, 6] x) => (float[M, 3] y, int64[1] z)
<int64[1] three = {3}, int64[1] zero = {0}>
{
    a = Relu (x)
    n = Shape <start: int = 0, end: int = 1> (a)
    m = Shape <start: int = 0, end: int = 1> (x)
    s = Concat <axis: int = 0> (n, three)
    b = ReduceMax <keepdims: int = 1> (a)
    y = Expand (b, s)
    z = Add (m, zero)
}"""
CONSTANTS = """g (float[N, 2] x) => (float[N, 2] y)
<float[2] a = {1, 2}, float[2] b = {3, 5}>
{
    c = Mul (a, b)
    y = Add (x, c)
}"""
OUTPUTS = """g (float[N, 2] x) => (float[N, 2] y, float[N, 2] z)
{
    a = Relu (x)
    y = Neg (a)
    b = Exp (x)
    z = Neg (b)
}"""

FIRING: dict[str, tuple[Pass, str, list[str]]] = {
    "fold weights": (FoldTransposedWeights(), TRANSPOSED, ["MatMul", "MatMul"]),
    "fold constants": (FoldConstants(), CONSTANTS, ["Add"]),
}
IDLE: dict[str, tuple[Pass, str]] = {
    "fold weights": (FoldTransposedWeights(), RESHAPES),
    "one batch": (OneBatch(), RESHAPES),
    "fold constants": (FoldConstants(), OUTPUTS),
    "keep outputs": (KeepOutputs(["y", "z"]), OUTPUTS),
}


def feed_of(model: onnx.ModelProto) -> np.ndarray:
    _, *rest = model.graph.input[0].type.tensor_type.shape.dim
    shape = (5, *(dim.dim_value for dim in rest))
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def assert_same_numbers(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    x = feed_of(before)
    for first, second in zip(run(before, x=x), run(after, x=x), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("name", FIRING)
def test_fires_keeps_the_numbers_and_then_rests(name: str) -> None:
    step, text, left = FIRING[name]
    before = graph(text)
    after, modified = apply(step, before)
    assert modified
    assert kinds(after) == left
    assert_same_numbers(before, after)
    again, modified = apply(step, after)
    assert not modified
    assert kinds(again) == left


@pytest.mark.parametrize("name", IDLE)
def test_leaves_alone_what_is_not_its_business(name: str) -> None:
    step, text = IDLE[name]
    before = graph(text)
    after, modified = apply(step, before)
    assert not modified
    assert kinds(after) == kinds(before)


def test_one_weight_transposed_in_several_ways() -> None:
    before = graph(TWICE)
    after, modified = apply(FoldTransposedWeights(), before)
    assert modified
    assert "Transpose" not in kinds(after)
    assert_same_numbers(before, after)


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (
            FoldTransposedWeights(),
            "g (float[N, 2] x) => (float[2, 1] y, float[N, 2] z) <float[1, 2] w = {1, 2}>"
            " { y = Transpose (w)\n z = Add (x, w) }",
        ),
        (
            OneBatch(),
            "g (float[N, 2] x) => (int64[1] y)"
            " { r = Relu (x)\n y = Shape <start: int = 0, end: int = 1> (r) }",
        ),
    ],
    ids=["fold weights", "one batch"],
)
def test_what_a_pass_would_remove_may_be_an_output(step: Pass, text: str) -> None:
    before = graph(text)
    after, _ = apply(step, before)
    assert [v.name for v in after.graph.output] == [v.name for v in before.graph.output]
    assert_same_numbers(before, after)


def test_one_batch_reads_the_input_alone() -> None:
    before = graph(BATCHES)
    after, modified = apply(OneBatch(), before)
    assert modified
    shapes = [node for node in after.graph.node if node.op_type == "Shape"]
    assert [list(node.input) for node in shapes] == [["x"]]
    assert_same_numbers(before, after)


def test_one_batch_says_that_it_fired_on_a_single_reader() -> None:
    before = graph(
        "g (float[N, 2] x) => (int64[1] y) <int64[1] zero = {0}>"
        " { r = Relu (x)\n n = Shape <start: int = 0, end: int = 1> (r)\n y = Add (n, zero) }"
    )
    after, modified = apply(OneBatch(), before)
    (shape,) = (node for node in after.graph.node if node.op_type == "Shape")
    assert modified and list(shape.input) == ["x"]
    assert_same_numbers(before, after)
    assert not apply(OneBatch(), after)[1]


def test_keep_outputs_drops_what_only_the_others_need() -> None:
    before = graph(OUTPUTS)
    after, modified = apply(KeepOutputs(["z"]), before)
    assert modified
    assert [value.name for value in after.graph.output] == ["z"]
    assert kinds(after) == ["Exp", "Neg"]
    x = feed_of(before)
    np.testing.assert_array_equal(run(after, x=x)[0], run(before, x=x)[1])


def test_names_come_from_the_first_output() -> None:
    before = graph(RESHAPES)
    for node in before.graph.node:
        node.doc_string = "a note"
    after, modified = apply(NameNodes(), before)
    assert modified
    assert [node.name for node in after.graph.node] == ["a", "b", "c", "y"]
    assert not any(node.doc_string for node in after.graph.node)
    assert_same_numbers(before, after)
    assert not apply(NameNodes(), after)[1]


def test_stamp_writes_json_once() -> None:
    facts = {"model": "tiny", "labels": ["a", "b"], "point": {"alpha": 1.0}, "none": None}
    after, modified = apply(Stamp(facts), graph(RESHAPES))
    assert modified
    found = {p.key: p.value for p in after.metadata_props}
    assert found.pop("atm_export.model") == "tiny"
    assert {k.removeprefix("atm_export."): json.loads(v) for k, v in found.items()} == {
        k: v for k, v in facts.items() if k != "model"
    }
    assert not apply(Stamp(facts), after)[1]
    changed, modified = apply(Stamp({"model": "other"}), after)
    assert modified
    assert {p.key: p.value for p in changed.metadata_props}["atm_export.model"] == "other"


@pytest.mark.parametrize("name", ["class token", "per image", "frozen"])
def test_optimising_an_export_keeps_its_outputs(name: str) -> None:
    made = exported(name)
    assembled, traced = proto(made.assembled), proto(made.traced)
    image = random_images(3).numpy()
    before = dict(zip(output_names(assembled), run(assembled, image=image), strict=True))
    after = dict(zip(output_names(traced), run(traced, image=image), strict=True))
    assert before.keys() == after.keys()
    for key, values in before.items():
        if values.dtype == np.int64:
            np.testing.assert_array_equal(after[key], values)
        else:
            np.testing.assert_allclose(after[key], values, atol=1e-5)
    assert len(traced.graph.node) < len(assembled.graph.node)


def output_names(model: onnx.ModelProto) -> list[str]:
    return [value.name for value in model.graph.output]


def test_optimising_twice_changes_nothing_more() -> None:
    traced = exported("class token").traced
    again = optimize(traced)
    assert sorted(kinds(proto(again))) == sorted(kinds(proto(traced)))


def test_an_optimised_export_has_no_transposed_weights_and_reads_the_batch_once() -> None:
    traced = proto(exported("class token").traced)
    constants = {tensor.name for tensor in traced.graph.initializer}
    for node in traced.graph.node:
        assert not (node.op_type == "Transpose" and node.input[0] in constants), node.name
        assert node.name == node.output[0]
    readers = [n for n in traced.graph.node if n.op_type == "Shape" and attributes(n) == (0, 1)]
    assert [list(node.input) for node in readers] == [["image"]]


def attributes(node: onnx.NodeProto) -> tuple[int, int | None]:
    """start and end of a Shape node."""
    found = {a.name: a.i for a in node.attribute}
    return found.get("start", 0), found.get("end")


def test_with_outputs_and_with_facts_leave_the_given_model_alone() -> None:
    traced = exported("frozen").traced
    before = graph_bytes(traced)
    shipped = with_facts(with_outputs(traced, ["logits"]), {"model": "tiny"})
    assert graph_bytes(traced) == before
    assert output_names(proto(shipped)) == ["logits"]
    assert len(shipped.graph) < len(traced.graph)


class Counted(ir.passes.InPlacePass):
    """Modifies the model so many times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.left, self.calls = times, 0

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        self.calls += 1
        self.left -= 1
        return ir.passes.PassResult(model, modified=self.left >= 0)


def test_a_fixpoint_ends_where_nothing_is_left_to_do() -> None:
    model = exported("class token").assembled.clone()
    first, last = Counted(0), Counted(5)
    result = Fixpoint(first, last)(model)
    assert result.modified and (first.calls, last.calls) == (6, 6)
    assert not Fixpoint(first, last)(model).modified
    with pytest.raises(Exception, match="have not come to an end"):
        Fixpoint(Counted(10**6))(model)
