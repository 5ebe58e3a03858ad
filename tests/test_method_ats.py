"""ATS against the official implementation, against loops, in the graph and at its edges."""

from __future__ import annotations

import json
from bisect import bisect_left
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from atm_export.errors import ConfigError, UnsupportedModelError
from atm_export.methods.ats import Ats, AtsSettings
from atm_export.methods.given import parse_settings, settings_of
from atm_export.methods.rule import NotFollowed
from atm_export.model.plan import plan_for, shape_of
from atm_export.model.reference import attention, run_reference
from atm_export.prove.follow import follow
from tests.exports import export, run_onnx
from tests.families import prove
from tests.method_goldens import Official, deit_t, graph_equals, official
from tests.runs import run_command
from tests.tiny import random_images, tiny_vit

SETTINGS: dict[str, dict[str, Any]] = {
    "b3to11": {"blocks": list(range(3, 12))},
    "b5to11": {"blocks": list(range(5, 12))},
}
MODELS: dict[str, dict[str, Any]] = {
    "class token": {},
    "pooled": {"global_pool": "avg", "img_size": (24, 40)},
    "registers": {"reg_tokens": 4, "qk_norm": True, "depth": 3},
}


def has_patches(expected: Official, maps: Any) -> None:
    """After each block the patches are alive that the official code keeps; maps [blocks, B, N0]."""
    kept = expected.arrays["kept_patches"]
    for i in np.flatnonzero(expected.stable):
        for block, listed in enumerate(kept[i]):
            alive = np.flatnonzero(np.asarray(maps)[block, i, 1:] >= 0)
            assert alive.tolist() == listed[listed >= 0].tolist(), f"image {i}, block {block}"


