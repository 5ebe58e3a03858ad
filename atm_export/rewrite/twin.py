"""The export-friendly twin: a second module on the same weights that takes the same decisions.

Differences from the reference, each of them exact: q, k, v are three layers with the softmax scale
folded into q; keys have no bias (it adds the same to all scores of a query; the metric adds it to
its sum); the projection takes over the bias of v (attention weights sum to 1); the last block
computes only the rows that the head reads; a rule decides and reduces in one step. Where a rule
asks for keys or values themselves, those keep their bias.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from atm_export.methods.plan import MergePlan
from atm_export.methods.rule import BlockRule, GraphReduced, GraphSignals
from atm_export.methods.tokens import carried
from atm_export.model.backbone import Backbone, BlockParts
from atm_export.rewrite import operators, ragged


class Merge(NamedTuple):
    """What a reducing block hands on: tokens [B, n, D], merging sizes [B, n, 1] (None: all 1),
    places of the embedded tokens [B, N0] (-1: dropped), and the number of tokens ([1], or [B] where
    images differ; None: as `TwinBlock.count` says)."""

    tokens: Tensor
    sizes: Tensor | None
    where: Tensor
    remaining: Tensor | None


class TwinBlock(nn.Module):
    """One block: attention, reduction, MLP.

    tokens: n where it is fixed at export, else None. most: tokens that are embedded. reads: leading
    rows that the head reads, where this is the last block and the head does not pool. dropped:
    blocks before may have dropped tokens.
    """

    moved_to: Tensor
    key_shift: Tensor | None

    def __init__(
        self,
        part: BlockParts,
        rule: BlockRule | None,
        *,
        tokens: int | None,
        most: int,
        prefix: int,
        reads: int | None,
        proportional: bool,
        dropped: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.prefix, self.most = part.heads, prefix, most
        self.proportional, self.rule, self.divisor = proportional, rule, part.divisor
        self.tokens_in, self.dropped = tokens, dropped
        # A rule that reads tokens needs them all; then the rows that the head reads are cut after.
        spares = rule is None or rule.spares_tokens
        self.reads = reads if spares else None
        self.cuts = None if spares else reads
        self.norm1, self.norm2, self.mlp = part.norm1, part.norm2, part.mlp
        self.q_norm, self.k_norm, self.attn_norm = part.q_norm, part.k_norm, part.attn_norm
        self.scale1, self.scale2 = part.scale1, part.scale2
        self._take_apart(part, () if rule is None else rule.asks)
        self._take_rule(rule, tokens)

    def _take_apart(self, part: BlockParts, asks: tuple[str, ...]) -> None:
        foldable = isinstance(part.q_norm, nn.Identity)
        self.scale = 1.0 if foldable else part.scale
        self.q, self.k, self.v = _thirds(part.qkv, part.scale if foldable else 1.0)
        self.proj = part.proj
        if isinstance(part.attn_norm, nn.Identity) and "values" not in asks:
            self.v, self.proj = _without_bias(self.v), _shifted(part.proj, self.v.bias)
        self.register_buffer("key_shift", None)
        bare = isinstance(part.k_norm, nn.Identity) and "keys" not in asks
        if bare and self.k.bias is not None:
            self.key_shift = self.k.bias.reshape(self.heads, -1).sum(dim=0)
            self.k = _without_bias(self.k)

    def _take_rule(self, rule: BlockRule | None, tokens: int | None) -> None:
        self.tokens_out, self.reorders = tokens, False
        self.constants: tuple[str, ...] = ()
        if rule is None:
            return
        # Only where the number of tokens is known is the new order a constant.
        order = None if tokens is None else rule.order(tokens, self.prefix)
        self.reorders = order is not None
        if order is not None:
            self.register_buffer("moved_to", order.argsort())
        constants = rule.constants(tokens, self.prefix)
        for name, value in constants.items():
            self.register_buffer(name, value)
        self.constants = tuple(constants)
        self.tokens_out = None if tokens is None else rule.tokens_after(tokens, self.prefix)

    @property
    def static(self) -> bool:
        """Whether it is translated for exactly the number of tokens that enters."""
        return self.rule is not None and self.rule.static and self.tokens_in is not None

    @property
    def kept(self) -> int | None:
        """Leading rows that it hands on, where those are all that the head reads."""
        return self.reads or self.cuts

    @property
    def count(self) -> int | None:
        """Tokens that remain where a rule leaves a number known at export."""
        return None if self.rule is None or self.reorders else self.tokens_out

    @property
    def kind(self) -> str:
        """Blocks of equal kind differ in their weights alone, and so share one translation."""
        rule = self.rule and (self.rule.form, self.reorders, self.dropped)
        tokens = self.tokens_in if self.static else None
        return (
            f"{rule} tokens={tokens} prefix={self.prefix} reads={self.reads} cuts={self.cuts} "
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
        attended, weights = self._attend(self._queries(ahead), k, v, bias)
        x = self._add(x, self.scale1(self.proj(self.attn_norm(attended))))
        if self.rule is None:
            return self._mlp(x)
        if self.reorders:
            return self._reorder(self._mlp(x), sizes, where)
        moving = x if self.reads is None else None
        signals = self._signals(moving, sizes, where, k, v, weights)
        reduced = self.rule.apply(signals)
        out = reduced.tokens if self.reads is None else x
        out = self._mlp(out if self.cuts is None else out[:, : self.cuts])
        return self._handed_on(out, reduced, where)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if self.rule is None or "attention" not in self.rule.asks:
            return operators.attend(q, k, v, bias), None
        attended, weights = operators.attend_with_weights(q, k, v, bias)
        return attended, weights

    def _signals(
        self,
        tokens: Tensor | None,
        sizes: Tensor | None,
        where: Tensor,
        k: Tensor,
        v: Tensor,
        weights: Tensor | None,
    ) -> GraphSignals:
        assert self.rule is not None
        asks = self.rule.asks
        return GraphSignals(
            tokens,
            sizes,
            where,
            self.prefix,
            self.most,
            {name: getattr(self, name) for name in self.constants},
            key_metric=operators.key_metric(k, self.key_shift) if "key_metric" in asks else None,
            keys=k if "keys" in asks else None,
            values=v if "values" in asks else None,
            attention=weights,
        )

    def _handed_on(self, out: Tensor, reduced: GraphReduced, where: Tensor) -> Merge:
        sizes = reduced.sizes
        if sizes is None and reduced.remaining is not None:
            sizes = torch.ones_like(reduced.tokens[..., :1])
        return Merge(out, sizes, self._carried(where, reduced.moved_to), reduced.remaining)

    def _carried(self, where: Tensor, moved_to: Tensor) -> Tensor:
        return carried(where, moved_to) if self.dropped else moved_to.gather(1, where)

    def _queries(self, h: Tensor) -> Tensor:
        q = self.q_norm(operators.split_heads(self.q(h), self.heads))
        return q if self.scale == 1.0 else q * self.scale

    def _reorder(self, out: Tensor, sizes: Tensor | None, where: Tensor) -> Merge:
        assert self.rule is not None
        if self.kept is None:
            out = self.rule.reorder(out, self.prefix)
        sizes = None if sizes is None else self.rule.reorder(sizes, self.prefix)
        moved = operators.look_up(self.moved_to, where.clamp(min=0) if self.dropped else where)
        return Merge(out, sizes, torch.where(where < 0, -1, moved) if self.dropped else moved, None)

    def _mlp(self, x: Tensor) -> Tensor:
        return self._add(x, self.scale2(self.mlp(self.norm2(x))))

    def _add(self, x: Tensor, branch: Tensor) -> Tensor:
        return x + (branch if self.divisor == 1.0 else branch / self.divisor)


class RaggedTwinBlock(TwinBlock):
    """A block whose images keep different numbers of tokens; padding has size 0.

    In a last block whose head reads the prefix alone, no rule of such a plan has anything to do.
    """

    def forward(self, tokens: Tensor, sizes: Tensor | None, where: Tensor) -> Tensor | Merge:
        if self.reorders and sizes is None:
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
        attended, weights = self._attend(q, k, v, bias)
        attended = self.attn_norm(attended)
        if self.reads is None:
            attended = ragged.pack(attended, rows)
        x = self._add(x, self.scale1(self.proj(attended)))
        if self.reads is not None:
            return self._mlp(x)
        if self.rule is None:
            return ragged.unpack(self._mlp(x), slots)
        signals = self._signals(None, sizes, where, k, v, weights)
        reduced = self.rule.apply_each(replace(signals, tokens=ragged.unpack(x, slots)))
        return self._packed_mlp(reduced, where)

    def _packed_mlp(self, reduced: GraphReduced, where: Tensor) -> Merge:
        assert reduced.sizes is not None
        rows, slots = ragged.ragged_layout(reduced.sizes, self.most)
        out = ragged.unpack(self._mlp(ragged.pack(reduced.tokens, rows)), slots)
        where = self._carried(where, reduced.moved_to)
        out = out if self.cuts is None else out[:, : self.cuts]
        return Merge(out, reduced.sizes, where, reduced.remaining)


class Twin(nn.Module):
    """Image to (logits [B, K], tokens per block [blocks], token maps [blocks, B, N0]).

    Where counts are decided per image, tokens per block are [B, blocks].
    """

    def __init__(self, backbone: Backbone, plan: MergePlan) -> None:
        super().__init__()
        self.per_image = plan.per_image
        self.backbone = backbone
        parts = backbone.parts()
        self.tokens = backbone.tokens
        n: int | None = self.tokens
        blocks: list[TwinBlock] = []
        dropped = False
        for part, rule in zip(parts, plan.blocks, strict=True):
            block = (RaggedTwinBlock if plan.per_image else TwinBlock)(
                part,
                rule,
                tokens=n,
                most=self.tokens,
                prefix=backbone.prefix,
                reads=backbone.head_rows if part is parts[-1] and plan.merges else None,
                proportional=plan.proportional,
                dropped=dropped,
            )
            dropped = dropped or (rule is not None and rule.drops)
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
        for block in self.twin_blocks:
            out = block(tokens, sizes, where)
            if isinstance(out, Merge):
                tokens, sizes, where = out[:3]
                if out.remaining is not None:
                    count = out.remaining
                elif block.count is not None:
                    count = torch.tensor([block.count])
            else:
                tokens = out
            counts.append(count)
            maps.append(where)
        told = torch.stack(counts, dim=1) if self.per_image else torch.cat(counts)
        return self.backbone.head(tokens, sizes), told, torch.stack(maps)


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
