"""What the eager reference promises by itself: sizes count, traces are consistent."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from atm_export.methods.bipartite import matching
from atm_export.methods.plan import MergePlan
from atm_export.methods.rule import Reduced
from atm_export.model.reference import attention, run_reference
from atm_export.model.vit import TimmBackbone
from tests.tiny import (
    adaptive_plan,
    class_token_vit,
    frozen_plan,
    no_merges,
    random_images,
    threshold_plan,
    tiny_vit,
    tome_plan,
)

SUMS = 1e-5  # logits of size 1 by sums in another order, as CPUs differ: 1e-6 was too tight

KINDS: dict[str, dict[str, Any]] = {
    "class token": {},
    "no prefix": {"class_token": False, "global_pool": "avg"},
    "registers, avg pool": {"reg_tokens": 4, "global_pool": "avg"},
    "prefix pooled too": {"reg_tokens": 2, "global_pool": "avg", "pool_include_prefix": True},
    "max pool": {"global_pool": "max"},
    "avgmax pool": {"global_pool": "avgmax"},
    "map pool": {"class_token": False, "global_pool": "map"},
    "distilled": {"distilled": True},
    "qk norm": {"qk_norm": True, "init_values": 0.3},
    "attention norm": {"scale_attn_norm": True, "qkv_bias": False},
    "pre norm, no final norm": {"pre_norm": True, "final_norm": False},
    "no class embedding": {"no_embed_class": True, "reg_tokens": 1},
}


def repeated(tokens: Tensor, sizes: Tensor) -> Tensor:
    """Every token of one image as often as its size says, [1, sum, D]."""
    return tokens.repeat_interleave(sizes[0, :, 0].long(), dim=1)


def sized_tokens(prefix: int, channels: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(5)
    sizes = torch.randint(1, 5, (1, prefix + 9, 1), generator=rng).float()
    sizes[:, :prefix] = 1
    return torch.randn(1, prefix + 9, channels, generator=rng), sizes


@pytest.mark.parametrize("name", ["class token", "qk norm", "attention norm"])
@torch.inference_mode()
def test_proportional_attention_counts_a_token_as_often_as_it_is_large(name: str) -> None:
    part = tiny_vit(**KINDS[name]).parts()[1]
    tokens, sizes = sized_tokens(1, 48)
    found, keys = attention(part, tokens, sizes)[:2]
    expected = attention(part, repeated(tokens, sizes), None).out
    first = (sizes[0, :, 0].cumsum(0) - sizes[0, :, 0]).long()
    torch.testing.assert_close(found, expected[:, first], atol=SUMS, rtol=0)
    assert keys.shape == (1, 3, 10, 16)
    plain = attention(part, tokens, None).out
    assert not torch.allclose(found, plain, atol=1e-3)
    ones = attention(part, tokens, torch.ones_like(sizes)).out
    torch.testing.assert_close(ones, plain, atol=SUMS, rtol=0)


@pytest.mark.parametrize("name", KINDS)
@torch.inference_mode()
def test_a_head_counts_a_token_as_often_as_it_is_large(name: str) -> None:
    backbone = tiny_vit(**KINDS[name])
    tokens, sizes = sized_tokens(backbone.prefix, 48)
    found = backbone.head(tokens, sizes)
    torch.testing.assert_close(
        found, backbone.head(repeated(tokens, sizes), None), atol=SUMS, rtol=0
    )
    if backbone.head_rows is not None:
        rows = backbone.head(tokens[:, : backbone.head_rows], None)
        torch.testing.assert_close(found, rows, atol=SUMS, rtol=0)
    elif "max pool" not in name:
        assert not torch.allclose(found, backbone.head(tokens, None), atol=1e-3)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", KINDS)
def test_without_merges_it_is_the_plain_model(name: str, batch: int) -> None:
    backbone = tiny_vit(**KINDS[name])
    images = random_images(batch)
    with torch.inference_mode():
        plain = backbone.plain(images)
    for plan in (
        no_merges(backbone),
        threshold_plan(backbone, 2.0),
        tome_plan(backbone, 0),
        frozen_plan(backbone, [0] * 4),
    ):
        trace = run_reference(backbone, plan, images)
        torch.testing.assert_close(trace.outputs["logits"], plain, atol=SUMS, rtol=0)
        assert trace.tokens_out.unique().tolist() == [36 + backbone.prefix]


@pytest.mark.parametrize("name", KINDS)
def test_a_trace_is_consistent(name: str) -> None:
    backbone = tiny_vit(**KINDS[name])
    trace = run_reference(backbone, adaptive_plan(backbone), random_images(3))
    n = 36 + backbone.prefix
    assert trace.tokens_in[0].tolist() == [n] * 3
    assert torch.equal(trace.tokens_in[1:], trace.tokens_out[:-1])
    assert int(trace.tokens_out[-1, 0]) < n
    for counts, maps in zip(trace.tokens_out, trace.maps, strict=True):
        for count, where in zip(counts.tolist(), maps, strict=True):
            assert where.unique().tolist() == list(range(count))
            assert where[: backbone.prefix].tolist() == list(range(backbone.prefix))
    decisions = [block[0] for block in trace.decisions]
    merged = [0 if decision is None else decision.r for decision in decisions]
    assert merged == (trace.tokens_in - trace.tokens_out)[:, 0].tolist()


def test_the_map_and_the_sizes_tell_the_same_story(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, seen = class_token_vit(), []
    merge = matching.merge

    def spy(*arguments: Any) -> Reduced:
        seen.append(merge(*arguments).sizes)
        return merge(*arguments)

    monkeypatch.setattr(matching, "merge", spy)
    trace = run_reference(backbone, tome_plan(backbone, 7), random_images(2))
    assert len(seen) == 4
    for sizes, maps in zip(seen, trace.maps, strict=True):
        for image in range(2):
            counted = maps[image].bincount(minlength=sizes.shape[1]).float()
            assert torch.equal(counted, sizes[image, :, 0])


def both_ways(backbone: TimmBackbone, plan: MergePlan) -> None:
    images = random_images(4)
    together = run_reference(backbone, replace(plan, per_image=True), images)
    alone = [run_reference(backbone, plan, image) for image in images.split(1)]
    assert torch.equal(together.tokens_out, torch.cat([t.tokens_out for t in alone], dim=1))
    assert torch.equal(together.tokens_in, torch.cat([t.tokens_in for t in alone], dim=1))
    assert torch.equal(together.maps, torch.cat([t.maps for t in alone], dim=1))
    assert torch.equal(together.outputs["logits"], torch.cat([t.outputs["logits"] for t in alone]))
    assert [len(block) for block in together.decisions] == [4] * 4


def test_per_image_is_each_image_alone() -> None:
    for options in ({}, KINDS["no prefix"]):
        backbone = tiny_vit(**options)
        both_ways(backbone, adaptive_plan(backbone))


def test_a_batch_shares_the_floored_mean_of_what_its_images_would_merge() -> None:
    backbone = class_token_vit()
    plan = adaptive_plan(backbone)
    images = random_images(5)
    shared = run_reference(backbone, plan, images)
    alone = [run_reference(backbone, plan, image) for image in images.split(1)]
    own = [int(t.tokens_in[0, 0] - t.tokens_out[0, 0]) for t in alone]
    assert int(shared.tokens_in[0, 0] - shared.tokens_out[0, 0]) == sum(own) // 5
    assert len(set(own)) > 1


def test_fixed_r_is_capped_at_half_of_the_free_tokens() -> None:
    for name, expected in {
        "class token": [19, 10, 6, 4],
        "no prefix": [18, 9, 5, 3],
        "distilled": [20, 11, 7, 5],
        "registers, avg pool": [23, 14, 10, 8],
    }.items():
        backbone = tiny_vit(**KINDS[name])
        trace = run_reference(backbone, tome_plan(backbone, 99), random_images(1))
        assert trace.tokens_out[:, 0].tolist() == expected, name


def test_the_last_block_computes_the_rows_of_the_head() -> None:
    """No merge there, and the patch tokens of its MLP do not matter."""
    backbone = tiny_vit()
    images, plan = random_images(2), adaptive_plan(class_token_vit())
    trace = run_reference(backbone, plan, images)
    assert torch.equal(trace.tokens_in[-1], trace.tokens_out[-1])
    assert plan.blocks[-1] is None
    assert trace.features.shape == (2, 48)
    with torch.inference_mode():
        logits = backbone.head(trace.features.unsqueeze(1), None)
    torch.testing.assert_close(logits, trace.outputs["logits"], atol=SUMS, rtol=0)
