"""The twin and its ONNX graph against the eager reference, on tiny models of every kind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from atm_export.graph.saving import graph_bytes
from atm_export.inputs import Preprocessing, normalize
from atm_export.methods.bipartite.matching import GRID, grid_threshold
from atm_export.methods.bipartite.operators import similarity_limit
from atm_export.methods.bipartite.rule import with_theta
from atm_export.methods.plan import MergePlan
from atm_export.model.reference import Trace, run_reference
from atm_export.prove.margins import trace_margin
from atm_export.prove.tolerances import MARGIN
from atm_export.rewrite.twin import Twin
from tests.exports import ADAPTIVE, FIXED, VARIANTS, decided, export, exported, run_onnx
from tests.graphs import proto
from tests.tiny import (
    MEAN,
    STD,
    adaptive_plan,
    decided_images,
    random_images,
    threshold_plan,
    tiny_vit,
)

ATOL = 1e-4  # one wrong merge changes logits by 1e-2 and more
MERGING = [*ADAPTIVE, *FIXED]
BATCHES = (1, 3, 8)


def assert_same(trace: Trace, logits: Any, counts: Any, maps: Any) -> None:
    """Decisions exactly, logits within ATOL; counts [blocks], or [batch, blocks] per image."""
    counts = torch.as_tensor(np.asarray(counts))
    given = counts.unsqueeze(1) if counts.ndim == 1 else counts.T
    assert given.expand_as(trace.tokens_out).tolist() == trace.tokens_out.tolist()
    assert torch.equal(torch.as_tensor(np.asarray(maps)), trace.maps)
    logits = torch.as_tensor(np.asarray(logits))
    assert bool(torch.isfinite(trace.outputs["logits"]).all())
    torch.testing.assert_close(logits, trace.outputs["logits"], atol=ATOL, rtol=0)


def assert_onnx_same(trace: Trace, model: ir.Model, image: Tensor, prefix: int) -> None:
    out = run_onnx(model, image.numpy())
    assert_same(trace, out["logits"], out["tokens_per_block"], out["token_maps"])
    assert np.array_equal(out["patch_to_token"], trace.maps[-1][:, prefix:].numpy())


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", MERGING)
def test_twin_equals_the_reference(name: str, batch: int) -> None:
    made, given = exported(name), decided(name, batch)
    images, trace = given.images, given.trace
    with torch.inference_mode():
        logits, counts, maps = Twin(made.backbone, made.plan).eval()(images)
    assert_same(trace, logits, counts, maps)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", MERGING)
def test_onnx_equals_the_reference(name: str, batch: int) -> None:
    made, given = exported(name), decided(name, batch)
    images, trace = given.images, given.trace
    assert_onnx_same(trace, made.traced, images, made.backbone.prefix)
    logits = run_onnx(made.shipped, images.numpy())
    torch.testing.assert_close(
        torch.from_numpy(logits["logits"]), trace.outputs["logits"], atol=ATOL, rtol=0
    )


@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_plans_merge_in_every_block_that_may(name: str) -> None:
    """So that the comparisons above compare something."""
    made = exported(name)
    trace = decided(name, 8).trace
    merged = (trace.tokens_in - trace.tokens_out).double().mean(dim=1)
    for rule, mean in zip(made.plan.blocks, merged.tolist(), strict=True):
        assert (mean >= 1) == (rule is not None and (rule.theta or 0) < 1)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_r_differs_between_batches(name: str) -> None:
    made = exported(name)
    counts = set()
    for seed in range(12):
        images = random_images(1, seed, made.backbone.image_size)
        trace = run_reference(made.backbone, made.plan, images)
        counts.add(tuple(trace.tokens_out[:, 0].tolist()))
    assert len(counts) > 1


@pytest.mark.parametrize("name", ["no prefix", "frozen", "per image"])
def test_the_assembled_graph_equals_the_reference_before_any_pass(name: str) -> None:
    made, given = exported(name), decided(name, 3)
    images, trace = given.images, given.trace
    assert_onnx_same(trace, made.assembled, images, made.backbone.prefix)


def test_frozen_maximum_merges_half_of_the_tokens_at_most() -> None:
    for name, expected in {
        "frozen, r = max, no prefix": [18, 9],
        "frozen, r = 0, distilled": [38, 38, 38],
        "frozen": [32, 17, 17],
        "tome, registers": [35, 29, 23],
    }.items():
        out = run_onnx(exported(name).traced, random_images(1).numpy())
        assert out["tokens_per_block"].tolist() == expected


@pytest.mark.parametrize("name", ["frozen, r = 0, distilled", "unmerged"])
def test_without_merges_the_logits_are_the_plain_models(name: str) -> None:
    made = exported(name)
    images = random_images(3)
    out = run_onnx(made.traced, images.numpy())
    with torch.inference_mode():
        plain = made.backbone.plain(images)
    torch.testing.assert_close(torch.from_numpy(out["logits"]), plain, atol=1e-5, rtol=0)
    n = 36 + made.backbone.prefix
    assert out["tokens_per_block"].tolist() == [n] * len(made.plan.blocks)
    everyone = np.broadcast_to(np.arange(n), out["token_maps"].shape)
    assert np.array_equal(np.sort(out["token_maps"], axis=2), everyone)


@pytest.mark.parametrize("theta", [2.0, -2.0], ids=["r = 0", "r = max"])
@pytest.mark.parametrize("name", ADAPTIVE)
def test_twin_at_both_ends_of_the_threshold(name: str, theta: float) -> None:
    made = exported(name)
    plan = with_theta(made.plan, theta)
    for batch in (1, 3):
        images = decided_images(made.backbone, plan, batch)
        trace = run_reference(made.backbone, plan, images)
        with torch.inference_mode():
            logits, counts, maps = Twin(made.backbone, plan).eval()(images)
        assert_same(trace, logits, counts, maps)
        merged = int((trace.tokens_in - trace.tokens_out).sum())
        assert (merged == 0) == (theta == 2.0)


@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize("name", ["class token", "distilled", "no prefix"])
def test_thresholds_of_one_in_several_blocks(name: str, blocks: int) -> None:
    """No cosine exceeds 1: such blocks only reorder, and the next ones go on from there."""
    backbone = tiny_vit(**{**VARIANTS[name].options, "depth": 4})
    rules = adaptive_plan(backbone).blocks
    ones = threshold_plan(backbone, 1.0).blocks
    plan = MergePlan((*ones[:blocks], *rules[blocks:]), proportional=True)
    images = decided_images(backbone, plan, 3)
    trace = run_reference(backbone, plan, images)
    n = 36 + backbone.prefix
    assert trace.tokens_out[:blocks].unique().tolist() == [n]
    with torch.inference_mode():
        logits, counts, maps = Twin(backbone, plan).eval()(images)
    assert_same(trace, logits, counts, maps)


@pytest.mark.parametrize("patches", [2, 3])
@pytest.mark.parametrize("name", ["class token", "no prefix", "distilled"])
def test_models_of_very_few_tokens(name: str, patches: int) -> None:
    """As little as two patches, with more blocks than there is anything to merge."""
    options = {**VARIANTS[name].options, "img_size": (8, 8 * patches), "depth": 8}
    backbone = tiny_vit(**options)
    plan = threshold_plan(backbone, -2.0)
    images = random_images(3, size=backbone.image_size)
    trace = run_reference(backbone, plan, images)
    assert bool(torch.isfinite(trace.outputs["logits"]).all())
    assert int(trace.tokens_out.min()) >= backbone.prefix + 1
    assert int(trace.tokens_out[-1, 0]) <= backbone.prefix + 2
    with torch.inference_mode():
        logits, counts, maps = Twin(backbone, plan).eval()(images)
    assert_same(trace, logits, counts, maps)


def test_deep_models_merge_until_there_is_nothing_left_to_pair() -> None:
    """36 patches halve within 6 blocks to one, or to two where the prefix is even."""
    for name, left in (("class token", 1), ("no prefix", 2), ("distilled", 2)):
        backbone = tiny_vit(**{**VARIANTS[name].options, "depth": 8})
        plan = threshold_plan(backbone, -2.0)
        for per_image in (False, True):
            plan = replace(plan, per_image=per_image)
            images = random_images(2)
            trace = run_reference(backbone, plan, images)
            assert bool(torch.isfinite(trace.outputs["logits"]).all())
            assert int(trace.tokens_out.min()) == backbone.prefix + left
            assert [int(m.max()) for m in trace.maps[-1]] == [backbone.prefix + left - 1] * 2
            with torch.inference_mode():
                logits, counts, maps = Twin(backbone, plan).eval()(images)
            assert_same(trace, logits, counts, maps)


def flat_images(kind: str, batch: int) -> Tensor:
    """Images of one colour each, or of two halves of one colour each, [batch, 3, 48, 48]."""
    colours = torch.randn(batch, 3, 2, generator=torch.Generator().manual_seed(batch))
    images = colours[..., :1, None].expand(-1, -1, 48, 48).clone()
    if kind == "halves":
        images[..., 24:] = colours[..., 1:, None]
    return images


@pytest.mark.parametrize("kind", ["flat", "halves"])
@pytest.mark.parametrize("batch", [1, 3])
def test_ties_are_decided_alike(kind: str, batch: int) -> None:
    """Equal patches without positions: all similarities are 1, and the order alone decides."""
    made, images = exported("alike"), flat_images(kind, batch)
    trace = run_reference(made.backbone, made.plan, images)
    assert_tied(trace, batch)
    assert_onnx_same(trace, made.traced, images, made.backbone.prefix)
    with torch.inference_mode():
        logits, counts, maps = Twin(made.backbone, made.plan).eval()(images)
    assert_same(trace, logits, counts, maps)


@pytest.mark.parametrize("kind", ["flat", "halves"])
@pytest.mark.parametrize("name", ["no prefix", "distilled", "tome, registers", "per image"])
def test_ties_are_decided_alike_by_the_twin(name: str, kind: str) -> None:
    variant = VARIANTS[name]
    backbone = tiny_vit(**variant.options, positions=False)
    plan = variant.plan(backbone)
    if plan.adaptive:
        plan = with_theta(plan, 0.99)
    images = flat_images(kind, 3)
    trace = run_reference(backbone, plan, images)
    if plan.adaptive:
        assert_tied(trace, 3)
    with torch.inference_mode():
        logits, counts, maps = Twin(backbone, plan).eval()(images)
    assert_same(trace, logits, counts, maps)


def assert_tied(trace: Trace, batch: int) -> None:
    assert (trace.tokens_in[0] - trace.tokens_out[0]).tolist() == [18] * batch
    for decision in trace.decisions[0]:
        assert decision is not None
        assert decision.pairs.similarity.unique().tolist() == [GRID]


def test_a_repeated_image_gives_equal_rows() -> None:
    made = exported("class token")
    images = random_images(1).expand(5, -1, -1, -1)
    out = run_onnx(made.traced, images.numpy())
    assert np.array_equal(out["token_maps"], np.repeat(out["token_maps"][:, :1], 5, axis=1))
    assert np.abs(out["logits"] - out["logits"][:1]).max() < 1e-5


@pytest.mark.parametrize("name", ["per image", "per image, registers, avgmax pool"])
def test_per_image_answers_do_not_depend_on_the_neighbours(name: str) -> None:
    made = exported(name)
    images = decided(name, 8).images
    together = run_onnx(made.traced, images.numpy())
    alone = [run_onnx(made.traced, image.numpy()) for image in images.split(1)]
    for i, out in enumerate(alone):
        np.testing.assert_allclose(together["logits"][i], out["logits"][0], atol=1e-5)
        assert np.array_equal(together["token_maps"][:, i], out["token_maps"][:, 0])
        assert np.array_equal(together["tokens_per_block"][i], out["tokens_per_block"].flatten())
    assert len({tuple(row) for row in together["tokens_per_block"].tolist()}) > 1


def test_uint8_input_equals_normalised_floats() -> None:
    made = exported("uint8")
    how = Preprocessing(made.backbone.image_size, 1.0, "bicubic", MEAN, STD)
    proven = 0
    for seed in range(6):
        shape = (3, *made.backbone.image_size, 3)
        pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
        trace = run_reference(made.backbone, made.plan, torch.from_numpy(normalize(pixels, how)))
        if trace_margin(trace) < MARGIN:
            continue
        out = run_onnx(made.traced, pixels)
        assert_same(trace, out["logits"], out["tokens_per_block"], out["token_maps"])
        proven += 1
    assert proven >= 3


@pytest.mark.parametrize("name", ["class token", "uint8", "unmerged", "no prefix", "frozen"])
def test_inputs_and_outputs(name: str) -> None:
    made = exported(name)
    pixels: list[Any] = ["batch", 48, 48, 3] if name == "uint8" else ["batch", 3, 48, 48]
    blocks = len(made.plan.blocks)
    tokens = 36 + made.backbone.prefix
    expected = {
        "image": pixels,
        "logits": ["batch", 7],
        "tokens_per_block": [blocks],
        "token_maps": [blocks, "batch", tokens],
        "patch_to_token": ["batch", 36],
    }
    traced = proto(made.traced)
    for model in (proto(made.assembled), traced):
        onnx.checker.check_model(model, full_check=True)
        values = [*model.graph.input, *model.graph.output]
        shapes = {
            v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
            for v in values
        }
        assert shapes == expected
    kind = traced.graph.input[0].type.tensor_type.elem_type
    assert (kind == onnx.TensorProto.UINT8) == (name == "uint8")
    assert [v.name for v in made.shipped.graph.outputs] == ["logits"]


def test_the_same_model_gives_the_same_bytes() -> None:
    made = exported("uint8")
    again = export(made.backbone, made.plan, uint8=True)
    for first, second in ((made.assembled, again.assembled), (made.traced, again.traced)):
        assert graph_bytes(first) == graph_bytes(second)


def test_opsets() -> None:
    for name, variant in VARIANTS.items():
        if name in ("class token", "qk norm, layer scale, avg pool"):
            assert exported(name).traced.graph.opset_imports == {"": variant.opset}


@pytest.mark.parametrize("theta", [-1.0, -0.3, 0.0, 0.1, 0.5, 0.8765432, 0.98, 1.0])
def test_limits_cut_where_the_reference_cuts(theta: float) -> None:
    """A whole similarity lies above the limit exactly where it lies above theta."""
    nearest = round(theta * GRID)
    for similarity in range(nearest - 3, nearest + 4):
        assert (similarity > similarity_limit(theta)) == (similarity > grid_threshold(theta))
