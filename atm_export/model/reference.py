"""The eager reference: a backbone with merging, made to be read, never altered for export."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from atm_export.methods.bipartite.rule import BlockMerge
from atm_export.methods.plan import MergePlan
from atm_export.model import merging
from atm_export.model.backbone import Backbone, BlockParts
from atm_export.model.merging import Pairs


@dataclass(frozen=True)
class Decision:
    """What one block decided: r merges an image, and the pairs it chose from."""

    pairs: Pairs
    r: int
    theta: float | None


@dataclass(frozen=True)
class Trace:
    """One forward pass in full.

    logits [B, K]. tokens_in and tokens_out [blocks, B]: tokens that enter a block and its MLP's
    input after the merge. maps [blocks, B, N0]: where each of the N0 embedded tokens is after a
    block. features [B, D]: the class token (or first row) after the last block.
    decisions [blocks][batches]: one entry a batch, or one an image where r is decided per image.
    """

    logits: Tensor
    tokens_in: Tensor
    tokens_out: Tensor
    maps: Tensor
    features: Tensor
    decisions: tuple[tuple[Decision | None, ...], ...]


Decider = Callable[[int, Tensor, Tensor, BlockMerge, Tensor], Decision]


@torch.inference_mode()
def run_reference(backbone: Backbone, plan: MergePlan, image: Tensor) -> Trace:
    """Run `image` [B, 3, H, W], normalised, through the merged model."""
    if plan.per_image and image.shape[0] > 1:
        return join_traces([run_batch(backbone, plan, one) for one in image.split(1)])
    return run_batch(backbone, plan, image)


@torch.inference_mode()
def run_batch(
    backbone: Backbone, plan: MergePlan, image: Tensor, decider: Decider | None = None
) -> Trace:
    """One pass with one r per block. `decider` (block, keys, sizes, rule, where) -> Decision takes
    the decisions in the place of the thresholds; `where` [B, N0]: current positions."""
    x = backbone.embed(image)
    batch, n, _ = x.shape
    sizes = torch.ones(batch, n, 1)
    where = torch.arange(n).expand(batch, n)
    counts_in, counts_out, maps, decisions = [], [], [], []
    parts = backbone.parts()
    for i, (part, rule) in enumerate(zip(parts, plan.blocks, strict=True)):
        counts_in.append(x.shape[1])
        attended, keys = attention(part, part.norm1(x), sizes if plan.proportional else None)
        x = x + attended / part.divisor
        decision = None
        if rule is not None:
            if decider is None:
                decision = decide(keys, sizes, backbone.prefix, rule)
            else:
                decision = decider(i, keys, sizes, rule, where)
            merged = merging.merge(x, sizes, decision.pairs, decision.r, backbone.prefix)
            x, sizes, where = merged.tokens, merged.sizes, merged.moved_to.gather(1, where)
        counts_out.append(x.shape[1])
        maps.append(where)
        decisions.append((decision,))
        if part is parts[-1] and backbone.head_rows is not None and plan.merges:
            x, sizes = x[:, : backbone.head_rows], sizes[:, : backbone.head_rows]
        x = x + part.scale2(part.mlp(part.norm2(x))) / part.divisor
    return Trace(
        backbone.head(x, sizes),
        torch.tensor(counts_in).unsqueeze(1).expand(-1, batch),
        torch.tensor(counts_out).unsqueeze(1).expand(-1, batch),
        torch.stack(maps),
        x[:, 0],
        tuple(decisions),
    )


def attention(part: BlockParts, x: Tensor, sizes: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention branch [B, N, D] and keys [B, heads, N, d]; sizes [B, N, 1]: proportional.

    softmax(q k^T / sqrt(d) + log s) v, s the merging sizes of the keys (arXiv 2210.09461, eq. 1).
    """
    batch, n, _ = x.shape
    qkv = part.qkv(x).reshape(batch, n, 3, part.heads, part.head_dim).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    q, k = part.q_norm(q), part.k_norm(k)
    weights = (q * part.scale) @ k.transpose(-2, -1)
    if sizes is not None:
        weights = weights + sizes.log().reshape(batch, 1, 1, n)
    out = F.softmax(weights, dim=-1) @ v
    out = part.attn_norm(out.transpose(1, 2).reshape(batch, n, part.heads * part.head_dim))
    return part.scale1(part.proj(out)), k


def decide(keys: Tensor, sizes: Tensor, prefix: int, rule: BlockMerge) -> Decision:
    """Match tokens by key similarity and decide how many pairs merge."""
    pairs = merging.match(merging.key_metric(keys), sizes, prefix, rule.grouping)
    most = merging.most_merges(sizes.shape[1], prefix)
    if rule.theta is not None:
        return Decision(pairs, min(merging.count_above(pairs, rule.theta), most), rule.theta)
    return Decision(pairs, min(rule.r or 0, most, (sizes.shape[1] - prefix) // 2), None)


def join_traces(traces: list[Trace]) -> Trace:
    """One trace of several passes, image after image."""
    return Trace(
        torch.cat([t.logits for t in traces]),
        torch.cat([t.tokens_in for t in traces], dim=1),
        torch.cat([t.tokens_out for t in traces], dim=1),
        torch.cat([t.maps for t in traces], dim=1),
        torch.cat([t.features for t in traces]),
        tuple(
            tuple(d for t in traces for d in t.decisions[block])
            for block in range(len(traces[0].decisions))
        ),
    )
