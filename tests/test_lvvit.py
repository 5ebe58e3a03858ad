"""LV-ViT: the official model, merged as the paper merges it, with and without auxiliary head."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from atm_export.choice import Choice
from atm_export.errors import ConfigError, WeightsError
from atm_export.model.flops import trace_gmacs, unmerged_gmacs
from atm_export.model.lvvit import SHAPES, LvVit, LvVitBackbone, LvVitShape
from atm_export.model.reference import run_reference
from atm_export.model.weights import randomize
from atm_export.model.zoo import load_model
from atm_export.model_configs import load_model_config
from atm_export.resolving import resolve
from tests.families import (
    agrees_with_twin,
    all_plans,
    close,
    equals_goldens,
    loads_every_form,
    narrow_spec,
    of_real_size,
    prove,
)
from tests.shared_data import golden, golden_images, golden_weights
from tests.tiny import frozen_plan, no_merges, planned, random_images, threshold_plan

GMACS = {"lvvit_t": 2.8680, "lvvit_s": 6.5515, "lvvit_m": 12.6780}
NARROW = {"dim": 48, "depth": 3, "heads": 3}


@cache
def narrow(aux: str = "unmerged", weights: str = "random") -> LvVitBackbone:
    """3 blocks on 25 patches, divisor 2, 7 classes; shared, so never to be changed."""
    model = LvVit(LvVitShape(**NARROW, divisor=2.0, classes=7, aux_head=aux), 80)
    golden_weights(model) if weights == "golden" else randomize(model)
    return LvVitBackbone(model.eval().requires_grad_(False), 80)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.usefixtures("all_cores")
def test_it_is_the_official_model(name: str) -> None:
    backbone = of_real_size(name)
    model, expected = backbone.model, golden(f"{name}_seed0")
    modules = {"stem": model.patch_embed, "class": model.head, "aux": model.aux_head}
    seen = equals_goldens(name, backbone, modules)
    close(seen["stem"][:, :8, :4, :4], expected["stem_out_slice"])
    close(seen["class"], expected["logits_cls"])
    close(seen["aux"].amax(dim=1), expected["aux_max"])
    assert unmerged_gmacs(backbone) == pytest.approx(GMACS[name], rel=1e-4)


@pytest.mark.usefixtures("all_cores")
@torch.inference_mode()
def test_without_auxiliary_head_it_is_the_class_tokens_part() -> None:
    backbone = of_real_size("lvvit_t")
    backbone.model.aux = "never"
    close(backbone.plain(golden_images()), golden("lvvit_t_seed0")["logits_cls"])
    assert unmerged_gmacs(backbone) == pytest.approx(2.8680 - 196 * 240 * 1000 / 1e9, rel=1e-4)


@pytest.mark.parametrize("aux", ["unmerged", "always", "never"])
@torch.inference_mode()
def test_taken_apart_it_is_the_same_model(aux: str) -> None:
    backbone, images = narrow(aux), random_images(2, size=(80, 80))
    found = run_reference(backbone, no_merges(backbone), images).outputs["logits"]
    torch.testing.assert_close(found, backbone.plain(images), atol=1e-5, rtol=0)
    close_to_class = torch.allclose(found, narrow("never").plain(images), atol=1e-3)
    assert close_to_class == (aux == "never")


def test_both_residual_branches_are_divided() -> None:
    assert [part.divisor for part in narrow().parts()] == [2.0] * 3
    divisors = [SHAPES[name].divisor for name in ("lvvit_t", "lvvit_s", "lvvit_m")]
    assert divisors == [1.0, 2.0, 2.0]


def test_where_tokens_merge_the_class_token_alone_leaves_the_last_block() -> None:
    backbone, images = narrow(), random_images(2, size=(80, 80))
    plan = frozen_plan(backbone, (5, 4, 0))
    trace, never = (run_reference(b, plan, images) for b in (backbone, narrow("never")))
    assert torch.equal(trace.outputs["logits"], never.outputs["logits"])
    assert float(trace_gmacs(backbone, trace)[0]) == float(trace_gmacs(backbone, never)[0])
    paper = planned(resolve(Choice(model="lvvit_s")).method, 16, pooled=False, proportional=True)
    assert paper.proportional and paper.blocks[-1] is None
    assert [block.grouping for block in paper.blocks if block] == ["alternate"] * 12 + ["size"] * 3


def test_the_auxiliary_head_reads_what_patch_tokens_remain_and_is_paid_for() -> None:
    backbone, images = narrow("always"), random_images(2, size=(80, 80))
    plan = threshold_plan(backbone, -2.0)
    assert backbone.pooled and plan.blocks[-1] is not None
    trace, without = (run_reference(b, plan, images) for b in (backbone, narrow()))
    assert not torch.allclose(trace.outputs["logits"], without.outputs["logits"], atol=1e-3)
    remaining = int(trace.tokens_out[-1, 0])
    assert 1 < remaining < 26
    head = (remaining - 1) * 7 * 48
    mlp = (remaining - 1) * 6 * 48 * 48
    extra = trace_gmacs(backbone, trace) - trace_gmacs(narrow(), without)
    assert extra.tolist() == pytest.approx([(head + mlp) / 1e9] * 2)


@pytest.mark.parametrize("weights", ["golden", "random"])
@pytest.mark.parametrize("aux", ["unmerged", "always"])
@pytest.mark.parametrize("kind", ["adaptive", "frozen", "per image", "tome"])
def test_the_twin_merges_alike(kind: str, aux: str, weights: str) -> None:
    backbone = narrow(aux, weights)
    trace = agrees_with_twin(backbone, all_plans(backbone)[kind])
    assert int(trace.tokens_out[-1].max()) < 26


@pytest.mark.parametrize(
    ("aux", "weights", "kind"),
    [("unmerged", "golden", "adaptive"), ("always", "random", "frozen")],
)
def test_the_export_is_proven(aux: str, weights: str, kind: str) -> None:
    backbone = narrow(aux, weights)
    prove(backbone, all_plans(backbone)[kind])


def test_official_checkpoints_load_in_every_form(tmp_path: Path) -> None:
    loads_every_form(narrow_spec("lvvit", "lvvit_s", "random", **NARROW), tmp_path)


def test_a_checkpoint_of_another_model_names_the_first_keys(tmp_path: Path) -> None:
    state = LvVit(LvVitShape(**NARROW, divisor=2.0)).state_dict()
    del state["aux_head.bias"]
    state["blocks.0.attn.qkv.bias"] = torch.zeros(144)
    state["norm.weight"] = torch.zeros(7)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(WeightsError) as caught:
        load_model(narrow_spec("lvvit", "lvvit_s", str(tmp_path / "other.pth"), **NARROW))
    assert "missing aux_head.bias" in str(caught.value)
    assert "unexpected blocks.0.attn.qkv.bias" in str(caught.value)
    assert "norm.weight is (7,), the model has (48,)" in str(caught.value)


def test_the_model_says_which_head_it_used() -> None:
    for aux, says in (
        (None, "left out where tokens merge"),
        (True, "merged or not"),
        (False, "alone"),
    ):
        options: dict[str, Any] = {**NARROW, **({} if aux is None else {"aux_head": aux})}
        assert says in load_model(narrow_spec("lvvit", "lvvit_t", "random", **options)).notes[0]


@pytest.mark.parametrize(
    ("architecture", "options", "says"),
    [
        ("lvvit_t", {"aux_head": "sometimes"}, "aux_head 'sometimes' is not one of"),
        ("lvvit_t", {"aux": True}, "unknown option of LV-ViT 'aux'; nearest: aux_head"),
        ("lvvit_xs", {}, "unknown LV-ViT architecture 'lvvit_xs'"),
    ],
)
def test_wrong_settings_are_named(architecture: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_model(narrow_spec("lvvit", architecture, "random", **options))


def test_another_image_size_interpolates_positions() -> None:
    spec = narrow_spec("lvvit", "lvvit_s", "random", **NARROW)
    small = load_model(spec.model_copy(update={"image_size": 64})).backbone
    assert small.grid == (4, 4) and small.embed(torch.zeros(1, 3, 64, 64)).shape == (1, 17, 48)
    with pytest.raises(ConfigError, match="multiples of 16"):
        load_model(spec.model_copy(update={"image_size": 100}))


def test_preprocessing_is_the_official_one() -> None:
    crops = {name: load_model_config(name).preprocessing["crop_pct"] for name in SHAPES}
    assert crops == {"lvvit_t": 0.9, "lvvit_s": 0.9, "lvvit_m": 1.0}
    how = load_model(narrow_spec("lvvit", "lvvit_s", "random", **NARROW)).preprocessing
    assert how.mean == (0.485, 0.456, 0.406) and how.interpolation == "bicubic"
