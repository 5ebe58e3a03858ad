"""What TensorRT refuses is found before the build: one test for each known violation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from atm_export.errors import GraphLintError
from atm_export.graph.lint_tensorrt import MOST_TOPK, check_for_tensorrt
from tests.exports import VARIANTS, exported

Node = tuple[str, Sequence[str], Sequence[str], dict[str, object]]


def graph(*nodes: Node, batch: str | int = "batch", opset: int = 20) -> ir.Model:
    """x [batch, 16, 8] through `nodes`; constants: zero, one, two, far (int64 [1])."""
    constants = {"zero": 0, "one": 1, "two": 2, "far": 2**31 - 1, "many": MOST_TOPK + 1}
    held = [
        numpy_helper.from_array(np.array([value], np.int64), name)
        for name, value in constants.items()
    ]
    held.append(numpy_helper.from_array(np.array(0.5, np.float32), "half"))
    made = [
        helper.make_node(kind, list(given), list(out), name=out[0], **extra)
        for kind, given, out, extra in nodes
    ]
    info = helper.make_tensor_value_info
    model = helper.make_model(
        helper.make_graph(
            made,
            "g",
            [info("x", TensorProto.FLOAT, [batch, 16, 8])],
            [info(nodes[-1][2][0], TensorProto.FLOAT, None)],
            held,
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=10,
    )
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


COUNT: tuple[Node, ...] = (
    ("Greater", ["x", "half"], ["above"], {}),
    ("Cast", ["above"], ["ones"], {"to": TensorProto.FLOAT}),
    ("ReduceSum", ["ones"], ["sum"], {"keepdims": 0}),
    ("Cast", ["sum"], ["scalar"], {"to": TensorProto.INT64}),
    ("Unsqueeze", ["scalar", "zero"], ["r"], {}),
)
INTEGER_COUNT: tuple[Node, ...] = (
    ("Greater", ["x", "half"], ["above"], {}),
    ("Cast", ["above"], ["ones"], {"to": TensorProto.INT32}),
    ("ReduceSum", ["ones"], ["sum"], {"keepdims": 0}),
    ("Cast", ["sum"], ["scalar"], {"to": TensorProto.INT64}),
    ("Unsqueeze", ["scalar", "zero"], ["r"], {}),
    ("Max", ["r", "one"], ["some"], {}),
)


def head(end: str) -> Node:
    return ("Slice", ["x", "zero", end, "one"], ["out"], {})


def refused(model: ir.Model, reason: str) -> None:
    with pytest.raises(GraphLintError, match=reason):
        check_for_tensorrt(model)


def test_a_count_with_bounds_passes() -> None:
    check_for_tensorrt(graph(*COUNT, ("Max", ["r", "one"], ["some"], {}), head("some")))


def test_a_length_without_a_lower_bound() -> None:
    refused(graph(*COUNT, head("r")), "unbounded length at node out.*Max")


def test_a_bound_below_zero_is_none() -> None:
    sub: Node = ("Sub", ["zero", "one"], ["minus"], {})
    low: Node = ("Max", ["r", "minus"], ["some"], {})
    refused(graph(*COUNT, sub, low, head("some")), "unbounded length")


def test_a_count_reduced_in_integers() -> None:
    refused(graph(*INTEGER_COUNT, head("some")), "integer count at node sum.*float")


def test_a_half_that_is_a_quotient() -> None:
    nodes: tuple[Node, ...] = (
        ("Shape", ["x"], ["n"], {"start": 1, "end": 2}),
        ("Add", ["n", "one"], ["more"], {}),
        ("Div", ["more", "two"], ["h"], {}),
    )
    # A fixed axis would fold away; this one is the batch.
    free = (("Shape", ["x"], ["n"], {"start": 0, "end": 1}), *nodes[1:])
    refused(graph(*free, head("h")), "loose length at node out.*strided Slice")


def test_every_axis_fixed() -> None:
    nodes = (*COUNT, ("Max", ["r", "one"], ["some"], {}), head("some"))
    refused(graph(*nodes, batch=2), "static input")


@pytest.mark.parametrize("kind", ["NonZero", "Compress", "Unique"])
def test_operators_without_a_kernel(kind: str) -> None:
    given = ["x", "mask"] if kind == "Compress" else ["x"]
    mask: Node = ("Greater", ["x", "half"], ["mask"], {})
    refused(graph(mask, (kind, given, ["out"], {})), "operator without a kernel at node out")


@pytest.mark.parametrize("kind", ["ScatterElements", "ScatterND"])
def test_scatter_with_a_reduction(kind: str) -> None:
    index: Node = ("Cast", ["x"], ["at"], {"to": TensorProto.INT64})
    scatter: Node = (kind, ["x", "at", "x"], ["out"], {"reduction": "add"})
    refused(graph(index, scatter), "scatter with a reduction at node out.*one-hot")


def test_branches_of_different_shapes() -> None:
    info = helper.make_tensor_value_info
    branches = [
        helper.make_graph(
            [helper.make_node("Identity", ["x"], [f"b{n}"])],
            f"branch{n}",
            [],
            [info(f"b{n}", TensorProto.FLOAT, ["batch", n, 8])],
        )
        for n in (16, 15)
    ]
    extra = {"then_branch": branches[0], "else_branch": branches[1]}
    nodes: tuple[Node, ...] = (
        ("ReduceMax", ["x"], ["most"], {"keepdims": 0}),
        ("Greater", ["most", "half"], ["which"], {}),
        ("If", ["which"], ["out"], extra),
    )
    refused(graph(*nodes), "branches of different shapes at node out")


def test_attention_in_fp32_or_with_one_query() -> None:
    extra = {"q_num_heads": 2, "kv_num_heads": 2}
    refused(
        graph(("Attention", ["x", "x", "x"], ["out"], extra), opset=23),
        "attention without a kernel at node out",
    )
    half: Node = ("Cast", ["x"], ["low"], {"to": TensorProto.FLOAT16})
    fine = graph(half, ("Attention", ["low"] * 3, ["out"], extra), opset=23)
    check_for_tensorrt(fine)
    one: Node = ("Slice", ["low", "zero", "one", "one"], ["query"], {})
    single = graph(half, one, ("Attention", ["query", "low", "low"], ["out"], extra), opset=23)
    refused(single, "attention without a kernel")


def test_an_attention_mask_of_one_row() -> None:
    extra = {"q_num_heads": 2, "kv_num_heads": 2}
    nodes: tuple[Node, ...] = (
        ("Cast", ["x"], ["low"], {"to": TensorProto.FLOAT16}),
        ("ReduceMax", ["low", "two"], ["flat"], {"keepdims": 1}),
        ("Transpose", ["flat"], ["row"], {"perm": [0, 2, 1]}),
        ("Unsqueeze", ["row", "one"], ["mask"], {}),
        ("Attention", ["low", "low", "low", "mask"], ["out"], extra),
    )
    refused(graph(*nodes, opset=23), "mask without queries at node out")


def test_a_tensor_that_may_be_empty() -> None:
    low: Node = ("Max", ["r", "zero"], ["some"], {})
    refused(graph(*COUNT, low, head("some")), r"empty tensor at node out.*Max\(length, 1\)")


def test_a_topk_that_is_too_large() -> None:
    top: Node = ("TopK", ["x", "many"], ["out", "at"], {"axis": 1})
    refused(graph(top), f"K = {MOST_TOPK + 1} is above {MOST_TOPK}")


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_what_this_project_exports_passes(name: str) -> None:
    check_for_tensorrt(exported(name).shipped)
