"""The export-friendly operators: torch custom operators with a fixed ONNX form each.

`torch.export` keeps them whole, and `graph/translations.py` writes the ONNX of each by hand. The
eager bodies here follow that ONNX form step by step (unique sort keys, one-hot matrix products, no
scatter, no boolean indexing), so that the twin can be compared with the reference before any
graph exists. Shapes: tokens [B, n, D], merging sizes [B, n, 1].

Sources sit in slots. Where a model has prefix tokens, slot 0 is the last of them: it never merges,
and so no tensor of kept tokens is ever empty.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from atm_export.model.merging import GRID, most_merges

STRIDE = 8192  # more than any token count: a sort key is value * STRIDE + position
GUARD = 2**60  # keeps a prefix token's key below every pair's


def key_limit(theta: float) -> int:
    """The least sort key that lies above no pair at or below the cosine `theta`."""
    return math.floor(float(torch.tensor(theta, dtype=torch.float32) * GRID)) * STRIDE


@torch.library.custom_op("atm_export::split_heads", mutates_args=())
def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, n, heads * d] to [B, n, heads, d]."""
    return x.reshape(x.shape[0], x.shape[1], heads, -1).clone()


@split_heads.register_fake
def _(x: Tensor, heads: int) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], heads, x.shape[2] // heads)


@torch.library.custom_op("atm_export::attend", mutates_args=())
def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """Attention of scaled q [B, m, H, d] on k, v [B, n, H, d] as [B, m, H * d].

    bias [B, n, 1]: log sizes, added to every query's scores.
    """
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    weights = q @ k.transpose(2, 3)
    if bias is not None:
        weights = weights + bias.reshape(bias.shape[0], 1, 1, -1)
    out = torch.softmax(weights, dim=-1) @ v
    return out.transpose(1, 2).reshape(q.shape[0], q.shape[2], -1).clone()


@attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[1], q.shape[2] * v.shape[3])


@torch.library.custom_op("atm_export::key_metric", mutates_args=())
def key_metric(k: Tensor, shift: Tensor | None) -> Tensor:
    """Keys [B, n, H, d] summed over heads, plus shift [d], and L2-normalised: [B, n, d]."""
    total = k.float().sum(dim=2)
    if shift is not None:
        total = total + shift
    return total / total.norm(dim=-1, keepdim=True).clamp_min(1e-12)


@key_metric.register_fake
def _(k: Tensor, shift: Tensor | None) -> Tensor:
    return k.new_empty(k.shape[0], k.shape[1], k.shape[3])


@torch.library.custom_op("atm_export::reorder", mutates_args=())
def reorder(x: Tensor, prefix: int) -> Tensor:
    """Tokens [B, n, D] as an alternate merge of no pair leaves them."""
    return x[:, alternate_order(x.shape[1], prefix)]


@reorder.register_fake
def _(x: Tensor, prefix: int) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("atm_export::look_up", mutates_args=())
def look_up(table: Tensor, index: Tensor) -> Tensor:
    """table [n] at index [B, N0]."""
    return table[index]


@look_up.register_fake
def _(table: Tensor, index: Tensor) -> Tensor:
    return torch.empty_like(index)


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Merge r pairs an image.

    limit (int64 [1]): r where `fixed`, else a key limit: r is the number of pairs whose key lies
    above it, averaged over the batch and floored. Returns tokens and sizes after the merge, where
    each token went [B, n], and how many tokens remain [1].
    """
    n = tokens.shape[1]
    source, target = _slots(sizes, prefix, by_size)
    best, key = _match(rows(metric, source), rows(metric, target), prefix)
    above = (key > limit).float().sum() * ((1 + 1e-6) / tokens.shape[0])
    r = int(limit) if fixed else min(int(above), most_merges(n, prefix))
    order = torch.topk(key, source.shape[1], dim=1).indices
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, n, channels = tokens.shape
    remaining = torch.library.get_ctx().new_dynamic_size(min=2)
    return (
        tokens.new_empty(batch, remaining, channels),
        sizes.new_empty(batch, remaining, 1),
        tokens.new_empty(batch, n, dtype=torch.int64),
        tokens.new_empty(1, dtype=torch.int64),
    )


def rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x [B, n, C] at index [B, K]: [B, K, C]."""
    return x.gather(1, index.unsqueeze(2).expand(-1, -1, x.shape[2]))


def _slots(sizes: Tensor, prefix: int, by_size: bool) -> tuple[Tensor, Tensor]:
    """Positions of source slots (slot 0: the last prefix token, if any) and of destinations."""
    batch, n, _ = sizes.shape
    position = torch.arange(n)
    if by_size:
        key = torch.where(position < prefix, position, sizes[..., 0].long() * STRIDE + position)
        order = torch.topk(key, n, dim=1, largest=False).indices
        lead = max(prefix - 1, 0)
        cut = lead + (n - prefix) // 2 + (prefix > 0)
        return order[:, lead:cut], order[:, cut:]
    source = position[prefix + prefix % 2 :: 2]
    if prefix:
        source = torch.cat([position[prefix - 1 : prefix], source])
    target = position[prefix + 1 - prefix % 2 :: 2]
    return source.expand(batch, -1), target.expand(batch, -1)


def nearest(similarity: Tensor) -> tuple[Tensor, Tensor]:
    """Highest whole-numbered similarity [B, S, 1], and the first destination that has it [B, S]."""
    top = similarity.amax(dim=2, keepdim=True)
    behind = (top - similarity) + torch.arange(similarity.shape[2]) / STRIDE
    return top, (behind.amin(dim=2) * STRIDE).long()


def _match(a: Tensor, b: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """Each slot's most similar destination (the first of equals), and its unique sort key."""
    top, best = nearest(torch.round((a * GRID) @ b.transpose(1, 2)))
    back = torch.arange(a.shape[1])
    if prefix:
        back = torch.where(back == 0, GUARD, back)
    return best, top[..., 0].long() * STRIDE - back


def _moved_to(
    source: Tensor, target: Tensor, order: Tensor, best: Tensor, r: int, lead: int
) -> Tensor:
    """New position of every old one, [B, n]."""
    batch, slots = source.shape
    rank = torch.topk(order, slots, dim=1, largest=False).indices
    joined = rank < r
    first_target = lead + slots - r
    of_source = torch.where(joined, first_target + best, (~joined).cumsum(dim=1) - 1 + lead)
    of_target = (first_target + torch.arange(target.shape[1])).expand(batch, -1)
    ahead = torch.arange(lead).expand(batch, -1)
    old = torch.cat([ahead, source, target], dim=1)
    new = torch.cat([ahead, of_source, of_target], dim=1)
    return new.gather(1, torch.topk(old, old.shape[1], dim=1, largest=False).indices)
