"""Follow another implementation's decisions through the reference, and say how good they were.

Where similarities tie within FP32 noise (flat images, random weights), two correct backends may
merge different pairs. Such a run is right if each of its choices was, by the reference's own
similarities, as good as the best, and if the reference gives the same logits for those choices.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from atm_export.comparison import largest
from atm_export.methods.bipartite.rule import BlockMerge
from atm_export.methods.plan import MergePlan
from atm_export.model import merging
from atm_export.model.backbone import Backbone
from atm_export.model.merging import GRID, Pairs
from atm_export.model.reference import Decision, Trace, join_traces, run_batch
from atm_export.prove.margins import count_margin


class NotAMerge(Exception):
    """The maps are not what any choice of pairs gives."""


def follow(backbone: Backbone, plan: MergePlan, image: Tensor, maps: Tensor) -> tuple[Trace, float]:
    """The reference's trace with the decisions in maps [blocks, B, N0], and by how much (cosine)
    the worst of them fell short of the reference's own choice."""
    if plan.per_image and image.shape[0] > 1:
        parts = [
            follow(backbone, plan, image[i : i + 1], maps[:, i : i + 1]) for i in range(len(image))
        ]
        return join_traces([trace for trace, _ in parts]), largest(worst for _, worst in parts)
    shortfalls: list[float] = []

    def decider(
        block: int, keys: Tensor, sizes: Tensor, rule: BlockMerge, where: Tensor
    ) -> Decision:
        decision, short = _forced(keys, sizes, backbone.prefix, rule, where, maps[block])
        shortfalls.append(short)
        return decision

    trace = run_batch(backbone, plan, image, decider)
    if not torch.equal(trace.maps, maps):
        raise NotAMerge("tokens stand in another order than the merge leaves them in")
    return trace, largest(shortfalls)


def _forced(
    keys: Tensor, sizes: Tensor, prefix: int, rule: BlockMerge, where: Tensor, after: Tensor
) -> tuple[Decision, float]:
    metric = merging.key_metric(keys)
    pairs = merging.match(metric, sizes, prefix, rule.grouping)
    if not pairs.src.shape[1] or not pairs.dst.shape[1]:
        return Decision(pairs, 0, rule.theta), 0.0
    most = merging.most_merges(sizes.shape[1], prefix)
    moved = torch.zeros(sizes.shape[:2], dtype=torch.int64).scatter(1, where, after)
    joins = moved.gather(1, pairs.src).unsqueeze(2) == moved.gather(1, pairs.dst).unsqueeze(1)
    merged, best = joins.any(dim=2), joins.int().argmax(dim=2)
    counts = merged.sum(dim=1)
    if int(counts.min()) != int(counts.max()):
        raise NotAMerge("images of one batch merge different numbers of tokens")
    r = int(counts[0])
    short = [_partner_shortfall(metric, pairs, merged, best), _rank_shortfall(pairs, merged)]
    if rule.theta is not None and r != min(merging.count_above(pairs, rule.theta), most):
        short.append(
            count_margin(pairs.similarity, merging.grid_threshold(rule.theta), len(counts))
        )
    first = torch.where(merged, 4.0 * GRID, -4.0 * GRID)
    return Decision(replace(pairs, best=best, similarity=first), r, rule.theta), largest(
        short
    ) / GRID


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
