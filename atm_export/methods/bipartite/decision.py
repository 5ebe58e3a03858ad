"""How many pairs of a block merge, and how firmly that was decided.

FP32 backends differ in the last bits of a similarity; `margin` is the least change of a cosine
that alters a decision.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from atm_export.comparison import smallest
from atm_export.methods.bipartite import matching
from atm_export.methods.bipartite.matching import GRID, Pairs, grid_threshold
from atm_export.methods.bipartite.terms import Terms, most_merges
from atm_export.methods.rule import Decision


@dataclass(frozen=True)
class PairDecision(Decision):
    """What one block decided: r merges an image, and the pairs it chose from."""

    pairs: Pairs
    r: int
    theta: float | None

    def margin(self) -> float:
        """As a cosine; 0 where similarities tie."""
        pairs, r = self.pairs, self.r
        batch, sources = pairs.similarity.shape
        if sources == 0:
            return float("inf")
        ranked, order = pairs.similarity.sort(dim=1, descending=True, stable=True)
        assert pairs.lead is not None
        gaps = [_smallest(pairs.lead.gather(1, order[:, :r]))]
        if 0 < r < sources:
            gaps.append(_smallest(ranked[:, r - 1] - ranked[:, r]))
        if self.theta is not None:
            gaps.append(count_margin(pairs.similarity, grid_threshold(self.theta), batch))
        return smallest(gaps) / GRID


def decide(
    keys: Tensor, sizes: Tensor, prefix: int, rule: Terms, leads: bool = True
) -> PairDecision:
    """Match tokens by key similarity and decide how many pairs merge."""
    pairs = matching.match(matching.key_metric(keys), sizes, prefix, rule.grouping, leads)
    most = most_merges(sizes.shape[1], prefix)
    if rule.theta is not None:
        return PairDecision(pairs, min(matching.count_above(pairs, rule.theta), most), rule.theta)
    return PairDecision(pairs, min(rule.r or 0, most, (sizes.shape[1] - prefix) // 2), None)


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
