"""How firmly the reference took its decisions: the least change of a cosine that alters one.

FP32 backends differ in the last bits of a similarity. Where a decision hangs on less than that,
no two correct implementations need agree, so parity is proven on inputs with a margin.
"""

from __future__ import annotations

import torch
from torch import Tensor

from atm_export.comparison import smallest
from atm_export.model.merging import GRID, grid_threshold
from atm_export.model.reference import Decision, Trace


def trace_margin(trace: Trace) -> float:
    """The smallest margin of all blocks and images, as a cosine; 0 where similarities tie."""
    decisions = [d for block in trace.decisions for d in block if d is not None]
    return smallest(decision_margin(d) for d in decisions)


def decision_margin(decision: Decision) -> float:
    """Margin of one block's decision, as a cosine."""
    pairs, r = decision.pairs, decision.r
    batch, sources = pairs.similarity.shape
    if sources == 0:
        return float("inf")
    ranked, order = pairs.similarity.sort(dim=1, descending=True, stable=True)
    gaps = [_smallest(pairs.lead.gather(1, order[:, :r]))]
    if 0 < r < sources:
        gaps.append(_smallest(ranked[:, r - 1] - ranked[:, r]))
    if decision.theta is not None:
        gaps.append(count_margin(pairs.similarity, grid_threshold(decision.theta), batch))
    return smallest(gaps) / GRID


def count_margin(similarity: Tensor, theta: float, batch: int) -> float:
    """How far similarities must move before floor(pairs above theta / batch) changes."""
    distance = (similarity - theta).flatten()
    if bool(distance.isnan().any()):
        return float("nan")
    above = distance[distance > 0].sort().values
    below = (-distance[distance <= 0]).sort().values
    to_fall = len(above) % batch
    to_rise = batch - len(above) % batch - 1
    moves = [float(side[k]) for side, k in ((above, to_fall), (below, to_rise)) if k < len(side)]
    return smallest(moves)


def _smallest(gaps: Tensor) -> float:
    return float(gaps.min()) if gaps.numel() else float("inf")


def first_difference(ours: Tensor, theirs: Tensor) -> tuple[int, int] | None:
    """Block and image where two token maps [blocks, B, N0] first differ."""
    differs = (ours != theirs).any(dim=2)
    if not bool(differs.any()):
        return None
    block, image = torch.nonzero(differs)[0].tolist()
    return block, image
