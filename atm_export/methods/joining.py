"""Ranked tokens: the first are destinations, each of the next joins the one most like it, the rest
is pruned. For the eager reference, and as operations that have an ONNX.

Shapes: tokens [B, n, D], sizes [B, n, 1]; positions count behind the prefix.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from atm_export.comparison import largest, smallest
from atm_export.methods.bipartite.matching import GRID
from atm_export.methods.bipartite.operators import nearest
from atm_export.methods.ranked import Ranked, ascending, falling, ranks, shortfall
from atm_export.methods.rule import (
    Decision,
    GraphReduced,
    GraphSignals,
    NotFollowed,
    Reduced,
    Signals,
)
from atm_export.methods.tokens import Capacity, rows, take_rows


@dataclass(frozen=True)
class Cuts:
    """Ranks of the first token that joins another, and of the first that is pruned."""

    first: int
    last: int


@dataclass(frozen=True)
class Assigned(Decision):
    """target [B, T], source [B, S]: positions, ascending; best [B, S]: index into target;
    similarity [B, S]: cosine with it, in units of 1/GRID (whole numbers as floats); lead [B, S]:
    how far it is ahead of the next best."""

    ranked: Ranked
    target: Tensor
    source: Tensor
    best: Tensor
    similarity: Tensor
    lead: Tensor

    def margin(self) -> float:
        lead = smallest(self.lead.flatten().tolist()) / GRID
        return smallest([self.ranked.margin(), lead])


def assign(signals: Signals, ranked: Ranked, cuts: Cuts) -> Assigned:
    """Every source to its most similar destination, the first of equal ones."""
    target = ranked.order[:, : cuts.first].sort(dim=1).values
    source = ranked.order[:, cuts.first : cuts.last].sort(dim=1).values
    similarity = _similarity(signals, source, target)
    best = similarity.argmax(dim=2)
    top = similarity.amax(dim=2)
    others = similarity.scatter(2, best.unsqueeze(2), -torch.inf).amax(dim=2)
    return Assigned(ranked, target, source, best, top, top - others)


def _similarity(signals: Signals, source: Tensor, target: Tensor) -> Tensor:
    """Cosines of the residual stream, [B, S, T], on the grid."""
    metric = F.normalize(signals.tokens[:, signals.prefix :], dim=-1)
    return torch.round((rows(metric, source) * GRID) @ rows(metric, target).transpose(1, 2))


def join(tokens: Tensor, sizes: Tensor, decision: Assigned, prefix: int) -> Reduced:
    """Plain means; a destination's size grows by those of what joins, each times its cosine (never
    below 0). Order afterwards: prefix, destinations by position."""
    batch, n, channels = tokens.shape
    target, source = prefix + decision.target, prefix + decision.source
    joined = decision.best.unsqueeze(2)
    cosine = decision.similarity.unsqueeze(2).clamp(min=0) / GRID
    total = rows(tokens, target).scatter_add(
        1, joined.expand(-1, -1, channels), rows(tokens, source)
    )
    held = torch.ones_like(total[..., :1])
    held = held.scatter_add(1, joined, torch.ones_like(cosine))
    mass = rows(sizes, target).to(cosine.dtype)
    mass = mass.scatter_add(1, joined, rows(sizes, source) * cosine)
    ahead = torch.arange(prefix).expand(batch, -1)
    places = torch.arange(prefix, prefix + target.shape[1]).expand(batch, -1)
    moved_to = torch.full((batch, n), -1)
    moved_to.scatter_(1, ahead, ahead).scatter_(1, target, places)
    moved_to.scatter_(1, source, prefix + decision.best)
    return Reduced(
        torch.cat([tokens[:, :prefix], total / held], dim=1),
        torch.cat([sizes[:, :prefix], mass], dim=1),
        moved_to,
    )


def forced(signals: Signals, own: Assigned, moved_to: Tensor, cuts: Cuts) -> tuple[Assigned, float]:
    """What moved_to [B, N] tells of, and by how much (cosine) the worst of it falls short of the
    reference's own choice. Of tokens that became one the best-ranked is the destination."""
    places = moved_to[:, signals.prefix :]
    stays, rank = places >= 0, ranks(own.ranked.order)
    together = places.unsqueeze(2) == places.unsqueeze(1)
    best_rank = torch.where(together, rank.unsqueeze(1), rank.shape[1]).amin(dim=2)
    kind = 2 - stays.int() - (stays & (rank == best_rank)).int()
    for most, count in enumerate((cuts.first, cuts.last)):
        if not bool(((kind <= most).sum(dim=1) == count).all()):
            raise NotFollowed("another number of tokens stays")
    order = kind.sort(dim=1, stable=True).indices
    free = assign(signals, replace(own.ranked, order=order), cuts)
    to, of = places.gather(1, free.target), places.gather(1, free.source)
    joined = (of.unsqueeze(2) == to.unsqueeze(1)).int().argmax(dim=2)
    similarity = _similarity(signals, free.source, free.target)
    similarity = similarity.gather(2, joined.unsqueeze(2))[..., 0]
    worse = largest((free.similarity - similarity).flatten().tolist()) / GRID
    decision = replace(free, best=joined, similarity=similarity)
    return decision, largest([worse, shortfall(own.ranked, order)])


def pruned_and_joined(signals: GraphSignals, score: Tensor, cuts: Cuts) -> GraphReduced:
    """`assign` and `join` in one. score [B, m] on its grid."""
    tokens, prefix = signals.tokens, signals.prefix
    assert tokens is not None
    sizes = torch.ones_like(tokens[..., :1]) if signals.sizes is None else signals.sizes
    ahead = torch.arange(prefix).expand(tokens.shape[0], -1)
    order = falling(score)
    rank = ranks(order)
    stay = torch.cat([ahead, prefix + ascending(order[:, : cuts.first])], dim=1)
    x, mass = take_rows(tokens, stay), take_rows(sizes, stay)
    places = torch.where(rank < cuts.first, _count(rank < cuts.first) + prefix, -1)
    if cuts.first == cuts.last:
        return GraphReduced(x, mass, torch.cat([ahead, places], dim=1))
    source = prefix + ascending(order[:, cuts.first : cuts.last])
    y = take_rows(tokens, source)
    similarity = torch.round((_unit(y) * GRID) @ _unit(x).transpose(1, 2))[..., prefix:]
    top, best = nearest(similarity, 0, Capacity(cuts.first))
    joins = (best + prefix).unsqueeze(2) == torch.arange(prefix + cuts.first)
    weight = joins.to(x.dtype).transpose(1, 2)
    held = 1 + weight.sum(dim=2, keepdim=True)
    # Sizes are summed, not multiplied: so a lint sees that they stay above 0.
    grown = take_rows(sizes, source) * (top.clamp(min=0) * (1 / GRID)).unsqueeze(2)
    grown = torch.where(joins, grown, 0.0).sum(dim=1).unsqueeze(2)
    of_source = (rank >= cuts.first) & (rank < cuts.last)
    into = best.gather(1, _count(of_source).clamp(min=0)) + prefix
    moved_to = torch.cat([ahead, torch.where(of_source, into, places)], dim=1)
    return GraphReduced(x / held + (weight / held) @ y, mass + grown, moved_to)


def _unit(x: Tensor) -> Tensor:
    """Rows of norm 1. A quotient, which stays in FP32 where tokens do not."""
    return x / torch.linalg.vector_norm(x, dim=2, keepdim=True).clamp(min=1e-12)


def _count(marked: Tensor) -> Tensor:
    """How many were marked before, where one is; [B, m]."""
    return marked.long().cumsum(dim=1) - 1
