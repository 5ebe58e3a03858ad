"""Precisions written into the graph: what goes low, what stays high, and what it costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from atm_export.backends.onnxruntime.runner import OnnxRuntimeRunner
from atm_export.errors import ParityError
from atm_export.graph.lint import lint
from atm_export.graph.lint_tensorrt import check_for_tensorrt
from atm_export.graph.optimize import emulated, quantized, with_outputs, with_precision
from atm_export.graph.saving import graph_bytes, in_memory
from atm_export.prove.calibration import linear_inputs, ranges
from atm_export.prove.intervals import Share
from atm_export.prove.matching import lowered_matching, require_matching
from atm_export.prove.precision import Pair, compare_precision, judge
from atm_export.rewrite.names import RULE, SIGNAL
from tests.exports import VARIANTS, decided, exported
from tests.graphs import proto
from tests.lowered import lowering
from tests.tiny import spec_of

SPECS = (spec_of(10),)

HALF, BRAIN, FLOAT = (
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.FLOAT,
)
MATCHING = {"LpNormalization", "Round", "Log", "LayerNormalization", "Softmax", "ReduceSum"}


def types_of(model: ir.Model) -> dict[str, int]:
    """Element type of every value, inferred from the graph alone."""
    bare = proto(model)
    del bare.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(bare, strict_mode=True).graph
    known = {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.output)}
    known |= {v.name: v.type.tensor_type.elem_type for v in inferred.input}
    return known | {t.name: t.data_type for t in inferred.initializer}


def weighs(node: onnx.NodeProto, model: ir.Model) -> bool:
    """Whether the node multiplies by a weight."""
    weights = set(model.graph.initializers)
    return node.op_type in ("Gemm", "MatMul") and bool(weights & set(node.input[:2]))


@pytest.mark.parametrize("name", sorted(VARIANTS))
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_typed_graphs_are_valid_and_keep_matching_in_fp32(name: str, precision: str) -> None:
    low = HALF if precision == "fp16" else BRAIN
    typed = with_precision(exported(name).traced, precision)
    onnx.checker.check_model(proto(typed), full_check=True)
    assert lint(typed) == []
    check_for_tensorrt(typed)
    types = types_of(typed)
    for node in proto(typed).graph.node:
        kinds = {types[value] for value in (*node.input, *node.output) if value in types}
        if node.op_type in MATCHING:
            assert low not in kinds, f"{node.op_type} {node.name}"
        if weighs(node, typed):
            assert kinds == {low}, node.name
    assert types["logits"] == FLOAT
    assert [v.name for v in typed.graph.outputs] == [
        v.name for v in exported(name).traced.graph.outputs
    ]


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_a_lowered_matching_is_seen_in_the_types(name: str) -> None:
    """Honest graphs have none; an fp16 matching is refused, whoever decides the counts."""
    honest = with_precision(exported(name).traced, "fp16")
    assert lowered_matching(honest) == []
    require_matching(honest, "fp16")
    with lowering():
        lowered = with_precision(exported(name).traced, "fp16")
    if exported(name).plan.merges and any(n.op_type == "TopK" for n in lowered.graph):
        with pytest.raises(ParityError, match="fp16 lowers the matching"):
            require_matching(lowered, "fp16")
    else:
        assert lowered_matching(lowered) == []


def test_tags_of_rules_are_placed_and_never_saved() -> None:
    traced = exported("class token").traced
    tagged = {
        tag: [node.op_type for node in traced.graph if tag in node.metadata_props]
        for tag in (RULE, SIGNAL)
    }
    assert {"LpNormalization", "TopK", "Round"} <= set(tagged[RULE])
    assert "Softmax" not in tagged[RULE] and "Gelu" not in tagged[RULE]
    assert set(tagged[SIGNAL]) == {"Reshape", "Add"}  # keys by heads, and the residual stream
    saved = onnx.load_from_string(graph_bytes(traced))
    assert not any(node.metadata_props for node in saved.graph.node)


def test_a_matching_whose_beginning_is_unknown_is_refused() -> None:
    """Without its tag the way back leads into layers that are low."""
    typed = with_precision(exported("class token").traced, "fp16")
    assert lowered_matching(typed) == []
    for node in typed.graph:
        if node.op_type in ("Reshape", "Add"):
            node.metadata_props.pop(SIGNAL, None)
    with pytest.raises(ParityError, match="fp16 lowers the matching"):
        require_matching(typed, "fp16")


def test_similarities_are_fp32_products() -> None:
    typed = with_precision(exported("class token").traced, "fp16")
    types = types_of(typed)
    nodes = proto(typed).graph.node
    makers = {out: node for node in nodes for out in node.output}
    rounds = [node for node in nodes if node.op_type == "Round"]
    assert len(rounds) == 3
    for node in rounds:
        product = makers[node.input[0]]
        assert product.op_type == "MatMul"
        assert {types[value] for value in product.input} == {FLOAT}


@pytest.mark.parametrize("name", ["class token", "per image", "uint8", "frozen"])
def test_fp16_stays_close_in_onnx_runtime(name: str) -> None:
    """The typed graph itself runs, and so does its emulation, within what 11 bits allow."""
    made, batch = exported(name), decided(name, 3)
    feed = batch.images.numpy()
    if VARIANTS[name].uint8:
        feed = np.random.default_rng(0).integers(0, 256, (3, 48, 48, 3), dtype=np.uint8)
    with OnnxRuntimeRunner(in_memory(made.traced)) as runner:
        expected = runner.run(feed)["logits"]
    typed = with_precision(made.traced, "fp16")
    spread = float(np.ptp(expected))
    for graph in (typed, emulated(typed, "fp16")):
        with OnnxRuntimeRunner(in_memory(graph), optimizations="none") as runner:
            found = runner.run(feed)["logits"]
        assert found.dtype == np.float32
        assert 0 < np.abs(found - expected).max() < 0.05 * spread


def test_emulation_rounds_every_low_value() -> None:
    """Logits of the emulated graph lie on the grid of the low type."""
    typed = with_precision(exported("class token").traced, "bf16")
    with OnnxRuntimeRunner(in_memory(emulated(typed, "bf16")), optimizations="none") as runner:
        logits = runner.run(decided("class token", 3).images.numpy())["logits"]
    bits = np.ascontiguousarray(logits).view(np.uint32)
    assert not (bits & 0xFFFF).any()


def test_a_constant_that_does_not_fit_is_an_error_and_never_infinite() -> None:
    model = exported("class token").traced.clone()
    weight = next(v for n, v in model.graph.initializers.items() if n.endswith("fc1.weight.T"))
    assert weight.const_value is not None
    weight.const_value = ir.tensor(weight.const_value.numpy() * 1e6, name=weight.name)
    with pytest.raises(OverflowError, match=r"fc1.weight.T does not fit FLOAT16"):
        with_precision(model, "fp16")


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_quantized_graphs_are_calibrated_and_close(precision: str) -> None:
    made = exported("class token")
    feeds = [decided("class token", 3).images.numpy()]
    layers = linear_inputs(made.traced)
    assert layers and not any(".k.weight" in name or "head" in name for name in layers)
    found = ranges(made.traced, layers, feeds)
    assert all(0 < clipped <= most for clipped, most in found.values())
    typed = quantized(with_precision(made.traced, "fp16"), found, precision)
    onnx.checker.check_model(proto(typed), full_check=True)
    assert lint(typed) == []
    pairs = [node.op_type for node in typed.graph]
    assert pairs.count("DequantizeLinear") > len(layers)
    kept = [
        n for n in proto(typed).graph.node if n.op_type == "MatMul" and ".k.weight" in n.input[1]
    ]
    assert kept and not any(n.input[1].endswith(".dq") for n in kept)
    small = len(graph_bytes(typed)) / len(graph_bytes(made.traced))
    assert small < 0.6
    proof = compare_precision(made.traced, emulated(typed, "fp16"), feeds, precision, SPECS)
    assert 0.9 < proof.cosine < 1.0 and proof.max_abs > 0


def test_a_ruined_graph_is_not_within_the_tolerance() -> None:
    made = exported("class token")
    feeds = [decided("class token", 3).images.numpy()]
    proof = compare_precision(made.traced, made.traced, feeds, "fp32", SPECS)
    assert proof.within and proof.max_abs < 1e-4 and proof.counts_that_differ == 0
    proof.require()
    ruined = made.traced.clone()
    weight = next(v for n, v in ruined.graph.initializers.items() if n.startswith("head."))
    assert weight.const_value is not None
    weight.const_value = ir.tensor(-weight.const_value.numpy(), name=weight.name)
    proof = compare_precision(made.traced, ruined, feeds, "fp16", SPECS)
    assert not proof.within
    with pytest.raises(ParityError, match="fp16 changes the model too much: logits cosine"):
        proof.require()
    facts: dict[str, Any] = proof.facts()
    assert facts["images"] == 3 and facts["tolerance"]["reason"]


def rows(a: np.ndarray, b: np.ndarray) -> list[Pair]:
    """Logits of reference and typed graph as `judge` takes them."""
    return [(spec_of(a.shape[1]), a, b)]


def turned(images: int, cosine: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits [images, 2], and the same with `count` of them turned by an angle; top-1 stays."""
    a = np.tile([3.0, 0.0], (images, 1))
    b = a.copy()
    b[:count] = 3 * np.array([cosine, (1 - cosine**2) ** 0.5])
    return a, b


