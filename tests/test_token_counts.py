"""Sort keys fit 32 bits however many tokens there are: proven by the ladder, and by the lint."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper, parser

from atm_export.graph.lint import lint
from atm_export.inputs import Preprocessing
from atm_export.methods.bipartite.matching import GRID
from atm_export.methods.bipartite.operators import EMPTY, GUARD, LEAST, NOWHERE, ranking
from atm_export.methods.tokens import STRIDE, Capacity
from atm_export.prove import ladder
from atm_export.prove.inputs import cases
from tests.exports import Exported, export
from tests.graphs import proto
from tests.ladders import Climber, climb
from tests.tiny import MEAN, STD, adaptive_plan, loaded, tiny_vit

PATCH = 8
SIDES = {197: 14, 577: 24, 1025: 32, 2305: 48}  # tokens: patches a side, and the class token


@cache
def made(tokens: int, per_image: bool) -> Exported:
    side = SIDES[tokens] * PATCH
    backbone = tiny_vit(img_size=side, depth=3)

    plan = replace(adaptive_plan(backbone), per_image=per_image)
    return export(backbone, plan)


QUICK = ((197, False), (197, True), (2305, False))  # one sort key, and two


@pytest.mark.parametrize(
    ("tokens", "per_image"),
    [
        pytest.param(tokens, each, marks=() if (tokens, each) in QUICK else pytest.mark.slow)
        for tokens in SIDES
        for each in (False, True)
    ],
)
def test_the_ladder_at_many_tokens(
    tokens: int, per_image: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ladder, "cases", partial(cases, batches=(2,)))
    export = made(tokens, per_image)
    side = SIDES[tokens] * PATCH
    how = Preprocessing((side, side), 1.0, "bicubic", MEAN, STD)
    images = np.random.default_rng(3).integers(0, 256, (4, side, side, 3), dtype=np.uint8)
    result = climb(
        Climber(loaded(export.backbone, how), export.plan, export.traced, export.shipped, False),
        images,
    )
    assert result.differences == ()
    as_configured = [r.merged_tokens for r in result.rungs if r.case == "noise, batch 2"]
    everything = [r.merged_tokens for r in result.rungs if r.case.startswith("r = max, images")]
    assert 0 < min(as_configured) < min(everything)


@pytest.mark.parametrize("tokens", SIDES)
def test_no_integer_of_the_graph_exceeds_32_bits(tokens: int) -> None:
    for per_image in (False, True):
        graph = made(tokens, per_image).traced
        assert lint(graph) == []
        for tensor in proto(graph).graph.initializer:
            array = numpy_helper.to_array(tensor)
            if array.dtype.kind == "i" and array.size:
                assert array.min() >= -(2**31) and array.max() < 2**31, tensor.name


def test_special_similarities_have_their_order_and_fit_a_key() -> None:
    """Below every pair: padding's side, then prefix tokens, then slots without a token."""
    assert EMPTY * STRIDE - STRIDE > -(2**31)
    assert EMPTY < GUARD < NOWHERE < LEAST < -GRID
    assert -LEAST * STRIDE < 2**31


@pytest.mark.parametrize("tokens", [2, 197, 2046, 2047, 2048, 4608, 9217])
def test_slots_are_ranked_by_similarity_then_slot(tokens: int) -> None:
    """Ties of every kind, negative similarities, and the special values, one key or two."""
    capacity = Capacity(tokens)
    assert capacity.one_key == (tokens < 2048)
    rng = np.random.default_rng(tokens)
    values = rng.integers(-GRID, GRID + 1, (3, capacity.slots))
    values[1] = rng.integers(-2, 3, capacity.slots)  # many equal ones
    values[2] = rng.choice([GUARD, EMPTY, NOWHERE, -GRID, -1025, -1024, -1, 0, 1023, 1024, GRID])
    values[:, 0] = GUARD
    order = ranking(torch.from_numpy(values).float(), capacity).numpy()
    for row, found in zip(values, order, strict=True):
        assert found.tolist() == sorted(range(len(row)), key=lambda slot: (-row[slot], slot))


def graph(text: str) -> ir.Model:
    return ir.from_proto(parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]>\n{text}'))


METRIC = (
    "a = LpNormalization <axis: int = -1, p: int = 2> (x)\n b = Mul (a, grid)\n"
    " t = Transpose <perm: ints = [0, 2, 1]> (a)\n m = MatMul (b, t)\n s = Round (m)\n"
    " h = ReduceMax <keepdims: int = 1> (s, two)\n c = Cast <to: int = 7> (h)\n"
    " k = Mul (c, stride)\n n = Shape <start: int = 1, end: int = 2> (x)\n"
    " v, y = TopK <axis: int = 1> (k, n)\n z = Cast <to: int = 1> (y)"
)


@pytest.mark.parametrize("stride, fits", [(256, True), (1024, True), (2048, False), (8192, False)])
def test_the_bound_of_a_sort_key_is_derived(stride: int, fits: bool) -> None:
    """Similarities of unit rows on the grid, times a stride."""
    found = lint(
        graph(
            "g (float[batch, n, 4] x) => (float[batch, n, 1] z) <float grid = {1048576},"
            f" int64[1] two = {{2}}, int64 stride = {{{stride}}}> {{ {METRIC} }}"
        )
    )
    assert [(f.rule, f.node) for f in found] == (
        [] if fits else [("beyond 32 bits", "k"), ("beyond 32 bits", "v")]
    )


TRAPS = {
    "a constant": (
        "g (float[batch, 4] x) => (float[batch, 4] y) <int64[1] big = {2147483648}>"
        " { f = Cast <to: int = 1> (big)\n y = Add (x, f) }",
        "big",
    ),
    "a sum of constants": (
        "g (float[batch, 4] x) => (float[batch, 4] y)"
        " <int64[1] a = {2147483647}, int64[1] b = {1}>"
        " { s = Add (a, b)\n f = Cast <to: int = 1> (s)\n y = Add (x, f) }",
        "s",
    ),
    "a key of unknown size": (
        "g (float[batch, 4] x) => (float[batch, 2] y) <int64[1] k = {2}>"
        " { i = Cast <to: int = 7> (x)\n v, j = TopK (i, k)\n y = Cast <to: int = 1> (j) }",
        "v",
    ),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_integers_beyond_32_bits_are_refused_by_name(trap: str) -> None:
    text, node = TRAPS[trap]
    (found, *_) = lint(graph(text))
    assert (found.rule, found.node) == ("beyond 32 bits", node)
