"""--task dense: every patch has the token that it was merged into, in PyTorch, in the graph, in a
finished run; what cannot be meant is one line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from atm_export import demo
from atm_export.choice import Choice
from atm_export.errors import ConfigError, NonFiniteError
from atm_export.measure.data.images import load_images
from atm_export.methods.plan import MergePlan
from atm_export.model.dense import Patches
from atm_export.model.flops import unmerged_gmacs
from atm_export.model.merged_model import merged
from atm_export.model.plan import plan_for
from atm_export.model.reference import run_blocks, run_reference
from atm_export.model.vit import TimmBackbone
from atm_export.model.zoo import load_model
from atm_export.report.features import coloured_features
from atm_export.resolving import resolve
from atm_export.rewrite.twin import Twin
from atm_export.runtime import load
from atm_export.tasks.judge_patches import ByPatch, PatchLimits
from tests.exports import export, run_onnx
from tests.runs import run_command
from tests.shared_data import shared
from tests.tiny import (
    adaptive_plan,
    decided_images,
    frozen_plan,
    no_merges,
    random_images,
    tiny_vit,
)

MODEL = "timm:test_vit"


def dense(layers: tuple[int, ...] = (), **options: Any) -> TimmBackbone:
    return TimmBackbone(tiny_vit(**options).model, "tiny", patches=Patches(layers))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"class_token": True, "reg_tokens": 2, "init_values": 0.1},
        {"class_token": False, "global_pool": "avg", "fc_norm": False},
    ],
)
@torch.inference_mode()
def test_without_merging_it_is_timms_forward_intermediates(options: dict[str, Any]) -> None:
    found = dense((1, 3), **options)
    images = random_images(2)
    theirs = found.model.forward_intermediates(
        images, indices=[1, 3], norm=True, intermediates_only=True
    )
    expected = {f"patches_{i}": x.permute(0, 2, 3, 1) for i, x in zip((1, 3), theirs, strict=True)}
    plain = found.named(found.plain(images))
    ours = run_reference(found, no_merges(found), images).outputs
    assert list(ours) == ["patches_3", "patches_1"], "the deepest is the main one"
    for name, value in expected.items():
        torch.testing.assert_close(plain[name], value, atol=0, rtol=0)
        torch.testing.assert_close(ours[name], value, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_every_patch_has_the_token_that_it_was_merged_into() -> None:
    found = dense((1, 3), reg_tokens=1)
    plan, images = adaptive_plan(found), random_images(3)
    trace = run_reference(found, plan, images)
    for depth, name in ((2, "patches_1"), (4, "patches_3")):
        short = dense((depth - 1,), reg_tokens=1)
        short.model.blocks = nn.Sequential(*short.model.blocks[:depth])
        part = replace(plan, blocks=plan.blocks[:depth])
        done = run_blocks(short, part, short.embed(images))
        tokens, places = found.model.norm(done.tokens), trace.maps[depth - 1]
        assert tokens.shape[1] < found.tokens, "tokens merge"
        expected = [
            [tokens[b, places[b, found.prefix + p]] for p in range(found.patches)]
            for b in range(len(images))
        ]
        table = torch.stack([torch.stack(row) for row in expected])
        torch.testing.assert_close(trace.outputs[name].flatten(1, 2), table, atol=1e-6, rtol=0)


def plan_of(found: TimmBackbone, kind: str) -> MergePlan:
    if kind == "frozen":
        return frozen_plan(found, (6, 5))
    return replace(adaptive_plan(found), per_image=kind == "per-image")


@pytest.mark.parametrize(("kind", "layers"), [("per-image", (0, 1)), ("frozen", ())])
def test_the_graph_gives_the_references_patches(kind: str, layers: tuple[int, ...]) -> None:
    """The finished run below is adaptive."""
    found = dense(layers, depth=2)
    plan = plan_of(found, kind)
    made = export(found, plan)
    for batch in (1, 3):
        images = decided_images(found, plan, batch)
        trace = run_reference(found, plan, images)
        out = run_onnx(made.traced, images.numpy())
        for name, value in trace.outputs.items():
            assert out[name].shape == (batch, 6, 6, 48)
            np.testing.assert_allclose(out[name], value.numpy(), atol=2e-5)
    operators = {node.domain for node in made.traced.graph}
    assert operators == {""}, "standard operators alone"


def test_real_weights_twin_and_reference_agree() -> None:
    weights = str(shared("data", "weights", "deit_tiny_patch16_224.safetensors"))
    config = resolve(Choice(model="deit_t", weights=weights, task="dense", layers="5,11"))
    model = load_model(config.model)
    backbone, plan = model.backbone, plan_for(model.backbone, config.method)
    images = model.tensor(load_images(None, model.preprocessing).pixels[:2])
    trace = run_reference(backbone, plan, images)
    with torch.inference_mode():
        answer, _, maps = Twin(backbone, plan).eval()(images)
    assert torch.equal(maps, trace.maps) and int(trace.tokens_out[-1, 0]) < 150
    for spec, value in zip(backbone.outputs, answer, strict=True):
        assert spec.shape == ("batch", 14, 14, 192)
        gap = spec.rule.differences(value.numpy(), trace.outputs[spec.name].numpy())
        assert bool((gap <= spec.tolerance.allowed).all()), spec.name


def test_in_pytorch_it_merges_and_learns() -> None:
    found = dense()
    model = merged(found, "tome", r=4)
    features = model(random_images(2))
    assert features.shape == (2, 6, 6, 48)
    found.model.requires_grad_(True)
    model(random_images(2)).square().mean().backward()
    assert float(found.model.blocks[0].attn.qkv.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize(
    ("model", "options", "told"),
    [
        (MODEL, {"layers": "99"}, "--layers 99: .* 0 to 5"),
        (MODEL, {"layers": "1,x"}, "layers"),
        (MODEL, {"layers": "1,1"}, "--layers names 1 twice"),
        (MODEL, {"layers": "1", "task": "embed"}, "--layers belongs to --task dense"),
        (MODEL, {"method": "evit", "settings": ("keep=0.7",)}, "evit drops patches"),
        (MODEL, {"normalize": True}, "--normalize belongs to --task embed"),
        ("demo", {"weights": "pretrained"}, "--task dense: demo has the task 'classify'"),
    ],
)
def test_what_cannot_be_meant_is_one_line(model: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        given = {"weights": "random", "task": "dense", **options}
        config = resolve(Choice(model=model, **given))
        plan_for(load_model(config.model).backbone, config.method)
    assert "\n" not in str(caught.value)


def test_blocks_behind_the_deepest_cost_nothing() -> None:
    def gmacs(*layers: int) -> float:
        return unmerged_gmacs(dense(layers))

    assert gmacs(1) < gmacs(1, 2) == gmacs(2) < gmacs() == gmacs(3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dense") / "run"
    point = ("--alpha", "0.8", "--beta", "0.05", "--theta-min", "0.6", "--merge-blocks", "2,3")
    size = ("--image-size", "64")
    command = (MODEL, "--weights", "random", "--task", "dense", "--layers", "1,2", *size, *point)
    run_command(*command, "--trace", "--no-benchmark", "--out", out)
    return out


def test_a_run_states_shows_and_proves_its_patches(run: Path, tmp_path: Path) -> None:
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["status"] == "proven" and manifest["labels"] is None
    for name in ("patches_2", "patches_1"):
        shown = manifest["interface"]["outputs"][name]
        assert shown == {"shape": ["batch", 4, 4, 64], "dtype": "float32"}
    graph = onnx.load(run / "model.onnx").graph
    assert [o.name for o in graph.output][:2] == ["patches_2", "patches_1"]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Features of patches" in page and "cosine of patches_2 with unmerged" in page
    run_command("verify", run)
    pictures, _ = demo.heldout()
    file = tmp_path / "digit.png"
    pictures[0].save(file)
    run_command("visualize", run, file, "--out", tmp_path / "drawn")
    with Image.open(tmp_path / "drawn" / "digit-features.png") as drawn:
        assert drawn.width > 3 * drawn.height
    found = load(run).predict(pictures[:2])
    assert found.shape == (2, 4, 4, 64)


def test_evaluate_judges_every_patch(run: Path, digits: Path, tmp_path: Path) -> None:
    few = ("--imagenet", digits, "--workers", "0", "--limit", "6")
    told = run_command("evaluate", run, *few)
    assert "median of all patches" in told
    facts = json.loads((run / "evaluation-onnxruntime.json").read_text(encoding="utf-8"))
    assert facts["task"] == "dense" and 0 < facts["cosine"]["median"] < 1
    run_command("evaluate", run, *few, "--min-cosine", "1", code=1)
    run_command("evaluate", run, *few, "--no-unmerged")
    out = tmp_path / "rows.parquet"
    run_command("predict", run, "--images", digits, "--out", out, code=2)


def test_the_judge_sees_single_patches() -> None:
    judge, draw = ByPatch(), np.random.default_rng(0)
    plain = draw.standard_normal((3, 2, 5, 8)).astype(np.float32)
    ours = plain.copy()
    ours[1, 0, 3] *= -2
    facts = judge.trial(ours, plain, None)
    assert facts["cosine"] == pytest.approx(1) and facts["worst_percent"] < 1
    assert judge.agrees(ours, plain).tolist() == [True, False, True]
    assert judge.distances(ours, plain) == pytest.approx([0, 0.2, 0], abs=1e-6)
    kept, others = judge.beside(ours, plain)
    assert kept.shape == (3, 10) and others is not None
    assert np.array_equal(judge.unpacked(judge.packed(kept)), kept)
    assert judge.evaluation(kept, others, [])["cosine"]["least"] == pytest.approx(-1)
    assert PatchLimits().lost(-plain, plain, 3) and not PatchLimits().lost(ours, plain, 3)
    ours[2, 1, 1] = 0
    with pytest.raises(NonFiniteError, match="patch of image 2"):
        judge.reading(ours)


def test_colours_are_of_the_unmerged_axes_and_their_signs_stay() -> None:
    plain = np.random.default_rng(1).standard_normal((4, 4, 6))
    plain[:2] += 5 * np.eye(6)[0]
    one, same = coloured_features(plain, plain)
    assert one.shape == (4, 4, 3) and one.dtype == np.uint8 and np.array_equal(one, same)
    assert one[:2, :, 0].min() > one[2:, :, 0].max(), "the largest difference is red"
    _, flat = coloured_features(plain, np.broadcast_to(plain[0, 0], plain.shape))
    assert len(np.unique(flat.reshape(-1, 3), axis=0)) == 1
