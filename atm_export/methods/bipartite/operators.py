"""The merge of a batch whose images share one r, as one torch custom operator.

`onnx.py` beside this file writes its ONNX by hand; the eager body follows that form step by step
(unique sort keys, one-hot matrix products, no scatter, no boolean indexing). Shapes: tokens
[B, n, D], merging sizes [B, n, 1].

Sources sit in slots. Where a model has prefix tokens, slot 0 is the last of them: it never merges,
and so no tensor of kept tokens is ever empty.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from atm_export.methods.bipartite.matching import GRID, grid_threshold
from atm_export.methods.bipartite.terms import most_merges
from atm_export.methods.tokens import STRIDE, Capacity, rows, sorted_by

# Integers fit 32 bits: OpenVINO's CPU plugin computes int64 as int32, without a word
# (openvino #35824), and so does TensorRT 8. Similarities lie within GRID of 0, but for rounding.
LEAST = -GRID - 2**16  # the lowest limit: below every pair's similarity
NOWHERE = -GRID - 2**17  # the similarity to padding: below every limit
GUARD = -3 * 2**19  # the similarity of a prefix token's slot: below every pair's
EMPTY = -7 * 2**18  # the similarity of a slot that holds no token: below all others


def similarity_limit(theta: float) -> int:
    """The highest whole similarity, in units of 1/GRID, that does not exceed the cosine `theta`."""
    return max(math.floor(grid_threshold(theta)), LEAST)


@torch.library.custom_op("atm_export::reorder", mutates_args=())
def reorder(x: Tensor, prefix: int) -> Tensor:
    """Tokens [B, n, D] as an alternate merge of no pair leaves them."""
    return x[:, alternate_order(x.shape[1], prefix)]


@reorder.register_fake
def _(x: Tensor, prefix: int) -> Tensor:
    return torch.empty_like(x)


def alternate_order(n: int, prefix: int) -> Tensor:
    """Old positions in new order: prefix, sources, destinations."""
    position = torch.arange(n)
    body = position[prefix:]
    return torch.cat([position[:prefix], body[body % 2 == 0], body[body % 2 == 1]])


@torch.library.custom_op("atm_export::merge", mutates_args=())
def merge(
    tokens: Tensor,
    sizes: Tensor,
    metric: Tensor,
    limit: Tensor,
    fixed: bool,
    prefix: int,
    by_size: bool,
    most: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Merge r pairs an image.

    limit [1]: r where `fixed` (int64), else a similarity (int32): r is the number of pairs that
    lie above it, averaged over the batch and floored. most: tokens at most. Returns tokens and
    sizes after the merge, where each token went [B, n], and how many tokens remain [1].
    """
    n = tokens.shape[1]
    source, target = slots_of(sizes, prefix, by_size, Capacity(most))
    similarity = torch.round((rows(metric, source) * GRID) @ rows(metric, target).transpose(1, 2))
    highest, best = nearest(similarity, prefix, Capacity(most))
    above = (highest.int() > limit).float().sum() * ((1 + 1e-6) / tokens.shape[0])
    r = int(limit) if fixed else min(int(above), most_merges(n, prefix))
    order = ranking(highest, Capacity(most))
    kept, merged = order[:, r:].sort(dim=1).values, order[:, :r]
    mass, x = rows(sizes, target), rows(tokens, target)
    joins = best.gather(1, merged).unsqueeze(2) == torch.arange(target.shape[1])
    merged_at = source.gather(1, merged)
    weight = torch.where(joins, rows(sizes, merged_at), 0.0).transpose(1, 2)
    total = mass + weight.sum(dim=2, keepdim=True)
    x = x * (mass / total) + (weight / total) @ rows(tokens, merged_at)
    kept_at = source.gather(1, kept)
    lead = max(prefix - 1, 0)
    return (
        torch.cat([tokens[:, :lead], rows(tokens, kept_at), x], dim=1),
        torch.cat([sizes[:, :lead], rows(sizes, kept_at), total], dim=1),
        _moved_to(source, target, order, best, r, lead),
        torch.tensor([n - r]),
    )


