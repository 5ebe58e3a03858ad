"""timm's own vision transformers: taken apart they equal timm's forward, or are refused."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.data import resolve_data_config
from timm.layers import resample_abs_pos_embed
from torch import nn

from atm_export.config import ModelSpec
from atm_export.errors import ConfigError, UnsupportedModelError, WeightsError
from atm_export.model.backbone import Backbone, LoadedModel
from atm_export.model.flops import trace_gmacs, unmerged_gmacs
from atm_export.model.reference import run_reference
from atm_export.model.vit import TimmBackbone, refuse_unsupported
from atm_export.model.zoo import load_model
from atm_export.model_configs import load_model_config
from tests.tiny import no_merges, random_images, threshold_plan

# name, image size, prefix tokens, rows that the head reads
SUPPORTED = [
    ("deit_tiny_distilled_patch16_224", 64, 2, 2),
    ("deit3_small_patch16_224", 48, 1, 1),
    ("vit_small_patch14_reg4_dinov2", 56, 5, 1),
    ("vit_xsmall_patch16_clip_224", 64, 1, 1),
    ("vit_medium_patch16_gap_240", 64, 0, None),
    ("vit_wee_patch16_reg1_gap_256", 48, 1, None),
    ("vit_tiny_r_s16_p8_224", 64, 1, 1),
    ("flexivit_small", 48, 1, 1),
    ("test_vit", None, 1, 1),
    ("test_vit2", None, 1, None),
    ("test_vit4", None, 1, None),
]
REFUSED = {
    "swin_tiny_patch4_window7_224": "not a plain VisionTransformer",
    "eva02_tiny_patch14_224": "rotary",
    "vit_small_patch16_rope_224": "rotary",
    "vit_small_patch16_18x2_224": "ParallelThingsBlock",
    "vit_pwee_patch16_reg1_gap_256": "ParallelScalingBlock",
    "vit_dwee_patch16_reg1_gap_256": "DiffAttention",
    "vit_relpos_small_patch16_224": "relative position bias",
    "beit_base_patch16_224": "relative position bias",
    "naflexvit_base_patch16_gap": "not a plain VisionTransformer",
    "cait_xxs24_224": "not a plain VisionTransformer",
    "resnet18": "not a plain VisionTransformer",
}


def load(name: str, size: int | None, weights: str = "random") -> LoadedModel:
    config = load_model_config(f"timm:{name}")
    spec = ModelSpec(name=f"timm:{name}", config=config, weights=weights, image_size=size)
    return load_model(spec)


def counted_gmacs(backbone: Backbone) -> float:
    """Multiply-adds of every convolution and linear layer in timm's own forward, and attention."""
    total = 0

    def count(layer: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Conv2d):
            total += output.numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.Linear):
            total += output.numel() * layer.in_features

    hooks = [m.register_forward_hook(count) for m in backbone.modules()]
    backbone.plain(random_images(1, size=backbone.image_size))
    for hook in hooks:
        hook.remove()
    n = backbone.tokens
    total += sum(2 * n * n * part.heads * part.head_dim for part in backbone.parts())
    return total / 1e9


@pytest.mark.parametrize(("name", "size", "prefix", "rows"), SUPPORTED)
@torch.inference_mode()
def test_taken_apart_it_equals_timms_forward(
    name: str, size: int | None, prefix: int, rows: int | None
) -> None:
    backbone = load(name, size).backbone
    assert (backbone.prefix, backbone.head_rows) == (prefix, rows)
    images = random_images(2, size=backbone.image_size)
    plain = backbone.plain(images)
    trace = run_reference(backbone, no_merges(backbone), images)
    scale = max(1.0, float(plain.abs().max()))
    torch.testing.assert_close(trace.outputs["logits"], plain, atol=1e-5 * scale, rtol=0)
    assert unmerged_gmacs(backbone) == pytest.approx(counted_gmacs(backbone), rel=1e-3)


@pytest.mark.parametrize(("name", "size", "prefix", "rows"), SUPPORTED)
def test_it_merges_as_far_as_it_can(
    name: str, size: int | None, prefix: int, rows: int | None
) -> None:
    backbone = load(name, size).backbone
    plan = threshold_plan(backbone, -2.0)
    trace = run_reference(backbone, plan, random_images(2, size=backbone.image_size))
    assert bool(torch.isfinite(trace.outputs["logits"]).all())
    assert int(trace.tokens_out.min()) >= prefix + 1
    assert float(trace_gmacs(backbone, trace).max()) < unmerged_gmacs(backbone)


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_merging_would_break_are_refused(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name)
    with pytest.raises(UnsupportedModelError, match=REFUSED[name]) as caught:
        refuse_unsupported(model, f"timm:{name}")
    assert str(caught.value).startswith(f"timm:{name} is not supported: ")


def test_preprocessing_is_what_timm_says_of_the_weights() -> None:
    for name, size, _, _ in SUPPORTED[:5]:
        how = load(name, size).preprocessing
        with torch.device("meta"):
            expected = resolve_data_config(model=timm.create_model(name))
        assert how.mean == expected["mean"] and how.std == expected["std"]
        assert how.interpolation == expected["interpolation"]
        assert how.crop_pct == expected["crop_pct"]
        assert how.size == ((size, size) if size else expected["input_size"][1:])


def test_another_image_size_interpolates_positions_as_timm_does() -> None:
    native = load("vit_xsmall_patch16_clip_224", None).backbone
    small = load("vit_xsmall_patch16_clip_224", 96).backbone
    assert isinstance(native, TimmBackbone) and isinstance(small, TimmBackbone)
    assert small.grid == (6, 6) and native.grid == (14, 14)
    expected = resample_abs_pos_embed(native.model.pos_embed, [6, 6], num_prefix_tokens=1)
    torch.testing.assert_close(small.model.pos_embed, expected, atol=1e-6, rtol=0)
    assert small.image_size == (96, 96)


@pytest.mark.parametrize("size", [60, 8])
def test_sizes_that_patches_do_not_fill_are_refused(size: int) -> None:
    with pytest.raises(ConfigError, match="multiple of"):
        load("test_vit", size)


def test_names_are_checked_before_anything_is_built() -> None:
    with pytest.raises(ConfigError, match=r"unknown timm model 'vit_tiny_patch16_223'.*_224"):
        load("vit_tiny_patch16_223", None)
    with pytest.raises(ConfigError, match="unknown timm weights tag"):
        load("vit_tiny_patch16_224.no_such_tag", None)


def test_pretrained_weights_without_a_network_say_what_to_do() -> None:
    with pytest.raises(WeightsError, match=r"cannot be fetched.*--weights FILE.*--weights random"):
        load("test_vit", None, weights="pretrained")


def test_random_weights_are_marked_and_the_same_every_time() -> None:
    first, second = load("test_vit", None), load("test_vit", None)
    assert first.weights == second.weights
    assert first.weights["meaningless_accuracy"] is True
    assert first.licence is None
    assert first.labels is not None and len(first.labels) == 1000
    assert first.labels[0].startswith("tench")
