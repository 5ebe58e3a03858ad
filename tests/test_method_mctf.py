"""MCTF against the official implementation, against loops, in the graph and at its edges."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from atm_export.choice import Choice
from atm_export.errors import ConfigError, UnsupportedModelError
from atm_export.graph.optimize import with_precision
from atm_export.methods.given import parse_settings, settings_of
from atm_export.methods.mctf import Fusion, Mctf, MctfSettings
from atm_export.methods.rule import NotFollowed
from atm_export.methods.scores import SPAN
from atm_export.model.flops import count_gmacs
from atm_export.model.plan import plan_for, shape_of
from atm_export.model.reference import attention, run_reference
from atm_export.prove.follow import follow
from atm_export.prove.matching import lowered_matching
from atm_export.resolving import resolve
from tests.exports import export, run_onnx
from tests.families import prove
from tests.method_goldens import deit_t, graph_equals, official, reference_equals
from tests.runs import run_command
from tests.tiny import random_images, tiny_vit

SETTINGS: dict[str, dict[str, Any]] = {
    "r10": {"r": 10},
    "r16": {"r": 16},
    "fast035": {"r": 0.35, "blocks": [3, 6, 9]},
}
MODELS: dict[str, dict[str, Any]] = {
    "class token": {},
    "pooled, layer scale": {"global_pool": "avg", "init_values": 0.5, "img_size": (24, 40)},
    "no prefix": {"global_pool": "avg", "class_token": False, "depth": 2},
    "norms of its own": {"qk_norm": True, "scale_attn_norm": True, "depth": 3},
}


@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_reference_equals_the_official_code(setting: str) -> None:
    expected = official("mctf", setting, SETTINGS[setting])
    trace = reference_equals(expected)
    counts = (trace.tokens_in, trace.tokens_out, trace.attended)
    counted = count_gmacs(deit_t().backbone, *counts)
    np.testing.assert_allclose(counted, expected.arrays["gmacs"], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_graph_equals_the_official_code(setting: str) -> None:
    graph_equals(official("mctf", setting, SETTINGS[setting]))


def by_hand(x: Tensor, maps: Tensor, sizes: list[float], r: int, prefix: int) -> list[list[int]]:
    """The groups of one image's tokens [n, D] by loops, in their new order; maps [H, n, n]."""
    n, p = len(x), maps.mean(dim=(0, 1))
    unit = torch.nn.functional.normalize(x, dim=1)
    info, small = p.min() / p, min(sizes) / torch.tensor(sizes)
    w = (unit @ unit.T + 1) / 2 * (info[:, None] * info) ** (1 / 20)
    w = (w * (small[:, None] * small) ** (1 / 40) * SPAN).round().tolist()
    evens, odds, r1 = list(range(0, n, 2)), list(range(1, n, 2)), r // 2
    free = [a for a in evens if a >= prefix]
    near = {a: max(odds, key=w[a].__getitem__) for a in free}
    merged = sorted(free, key=lambda a: -w[a][near[a]])[:r1]
    stay = [a for a in evens if a not in merged]
    back = {b: max((a for a in stay if a >= prefix), key=lambda a, b=b: w[a][b]) for b in odds}
    ranked = sorted(odds, key=lambda b: -w[back[b]][b])
    with_evens = {b: [b, *(a for a in merged if near[a] == b)] for b in odds}
    first = [
        [a, *(i for b in ranked[: r - r1] if back[b] == a for i in with_evens[b])] for a in stay
    ]
    return first + [with_evens[b] for b in ranked[r - r1 :]]


