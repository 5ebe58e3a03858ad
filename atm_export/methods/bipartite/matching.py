"""The merging maths as pure functions of tensors: the reference that every export is compared with.

Adaptive Token Merging: arXiv 2505.15160. ToMe: arXiv 2210.09461. Shapes: [batch, tokens, channels].

Similarities are compared on a grid of 2**-20 (about 1e-6, just above FP32 rounding noise), and
equal ones by position, so that tokens which are mathematically equally similar are treated alike
by every backend.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from atm_export.methods.bipartite.terms import Grouping
from atm_export.methods.rule import Reduced
from atm_export.methods.tokens import rows

GRID = 2**20
LEAST = 1e-12  # the length by which a shorter vector is divided, as torch normalises


@dataclass(frozen=True)
class Pairs:
    """Each source token with its most similar destination token.

    src [B, S] and dst [B, T]: positions in the current order; best [B, S]: index into dst;
    similarity [B, S]: cosine on the grid, in units of 1/GRID (whole numbers as float32);
    lead [B, S]: how far the best destination is ahead of the second best, in the same unit, where
    somebody asks.
    """

    src: Tensor
    dst: Tensor
    best: Tensor
    similarity: Tensor
    lead: Tensor | None


def key_metric(keys: Tensor) -> Tensor:
    """Metric of a token: its attention keys [B, heads, N, d] averaged over heads, L2-normalised."""
    mean = keys.float().mean(dim=1)
    return mean / torch.linalg.vector_norm(mean, dim=-1, keepdim=True).clamp_min(LEAST)


def grid_threshold(theta: float) -> float:
    """A cosine threshold in the unit of `Pairs.similarity`, as float32 arithmetic sees it."""
    return float(torch.tensor(theta, dtype=torch.float32) * GRID)


def split_groups(sizes: Tensor, prefix: int, grouping: Grouping) -> tuple[Tensor, Tensor]:
    """Positions of sources and destinations, [B, S] and [B, T] (ATM section 3; prefix excluded).

    alternate: even positions and odd positions. size: by ascending merging size (equal sizes by
    position), the first half (floor) and the rest.
    """
    batch, n, _ = sizes.shape
    if grouping == "alternate":
        src, dst = _alternate(n, prefix, sizes.device)
        return src.expand(batch, -1), dst.expand(batch, -1)
    positions = torch.arange(n, device=sizes.device)
    unique_key = sizes[..., 0].long() * n + positions
    order = prefix + torch.argsort(unique_key[:, prefix:], dim=1)
    half = (n - prefix) // 2
    return order[:, :half], order[:, half:]


@lru_cache(maxsize=256)
def _alternate(n: int, prefix: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Positions of the alternate groups, [1, S] and [1, T]: constants, kept for the next pass,
    which may need gradients."""
    with torch.inference_mode(False):
        src, dst = every_other(torch.arange(n, device=device).unsqueeze(0), prefix)
        return src.contiguous(), dst.contiguous()


def every_other(x: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """Of x [B, n, ...] what stands at even positions behind the prefix, and at odd ones."""
    return x[:, prefix + prefix % 2 :: 2], x[:, prefix + 1 - prefix % 2 :: 2]


def match(
    metric: Tensor, sizes: Tensor, prefix: int, grouping: Grouping, leads: bool = True
) -> Pairs:
    """Pair every source with its most similar destination; metric [B, N, d], normalised. leads:
    whether to look for the second best too."""
    src, dst = split_groups(sizes, prefix, grouping)
    if src.shape[1] == 0 or dst.shape[1] == 0:
        never = torch.full(src.shape, -4.0 * GRID)
        return Pairs(src, dst, torch.zeros_like(src), never, torch.zeros_like(never))
    if grouping == "alternate":
        a, b = every_other(metric, prefix)
    else:
        a, b = rows(metric, src), rows(metric, dst)
    similarity = torch.round((a * GRID) @ b.transpose(1, 2))
    top, best = similarity.max(dim=2)  # the first of equal maxima
    if not leads:
        return Pairs(src, dst, best, top, None)
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

    stay, held = kept.shape[1], pairs.dst.shape[1]
    taken = torch.cat([kept, pairs.dst, merged], dim=1)
    x, mass = rows(tokens, taken), sizes[..., 0].gather(1, taken)
    heavy = x[:, stay:] * mass[:, stay:].unsqueeze(2)
    weighted = heavy[:, :held].scatter_add(
        1, target.unsqueeze(2).expand(-1, -1, channels), heavy[:, held:]
    )
    total = mass[:, stay : stay + held].scatter_add(1, target, mass[:, stay + held :])

    def moved_to() -> Tensor:
        places = torch.arange(n - r, device=tokens.device).expand(batch, -1)
        old = torch.cat([places[:, :prefix], taken], dim=1)
        new = torch.cat([places, target + (prefix + stay)], dim=1)
        return torch.empty_like(old).scatter_(1, old, new)

    return Reduced(
        torch.cat([tokens[:, :prefix], x[:, :stay], weighted / total.unsqueeze(2)], dim=1),
        torch.cat([sizes[:, :prefix, 0], mass[:, :stay], total], dim=1).unsqueeze(2),
        moved_to,
    )
