"""Fixed merges per block for a frozen schedule: measured on images, or from the paper's GFLOPs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from atm_export.methods.plan import MergePlan
from atm_export.model.backbone import Backbone
from atm_export.model.flops import count_gmacs
from atm_export.model.reference import run_reference


def measured_r(backbone: Backbone, plan: MergePlan, batches: Sequence[Tensor]) -> tuple[int, ...]:
    """r per block: the adaptive model's mean over all images, rounded."""
    total = torch.zeros(len(plan.blocks), dtype=torch.float64)
    images = 0
    for batch in batches:
        for image in batch.split(1):
            trace = run_reference(backbone, plan, image)
            total += (trace.tokens_in - trace.tokens_out)[:, 0]
            images += 1
    return tuple(round(float(mean)) for mean in total / images)


def paper_r(backbone: Backbone, plan: MergePlan, gflops: float) -> tuple[int, ...]:
    """r per block, spread evenly, such that the multiply-adds come nearest to the paper's.

    The paper gives GFLOPs an operating point, but not the tokens of each block.
    """
    mergeable = [block is not None for block in plan.blocks]
    best: tuple[float, tuple[int, ...]] | None = None
    for tenths in range(0, 10 * backbone.patches, 1):
        r = _spread(tenths / 10, mergeable)
        gap = abs(frozen_gmacs(backbone, plan, r) - gflops)
        if best is not None and gap > best[0]:
            break
        best = gap, r
    assert best is not None
    return best[1]


def frozen_gmacs(backbone: Backbone, plan: MergePlan, r: Sequence[int]) -> float:
    """GFLOPs an image of a frozen schedule."""
    n = backbone.tokens
    tokens_in, tokens_out = [], []
    for rule in plan.frozen(r).blocks:
        tokens_in.append(n)
        if rule is not None:
            n = rule.tokens_after(n, backbone.prefix) or n
        tokens_out.append(n)
    mlp = list(tokens_out)
    if backbone.head_rows is not None and plan.merges:
        mlp[-1] = backbone.head_rows
    columns = [torch.tensor(values).unsqueeze(1) for values in (tokens_in, mlp)]
    return float(count_gmacs(backbone, columns[0], columns[1])[0])


def _spread(per_block: float, mergeable: Sequence[bool]) -> tuple[int, ...]:
    """Whole counts whose running sum follows `per_block` a mergeable block."""
    counts, owed = [], 0.0
    for merges in mergeable:
        owed += per_block if merges else 0.0
        take = int(owed + 1e-9) if merges else 0
        owed -= take
        counts.append(take)
    return tuple(counts)