@torch.inference_mode()
def logits_by_hand(backbone: Any, r: int, image: Tensor) -> tuple[Tensor, list[int]]:
    """One image, whole: logits, and the place of each embedded token in the end."""
    x, sizes = backbone.embed(image), [1.0] * backbone.tokens
    where = list(range(backbone.tokens))
    for i, part in enumerate(backbone.parts()):
        heads = attention(part, part.norm1(x), torch.tensor(sizes)[None, :, None])
        maps = heads.weights[0]
        if i:
            groups = by_hand(x[0], maps, sizes, r, backbone.prefix)
            weight = maps.mean(dim=(0, 1)) * torch.tensor(sizes)
            share = [weight[g] / weight[g].sum() for g in groups]
            x = torch.stack([s @ x[0, g] for s, g in zip(share, groups, strict=True)])[None]
            maps = torch.stack([maps[:, :, g].sum(dim=2) for g in groups], dim=2)
            maps = torch.stack(
                [(maps[:, g] * s[:, None]).sum(dim=1) for s, g in zip(share, groups, strict=True)],
                dim=1,
            )
            sizes = [sum(sizes[k] for k in g) for g in groups]
            place = {k: new for new, g in enumerate(groups) for k in g}
            where = [place[old] for old in where]
        v = attention(part, part.norm1(x), None).values[0]
        out = (maps @ v).transpose(0, 1).reshape(1, len(sizes), -1)
        x = x + part.scale1(part.proj(part.attn_norm(out))) / part.divisor
        x = x + part.scale2(part.mlp(part.norm2(x))) / part.divisor
    return backbone.head(x, torch.tensor(sizes)[None, :, None]), where


@pytest.mark.parametrize("name", MODELS)
def test_reference_and_graph_do_what_loops_do(name: str) -> None:
    backbone, r = tiny_vit(**MODELS[name]), 1 if name == "pooled, layer scale" else 5
    plan = plan_for(backbone, MctfSettings(r=r))
    images = random_images(3, size=backbone.image_size)
    trace = run_reference(backbone, plan, images)
    for i in range(3):
        logits, places = logits_by_hand(backbone, r, images[i : i + 1])
        assert trace.maps[-1, i].tolist() == places
        torch.testing.assert_close(trace.outputs["logits"][i : i + 1], logits, atol=1e-5, rtol=0)
    made = export(backbone, plan)
    out, shipped = (run_onnx(graph, images.numpy()) for graph in (made.traced, made.shipped))
    assert np.array_equal(out["token_maps"], trace.maps.numpy())
    assert np.array_equal(out["tokens_per_block"], trace.tokens_out[:, 0].numpy())
    for logits in (out["logits"], shipped["logits"]):
        np.testing.assert_allclose(logits, trace.outputs["logits"].numpy(), atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [{}, {"positions": False}, {"global_pool": "avg", "depth": 2}],
    ids=["class token", "equal patches stay equal", "pooled"],
)
def test_the_ladder_is_climbed(options: dict[str, Any]) -> None:
    backbone = tiny_vit(**options)
    prove(backbone, plan_for(backbone, MctfSettings(r=6)))


def test_counts_are_as_stated() -> None:
    shape = shape_of(tiny_vit())

    def counts(r: float, **changes: Any) -> list[int]:
        plan = Mctf().plan(MctfSettings(r=r), replace(shape, **changes))
        return Mctf().facts(MctfSettings(r=r), plan)["r_per_block"]

    assert counts(0.35, depth=12, tokens=197) == [0, 0, 0, 68, 0, 0, 44, 0, 0, 29, 0, 0]
    assert counts(16, depth=12, tokens=197) == [0, *[16] * 11]
    assert counts(65_536) == [0, 18, 9, 0], "half at most, and ten tokens stay"
    assert counts(0) == [0] * 4
    with_blocks = settings_of("mctf", parse_settings(["r=2", "blocks=0,2-3"], "mctf"))
    assert Mctf().facts(with_blocks, Mctf().plan(with_blocks, shape))["r_per_block"] == [2, 0, 2, 2]


def test_as_many_as_may_merge_do() -> None:
    backbone = tiny_vit()
    plan = plan_for(backbone, MctfSettings(r=99))
    images = random_images(2)
    out = run_onnx(export(backbone, plan).traced, images.numpy())
    judged, short = follow(backbone, plan, images, torch.from_numpy(out["token_maps"]))
    assert short <= 2e-6 and out["tokens_per_block"].tolist() == [37, 19, 10, 10]
    np.testing.assert_allclose(out["logits"], judged.outputs["logits"].numpy(), atol=1e-4)


