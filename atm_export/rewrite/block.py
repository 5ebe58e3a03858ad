"""One block of the twin: attention, what its rule does, MLP."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from atm_export.methods.rule import BlockRule, GraphReduced, GraphSignals
from atm_export.methods.tokens import carried, take_rows
from atm_export.model.backbone import BlockParts
from atm_export.rewrite import operators
from atm_export.rewrite.layers import shifted, thirds, without_bias


class Merge(NamedTuple):
    """What a reducing block hands on: tokens [B, n, D], merging sizes [B, n, 1] (None: all 1),
    places of the embedded tokens [B, N0] (-1: dropped), and the number of tokens ([1], or [B] where
    images differ; None: as `TwinBlock.count` says)."""

    tokens: Tensor
    sizes: Tensor | None
    where: Tensor
    remaining: Tensor | None


class KeyMetric(nn.Module):
    """What keys are compared by; a module of its own for the reason of `Reduction`."""

    def forward(self, k: Tensor, key_shift: Tensor | None, heads_first: bool = False) -> Tensor:
        return operators.key_metric(k, key_shift, heads_first)


class Reduction(nn.Module):
    """What a rule does in a block. A module of its own, so that its nodes can be told in the graph:
    all that they decide by stays in FP32 (`prove.matching`)."""

    def __init__(self, rule: BlockRule, apply: Callable[[GraphSignals], GraphReduced]) -> None:
        super().__init__()
        self.rule, self.apply_rule = rule, apply

    def forward(self, signals: GraphSignals) -> GraphReduced:
        return self.apply_rule(signals)


OF_RULES = (KeyMetric, Reduction)


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
        self.q, self.k, self.v = thirds(part.qkv, part.scale if foldable else 1.0)
        self.proj = part.proj
        if isinstance(part.attn_norm, nn.Identity) and "values" not in asks:
            self.v, self.proj = without_bias(self.v), shifted(part.proj, self.v.bias)
        self.register_buffer("key_shift", None)
        bare = isinstance(part.k_norm, nn.Identity) and "keys" not in asks
        if bare and self.k.bias is not None:
            self.key_shift = self.k.bias.reshape(self.heads, -1).sum(dim=0)
            self.k = without_bias(self.k)

    def _take_rule(self, rule: BlockRule | None, tokens: int | None) -> None:
        self.tokens_out, self.reorders = tokens, False
        self.constants: tuple[str, ...] = ()
        self.metric = KeyMetric()
        self.reduction = None if rule is None else Reduction(rule, rule.apply)
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
        if self.reduction is not None and self.reduction.rule.before_attention:
            return self._reduce_first(self.reduction, tokens, sizes, where)
        x = tokens
        h = ahead = self.norm1(x)
        if self.reads is not None:
            x = tokens[:, : self.reads]
            ahead = self.norm1(x)
        k = self.k_norm(operators.split_heads(self.k(h), self.heads))
        bias = sizes.log() if self.proportional and sizes is not None else None
        v = operators.split_heads(self.v(h), self.heads)
        q = self._queries(ahead)
        attended, weights = self._attend(q, k, v, bias)
        x = self._add(x, self.scale1(self.proj(self.attn_norm(attended))))
        if self.reduction is None:
            return self._mlp(x)
        if self.reorders:
            return self._reorder(self._mlp(x), sizes, where)
        moving = x if self.reads is None else None
        signals = self._signals(moving, sizes, where, k, v, weights, self._row(q, k, bias))
        reduced = self.reduction(signals)
        out = reduced.tokens if self.reads is None else x
        # The prefix stays as it is, so that what ships need not reduce anything here.
        out = self._mlp(out if self.cuts is None else x[:, : self.cuts])
        return self._handed_on(out, reduced, where)

    def _reduce_first(
        self, reduction: Reduction, tokens: Tensor, sizes: Tensor | None, where: Tensor
    ) -> Merge:
        """The rule merges tokens by the attention map, which then meets their values. The merged
        map is never made: each old token reads the value of the one that it went into, and the
        answers of those that became one are averaged."""
        h = self.norm1(tokens)
        k = self.k_norm(operators.split_heads(self.k(h), self.heads))
        bias = sizes.log() if self.proportional and sizes is not None else None
        q = self._queries(h)
        weights, row = operators.attention_map(q, k, bias), self._row(q, k, bias)
        reduced = reduction(self._signals(tokens, sizes, where, k, None, weights, row))
        x, shares = reduced.tokens, reduced.shares
        assert shares is not None
        values = take_rows(self.v(self.norm1(x)), reduced.moved_to)
        if self.cuts is not None:  # the prefix is never averaged
            x, weights = x[:, : self.cuts], weights[:, :, : self.cuts]
        attended = operators.applied(weights, operators.split_heads(values, self.heads))
        if self.cuts is None:
            attended = shares.means(attended)
        out = self._mlp(self._add(x, self.scale1(self.proj(self.attn_norm(attended)))))
        return self._handed_on(out, reduced, where)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        if self.rule is None or "attention" not in self.rule.asks:
            return operators.attend(q, k, v, bias), None
        attended, weights = operators.attend_with_weights(q, k, v, bias)
        return attended, weights

    def _row(self, q: Tensor, k: Tensor, bias: Tensor | None) -> Tensor | None:
        """The class token's attention, where the rule asks for it."""
        asks = () if self.rule is None else self.rule.asks
        return operators.class_attention(q, k, bias) if "class_attention" in asks else None

    def _signals(
        self,
        tokens: Tensor | None,
        sizes: Tensor | None,
        where: Tensor,
        k: Tensor,
        v: Tensor | None,
        weights: Tensor | None,
        row: Tensor | None = None,
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
            key_metric=self._key_metric(k) if "key_metric" in asks else None,
            keys=k if "keys" in asks else None,
            values=v if "values" in asks else None,
            attention=weights,
            class_attention=row,
        )

    def _key_metric(self, k: Tensor) -> Tensor:
        return self.metric(k, self.key_shift)

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
