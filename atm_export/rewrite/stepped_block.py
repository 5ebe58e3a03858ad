"""A block of the twin for backends to which every length that they have not seen is dear."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from atm_export.methods.rule import BlockRule
from atm_export.methods.tokens import TINY
from atm_export.model.backbone import BlockParts
from atm_export.rewrite import operators, ragged, stepped
from atm_export.rewrite.block import Merge, Reduction, TwinBlock
from atm_export.rewrite.layers import stacked


class SteppedTwinBlock(TwinBlock):
    """A block whose token count goes in steps: padding has size 0 and stands last, and q, k and v
    are one layer where all rows are asked for.

    each: images decide for themselves. pools: the head reads all rows of what this block gives.
    """

    def __init__(
        self, part: BlockParts, rule: BlockRule | None, *, each: bool, pools: bool, **facts: Any
    ) -> None:
        super().__init__(part, rule, **facts)
        self.pools = pools
        if rule is not None:
            apply = partial(rule.apply_stepped, step=stepped.STEP, each=each)
            self.reduction = Reduction(rule, apply)
        self.thirds = stacked(self.q, self.k, self.v) if self.reads is None else None

    @property
    def kind(self) -> str:
        return f"{super().kind} pools={self.pools}"

    def forward(self, tokens: Tensor, sizes: Tensor | None, where: Tensor) -> Tensor | Merge:
        if self.reorders and sizes is None:
            return super().forward(tokens, sizes, where)
        if sizes is None:
            sizes = torch.ones_like(tokens[..., :1])
        x, k, attended = self._attended(tokens, ragged.log_sizes(sizes, self.proportional))
        x = self._add(x, self.scale1(self.proj(self.attn_norm(attended))))
        if self.reduction is None:
            return self._padded_mlp(x, sizes)
        signals = self._signals(x if self.reads is None else None, sizes, where, k, None, None)
        reduced = self.reduction(signals)
        assert reduced.sizes is not None
        out = self._padded_mlp(reduced.tokens if self.reads is None else x, reduced.sizes)
        where = self._carried(where, reduced.moved_to)
        # A head that pools may take the logarithm of a size.
        left = reduced.sizes.clamp(min=TINY) if self.pools else reduced.sizes
        return Merge(out, left, where, reduced.remaining)

    def _attended(self, tokens: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The rows that go on, keys [B, n, H, d] or [B, H, n, d], and the attention's answer."""
        h = self.norm1(tokens)
        if self.thirds is not None:
            q, k, v = stepped.split_qkv(self.thirds(h), self.heads)
            q, k = self.q_norm(q), self.k_norm(k)
            q = q if self.scale == 1.0 else q * self.scale
            return tokens, k, operators.attend(q, k, v, bias, heads_first=True)
        x = tokens[:, : self.reads]
        k = self.k_norm(operators.split_heads(self.k(h), self.heads))
        v = operators.split_heads(self.v(h), self.heads)
        return x, k, operators.attend(self._queries(self.norm1(x)), k, v, bias)

    def _key_metric(self, k: Tensor) -> Tensor:
        return self.metric(k, self.key_shift, heads_first=self.thirds is not None)

    def _padded_mlp(self, x: Tensor, sizes: Tensor) -> Tensor:
        """A head that pools must find no row that is none of the image's tokens."""
        out = self._mlp(x)
        if not self.pools:
            return out
        return torch.where(sizes > 0, out, out[:, self.prefix : self.prefix + 1])
