"""What reduction does to images: remaining tokens of each image, and information lost per block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from atm_export.methods.plan import MergePlan
from atm_export.model.backbone import Backbone
from atm_export.model.flops import trace_gmacs, unmerged_gmacs
from atm_export.model.reference import join_traces, run_reference

BUDGET = 40.0  # 1e9 multiply-adds for each of the two studies: some two seconds on two cores
CALLS = 0.1  # what the calls of a pass take, in the same unit
STUDIED = 64  # images at most
THETAS = (0.95, 0.9, 0.85)


@dataclass(frozen=True)
class Fates:
    """What becomes of the patches of each image, alone in its batch.

    tokens [B]: tokens in the end; maps [B, patches]: the token that holds each patch in the end
    (-1: none); gmacs [B].
    """

    tokens: Tensor
    maps: Tensor
    gmacs: Tensor


def alone(plan: MergePlan) -> MergePlan:
    """The plan with r decided for each image, where it is decided at run time."""
    return replace(plan, per_image=True) if plan.adaptive else plan


def fates(backbone: Backbone, plan: MergePlan, images: Tensor) -> Fates:
    """Run images [B, C, H, W], each by itself."""
    plan = alone(plan)
    trace = join_traces([run_reference(backbone, plan, part) for part in images.split(8)])
    return Fates(
        trace.tokens_out[-1],
        trace.maps[-1][:, backbone.prefix :],
        trace_gmacs(backbone, trace, plan.merges),
    )


def features_of(
    backbone: Backbone, plan: MergePlan, image: Tensor
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The judged output of one image [1, C, H, W], unmerged and merged: features of its patches
    [rows, columns, D] where the task is dense."""
    name, never = backbone.judged, MergePlan.unmerged(len(plan.blocks))
    plain, merged = (run_reference(backbone, p, image).outputs[name] for p in (never, alone(plan)))
    return plain[0].numpy(), merged[0].numpy()


def affordable(backbone: Backbone, images: int) -> int:
    """How many images the budget allows to run once."""
    return max(6, min(images, STUDIED, int(BUDGET / unmerged_gmacs(backbone))))


def information_loss(backbone: Backbone, plan: MergePlan, images: Tensor) -> dict[str, Any] | None:
    """Figure 2 of the paper: cosine distance of the final class token (or pooled row) from the
    unmerged model's, when one block alone merges, by a threshold. None where no
    block merges by similarity.

    As many of the images are used as the budget allows; `images` counts them.
    """
    blocks = [
        i for i, block in enumerate(plan.blocks) if block is not None and block.above(THETAS[0])
    ]
    if not blocks:
        return None
    passes = len(blocks) * len(THETAS) + 1
    count = max(1, min(len(images), int(BUDGET / (unmerged_gmacs(backbone) + CALLS) / passes)))
    step = max(1, len(blocks) * len(THETAS) * unmerged_gmacs(backbone) // (4 * BUDGET))
    chosen = blocks[:: int(step)]
    some = images[:count]
    plain = run_reference(backbone, plan.frozen([0] * len(plan.blocks)), some)
    rows = []
    for theta in THETAS:
        row = []
        for only in _one_block_each(plan, chosen, theta):
            merged = run_reference(backbone, only, some)
            distance = 1 - F.cosine_similarity(merged.features.double(), plain.features.double())
            row.append(round(max(0.0, float(distance.mean())), 8))
        rows.append(row)
    return {
        "thetas": list(THETAS),
        "blocks": [i + 1 for i in chosen],
        "cosine_distance": rows,
        "images": count,
    }


def _one_block_each(plan: MergePlan, chosen: list[int], theta: float) -> Iterator[MergePlan]:
    """Plans that merge in one of the `chosen` blocks alone, r decided for each image."""
    for i in chosen:
        blocks = tuple(
            None if block is None else block.above(theta) if k == i else block.frozen(0)
            for k, block in enumerate(plan.blocks)
        )
        yield replace(plan, blocks=blocks, per_image=True)


def study(backbone: Backbone, plan: MergePlan, images: Tensor) -> tuple[dict[str, Any], Fates]:
    """Both studies within their budgets, as facts for report.json, and the maps to draw."""
    count = affordable(backbone, len(images))
    with torch.inference_mode():
        fate = fates(backbone, plan, images[:count])
        loss = information_loss(backbone, plan, images)
    facts: dict[str, Any] = {
        "images_alone": {
            "tokens": fate.tokens.tolist(),
            "gflops": [round(g, 6) for g in fate.gmacs.tolist()],
            "count": len(fate.tokens),
        }
    }
    if loss is not None:
        facts["information_loss"] = loss
    return facts, fate
