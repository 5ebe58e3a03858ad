"""The merge of padded tensors: images that decide for themselves (`--merge per-image`), and the
stepped form, whose one length that data decides goes in steps.

Padded tensors [B, n, D] hold each image's tokens first and padding after them; a merging size of 0
marks padding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from atm_export.methods.bipartite.matching import GRID
from atm_export.methods.bipartite.operators import (
    EMPTY,
    NOWHERE,
    nearest,
    ranking,
    shapes_after,
    slots_of,
)
from atm_export.methods.bipartite.terms import most_merges
from atm_export.methods.tokens import TINY, Capacity, sorted_by
from atm_export.methods.tokens import rows as take


@torch.library.custom_op("atm_export::merge_stepped", mutates_args=())
def merge_stepped(
    tokens: Tensor,
    sizes: Tensor,
    metric: Tensor,
    limit: Tensor,
    each: bool,
    prefix: int,
    by_size: bool,
    most: int,
    step: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Merge every pair above `limit` (int32 [1]) in `each` image, or r pairs an image: their
    number, averaged over the batch and floored.

    Returns padded tokens and sizes whose length is a multiple of `step`, or as it was where that is
    shorter; where each token went [B, n]; and tokens per image [B], or of all [1].
    """
    capacity = Capacity(most)
    source, target, own, mass = _sides(sizes, prefix, by_size, capacity)
    x = take(tokens, target)
    similarity = torch.round((take(metric, source) * GRID) @ take(metric, target).transpose(1, 2))
    similarity = torch.where(mass.transpose(1, 2) > 0, similarity, float(NOWHERE))
    highest, best = nearest(similarity, prefix, capacity)
    highest = torch.where(own[..., 0] > 0, highest, float(EMPTY))
    order = ranking(highest, capacity)
    decide = _above if each else _first
    merged = decide(highest, limit, order, sizes, prefix)
    x, total = _absorb(take(tokens, source), x, best, order, merged, own, mass)

    lead = max(prefix - 1, 0)
    listed = torch.cat([tokens[:, :lead], take(tokens, source), x], dim=1)
    alive_source = (own[..., 0] > 0) & ~merged
    listed_sizes = torch.cat([sizes[:, :lead], own * alive_source.unsqueeze(2), total], dim=1)
    alive = listed_sizes[..., 0] > 0
    count = alive.sum(dim=1)
    position = torch.arange(alive.shape[1])
    place = torch.where(alive, position, position + capacity.places)
    length = min(-(-int(count.max()) // step) * step, sizes.shape[1])
    chosen = sorted_by(place, largest=False)[:, :length]
    real = torch.cat([sizes[:, :lead], own, mass], dim=1)[..., 0] > 0
    moved_to = _moved_to(alive, real, source, target, best, merged, lead, capacity)
    told = count if each else count[:1].clone()
    return take(listed, chosen), take(listed_sizes, chosen), moved_to, told


@merge_stepped.register_fake
def _(
    tokens: Tensor,
    sizes: Tensor,
    metric: Tensor,
    limit: Tensor,
    each: bool,
    prefix: int,
    by_size: bool,
    most: int,
    step: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return shapes_after(tokens, tokens.shape[0] if each else 1)


@torch.library.custom_op("atm_export::merge_each", mutates_args=())
def merge_each(
    tokens: Tensor,
    sizes: Tensor,
    metric: Tensor,
    limit: Tensor,
    prefix: int,
    by_size: bool,
    most: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Merge, in each image, every pair whose similarity lies above `limit` (int32 [1]).

    most: tokens at most. Returns padded tokens and sizes, where each token went [B, n], and tokens
    per image [B].
    """
    found = merge_stepped(tokens, sizes, metric, limit, True, prefix, by_size, most, 1)
    return found[0], found[1], found[2], found[3]


@merge_each.register_fake
def _(
    tokens: Tensor,
    sizes: Tensor,
    metric: Tensor,
    limit: Tensor,
    prefix: int,
    by_size: bool,
    most: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return shapes_after(tokens, tokens.shape[0])


def _above(highest: Tensor, limit: Tensor, order: Tensor, sizes: Tensor, prefix: int) -> Tensor:
    """Which slots merge [B, S]; two patch tokens stay in each image (see `most_merges`)."""
    merged = highest.int() > limit
    if prefix % 2:
        return merged
    present = (sizes[..., 0] > 0).sum(dim=1, keepdim=True)
    return merged & (sorted_by(order, largest=False) < present - prefix - 2)


def _first(highest: Tensor, limit: Tensor, order: Tensor, sizes: Tensor, prefix: int) -> Tensor:
    """The r first slots merge [B, S] where images share r, as `operators.merge` counts it."""
    present = int((sizes[0, :, 0] > 0).sum())
    above = (highest.int() > limit).float().sum() * ((1 + 1e-6) / sizes.shape[0])
    return sorted_by(order, largest=False) < min(int(above), most_merges(present, prefix))


def _absorb(
    sources: Tensor,
    x: Tensor,
    best: Tensor,
    order: Tensor,
    merged: Tensor,
    own: Tensor,
    mass: Tensor,
) -> tuple[Tensor, Tensor]:
    """Size-weighted means at the destinations, [B, T, D], and their sizes [B, T, 1]."""
    order = order[:, : max(int(merged.sum(1).max()), 1)]
    joins = torch.where(merged.gather(1, order), best.gather(1, order), -1)
    weight = torch.where(
        joins.unsqueeze(2) == torch.arange(x.shape[1]), take(own, order), 0.0
    ).transpose(1, 2)
    total = mass + weight.sum(dim=2, keepdim=True)
    safe = total.clamp(min=TINY)
    return x * (mass / safe) + (weight / safe) @ take(sources, order), total


def _moved_to(
    alive: Tensor,
    real: Tensor,
    source: Tensor,
    target: Tensor,
    best: Tensor,
    merged: Tensor,
    lead: int,
    capacity: Capacity,
) -> Tensor:
    """New position of every old one, [B, n]."""
    slots, position = source.shape[1], torch.arange(alive.shape[1])
    after = alive.long().cumsum(dim=1) - 1
    of_merged = after.gather(1, lead + slots + best)
    of_source = torch.where(merged, of_merged, after[:, lead : lead + slots])
    new = torch.cat([after[:, :lead], of_source, after[:, lead + slots :]], dim=1)
    ahead = torch.arange(lead).expand(len(alive), -1)
    old = torch.cat([ahead, source, target], dim=1)
    old = torch.where(real, old, old + (position + 1) * capacity.places)
    return new.gather(1, sorted_by(old, largest=False))


def _sides(
    sizes: Tensor, prefix: int, by_size: bool, capacity: Capacity
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Positions of source slots and destinations, and their sizes, 0 where there is no token."""
    if not by_size:
        source, target = slots_of(sizes, prefix, False, capacity)
        return source, target, take(sizes, source), take(sizes, target)
    n = sizes.shape[1]
    position = torch.arange(n)
    size = torch.where(sizes[..., 0] > 0, sizes[..., 0].long(), capacity.places)
    key = size * capacity.places + position
    order = sorted_by(torch.where(position < prefix, position, key), largest=False)
    lead, guards = max(prefix - 1, 0), int(prefix > 0)
    half = ((sizes[..., 0] > 0).sum(dim=1, keepdim=True) - prefix) // 2
    slot = torch.arange(guards + (n - prefix) // 2)
    source = order[:, lead : lead + len(slot)]
    own = take(sizes, source) * (slot < half + guards).unsqueeze(2)
    column = torch.arange(n - lead - len(slot))
    at = lead + guards + half + column
    target = order.gather(1, at.clamp(max=n - 1))
    return source, target, own, take(sizes, target) * (at < n).unsqueeze(2)
