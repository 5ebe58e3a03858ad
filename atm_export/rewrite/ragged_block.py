"""A block of the twin whose images keep different numbers of tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from atm_export.methods.rule import BlockRule, GraphReduced
from atm_export.model.backbone import BlockParts
from atm_export.rewrite import ragged
from atm_export.rewrite.block import Merge, Reduction, TwinBlock


class RaggedTwinBlock(TwinBlock):
    """A block whose images keep different numbers of tokens; padding has size 0.

    In a last block whose head reads the prefix alone, no rule of such a plan has anything to do.
    """

    def __init__(self, part: BlockParts, rule: BlockRule | None, **facts: Any) -> None:
        super().__init__(part, rule, **facts)
        if rule is not None:
            self.reduction = Reduction(rule, rule.apply_each)

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
        if self.reduction is None:
            return ragged.unpack(self._mlp(x), slots)
        signals = self._signals(None, sizes, where, k, v, weights)
        signals = replace(signals, tokens=ragged.unpack(x, slots))
        reduced = self.reduction(signals)
        return self._packed_mlp(reduced, where)

    def _packed_mlp(self, reduced: GraphReduced, where: Tensor) -> Merge:
        assert reduced.sizes is not None
        rows, slots = ragged.ragged_layout(reduced.sizes, self.most)
        out = ragged.unpack(self._mlp(ragged.pack(reduced.tokens, rows)), slots)
        where = self._carried(where, reduced.moved_to)
        out = out if self.cuts is None else out[:, : self.cuts]
        return Merge(out, reduced.sizes, where, reduced.remaining)
