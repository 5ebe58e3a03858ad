"""Zero-TPrune's precursor: the released importance stage's tokens and logits, and its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from atm_export.errors import ConfigError, UnsupportedModelError
from atm_export.methods.given import settings_of
from atm_export.methods.zerotprune import STEPS, Zerotprune, ZerotpruneSettings
from atm_export.model.plan import plan_for, shape_of
from atm_export.model.reference import attention, run_reference
from tests import method_goldens as goldens
from tests.exports import export, run_onnx
from tests.families import prove
from tests.runs import run_command
from tests.tiny import random_images, tiny_vit

GOLDEN = "zerotprune_istage"
SETTINGS = {
    "p258": ZerotpruneSettings(),
    "p258_9to11": ZerotpruneSettings(
        blocks=(2, 5, 8, 9, 10, 11), keep=(0.8, 0.8, 0.7, 0.7, 0.7, 0.7)
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_reference_equals_the_released_code(name: str, all_cores: None) -> None:
    """That prunes behind the MLP, so that its counts are those that enter the next block."""
    expected = goldens.setting(GOLDEN, name)
    trace = goldens.eager(SETTINGS[name], GOLDEN)
    assert trace.tokens_in[:, 0].tolist() == expected.tokens
    goldens.close(trace.outputs["logits"], expected, goldens.PYTORCH)
    for block in SETTINGS[name].blocks:
        official = expected[f"kept_patches_after_block{block}"]
        for image in expected.stable:
            kept = torch.nonzero(trace.maps[block, image, 1:] >= 0)[:, 0]
            assert kept.tolist() == official[image].tolist(), f"block {block}, image {image}"


@pytest.mark.parametrize("name", ["p258", pytest.param("p258_9to11", marks=pytest.mark.slow)])
def test_onnx_equals_the_released_code(name: str, all_cores: None) -> None:
    out = goldens.in_onnx(SETTINGS[name], GOLDEN)
    goldens.close(out["logits"], goldens.setting(GOLDEN, name), goldens.ONNX)
    goldens.same_maps(out, goldens.eager(SETTINGS[name], GOLDEN))


@torch.inference_mode()
def by_hand(backbone: Any, at: dict[int, float], image: Tensor) -> tuple[Tensor, list[int]]:
    """One image, pruned behind the MLP: logits, and which patches stay."""
    x, stay = backbone.embed(image), list(range(backbone.patches))
    for i, part in enumerate(backbone.parts()):
        heads = attention(part, part.norm1(x), None)
        x = x + heads.out
        x = x + part.scale2(part.mlp(part.norm2(x)))
        if i not in at:
            continue
        flows = heads.weights[0].log().mul(2).softmax(dim=2)
        found = []
        for flow in flows:
            share = torch.full((x.shape[1],), 1 / x.shape[1])
            for _ in range(STEPS):
                share = flow.T @ share
            found.append(share[1:])
        score = torch.stack(found).square().mean(dim=0).sqrt().tolist()
        ranked = sorted(range(len(stay)), key=lambda k: (-score[k], k))
        kept = sorted(ranked[: max(1, int(len(stay) * at[i]))])
        x = x[:, [0, *(1 + k for k in kept)]]
        stay = [stay[k] for k in kept]
    return backbone.head(x, None), stay


@pytest.mark.parametrize("options", [{}, {"global_pool": "avg", "img_size": (24, 40)}])
def test_reference_and_graph_keep_what_loops_keep(options: dict[str, Any]) -> None:
    backbone = tiny_vit(**options)
    method = ZerotpruneSettings(blocks=(0, 2, 3), keep=(0.7, 0.5, 0.01))
    plan = plan_for(backbone, method)
    made = export(backbone, plan)
    for batch in (1, 3):
        images = random_images(batch, seed=batch, size=backbone.image_size)
        trace = run_reference(backbone, plan, images)
        out = run_onnx(made.traced, images.numpy())
        goldens.same_maps(out, trace)
        np.testing.assert_allclose(out["logits"], trace.outputs["logits"].numpy(), atol=1e-4)
        for i in range(batch):
            at = dict(zip(method.blocks, method.keep, strict=True))
            logits, stay = by_hand(backbone, at, images[i : i + 1])
            torch.testing.assert_close(
                trace.outputs["logits"][i : i + 1], logits, atol=1e-5, rtol=0
            )
            assert torch.nonzero(trace.maps[-1, i, 1:] >= 0)[:, 0].tolist() == stay


def test_the_ladder_proves_it() -> None:
    backbone = tiny_vit(positions=False, depth=3)
    method = ZerotpruneSettings(blocks=(0, 1), keep=(0.6,))
    assert prove(backbone, plan_for(backbone, method)).proven


def test_what_does_not_fit_is_one_line() -> None:
    shape = shape_of(tiny_vit())
    for given, line in (
        ({"blocks": (1, 2)}, "keep=0.9,0.8,0.7 gives 3 shares for 2 blocks"),
        ({"blocks": (1, 2, 4)}, "4 lies beyond"),
        ({"blocks": (1, 1), "keep": (0.5,)}, "is named twice"),
    ):
        with pytest.raises(ConfigError, match=line):
            Zerotprune().plan(ZerotpruneSettings.model_validate(given), shape)
    with pytest.raises(ConfigError, match=r"keep.0: Input should be less than or equal to 1"):
        settings_of("zerotprune", {"keep": 2})
    with pytest.raises(UnsupportedModelError, match="ranks patches by a class token"):
        plan_for(tiny_vit(distilled=True), ZerotpruneSettings())
    assert not Zerotprune().plan(ZerotpruneSettings(blocks=(0, 1), keep=(1,)), shape).merges


def test_it_is_named_a_precursor_everywhere(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ["demo", "--method", "zerotprune", "--set", "blocks=2,5", "--set", "keep=0.8"]
    said = "precursor of Zero-TPrune (importance stage), keep 0.8 at blocks 2,5 (from 0)"
    assert said in run_command(*command, "--no-benchmark", "--out", out)
    told = json.loads((out / "manifest.json").read_text())["method"]
    assert told["summary"] == said and told["precursor"] is True
    assert "A precursor of Zero-TPrune" in (out / "report.html").read_text()