@pytest.mark.parametrize(
    ("count", "cosine", "failed"),
    [
        (0, 1.0, ""),
        (6, 0.95, ""),
        (
            7,
            0.95,
            "logits cosine 0.98 is reached by 25 of 32 (95 % interval 61.2 to 89.0 %), "
            "not nine in ten",
        ),
        (1, 0.89, "logits cosine 0.89000 of the worst image is below 0.9"),
    ],
)
def test_single_images_may_differ_but_not_many_nor_much(
    count: int, cosine: float, failed: str
) -> None:
    """A share of images that excludes nine in ten breaks the tolerance; one case never does."""
    counts = np.full(48, 100.0)
    proof = judge("fp16", rows(*turned(32, cosine, count)), counts, counts, 8)
    assert proof.failed == failed
    assert proof.within == (not failed)
    assert proof.least == pytest.approx(cosine) and proof.top1 == Share(32, 32)
    assert proof.reached == Share(32 - count, 32) and proof.facts()["failed"] == failed


def flipped(images: int, flips: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits [images, 3] whose first two classes change places in `flips` images; cosines stay
    above every bound."""
    a = np.tile([3.2, 2.9, 0.0], (images, 1))
    b = a.copy()
    b[:flips] = [2.9, 3.2, 0.0]
    return a, b


@pytest.mark.parametrize(("images", "flips", "within"), [(19, 1, True), (19, 2, False)])
def test_one_flip_of_nineteen_is_no_verdict_and_two_are(
    images: int, flips: int, within: bool
) -> None:
    counts = np.full(48, 100.0)
    proof = judge("fp16", rows(*flipped(images, flips)), counts, counts, 8)
    assert proof.within is within
    assert proof.top1 == Share(images - flips, images)
    facts = proof.facts()["top1_agreement"]
    assert (facts["hits"], facts["of"]) == (images - flips, images)
    if not within:
        assert proof.failed == (
            "top-1 agreement 17 of 19 (95 % interval 68.6 to 97.1 %) is below 98%"
        )


def test_many_images_are_judged_as_closely_as_they_allow() -> None:
    counts = np.full(48, 100.0)
    assert judge("fp16", rows(*flipped(1000, 20)), counts, counts, 8).within
    assert not judge("fp16", rows(*flipped(1000, 40)), counts, counts, 8).within


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["reference", "typed"])
def test_what_is_not_a_number_is_never_within(broken: float, side: str) -> None:
    counts = np.full(48, 100.0)
    a, b = turned(32, 1.0, 0)
    for part in (slice(0, 1), slice(None)):
        x, y = a.copy(), b.copy()
        (x if side == "reference" else y)[part, 0] = broken
        with np.errstate(invalid="ignore"):
            proof = judge("int8", rows(x, y), counts, counts, 8)
        assert not proof.within and "logits are not finite" in proof.failed
        with pytest.raises(ParityError):
            proof.require()


def test_thresholds_that_move_are_seen_as_tokens_that_differ() -> None:
    made = exported("class token")
    moved = made.traced.clone()
    for name, value in moved.graph.initializers.items():
        if name.endswith(".limit") and value.const_value is not None:
            limit = value.const_value.numpy()
            value.const_value = ir.tensor(np.full_like(limit, np.iinfo(limit.dtype).max), name=name)
    feeds = [decided("class token", 3).images.numpy()]
    proof = compare_precision(made.traced, moved, feeds, "fp16", SPECS)
    assert proof.tokens.hits > 0.03 * proof.tokens.of and "tokens that differ" in proof.failed


def test_a_typed_graph_leaves_the_given_one_alone() -> None:
    traced = exported("class token").traced
    before = graph_bytes(traced)
    for precision in ("fp16", "bf16"):
        typed = with_precision(traced, precision)
        whole = graph_bytes(typed)
        emulated(typed, precision)
        quantized(typed, dict.fromkeys(linear_inputs(typed), (1.0, 1.0)), "int8")
        lowered_matching(typed)
        assert graph_bytes(typed) == whole
    assert graph_bytes(traced) == before


def test_a_typed_graph_ships_without_its_trace() -> None:
    typed = with_precision(exported("class token").traced, "fp16")
    shipped = with_outputs(typed, ["logits"])
    assert [value.name for value in shipped.graph.outputs] == ["logits"]
    assert len(shipped.graph) < len(typed.graph)
