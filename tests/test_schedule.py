"""Operating points to plans: thresholds, splits, ToMe schedules, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from atm_export.errors import ConfigError
from atm_export.methods.atm import AtmSettings, OperatingPoint, default_split, thresholds
from atm_export.methods.base import MergePolicy
from atm_export.methods.bipartite.rule import BlockMerge, with_theta
from atm_export.methods.none import NoneSettings
from atm_export.methods.plan import MergePlan
from atm_export.methods.tome import TomeSettings, spread
from tests.tiny import planned

POINT = OperatingPoint(alpha=0.98, beta=0.035, theta_min=0.9)


def atm(depth: int = 12, *, pooled: bool = False, **values: Any) -> MergePlan:
    method = AtmSettings(**{"point": POINT, **values})
    return planned(method, depth, pooled=pooled, proportional=True)


def tome(r: tuple[int, ...], shape: str = "constant", depth: int = 12) -> list[int | None]:
    method = TomeSettings(r=r, schedule=shape)
    plan = planned(method, depth, pooled=False, proportional=True)
    assert all(b is not None and b.grouping == "alternate" for b in plan.blocks)
    return [b.r for b in plan.blocks if b is not None]


@pytest.mark.parametrize(
    ("alpha", "beta", "theta_min"), [(1.0, 0.035, 0.88), (0.98, 0.02, 0.8), (0.9, 0.0, 0.5)]
)
def test_thresholds_follow_the_papers_formula(alpha: float, beta: float, theta_min: float) -> None:
    found = thresholds(alpha, beta, theta_min, 12)
    expected = [max(alpha - (math.exp(beta * (ell - 1)) - 1), theta_min) for ell in range(1, 13)]
    assert found == pytest.approx(expected, abs=1e-12)
    assert found[0] == alpha


def test_thresholds_worked_out_by_hand() -> None:
    # exp(0.05) - 1 = 0.0512711, exp(0.1) - 1 = 0.1051709
    assert thresholds(1.0, 0.05, 0.9, 4) == pytest.approx((1.0, 0.9487289, 0.9, 0.9), abs=1e-7)


@pytest.mark.parametrize(
    ("depth", "split"), [(12, 9), (16, 12), (20, 15), (14, 10), (19, 14), (4, 3)]
)
def test_the_split_is_three_quarters_of_the_depth(depth: int, split: int) -> None:
    assert default_split(depth) == split


def test_atm_groups_alternately_up_to_the_split_and_leaves_the_last_block_alone() -> None:
    plan = atm()
    kinds = [block and block.grouping for block in plan.blocks]
    assert kinds == ["alternate"] * 9 + ["size"] * 2 + [None]
    theta = [block.theta for block in plan.blocks if block]
    assert theta == list(thresholds(POINT.alpha, POINT.beta, POINT.theta_min, 12)[:11])
    assert plan.merges and plan.adaptive and plan.proportional and not plan.per_image


def test_a_pooling_head_merges_in_the_last_block_too() -> None:
    plan = atm(pooled=True)
    last = plan.blocks[-1]
    assert last is not None
    assert last.grouping == "size"
    assert last.theta == POINT.theta_min


@pytest.mark.parametrize(("split", "alternate"), [(0, 0), (5, 5), (12, 12)])
def test_a_given_split(split: int, alternate: int) -> None:
    point = POINT.model_copy(update={"split": split})
    plan = atm(pooled=True, point=point)
    kinds = [block and block.grouping for block in plan.blocks]
    assert kinds == ["alternate"] * alternate + ["size"] * (12 - alternate)


def test_a_split_beyond_the_depth_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"split 13.*12 blocks"):
        atm(point=POINT.model_copy(update={"split": 13}))


def test_atm_without_a_point_is_refused() -> None:
    with pytest.raises(ConfigError, match="alpha, beta and theta_min"):
        atm(point=None)


def test_per_image_and_no_proportional_attention_reach_the_plan() -> None:
    plan = atm(merge=MergePolicy.PER_IMAGE, proportional=False)
    assert plan.per_image and not plan.proportional


@pytest.mark.parametrize("proportional", [True, False])
def test_the_models_own_attention_is_the_default(proportional: bool) -> None:
    plan = planned(AtmSettings(point=POINT), 12, pooled=False, proportional=proportional)
    assert plan.proportional is proportional


def test_the_unmerged_plan() -> None:
    plan = planned(NoneSettings())
    assert plan.blocks == (None,) * 12
    assert not plan.merges and not plan.adaptive


def test_tome_schedules() -> None:
    assert tome((8,)) == [8] * 12
    assert tome((8,), "decreasing") == [16, 14, 13, 11, 10, 8, 7, 5, 4, 2, 1, 0]
    assert tome((8,), "increasing") == [0, 1, 2, 4, 5, 7, 8, 10, 11, 13, 14, 16]
    assert tome((0,)) == [0] * 12
    assert tome((3, 0, 2), depth=3) == [3, 0, 2]


@pytest.mark.parametrize("shape", ["constant", "decreasing", "increasing"])
@pytest.mark.parametrize("depth", [1, 2, 12, 19])
def test_spread_schedules_never_go_below_zero_or_above_twice_r(depth: int, shape: Any) -> None:
    for r in range(0, 30):
        counts = spread(r, depth, shape)
        assert len(counts) == depth
        assert min(counts) >= 0 and max(counts) <= 2 * r
        assert abs(sum(counts) / depth - r) <= (1 if depth > 1 else r)


@pytest.mark.parametrize("r", [(8, 8), (1,) * 11, (1,) * 13])
def test_a_list_of_another_length_is_refused(r: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=f"lists {len(r)} counts.*12 blocks"):
        tome(r)


def test_freezing_keeps_groups_and_takes_the_counts() -> None:
    frozen = atm().frozen(range(12))
    assert not frozen.adaptive and frozen.merges
    assert [block and block.r for block in frozen.blocks] == [*range(11), None]
    assert [block and block.theta for block in frozen.blocks] == [None] * 12
    assert [b and b.grouping for b in frozen.blocks] == [b and b.grouping for b in atm().blocks]
    with pytest.raises(ValueError, match=r"shorter|longer"):
        atm().frozen([1] * 11)


def test_one_threshold_everywhere() -> None:
    plan = with_theta(atm(), 2.0)
    assert [block and block.theta for block in plan.blocks] == [2.0] * 11 + [None]
    fixed = MergePlan((BlockMerge("alternate", r=3), None), True)
    assert with_theta(fixed, 2.0) == fixed
