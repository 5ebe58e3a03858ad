"""The merging maths as pure functions of tensors: the reference that every export is compared with.

Adaptive Token Merging: arXiv 2505.15160. ToMe: arXiv 2210.09461. Shapes: [batch, tokens, channels].

Similarities are compared on a grid of 2**-20 (about 1e-6, just above FP32 rounding noise), and
equal ones by position, so that tokens which are mathematically equally similar are treated alike
by every backend.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from atm_export.methods.bipartite.terms import Grouping
from atm_export.methods.rule import Reduced
from atm_export.methods.tokens import rows

GRID = 2**20


@dataclass(frozen=True)
class Pairs:
    """Each source token with its most similar destination token.

    src [B, S] and dst [B, T]: positions in the current order; best [B, S]: index into dst;
    similarity [B, S]: cosine on the grid, in units of 1/GRID (whole numbers as float32);
    lead [B, S]: how far the best destination is ahead of the second best, in the same unit.
    """

    src: Tensor
    dst: Tensor
    best: Tensor
    similarity: Tensor
    lead: Tensor


def key_metric(keys: Tensor) -> Tensor:
    """Metric of a token: its attention keys [B, heads, N, d] averaged over heads, L2-normalised."""
    return F.normalize(keys.float().mean(dim=1), dim=-1)


def grid_threshold(theta: float) -> float:
    """A cosine threshold in the unit of `Pairs.similarity`, as float32 arithmetic sees it."""
    return float(torch.tensor(theta, dtype=torch.float32) * GRID)


def split_groups(sizes: Tensor, prefix: int, grouping: Grouping) -> tuple[Tensor, Tensor]:
    """Positions of sources and destinations, [B, S] and [B, T] (ATM section 3; prefix excluded).

    alternate: even positions and odd positions. size: by ascending merging size (equal sizes by
    position), the first half (floor) and the rest.
    """
    batch, n, _ = sizes.shape
    positions = torch.arange(n, device=sizes.device)
    if grouping == "alternate":
        src = positions[(positions >= prefix) & (positions % 2 == 0)]
        dst = positions[(positions >= prefix) & (positions % 2 == 1)]
        return src.expand(batch, -1), dst.expand(batch, -1)
    unique_key = sizes[..., 0].long() * n + positions
    order = prefix + torch.argsort(unique_key[:, prefix:], dim=1)
    half = (n - prefix) // 2
    return order[:, :half], order[:, half:]


def match(metric: Tensor, sizes: Tensor, prefix: int, grouping: Grouping) -> Pairs:
    """Pair every source with its most similar destination; metric [B, N, d], normalised."""
    src, dst = split_groups(sizes, prefix, grouping)
    if src.shape[1] == 0 or dst.shape[1] == 0:
        never = torch.full(src.shape, -4.0 * GRID)
        return Pairs(src, dst, torch.zeros_like(src), never, torch.zeros_like(never))
    a, b = rows(metric, src), rows(metric, dst)
    similarity = torch.round((a * GRID) @ b.transpose(1, 2))
    best = similarity.argmax(dim=2)  # the first of equal maxima
    top = similarity.amax(dim=2)
    others = similarity.scatter(2, best.unsqueeze(2), -torch.inf).amax(dim=2)
    return Pairs(src, dst, best, top, top - others)


def count_above(pairs: Pairs, theta: float) -> int:
    """Merges per image: pairs above theta in the whole batch / batch size, floored (ATM eq. 5)."""
    batch, sources = pairs.similarity.shape
    if sources == 0:
        return 0
    above = int((pairs.similarity > grid_threshold(theta)).sum())
    return above // batch


def merge(tokens: Tensor, sizes: Tensor, pairs: Pairs, r: int, prefix: int) -> Reduced:
    """Merge each image's r most similar pairs into size-weighted means.

    Order afterwards: prefix tokens, unmerged sources in source order, all destinations.
    """
    batch, n, channels = tokens.shape
    ranked = torch.sort(pairs.similarity, dim=1, descending=True, stable=True).indices
    merged_slot, kept_slot = ranked[:, :r], ranked[:, r:].sort(dim=1).values
    merged, kept = pairs.src.gather(1, merged_slot), pairs.src.gather(1, kept_slot)
    target = pairs.best.gather(1, merged_slot)

    mass = rows(sizes, pairs.dst)
    weighted = rows(tokens * sizes, pairs.dst)
    weighted = weighted.scatter_add(
        1, target.unsqueeze(2).expand(-1, -1, channels), rows(tokens * sizes, merged)
    )
    total = mass.scatter_add(1, target.unsqueeze(2), rows(sizes, merged))

    head = torch.arange(prefix, device=tokens.device).expand(batch, -1)
    moved_to = torch.empty(batch, n, dtype=torch.int64, device=tokens.device)
    first_dst = prefix + kept.shape[1]
    moved_to.scatter_(1, head, head)
    moved_to.scatter_(1, kept, _ramp(kept, prefix))
    moved_to.scatter_(1, pairs.dst, _ramp(pairs.dst, first_dst))
    moved_to.scatter_(1, merged, target + first_dst)
    return Reduced(
        torch.cat([tokens[:, :prefix], rows(tokens, kept), weighted / total], dim=1),
        torch.cat([sizes[:, :prefix], rows(sizes, kept), total], dim=1),
        moved_to,
    )


def _ramp(like: Tensor, start: int) -> Tensor:
    return torch.arange(start, start + like.shape[1], device=like.device).expand_as(like)
