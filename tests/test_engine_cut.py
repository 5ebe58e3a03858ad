"""A build that fails: the smallest part of the graph that fails as the whole does."""

from __future__ import annotations

import sys
from itertools import count
from typing import Any

import onnx
import onnx_ir as ir
import pytest
from onnx import helper, parser

from atm_export.backends.tensorrt import cut
from atm_export.backends.tensorrt.api import Api, load_api
from atm_export.backends.tensorrt.build import BuildFailedError, build_engine
from atm_export.backends.tensorrt.cut import failing_part, smallest, smallest_failing
from atm_export.backends.tensorrt.explain import kind_of
from atm_export.backends.tensorrt.settings import EngineSettings, Flavor
from tests.exports import exported
from tests.graphs import proto
from tests.test_trt_api import flavor_of, tiny_graph
from tests.trt_fake import SURFACES, fake

LONG = 86400.0
RTX = EngineSettings(flavor=Flavor.RTX, sms=(86,))
SMALL = """<ir_version: 10, opset_import: ["": 23]>
g (float[batch, 3, 8, 16] image) => (float[batch, n] logits) <int64[2] flat = {0, -1}>
{ [relu] a = Relu (image)
 [tanh] q = Tanh (a)
 [attend] d = Attention (q, a, image)
 [add] f = Add (d, a)
 [flatten] logits = Reshape (f, flat) }"""


@pytest.fixture
def rtx() -> Api:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    return load_api(Flavor.RTX)


def failure(model: onnx.ModelProto, api: Api) -> BuildFailedError:
    with pytest.raises(BuildFailedError) as caught:
        build_engine(ir.from_proto(model), RTX, api)
    return caught.value


def with_attention(variant: str, block: int) -> onnx.ModelProto:
    """A tiny model with an FP32 Attention, which no kernel takes, after a block's attention."""
    model = proto(exported(variant).shipped)
    model.opset_import[0].version = 23
    nodes = list(model.graph.node)
    softmax = [node for node in nodes if node.op_type == "Softmax"][block]
    product = next(node for node in nodes if softmax.output[0] in node.input)
    value, out = product.input[1], product.output[0]
    product.output[0] = "product"
    made = [
        helper.make_node("Tanh", [value], ["q"], name="q"),
        helper.make_node("Sigmoid", [value], ["k"], name="k"),
        helper.make_node("Attention", ["q", "k", value], ["attended"], name="attended"),
        helper.make_node("Add", ["attended", "product"], [out], name="added"),
    ]
    place = nodes.index(product) + 1
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:place], *made, *nodes[place:]])
    return model


@pytest.mark.parametrize("needed", [{0}, {99}, {17, 60}, {3, 4, 5}, set(range(100))], ids=len)
def test_what_is_needed_is_found_in_few_attempts(needed: set[int]) -> None:
    attempts: list[Any] = []

    def fails(nodes: Any) -> bool:
        attempts.append(nodes)
        return needed <= set(nodes)

    assert smallest(range(100), fails) == sorted(needed)
    assert len(attempts) <= 230


def test_without_a_failing_part_the_whole_is_left() -> None:
    assert smallest(range(9), lambda nodes: False) == list(range(9))


def test_the_same_failure_has_one_kind_wherever_it_is() -> None:
    parts = (
        "the build fails at {}: CHECK({}) failed at [line {}]",
        "the parser stops at node {} ({})",
    )
    for text in parts:
        assert kind_of(text.format("a.b", "x", 1)) == kind_of(text.format("block/7", "x", 22))
        assert kind_of(text.format("a.b", "x", 1)) != kind_of(text.format("a.b", "y", 1))


@pytest.mark.parametrize("surface", SURFACES, ids=lambda s: s.stem)
def test_every_version_says_what_its_parser_made(surface: Any) -> None:
    module, _ = fake(surface)
    shapes = cut._shapes(tiny_graph(), Api(flavor_of(surface), module))
    assert shapes == {"image": ("FLOAT", (-1, 3, 56, 56))}


@pytest.mark.parametrize(("variant", "block"), [("unmerged", 1), ("class token", 2)])
def test_one_node_of_hundreds_is_named(variant: str, block: int, rtx: Api) -> None:
    """The builder's own message names none; token counts before it come from data."""
    model = with_attention(variant, block)
    error = failure(model, rtx)
    assert "attended" not in str(error) and len(model.graph.node) > 160
    told: list[str] = []
    part = failing_part(ir.from_proto(model), RTX, rtx, error, told.append, seconds=LONG)
    assert part is not None and str(part) == "attended (Attention)"
    onnx.checker.check_model(part.model)
    assert kind_of(str(failure(part.model, rtx))) == kind_of(str(error))
    assert 0 < len(told) <= cut.BUILDS
    assert told[0].startswith("looking for the part that fails: ") and told[0].endswith("build 1")


def test_a_node_that_the_parser_names_is_tried_first(rtx: Api) -> None:
    model = proto(exported("class token").shipped)
    gelu = [node for node in model.graph.node if node.op_type == "Gelu"][2]
    gelu.op_type = "Det"
    told: list[str] = []
    part = failing_part(ir.from_proto(model), RTX, rtx, failure(model, rtx), told.append, LONG)
    assert str(part) == f"{gelu.name} (Det)" and len(told) == 1


def test_builds_and_time_are_bounded(rtx: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    model = parser.parse_model(SMALL)
    message = str(failure(model, rtx))
    found: list[onnx.ModelProto] = []

    def builds(seconds: float = 0.0) -> int:
        told: list[str] = []
        clock = (k * seconds for k in count())
        smallest_failing(
            model, RTX, rtx, message, found.append, told.append, clock=lambda: next(clock)
        )
        return len(told)

    assert builds() > 2
    assert [node.name for node in found[-1].graph.node] == ["attend"]
    assert builds(cut.SECONDS / 2) == 2
    monkeypatch.setattr(cut, "BUILDS", 1)
    assert builds() == 1


def test_a_search_that_crashes_finds_nothing(rtx: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    model = parser.parse_model(SMALL)
    error = failure(model, rtx)
    for program in ("/bin/false", "/no/such/python"):
        monkeypatch.setattr(sys, "executable", program)
        assert failing_part(ir.from_proto(model), RTX, rtx, error) is None