@merge.register_fake
def _(
    tokens: Tensor,
    sizes: Tensor,
    metric: Tensor,
    limit: Tensor,
    fixed: bool,
    prefix: int,
    by_size: bool,
    most: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return shapes_after(tokens, 1)


def shapes_after(tokens: Tensor, counts: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a merge of tokens [B, n, D] gives, but for the numbers; counts: 1, or one an image."""
    batch, n, channels = tokens.shape
    remaining = torch.library.get_ctx().new_dynamic_size(min=2)
    return (
        tokens.new_empty(batch, remaining, channels),
        tokens.new_empty(batch, remaining, 1),
        tokens.new_empty(batch, n, dtype=torch.int64),
        tokens.new_empty(counts, dtype=torch.int64),
    )


def slots_of(
    sizes: Tensor, prefix: int, by_size: bool, capacity: Capacity
) -> tuple[Tensor, Tensor]:
    """Positions of source slots (slot 0: the last prefix token, if any) and of destinations."""
    batch, n, _ = sizes.shape
    position = torch.arange(n)
    if by_size:
        key = sizes[..., 0].long() * capacity.places + position
        order = sorted_by(torch.where(position < prefix, position, key), largest=False)
        lead = max(prefix - 1, 0)
        cut = lead + (n - prefix) // 2 + (prefix > 0)
        return order[:, lead:cut], order[:, cut:]
    source = position[prefix + prefix % 2 :: 2]
    if prefix:
        source = torch.cat([position[prefix - 1 : prefix], source])
    target = position[prefix + 1 - prefix % 2 :: 2]
    return source.expand(batch, -1), target.expand(batch, -1)


def nearest(similarity: Tensor, prefix: int, capacity: Capacity) -> tuple[Tensor, Tensor]:
    """Each slot's highest similarity and the first destination that has it, both [B, S].

    similarity [B, S, T]: whole numbers. A prefix token's slot has the similarity GUARD.
    """
    top = similarity.amax(dim=2, keepdim=True)
    behind = (top - similarity) + torch.arange(similarity.shape[2]) / capacity.places
    highest = top[..., 0]
    if prefix:
        slot = torch.arange(highest.shape[1])
        highest = torch.where(slot == 0, highest.clamp(max=GUARD), highest)
    return highest, (behind.amin(dim=2) * capacity.places).long()


def ranking(highest: Tensor, capacity: Capacity) -> Tensor:
    """Slots by falling similarity [B, S], equals by slot.

    Beyond STRIDE slots one key does not fit 32 bits: sorted by the low digits, then by the high
    ones, equals as the first sort left them.
    """
    slot = torch.arange(highest.shape[1])
    if capacity.one_key:
        return sorted_by(highest.int() * STRIDE - slot)
    high = (highest / STRIDE).floor()
    first = sorted_by((highest - high * STRIDE).int() * capacity.places - slot)
    second = sorted_by(high.gather(1, first).int() * capacity.places - slot)
    return first.gather(1, second)


def _moved_to(
    source: Tensor, target: Tensor, order: Tensor, best: Tensor, r: int, lead: int
) -> Tensor:
    """New position of every old one, [B, n]."""
    batch, slots = source.shape
    joined = sorted_by(order, largest=False) < r
    first_target = lead + slots - r
    of_source = torch.where(joined, first_target + best, (~joined).cumsum(dim=1) - 1 + lead)
    of_target = (first_target + torch.arange(target.shape[1])).expand(batch, -1)
    ahead = torch.arange(lead).expand(batch, -1)
    old = torch.cat([ahead, source, target], dim=1)
    new = torch.cat([ahead, of_source, of_target], dim=1)
    return new.gather(1, sorted_by(old, largest=False))
