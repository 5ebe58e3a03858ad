"""The eager reference: a backbone that reduces its tokens, made to be read, never altered for
export."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from atm_export.methods.plan import MergePlan
from atm_export.methods.rule import BlockRule, Decision, Signals
from atm_export.methods.tokens import carried
from atm_export.model.backbone import Backbone, BlockParts
from atm_export.tasks.base import OutputSpec


@dataclass(frozen=True)
class Trace:
    """One forward pass in full.

    outputs: the answers [B, ...] by name, as `specs` say. tokens_in and tokens_out [blocks, B]:
    tokens that enter a block and its MLP's input after the reduction; attended [blocks, B]: tokens
    whose values and attention output it computes. maps [blocks, B, N0]: where each of the N0
    embedded tokens is after a block (-1: dropped). features [B, D]:
    the class token (or first row) after the last block. decisions [blocks][batches]: one entry a
    batch, or one an image where r is decided per image.
    """

    outputs: Mapping[str, Tensor]
    specs: tuple[OutputSpec, ...]
    tokens_in: Tensor
    tokens_out: Tensor
    attended: Tensor
    maps: Tensor
    features: Tensor
    decisions: tuple[tuple[Decision | None, ...], ...]


Decider = Callable[[int, Signals, BlockRule], Decision]


@torch.inference_mode()
def run_reference(backbone: Backbone, plan: MergePlan, image: Tensor) -> Trace:
    """Run `image` [B, C, H, W], normalised, through the reduced model."""
    if plan.per_image and image.shape[0] > 1:
        return join_traces([run_batch(backbone, plan, one) for one in image.split(1)])
    return run_batch(backbone, plan, image)


@torch.inference_mode()
def run_batch(
    backbone: Backbone, plan: MergePlan, image: Tensor, decider: Decider | None = None
) -> Trace:
    """One pass in which the batch decides together. `decider` (block, signals, rule) -> Decision
    takes the decisions in the place of the rules."""
    x = backbone.embed(image)
    batch, n, _ = x.shape
    sizes = torch.ones(batch, n, 1)
    where = torch.arange(n).expand(batch, n)
    counts_in, counts_out, attended, maps, decisions = [], [], [], [], []
    parts = backbone.parts()
    for i, (part, rule) in enumerate(zip(parts, plan.blocks, strict=True)):
        counts_in.append(x.shape[1])
        heads = attention(part, part.norm1(x), sizes if plan.proportional else None)
        early = rule is not None and rule.before_attention
        x = x if early else x + heads.out / part.divisor
        decision = None
        if rule is not None:
            signals = _signals(rule, heads, x, sizes, where, backbone.prefix)
            decision = rule.decide(signals) if decider is None else decider(i, signals, rule)
            reduced = rule.reduce(x, sizes, decision, backbone.prefix)
            x, sizes, where = reduced.tokens, reduced.sizes, carried(where, reduced.moved_to)
            if early:
                merged = rule.reduce_attention(heads.weights, decision)
                x = x + attended_by(part, merged, part.norm1(x)) / part.divisor
        counts_out.append(x.shape[1])
        attended.append(counts_out[-1] if early else counts_in[-1])
        maps.append(where)
        decisions.append((decision,))
        if part is parts[-1] and backbone.head_rows is not None and plan.merges:
            x, sizes = x[:, : backbone.head_rows], sizes[:, : backbone.head_rows]
        x = x + part.scale2(part.mlp(part.norm2(x))) / part.divisor
    return Trace(
        backbone.named(backbone.head(x, sizes)),
        backbone.outputs,
        torch.tensor(counts_in).unsqueeze(1).expand(-1, batch),
        torch.tensor(counts_out).unsqueeze(1).expand(-1, batch),
        torch.tensor(attended).unsqueeze(1).expand(-1, batch),
        torch.stack(maps),
        x[:, 0],
        tuple(decisions),
    )


def _signals(
    rule: BlockRule, heads: Attended, x: Tensor, sizes: Tensor, where: Tensor, prefix: int
) -> Signals:
    """What a rule decides by; of the attention map what it asks for."""
    weights = heads.weights if "attention" in rule.asks else None
    row = heads.weights[:, :, 0].mean(dim=1) if "class_attention" in rule.asks else None
    return Signals(heads.keys, heads.values, weights, x, sizes, where, prefix, row)


class Attended(NamedTuple):
    """The attention branch [B, N, D]; keys and values [B, heads, N, d]; weights [B, heads, N, N]
    after the softmax, query first."""

    out: Tensor
    keys: Tensor
    values: Tensor
    weights: Tensor


def attention(part: BlockParts, x: Tensor, sizes: Tensor | None) -> Attended:
    """Attention of x [B, N, D]; sizes [B, N, 1]: proportional.

    softmax(q k^T / sqrt(d) + log s) v, s the merging sizes of the keys (arXiv 2210.09461, eq. 1).
    """
    batch, n, _ = x.shape
    q, k, v = _heads(part, x)
    q, k = part.q_norm(q), part.k_norm(k)
    scores = (q * part.scale) @ k.transpose(-2, -1)
    if sizes is not None:
        scores = scores + sizes.log().reshape(batch, 1, 1, n)
    weights = F.softmax(scores, dim=-1)
    return Attended(_applied(part, weights, v), k, v, weights)


def attended_by(part: BlockParts, weights: Tensor, x: Tensor) -> Tensor:
    """The attention branch [B, N, D] where the map [B, heads, N, N] is given, on values of x."""
    return _applied(part, weights, _heads(part, x)[2])


def _heads(part: BlockParts, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v [B, heads, N, d]."""
    qkv = part.qkv(x).reshape(*x.shape[:2], 3, part.heads, part.head_dim)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def _applied(part: BlockParts, weights: Tensor, v: Tensor) -> Tensor:
    out = (weights @ v).transpose(1, 2).flatten(2)
    return part.scale1(part.proj(part.attn_norm(out)))


def join_traces(traces: list[Trace]) -> Trace:
    """One trace of several passes, image after image."""
    return Trace(
        {name: torch.cat([t.outputs[name] for t in traces]) for name in traces[0].outputs},
        traces[0].specs,
        torch.cat([t.tokens_in for t in traces], dim=1),
        torch.cat([t.tokens_out for t in traces], dim=1),
        torch.cat([t.attended for t in traces], dim=1),
        torch.cat([t.maps for t in traces], dim=1),
        torch.cat([t.features for t in traces]),
        tuple(
            tuple(d for t in traces for d in t.decisions[block])
            for block in range(len(traces[0].decisions))
        ),
    )
