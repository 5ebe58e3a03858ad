"""Following other decisions: exact on the reference's own, and a worse choice has its price."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from atm_export.methods.bipartite.decision import PairDecision
from atm_export.methods.bipartite.matching import GRID
from atm_export.methods.plan import MergePlan
from atm_export.methods.rule import NotFollowed, Signals
from atm_export.model.reference import Trace, run_batch, run_reference
from atm_export.model.vit import TimmBackbone
from atm_export.prove.follow import follow
from tests.tiny import (
    adaptive_plan,
    class_token_vit,
    frozen_plan,
    random_images,
    threshold_plan,
    tiny_vit,
    tome_plan,
)

STEP = 1 / GRID  # the same similarity, summed in another order
MODELS = {
    "class token": {},
    "no prefix": {"class_token": False, "global_pool": "avg"},
    "distilled": {"distilled": True},
    "registers": {"reg_tokens": 4},
}
PLANS = {
    "adaptive": adaptive_plan,
    "per image": lambda backbone: replace(adaptive_plan(backbone), per_image=True),
    "r = 0": lambda backbone: threshold_plan(backbone, 2.0),
    "r = max": lambda backbone: threshold_plan(backbone, -2.0),
    "frozen": lambda backbone: frozen_plan(backbone, (5, 0, 99, 0)),
    "tome": lambda backbone: tome_plan(backbone, 6),
}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("plan_name", PLANS)
@pytest.mark.parametrize("name", MODELS)
def test_following_the_references_own_maps_is_free(name: str, plan_name: str, batch: int) -> None:
    backbone = tiny_vit(**MODELS[name])
    plan = PLANS[plan_name](backbone)
    images = random_images(batch)
    trace = run_reference(backbone, plan, images)
    followed, shortfall = follow(backbone, plan, images, trace.maps)
    assert shortfall <= STEP
    assert torch.equal(followed.maps, trace.maps)
    assert torch.equal(followed.tokens_out, trace.tokens_out)
    torch.testing.assert_close(
        followed.outputs["logits"], trace.outputs["logits"], atol=1e-5, rtol=0
    )


def with_choice(
    backbone: TimmBackbone, plan: MergePlan, images: Tensor, block: int, kind: str
) -> tuple[Trace, float]:
    """The reference with a worse choice in one block, and by how much it is worse (cosine)."""
    worse = 0.0

    def decider(i: int, signals: Signals, rule: Any) -> PairDecision:
        nonlocal worse
        decision: PairDecision = rule.decide(signals)
        if i != block:
            return decision
        pairs, r = decision.pairs, decision.r
        if kind == "count":
            return replace(decision, r=r - 1)
        ranked = pairs.similarity.argsort(dim=1, descending=True, stable=True)
        if kind == "rank":
            worst, last = ranked[0, -1], ranked[0, r - 1]
            similarity = pairs.similarity.clone()
            similarity[0, worst], similarity[0, last] = 2 * GRID, -2 * GRID
            worse = float(pairs.similarity[0, last] - pairs.similarity[0, worst])
            return replace(decision, pairs=replace(pairs, similarity=similarity))
        first = ranked[0, 0]
        best = pairs.best.clone()
        best[0, first] = (best[0, first] + 1) % pairs.dst.shape[1]
        return replace(decision, pairs=replace(pairs, best=best))

    return run_batch(backbone, plan, images, decider), worse / GRID


@pytest.mark.parametrize("block", [0, 1, 2])
@pytest.mark.parametrize("kind", ["partner", "rank"])
def test_a_worse_choice_has_its_price_and_its_logits(kind: str, block: int) -> None:
    backbone = class_token_vit()
    plan = frozen_plan(backbone, (6, 5, 4, 0))
    images = random_images(3)
    trace, worse = with_choice(backbone, plan, images, block, kind)
    own = run_reference(backbone, plan, images)
    assert not torch.equal(trace.maps, own.maps)
    followed, shortfall = follow(backbone, plan, images, trace.maps)
    assert shortfall > 1e-3
    if kind == "rank":
        assert shortfall == pytest.approx(worse, abs=1e-6)
    torch.testing.assert_close(
        followed.outputs["logits"], trace.outputs["logits"], atol=1e-5, rtol=0
    )
    assert not torch.allclose(followed.outputs["logits"], own.outputs["logits"], atol=1e-4)


def test_another_count_costs_what_a_cosine_must_move_to_give_it() -> None:
    backbone = class_token_vit()
    plan = adaptive_plan(backbone)
    images = random_images(3)
    trace, _ = with_choice(backbone, plan, images, 1, "count")
    followed, shortfall = follow(backbone, plan, images, trace.maps)
    assert int(followed.tokens_out[1, 0]) == int(trace.tokens_out[1, 0])
    pairs = run_reference(backbone, plan, images).decisions[1][0].pairs  # type: ignore[union-attr]
    rule = plan.blocks[1]
    assert rule is not None and rule.theta is not None
    above = (pairs.similarity / GRID - rule.theta).flatten()
    above = above[above > 0].sort().values
    assert shortfall == pytest.approx(float(above[len(above) % 3]), abs=2e-6)
    assert shortfall > 1e-5


def test_maps_that_no_merge_gives_are_refused() -> None:
    backbone = class_token_vit()
    plan = frozen_plan(backbone, (6, 5, 4, 0))
    images = random_images(2)
    maps = run_reference(backbone, plan, images).maps
    swapped = maps.clone()
    swapped[0, 0, 1], swapped[0, 0, 3] = maps[0, 0, 3], maps[0, 0, 1]
    with pytest.raises(NotFollowed):
        follow(backbone, plan, images, swapped)
    uneven = maps.clone()
    uneven[:, 1] = run_reference(backbone, frozen_plan(backbone, (7, 5, 4, 0)), images).maps[:, 1]
    with pytest.raises(NotFollowed):
        follow(backbone, plan, images, uneven)