def test_nothing_merges_where_r_is_0() -> None:
    backbone, images = tiny_vit(), random_images(2)
    plan = plan_for(backbone, MctfSettings(r=0))
    assert not plan.merges
    trace = run_reference(backbone, plan, images)
    torch.testing.assert_close(trace.outputs["logits"], backbone.plain(images), atol=1e-5, rtol=0)


def test_scores_stay_fp32_in_half_precision() -> None:
    """Though the tokens that they compare come from the block before."""
    backbone = tiny_vit()
    made = export(backbone, plan_for(backbone, MctfSettings(r=6)))
    assert lowered_matching(with_precision(made.traced, "fp16")) == []


def test_another_choice_is_followed_at_its_price() -> None:
    backbone = tiny_vit()
    plan = plan_for(backbone, MctfSettings(r=6))
    images = random_images(2)
    own = run_reference(backbone, plan, images)
    trace, short = follow(backbone, plan, images, own.maps)
    assert short == 0 and torch.equal(trace.outputs["logits"], own.outputs["logits"])
    maps = own.maps.clone()
    last = own.tokens_out[1, 0] - 1
    first, second = (int((maps[1, 0] == k).nonzero()[0]) for k in (last - 1, last))
    maps[1:, 0, [first, second]] = maps[1:, 0, [second, first]]
    trace, short = follow(backbone, plan, images, maps)
    assert short > 1e-5
    maps = own.maps.clone()
    maps[1:, 0, 1:] = 1
    with pytest.raises(NotFollowed):
        follow(backbone, plan, images, maps)


def test_of_tokens_ranked_alike_either_may_stay() -> None:
    """The reference merges the first even token and keeps the third, a step of the grid below it;
    where the third merges instead, the order of places is another one."""
    score = torch.tensor([[0.9, 0.1, 0.0], [0.1, 0.2, 0.1], [0.9, 0.0, 0.1]]) * SPAN
    score[2, 0] = score[0, 0] - 1
    moved = torch.tensor([0, 0, 1, 2, 0, 3])
    assert Fusion(2)._shortfall(score.round(), moved) == pytest.approx(1 / SPAN)
    with pytest.raises(NotFollowed, match="another order"):
        Fusion(2)._shortfall(torch.where(score == score[2, 0], score / 2, score).round(), moved)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"r": 1.5}, "whole number of tokens"),
        ({"r": -1}, "share of them below 1"),
        ({"r": float("nan")}, "share of them"),
        ({"r": "many"}, "whole number of tokens"),
        ({"r": (8, 9)}, "whole number of tokens"),
        ({"blocks": []}, "blocks"),
        ({"blocks": ["x"]}, "blocks"),
    ],
)
def test_bad_settings_are_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        settings_of("mctf", given)


def test_what_does_not_fit_is_refused() -> None:
    shape = shape_of(tiny_vit())
    with pytest.raises(ConfigError, match="4 lies beyond the model's 4 blocks"):
        Mctf().plan(MctfSettings(blocks=(4,)), shape)
    with pytest.raises(UnsupportedModelError, match="one class token"):
        Mctf().plan(MctfSettings(), replace(shape, prefix=2))


def test_the_command_line_takes_it(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ("demo", "--method", "mctf", "--set", "r=0.3", "--set", "blocks=2,6", "--trace")
    run_command(*command, "--out", out, "--no-benchmark")
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["status"] == "proven"
    assert (manifest["method"]["r"], manifest["method"]["blocks"]) == (0.3, [2, 6])
    run_command("verify", out)


def test_a_preset_chooses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATM_EXPORT_CONFIGS", str(tmp_path))
    point = "{method: mctf, settings: {r: 0.22, blocks: [3, 6, 9]}, gflops: 0.1}"
    lines = ("family: demo", "architecture: vit_demo", f"presets: {{fast: {point}}}")
    (tmp_path / "demo.yaml").write_text("\n".join(lines))
    found = resolve(Choice(model="demo", preset="fast")).method
    assert found == MctfSettings(r=0.22, blocks=(3, 6, 9), preset="fast")
    assert resolve(Choice(model="demo", method="mctf", gflops=0.11)).method == found
    assert "3,6,9" in run_command("list", "demo")
