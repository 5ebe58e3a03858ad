"""Margins: nothing changes within them, and something changes just beyond."""

from __future__ import annotations

import pytest
import torch

from atm_export.methods.bipartite.decision import PairDecision, count_margin
from atm_export.methods.bipartite.matching import GRID, Pairs
from atm_export.model.reference import run_reference
from atm_export.prove.margins import (
    first_difference,
    trace_margin,
)
from tests.tiny import class_token_vit, frozen_plan, no_merges, random_images, tome_plan


def floored(similarity: torch.Tensor, theta: float) -> int:
    return int((similarity > theta).sum()) // len(similarity)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_a_count_changes_beyond_its_margin_and_not_within(batch: int) -> None:
    for seed in range(40):
        rng = torch.Generator().manual_seed(seed)
        similarity = torch.randint(-50, 50, (batch, 7), generator=rng).double()
        theta = float(torch.randint(-40, 40, (1,), generator=rng)) + 0.5
        margin = count_margin(similarity, theta, batch)
        before = floored(similarity, theta)
        within, beyond = margin - 0.25, margin + 0.25
        assert floored(similarity - within, theta) == floored(similarity + within, theta) == before
        moved = {floored(similarity - beyond, theta), floored(similarity + beyond, theta)}
        assert moved != {before}


def test_a_count_that_nothing_can_change_has_no_margin() -> None:
    assert count_margin(torch.zeros(3, 0), 0.5, 3) == float("inf")


def decision(similarity: list[list[int]], lead: list[list[int]], r: int) -> PairDecision:
    values, ahead = torch.tensor(similarity).float(), torch.tensor(lead).float()
    slots = torch.zeros(values.shape, dtype=torch.int64)
    return PairDecision(Pairs(slots, slots, slots, values, ahead), r, None)


def test_the_margin_of_a_ranking_is_its_gap_at_r() -> None:
    far = [[999] * 4]
    assert decision([[100, 40, 90, 10]], far, 2).margin() == 50 / GRID
    assert decision([[100, 40, 90, 10]], far, 1).margin() == 10 / GRID
    assert decision([[100, 90, 90, 10]], far, 2).margin() == 0  # a tie
    assert decision([[100, 40, 90, 10]], far, 4).margin() == 999 / GRID


def test_the_margin_of_a_partner_counts_where_it_merges() -> None:
    lead = [[5, 1, 6, 7]]
    assert decision([[100, 40, 90, 10]], lead, 2).margin() == 5 / GRID
    assert decision([[100, 40, 90, 10]], lead, 3).margin() == 1 / GRID
    assert decision([[100, 40, 90, 10]], lead, 0).margin() == float("inf")


def test_the_margin_of_a_trace_is_the_least_of_its_blocks() -> None:
    backbone, images = class_token_vit(), random_images(2)
    trace = run_reference(backbone, frozen_plan(backbone, (3, 2, 1, 0)), images)
    margins = [d.margin() for block in trace.decisions for d in block if d is not None]
    assert len(margins) == 3
    assert trace_margin(trace) == min(margins) > 0
    assert trace_margin(run_reference(backbone, no_merges(backbone), images)) == float("inf")


def test_the_first_difference_names_block_and_image() -> None:
    backbone, images = class_token_vit(), random_images(3)
    maps = run_reference(backbone, tome_plan(backbone, 4), images).maps
    assert first_difference(maps, maps) is None
    other = maps.clone()
    other[3, 0, 5] += 1
    other[2, 1, 7] += 1
    assert first_difference(maps, other) == (2, 1)