@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_reference_equals_the_official_code(setting: str) -> None:
    expected = official("ats", setting, SETTINGS[setting])
    trace = run_reference(deit_t().backbone, expected.plan, expected.images)
    expected.has_counts(trace.tokens_out)
    has_patches(expected, trace.maps)
    expected.has_logits(trace.outputs["logits"], 1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_graph_equals_the_official_code(setting: str) -> None:
    expected = official("ats", setting, SETTINGS[setting])
    has_patches(expected, graph_equals(expected)["token_maps"])


def stays(row: Tensor, values: Tensor, targets: int) -> list[int]:
    """The patches that samples hit, by loops; row, values: of the patches, heads summed."""
    score = (row.double() * values.double().norm(dim=1)).tolist()
    order = sorted(range(len(score)), key=lambda p: score[p])
    sums = np.cumsum([score[p] for p in order])
    u = ((sums - sums[0]) / (sums[-1] - sums[0])).tolist()
    y0 = min(value for value in u if value > 0)
    hit = set()
    for j in range(targets):
        sample = y0 + (1 - y0) * j / (targets - 1)
        k = min(max(bisect_left(u, sample), 1), len(u) - 1)
        hit.add(k - 1 if sample - u[k - 1] <= u[k] - sample else k)
    return sorted(order[k] for k in hit)


@torch.inference_mode()
def by_hand(backbone: Any, at: tuple[int, ...], image: Tensor) -> tuple[Tensor, list[int]]:
    """One image: logits, and the patches that stay."""
    x, prefix, alive = backbone.embed(image), backbone.prefix, list(range(backbone.patches))
    for i, part in enumerate(backbone.parts()):
        heads = attention(part, part.norm1(x), None)
        x = x + heads.out / part.divisor
        if i in at:
            row = heads.weights[0, :, 0, prefix:].sum(dim=0)
            values = heads.values[0].transpose(0, 1).flatten(1)[prefix:]
            chosen = stays(row, values, backbone.patches)
            alive = [alive[k] for k in chosen]
            x = x[:, list(range(prefix)) + [prefix + k for k in chosen]]
        x = x + part.scale2(part.mlp(part.norm2(x))) / part.divisor
    return backbone.head(x, torch.ones_like(x[..., :1])), alive


@pytest.mark.parametrize("name", MODELS)
def test_reference_and_graph_do_what_loops_do(name: str) -> None:
    backbone = tiny_vit(**MODELS[name])
    at = tuple(range(1, len(backbone.parts())))
    plan = plan_for(backbone, AtsSettings(blocks=at))
    images = random_images(3, size=backbone.image_size)
    trace = run_reference(backbone, plan, images)
    for i in range(3):
        logits, alive = by_hand(backbone, at, images[i : i + 1])
        places = trace.maps[-1, i, backbone.prefix :].tolist()
        assert [k for k, place in enumerate(places) if place >= 0] == alive
        torch.testing.assert_close(trace.outputs["logits"][i : i + 1], logits, atol=1e-5, rtol=0)
    assert len(set(trace.tokens_out[-1].tolist())) > 1, "images keep different numbers"
    made = export(backbone, plan)
    out, shipped = (run_onnx(graph, images.numpy()) for graph in (made.traced, made.shipped))
    assert np.array_equal(out["token_maps"], trace.maps.numpy())
    assert np.array_equal(out["tokens_per_block"], trace.tokens_out.T.numpy())
    for logits in (out["logits"], shipped["logits"]):
        np.testing.assert_allclose(logits, trace.outputs["logits"].numpy(), atol=1e-4)


@pytest.mark.parametrize(
    "options", [{"depth": 3}, {"positions": False, "depth": 3}], ids=["usual", "equal patches"]
)
def test_the_ladder_is_climbed(options: dict[str, Any]) -> None:
    backbone = tiny_vit(**options)
    prove(backbone, plan_for(backbone, AtsSettings(blocks=(1, 2))))


def test_another_choice_is_followed_at_its_price() -> None:
    backbone = tiny_vit()
    plan = plan_for(backbone, AtsSettings(blocks=(1, 2)))
    images = random_images(2)
    own = run_reference(backbone, plan, images)
    trace, short = follow(backbone, plan, images, own.maps)
    assert short == 0 and torch.equal(trace.outputs["logits"], own.outputs["logits"])
    maps = own.maps.clone()
    dropped = int((maps[1, 0] < 0).nonzero()[0])
    places = torch.where(maps[1, 0] >= 0, maps[1, 0] + (torch.arange(37) > dropped), -1)
    places[dropped] = dropped - int((maps[1, 0, :dropped] < 0).sum())
    only_first = plan_for(backbone, AtsSettings(blocks=(1,)))
    own = run_reference(backbone, only_first, images)
    maps = own.maps.clone()
    maps[1:, 0] = places
    assert follow(backbone, only_first, images, maps)[1] > 1e-4
    maps[1:, 0, 1:3] = maps[1:, 0, [2, 1]]
    with pytest.raises(NotFollowed):
        follow(backbone, only_first, images, maps)


def test_what_does_not_fit_is_refused() -> None:
    shape = shape_of(tiny_vit())
    with pytest.raises(ConfigError, match="4 lies beyond the model's 4 blocks"):
        Ats().plan(AtsSettings(blocks=(4,)), shape)
    with pytest.raises(UnsupportedModelError, match="class token"):
        Ats().plan(AtsSettings(), replace(shape, prefix=0))
    for blocks in ([], ["x"], "3-"):
        with pytest.raises(ConfigError, match="blocks"):
            settings_of("ats", {"blocks": blocks})
    assert parse_settings(["blocks=5-11"], "ats") == {"blocks": "5-11"}
    assert settings_of("ats", {"blocks": "5-11"}) == AtsSettings(blocks=(5, 6, 7, 8, 9, 10, 11))


def test_the_command_line_takes_it(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ("demo", "--method", "ats", "--set", "blocks=8-11", "--trace", "--out", out)
    run_command(*command, "--no-benchmark")
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["status"] == "proven" and manifest["method"]["merge"] == "per-image"
    assert manifest["method"]["blocks"] == [8, 9, 10, 11]
    run_command("verify", out)
