"""DiffRate: the official implementation's tokens, sizes and logits, loops by hand, mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from atm_export.config import ModelSpec
from atm_export.errors import ConfigError, UnsupportedModelError
from atm_export.graph.optimize import with_precision
from atm_export.methods.base import ModelShape
from atm_export.methods.diffrate import Diffrate, DiffrateSettings
from atm_export.methods.diffrate_schedules import PUBLISHED, Published
from atm_export.methods.given import settings_of
from atm_export.methods.rule import NotFollowed
from atm_export.model.plan import plan_for, shape_of
from atm_export.model.reference import attention, run_reference
from atm_export.model.zoo import load_model
from atm_export.model_configs import load_model_config
from atm_export.prove.follow import follow
from atm_export.prove.matching import lowered_matching
from tests import method_goldens as goldens
from tests.exports import export, run_onnx
from tests.families import prove
from tests.runs import run_command
from tests.test_method_evit import groups
from tests.tiny import random_images, tiny_vit

SETTINGS = {"t09": DiffrateSettings(target=0.9), "t07": DiffrateSettings(target=0.7)}
DEIT_T = ModelShape(12, 197, 1, pooled=False, proportional=True, width=192)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_reference_equals_the_official_implementation(name: str, all_cores: None) -> None:
    expected = goldens.setting("diffrate", name)
    trace = goldens.exact(SETTINGS[name], "diffrate")
    assert trace.tokens_out[:, 0].tolist() == expected.tokens
    goldens.close(trace.outputs["logits"], expected, goldens.PYTORCH)
    own = goldens.eager(SETTINGS[name], "diffrate")
    goldens.mostly_close(own.outputs["logits"], expected, goldens.PYTORCH)
    for image in expected.stable:
        official = torch.from_numpy(expected["patch_to_token"][image].astype(np.int64))
        assert groups(trace.maps[-1, image]) == groups(official), f"image {image}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t09", "t07"])
def test_onnx_equals_the_official_implementation(name: str, all_cores: None) -> None:
    out = goldens.in_onnx(SETTINGS[name], "diffrate")
    goldens.mostly_close(out["logits"], goldens.setting("diffrate", name), goldens.ONNX)
    goldens.same_maps(out, goldens.eager(SETTINGS[name], "diffrate"), of=0.75)


def test_the_schedules_are_the_goldens() -> None:
    info = json.loads(str(goldens.setting("diffrate", "t09").arrays["info"]))
    for name, method in SETTINGS.items():
        told = info["settings"][name]
        own = DiffrateSettings(prune=told["prune_kept_num"], merge=told["merge_kept_num"])
        assert Diffrate().plan(own, DEIT_T) == Diffrate().plan(method, DEIT_T)


@torch.inference_mode()
def by_hand(backbone: Any, method: DiffrateSettings, image: Tensor) -> Any:
    """One image with loops: logits, and which patches each token holds."""
    assert method.prune and method.merge
    x, size = backbone.embed(image)[0], torch.ones(backbone.tokens)
    held: list[set[int]] = [set(), *({patch} for patch in range(backbone.patches))]
    for part, prune, merge in zip(backbone.parts(), method.prune, method.merge, strict=True):
        sizes = size.reshape(1, -1, 1) if method.proportional is not False else None
        heads = attention(part, part.norm1(x).unsqueeze(0), sizes)
        x = x + heads.out[0]
        score = heads.weights[0, :, 0].mean(dim=0).tolist()
        ranked = [0, *sorted(range(1, len(x)), key=lambda k: (-score[k], k))]
        kept = sorted(ranked[: min(prune, merge)])
        new, grown = {k: [x[k]] for k in kept}, {k: size[k].clone() for k in kept}
        for k in ranked[merge:prune]:
            near = {j: float(torch.cosine_similarity(x[k], x[j], dim=0)) for j in kept if j}
            best = max(near, key=near.__getitem__)
            new[best].append(x[k])
            grown[best] += size[k] * max(near[best], 0)
            held[best] |= held[k]
        x = torch.stack([torch.stack(new[k]).mean(dim=0) for k in kept])
        size, held = torch.stack([grown[k] for k in kept]), [held[k] for k in kept]
        x = x + part.scale2(part.mlp(part.norm2(x)))
    sizes = size.reshape(1, -1, 1)
    return backbone.head(x.unsqueeze(0), sizes), {frozenset(patches) for patches in held[1:]}


CASES: dict[str, tuple[dict[str, Any], DiffrateSettings]] = {
    "prunes and merges": ({}, DiffrateSettings(prune=(37, 30, 18, 4), merge=(30, 20, 14, 3))),
    "one destination": ({}, DiffrateSettings(prune=(36, 12, 5, 3), merge=(99, 12, 2, 9))),
    "pooled, not square, not proportional": (
        {"global_pool": "avg", "img_size": (24, 40), "qk_norm": True},
        DiffrateSettings(prune=(16, 14, 9, 6), merge=(12, 14, 5, 2), proportional=False),
    ),
    "pooled": (
        {"global_pool": "avg", "init_values": 0.5},
        DiffrateSettings(prune=(36, 30, 25, 20), merge=(30, 26, 22, 12)),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_reference_and_graph_do_what_loops_do(case: str) -> None:
    options, method = CASES[case]
    backbone = tiny_vit(**options)
    plan = plan_for(backbone, method)
    made = export(backbone, plan)
    for batch in (1, 5):
        images = random_images(batch, seed=batch, size=backbone.image_size)
        trace = run_reference(backbone, plan, images)
        goldens.same_maps(out := run_onnx(made.traced, images.numpy()), trace)
        for i in range(batch):
            logits, held = by_hand(backbone, method, images[i : i + 1])
            torch.testing.assert_close(
                trace.outputs["logits"][i : i + 1], logits, atol=1e-5, rtol=0
            )
            assert groups(trace.maps[-1, i]) == held
        shipped = run_onnx(made.shipped, images.numpy())
        for logits in (out["logits"], shipped["logits"]):
            np.testing.assert_allclose(logits, trace.outputs["logits"].numpy(), atol=1e-4)


@pytest.mark.parametrize("positions", [True, False], ids=["with positions", "alike patches"])
def test_the_ladder_proves_it(positions: bool) -> None:
    """On flat images, too, where all scores and cosines tie."""
    method = DiffrateSettings(prune=(36, 30, 20), merge=(33, 24, 3))
    backbone = tiny_vit(positions=positions, depth=3)
    assert prove(backbone, plan_for(backbone, method)).proven


def test_what_ships_reduces_nothing_in_a_last_block_that_a_class_token_leaves() -> None:
    backbone = tiny_vit()
    made = export(
        backbone, plan_for(backbone, DiffrateSettings(prune=(37, 37, 37, 9), merge=(37, 37, 37, 3)))
    )
    sorts = [sum(node.op_type == "TopK" for node in g.graph) for g in (made.traced, made.shipped)]
    assert sorts[0] > 0 and sorts[1] == 0


def test_another_choice_is_followed_at_its_price() -> None:
    backbone = tiny_vit()
    method = DiffrateSettings(prune=(37, 30, 37, 37), merge=(37, 20, 37, 37))
    plan, images = plan_for(backbone, method), random_images(2)
    own = run_reference(backbone, plan, images)
    trace, short = follow(backbone, plan, images, own.maps)
    assert short == 0 and torch.equal(trace.outputs["logits"], own.outputs["logits"])
    maps = own.maps.clone()
    decision = own.decisions[1][0]
    source = 1 + int(decision.source[0, 0])
    place = int(maps[1, 0, source])
    maps[1:, 0, source] = place - 1 if place > 1 else place + 1
    trace, short = follow(backbone, plan, images, maps)
    assert short > 1e-4 and not torch.equal(trace.outputs["logits"][0], own.outputs["logits"][0])
    maps[1:, 0, source] = -1
    with pytest.raises(NotFollowed):
        follow(backbone, plan, images, maps)


def test_scores_and_cosines_stay_fp32_in_half_precision() -> None:
    backbone = tiny_vit()
    method = DiffrateSettings(prune=(37, 30, 37, 37), merge=(37, 20, 37, 37))
    typed = with_precision(export(backbone, plan_for(backbone, method)).traced, "fp16")
    assert lowered_matching(typed) == []


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({}, "a schedule is --set target="),
        ({"prune": [9] * 4}, "give --set prune=... and --set merge="),
        ({"target": 0.9, "prune": [9] * 4, "merge": [9] * 4}, "a schedule is --set target="),
        ({"prune": [9] * 4, "merge": [9, 9, 9, 1]}, "greater than or equal to 2"),
        ({"merge": "frozen"}, "merge: Input should be a valid tuple"),
        ({"target": 0}, "target: Input should be greater than 0"),
    ],
)
def test_bad_settings_are_one_line(given: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        settings_of("diffrate", given)


def test_schedules_that_do_not_fit_are_refused() -> None:
    shape = shape_of(tiny_vit())
    with pytest.raises(ConfigError, match="merge=9,9 lists 2 counts, but the model has 4 blocks"):
        Diffrate().plan(DiffrateSettings(prune=(9,) * 4, merge=(9, 9)), shape)
    with pytest.raises(ConfigError, match=r"published for DeiT-T.*not for this model; give --set"):
        Diffrate().plan(DiffrateSettings(target=0.9), shape)
    with pytest.raises(ConfigError, match=r"for DeiT-T are 0.6, 0.7, 0.8, 0.9, 1; or give --set"):
        Diffrate().plan(DiffrateSettings(target=0.85), DEIT_T)
    with pytest.raises(UnsupportedModelError, match="2 tokens ahead of its patches"):
        plan_for(tiny_vit(distilled=True), SETTINGS["t09"])


@pytest.mark.parametrize(
    ("model", "target", "ends"),
    [
        ("deit_t", 1.0, (154, 21)),
        ("deit_s", 2.3, (98, 3)),
        ("deit_b", 11.5, (145, 3)),
        ("mae_vit_b", 11.5, (133, None)),
    ],
)
def test_a_schedule_is_of_one_model(
    model: str, target: float, ends: tuple[int, int | None]
) -> None:
    config = load_model_config(model)
    backbone = load_model(ModelSpec(name=model, config=config, weights="random")).backbone
    plan = plan_for(backbone, DiffrateSettings(target=target))
    found = Diffrate().facts(DiffrateSettings(target=target), plan)["merged_to_per_block"]
    assert (found[5], found[-1]) == ends
    with pytest.raises(ConfigError, match=r"target=7.7: published for .* are .*; or give --set"):
        plan_for(backbone, DiffrateSettings(target=7.7))


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda each: each.model)
def test_published_schedules_cost_what_they_say(published: Published) -> None:
    """Multiply-adds by the counts alone: more for a higher target, and within 10 % of it (they
    were learnt by a penalty, and the cheapest of DeiT-T costs 0.65)."""
    costs = []
    for target, lists in published.schedules.items():
        n, macs, width = 197, 196 * 16 * 16 * 3 * published.width, published.width
        for pruned, merged in zip(*lists, strict=True):
            macs += 4 * n * width**2 + 2 * n**2 * width
            n = min(n, pruned, merged)
            macs += 8 * n * width**2
        costs.append(macs / 1e9)
        assert costs[-1] == pytest.approx(target, rel=0.1)
    assert costs == sorted(costs)


def test_what_is_searched() -> None:
    space = Diffrate().search_space(DEIT_T)
    assert space is not None
    (knob,) = space.knobs
    assert [knob.nearest(value) for value in (0.6, 0.79, 0.87)] == [0.6, 0.8, 0.9]
    assert Diffrate().search_space(shape_of(tiny_vit())) is None


def test_the_command_line_takes_a_schedule(tmp_path: Path) -> None:
    counts = ",".join(str(n) for n in (197, 180, *[150] * 9, 3))
    out = tmp_path / "run"
    command = ["demo", "--method", "diffrate", "--set", "prune=" + "197," * 11 + "197"]
    command += ["--set", f"merge={counts}", "--no-benchmark", "--out", out]
    assert "DiffRate, own schedule: - 180 150 - - - - - - - - 3 tokens left" in run_command(
        *command
    )
    told = json.loads((out / "manifest.json").read_text())["method"]
    assert told["merge"] == "frozen" and told["merged_to_per_block"][1] == 180
    assert "files and the manifest's seal hold" in run_command("verify", out)
