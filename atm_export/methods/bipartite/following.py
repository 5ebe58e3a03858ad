"""Another implementation's choice of pairs, and how good it was.

Where similarities tie within FP32 noise (flat images, random weights), two correct backends may
merge different pairs.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from atm_export.comparison import largest
from atm_export.methods.bipartite import matching
from atm_export.methods.bipartite.decision import PairDecision, count_margin
from atm_export.methods.bipartite.matching import GRID, Pairs
from atm_export.methods.bipartite.terms import Terms, most_merges
from atm_export.methods.rule import NotFollowed, Signals


def forced(signals: Signals, moved_to: Tensor, rule: Terms) -> tuple[PairDecision, float]:
    """The pairs that moved_to [B, N] tells of, and by how much (cosine) the worst of them fell
    short of the reference's own choice."""
    sizes, metric = signals.sizes, matching.key_metric(signals.keys)
    pairs = matching.match(metric, sizes, signals.prefix, rule.grouping)
    if not pairs.src.shape[1] or not pairs.dst.shape[1]:
        return PairDecision(pairs, 0, rule.theta), 0.0
    most = most_merges(sizes.shape[1], signals.prefix)
    sources, targets = moved_to.gather(1, pairs.src), moved_to.gather(1, pairs.dst)
    joins = sources.unsqueeze(2) == targets.unsqueeze(1)
    merged, best = joins.any(dim=2), joins.int().argmax(dim=2)
    counts = merged.sum(dim=1)
    if int(counts.min()) != int(counts.max()):
        raise NotFollowed("images of one batch merge different numbers of tokens")
    r = int(counts[0])
    short = [_partner_shortfall(metric, pairs, merged, best), _rank_shortfall(pairs, merged)]
    if rule.theta is not None and r != min(matching.count_above(pairs, rule.theta), most):
        theta = matching.grid_threshold(rule.theta)
        short.append(count_margin(pairs.similarity, theta, len(counts)))
    first = torch.where(merged, 4.0 * GRID, -4.0 * GRID)
    decision = PairDecision(replace(pairs, best=best, similarity=first), r, rule.theta)
    return decision, largest(short) / GRID


def _partner_shortfall(metric: Tensor, pairs: Pairs, merged: Tensor, best: Tensor) -> float:
    """How much more similar a merged source's best destination is than the one it joined."""
    if not bool(merged.any()):
        return 0.0
    width = metric.shape[2]
    a = metric.gather(1, pairs.src.unsqueeze(2).expand(-1, -1, width))
    joined = pairs.dst.gather(1, best)
    b = metric.gather(1, joined.unsqueeze(2).expand(-1, -1, width))
    similarity = torch.round((a * b).sum(dim=2) * GRID)
    return float((pairs.similarity - similarity)[merged].max())


def _rank_shortfall(pairs: Pairs, merged: Tensor) -> float:
    """How much more similar an unmerged pair is than a merged one of the same image."""
    if bool(merged.all()) or not bool(merged.any()):
        return 0.0
    best_kept = pairs.similarity.masked_fill(merged, -torch.inf).amax(dim=1)
    worst_merged = pairs.similarity.masked_fill(~merged, torch.inf).amin(dim=1)
    return largest([0.0, float((best_kept - worst_merged).max())])
