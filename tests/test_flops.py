"""Multiply-adds against the paper's formula, written out."""

from __future__ import annotations

import pytest
import torch

from atm_export.model.calibrate import frozen_gmacs, measured_r, paper_r
from atm_export.model.flops import trace_gmacs, unmerged_gmacs
from atm_export.model.reference import run_reference
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

D, CLASSES, PATCH = 48, 7, 8


def by_hand(tokens_in: list[int], mlp_tokens: list[int], head_tokens: int = 1) -> float:
    """Embedding + per block 4 n D^2 + 2 n^2 D + 8 m D^2 + head, in units of 1e9."""
    total = 36 * 3 * PATCH * PATCH * D + head_tokens * D * CLASSES
    for n, m in zip(tokens_in, mlp_tokens, strict=True):
        total += 4 * n * D * D + 2 * n * n * D + 8 * m * D * D
    return total / 1e9


def test_unmerged() -> None:
    assert unmerged_gmacs(class_token_vit()) == pytest.approx(by_hand([37] * 4, [37] * 4))
    distilled = tiny_vit(distilled=True)
    assert unmerged_gmacs(distilled) == pytest.approx(by_hand([38] * 4, [38] * 4, 2))


def test_a_merged_pass_with_a_class_token() -> None:
    backbone = class_token_vit()
    trace = run_reference(backbone, frozen_plan(backbone, (7, 0, 5, 0)), random_images(2))
    expected = by_hand([37, 30, 30, 25], [30, 30, 25, 1])
    assert trace_gmacs(backbone, trace).tolist() == pytest.approx([expected] * 2)


def test_a_merged_pass_that_pools() -> None:
    backbone = tiny_vit(class_token=False, global_pool="avg")
    trace = run_reference(backbone, frozen_plan(backbone, (7, 0, 5, 4)), random_images(1))
    expected = by_hand([36, 29, 29, 24], [29, 29, 24, 20])
    assert trace_gmacs(backbone, trace).tolist() == pytest.approx([expected])


def test_without_merges_every_token_counts_in_the_last_block() -> None:
    backbone = class_token_vit()
    trace = run_reference(backbone, no_merges(backbone), random_images(1))
    found = trace_gmacs(backbone, trace, merges=False).tolist()
    assert found == pytest.approx([unmerged_gmacs(backbone)])


def test_images_are_counted_one_by_one_where_they_differ() -> None:
    backbone = class_token_vit()
    plan = adaptive_plan(backbone)
    images = random_images(4)
    traces = [run_reference(backbone, plan, image) for image in images.split(1)]
    for trace in traces:
        tokens_out = trace.tokens_out[:, 0].tolist()
        expected = by_hand(trace.tokens_in[:, 0].tolist(), [*tokens_out[:-1], 1])
        assert float(trace_gmacs(backbone, trace)[0]) == pytest.approx(expected)


@pytest.mark.parametrize("options", [{}, {"class_token": False, "global_pool": "avg"}])
@pytest.mark.parametrize("r", [(7, 0, 5, 3), (0, 0, 0, 0), (99, 99, 99, 99)])
def test_a_frozen_schedule_costs_what_its_run_costs(
    r: tuple[int, ...], options: dict[str, object]
) -> None:
    backbone = tiny_vit(**options)
    plan = frozen_plan(backbone, r)
    trace = run_reference(backbone, plan, random_images(1))
    counts = [0 if block is None else block.r or 0 for block in plan.blocks]
    assert frozen_gmacs(backbone, plan, counts) == pytest.approx(
        float(trace_gmacs(backbone, trace)[0])
    )


def test_a_measured_schedule_is_the_rounded_mean_of_single_images() -> None:
    backbone = class_token_vit()
    plan = adaptive_plan(backbone)
    images = random_images(7)
    total = torch.zeros(4)
    for image in images.split(1):
        trace = run_reference(backbone, plan, image)
        total += (trace.tokens_in - trace.tokens_out)[:, 0]
    expected = [round(value) for value in (total / 7).tolist()]
    assert list(measured_r(backbone, plan, images.split(3))) == expected
    assert sum(expected) > 5


@pytest.mark.parametrize("share", [0.45, 0.6, 0.75, 0.9])
def test_a_schedule_from_the_papers_gflops_comes_near(share: float) -> None:
    backbone = tiny_vit(depth=8)
    plan = threshold_plan(backbone, 0.5)
    target = share * unmerged_gmacs(backbone)
    r = paper_r(backbone, plan, target)
    assert len(r) == 8 and r[-1] == 0
    assert max(r[:-1]) - min(r[:-1]) <= 1
    assert frozen_gmacs(backbone, plan, r) == pytest.approx(target, rel=0.03)


def test_tome_is_counted_like_any_other_merge() -> None:
    backbone = class_token_vit()
    trace = run_reference(backbone, tome_plan(backbone, 4), random_images(1))
    expected = by_hand([37, 33, 29, 25], [33, 29, 25, 1])
    assert float(trace_gmacs(backbone, trace)[0]) == pytest.approx(expected)
