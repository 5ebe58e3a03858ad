"""The export-friendly twin: a second module on the same weights that takes the same decisions.

Differences from the reference, each of them exact: q, k, v are three layers with the softmax scale
folded into q; keys have no bias (it adds the same to all scores of a query; the metric adds it to
its sum); the projection takes over the bias of v (attention weights sum to 1); the last block
computes only the rows that the head reads; merging is one operator.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from atm_export.methods.bipartite.rule import BlockMerge
from atm_export.methods.plan import MergePlan
from atm_export.model.backbone import Backbone, BlockParts
from atm_export.model.merging import most_merges
from atm_export.rewrite import operators, ragged


class Merge(NamedTuple):
    """What a merging block hands on: tokens [B, n, D], merging sizes [B, n, 1] (None: all 1),
    positions of the embedded tokens [B, N0], and the number of tokens ([1], or [B] where images
    differ; None: as before)."""

    tokens: Tensor
    sizes: Tensor | None
    where: Tensor
    remaining: Tensor | None


class TwinBlock(nn.Module):
    """One block: attention, merge, MLP.

    tokens: n where it is fixed at export, else -1. most: tokens that are embedded. r: merges an
    image where they are fixed.
    reads: leading rows that the head reads, where this is the last block and the head does not
    pool.
    """

    limit: Tensor
    moved_to: Tensor
    key_shift: Tensor | None

    def __init__(
        self,
        part: BlockParts,
        rule: BlockMerge | None,
        r: int | None,
        *,
        tokens: int,
        most: int,
        prefix: int,
        reads: int | None,
        proportional: bool,
    ) -> None:
        super().__init__()
        self.heads, self.prefix, self.reads, self.most = part.heads, prefix, reads, most
        self.proportional, self.rule, self.divisor = proportional, rule, part.divisor
        self.fixed = r is not None
        foldable = isinstance(part.q_norm, nn.Identity)
        self.scale = 1.0 if foldable else part.scale
        self.norm1, self.norm2, self.mlp = part.norm1, part.norm2, part.mlp
        self.q_norm, self.k_norm, self.attn_norm = part.q_norm, part.k_norm, part.attn_norm
        self.scale1, self.scale2 = part.scale1, part.scale2
        self.q, self.k, self.v = _thirds(part.qkv, part.scale if foldable else 1.0)
        self.proj = part.proj
        if isinstance(part.attn_norm, nn.Identity):
            self.v, self.proj = _without_bias(self.v), _shifted(part.proj, self.v.bias)
        self.register_buffer("key_shift", None)
        if isinstance(part.k_norm, nn.Identity) and self.k.bias is not None:
            self.key_shift = self.k.bias.reshape(self.heads, -1).sum(dim=0)
            self.k = _without_bias(self.k)
        out = tokens - r if r is not None and tokens >= 0 else -1
        self.tokens_out = tokens if rule is None else out
        # Only where the number of tokens is known is the new order a constant.
        self.never = rule is not None and rule.never and tokens >= 0
        if self.never:
            moved_to = operators.alternate_order(tokens, prefix).argsort()
            self.register_buffer("moved_to", moved_to)
        if r is not None:
            self.register_buffer("limit", torch.tensor([r]))
        elif rule is not None and rule.theta is not None:
            self.register_buffer("limit", _limit(rule.theta))

    @property
    def kind(self) -> str:
        """Blocks of equal kind differ in their weights alone, and so share one translation."""
        grouping = self.rule and (self.rule.grouping, self.never)
        return (
            f"{grouping} fixed={self.fixed} prefix={self.prefix} reads={self.reads} "
            f"proportional={self.proportional} divisor={self.divisor} scale={self.scale} "
            f"heads={self.heads} {self}"
        )

    def forward(self, tokens: Tensor, sizes: Tensor | None, where: Tensor) -> Tensor | Merge:
        x = tokens
        h = ahead = self.norm1(x)
        if self.reads is not None:
            x = tokens[:, : self.reads]
            ahead = self.norm1(x)
        k = self.k_norm(operators.split_heads(self.k(h), self.heads))
        bias = sizes.log() if self.proportional and sizes is not None else None
        v = operators.split_heads(self.v(h), self.heads)
        attended = self.attn_norm(operators.attend(self._queries(ahead), k, v, bias))
        x = self._add(x, self.scale1(self.proj(attended)))
        if self.rule is None:
            return self._mlp(x)
        if self.never:
            return self._reorder(self._mlp(x), sizes, where)
        metric = operators.key_metric(k, self.key_shift)
        if sizes is None:
            sizes = torch.ones_like(metric[..., :1])
        # Where the head reads some rows alone, the last merge is only traced: sizes stand in.
        moving = x if self.reads is None else sizes
        by_size = self.rule.grouping == "size"
        moved, sizes, moved_to, count = operators.merge(
            moving, sizes, metric, self.limit, self.fixed, self.prefix, by_size, self.most
        )
        out = self._mlp(moved if self.reads is None else x)
        return Merge(out, sizes, moved_to.gather(1, where), count)

    def _queries(self, h: Tensor) -> Tensor:
        q = self.q_norm(operators.split_heads(self.q(h), self.heads))
        return q if self.scale == 1.0 else q * self.scale

    def _reorder(self, out: Tensor, sizes: Tensor | None, where: Tensor) -> Merge:
        if self.reads is None:
            out = operators.reorder(out, self.prefix)
        sizes = None if sizes is None else operators.reorder(sizes, self.prefix)
        return Merge(out, sizes, operators.look_up(self.moved_to, where), None)

    def _mlp(self, x: Tensor) -> Tensor:
        return self._add(x, self.scale2(self.mlp(self.norm2(x))))

    def _add(self, x: Tensor, branch: Tensor) -> Tensor:
        return x + (branch if self.divisor == 1.0 else branch / self.divisor)


class RaggedTwinBlock(TwinBlock):
    """A block whose images keep different numbers of tokens; padding has size 0."""

    def forward(self, tokens: Tensor, sizes: Tensor | None, where: Tensor) -> Tensor | Merge:
        if self.never and sizes is None:
            return super().forward(tokens, sizes, where)
        if sizes is None:
            sizes = torch.ones_like(tokens[..., :1])
        rows, slots = ragged.ragged_layout(sizes, self.most)
        x = ragged.pack(tokens, rows)
        h = self.norm1(x)
        bias = ragged.log_sizes(sizes, self.proportional)
        k = self.k_norm(ragged.unpack_heads(self.k(h), slots, self.heads))
        v = ragged.unpack_heads(self.v(h), slots, self.heads)
        if self.reads is None:
            q = self.q_norm(ragged.unpack_heads(self.q(h), slots, self.heads)) * self.scale
        else:
            x = tokens[:, : self.reads]
            q = self._queries(self.norm1(x))
        attended = self.attn_norm(operators.attend(q, k, v, bias))
        if self.reads is None:
            attended = ragged.pack(attended, rows)
        x = self._add(x, self.scale1(self.proj(attended)))
        if self.reads is not None:
            return self._mlp(x)
        if self.rule is None:
            return ragged.unpack(self._mlp(x), slots)
        metric = operators.key_metric(k, self.key_shift)
        moved, sizes, moved_to, count = ragged.merge_each(
            ragged.unpack(x, slots),
            sizes,
            metric,
            self.limit,
            self.prefix,
            self.rule.grouping == "size",
            self.most,
        )
        rows, slots = ragged.ragged_layout(sizes, self.most)
        out = ragged.unpack(self._mlp(ragged.pack(moved, rows)), slots)
        return Merge(out, sizes, moved_to.gather(1, where), count)


class Twin(nn.Module):
    """Image to (logits [B, K], tokens per block [blocks], token maps [blocks, B, N0]).

    Where r is decided per image, tokens per block are [B, blocks].
    """

    def __init__(self, backbone: Backbone, plan: MergePlan) -> None:
        super().__init__()
        self.per_image = plan.per_image
        self.backbone = backbone
        parts = backbone.parts()
        n = self.tokens = backbone.tokens
        blocks: list[TwinBlock] = []
        for part, rule in zip(parts, plan.blocks, strict=True):
            r = None
            if rule is not None and rule.r is not None:
                half = (n - backbone.prefix) // 2
                r = min(rule.r, half, most_merges(n, backbone.prefix))
            block = (RaggedTwinBlock if plan.per_image else TwinBlock)(
                part,
                rule,
                r,
                tokens=n,
                most=self.tokens,
                prefix=backbone.prefix,
                reads=backbone.head_rows if part is parts[-1] and plan.merges else None,
                proportional=plan.proportional,
            )
            n = block.tokens_out
            blocks.append(block)
        self.blocks = nn.ModuleList(blocks)

    @property
    def twin_blocks(self) -> list[TwinBlock]:
        return [block for block in self.blocks if isinstance(block, TwinBlock)]

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tokens = self.backbone.embed(image)
        sizes: Tensor | None = None
        where = torch.arange(self.tokens).expand(tokens.shape[0], -1)
        count = torch.tensor([self.tokens])
        if self.per_image:
            count = count.expand(tokens.shape[0])
        counts, maps = [], []
        for block in self.blocks:
            out = block(tokens, sizes, where)
            if isinstance(out, Merge):
                tokens, sizes, where = out[:3]
                count = count if out.remaining is None else out.remaining
            else:
                tokens = out
            counts.append(count)
            maps.append(where)
        told = torch.stack(counts, dim=1) if self.per_image else torch.cat(counts)
        return self.backbone.head(tokens, sizes), told, torch.stack(maps)


def _limit(theta: float) -> Tensor:
    return torch.tensor([operators.similarity_limit(theta)], dtype=torch.int32)


def _thirds(qkv: nn.Linear, scale: float) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    """q, k and v as layers of their own, the softmax scale folded into q."""
    weights = qkv.weight.chunk(3)
    biases = (None,) * 3 if qkv.bias is None else qkv.bias.chunk(3)
    layers = []
    for weight, bias, factor in zip(weights, biases, (scale, 1.0, 1.0), strict=True):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        layer.weight = nn.Parameter(weight * factor, requires_grad=False)
        if bias is not None:
            layer.bias = nn.Parameter(bias * factor, requires_grad=False)
        layers.append(layer)
    return layers[0], layers[1], layers[2]


def _without_bias(layer: nn.Linear) -> nn.Linear:
    made = nn.Linear(layer.in_features, layer.out_features, bias=False)
    made.weight = layer.weight
    return made


def _shifted(layer: nn.Linear, shift: Tensor | None) -> nn.Linear:
    """The layer as if `shift` [in_features] were added to its input."""
    if shift is None:
        return layer
    made = nn.Linear(layer.in_features, layer.out_features)
    made.weight = layer.weight
    bias = (layer.weight.double() @ shift.double()).float()
    made.bias = nn.Parameter(bias if layer.bias is None else bias + layer.bias, requires_grad=False)
    return made
