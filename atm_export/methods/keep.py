"""The best tokens of a block stay, in their order; the others are dropped, or become one token."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from atm_export.errors import UnsupportedModelError
from atm_export.methods.base import ModelShape
from atm_export.methods.rule import (
    BlockRule,
    Decision,
    GraphReduced,
    GraphSignals,
    NotFollowed,
    Reduced,
    Signals,
)

if TYPE_CHECKING:
    from torch import Tensor

    from atm_export.methods.ranked import Ranked


@dataclass(frozen=True)
class Kept(Decision):
    """ranked: tokens behind the prefix, the first `count` of its order stay; score [B, m]: theirs,
    as it was before it was put on the grid."""

    ranked: Ranked
    score: Tensor
    count: int

    def margin(self) -> float:
        return self.ranked.margin()


class KeepBest(BlockRule):
    """A rule that keeps as many tokens as it says, by a score.

    fuse: those that go become one token behind the others, the sum of them weighted by their
    scores; else they are dropped.
    """

    drops: ClassVar[bool] = True
    static: ClassVar[bool] = True
    adaptive = False
    fuse: bool

    @abstractmethod
    def kept(self, body: int) -> int:
        """How many of `body` tokens behind the prefix stay, at least 1."""

    @abstractmethod
    def score(self, signals: Signals | GraphSignals) -> Tensor:
        """Of the tokens behind the prefix, [B, m]: at least 0, all together at most 1; by
        operations that have an ONNX."""

    def tokens_after(self, tokens: int, prefix: int) -> int:
        count = self.kept(tokens - prefix)
        return tokens if count == tokens - prefix else prefix + count + self.fuse

    def decide(self, signals: Signals) -> Kept:
        from atm_export.methods.ranked import rank

        score = self.score(signals)
        count = self.kept(score.shape[1])
        return Kept(rank(self._on_grid(score, count), (count,)), score, count)

    def _on_grid(self, score: Tensor, count: int) -> Tensor:
        from atm_export.methods.ranked import ceiling, on_grid

        return on_grid(score, ceiling(score.shape[1], count))

    def reduce(self, tokens: Tensor, sizes: Tensor, decision: Kept, prefix: int) -> Reduced:
        import torch

        from atm_export.methods.tokens import rows

        batch, n, _ = tokens.shape
        order, count = decision.ranked.order, decision.count
        kept = order[:, :count].sort(dim=1).values
        gone = order[:, count:].sort(dim=1).values
        head = torch.arange(prefix).expand(batch, -1)
        stay = torch.cat([head, prefix + kept], dim=1)
        x, held = rows(tokens, stay), rows(sizes, stay)
        fuses = self.fuse and gone.shape[1] > 0
        if fuses:
            weight = decision.score.gather(1, gone).unsqueeze(1)
            x = torch.cat([x, weight @ rows(tokens, prefix + gone)], dim=1)
            held = torch.cat([held, torch.ones_like(held[:, :1])], dim=1)
        moved_to = torch.full((batch, n), stay.shape[1] if fuses else -1)
        moved_to.scatter_(1, stay, torch.arange(stay.shape[1]).expand(batch, -1))
        return Reduced(x, held, moved_to)

    def follow(self, signals: Signals, moved_to: Tensor) -> tuple[Kept, float]:
        from atm_export.methods.ranked import shortfall

        own, prefix = self.decide(signals), signals.prefix
        places = moved_to[:, prefix:]
        stays = (places >= prefix) & (places < prefix + own.count)
        if not bool((stays.sum(dim=1) == own.count).all()):
            raise NotFollowed("another number of tokens stays")
        order = stays.int().sort(dim=1, descending=True, stable=True).indices
        short = shortfall(own.ranked, order)
        return replace(own, ranked=replace(own.ranked, order=order)), short

    def apply(self, signals: GraphSignals) -> GraphReduced:
        import torch

        from atm_export.methods.ranked import ascending, falling, ranks
        from atm_export.methods.tokens import take_rows

        tokens, sizes, prefix = signals.tokens, signals.sizes, signals.prefix
        assert tokens is not None
        batch, n, _ = tokens.shape
        count = self.kept(n - prefix)
        if count == n - prefix:
            return GraphReduced(tokens, sizes, torch.arange(n).expand(batch, -1))
        score = self.score(signals)
        order = falling(self._on_grid(score, count))
        head = torch.arange(prefix).expand(batch, -1)
        stay = torch.cat([head, prefix + ascending(order[:, :count])], dim=1)
        x = take_rows(tokens, stay)
        held = None if sizes is None else take_rows(sizes, stay)
        if self.fuse:
            gone = ascending(order[:, count:])
            weight = score.gather(1, gone).unsqueeze(1)
            x = torch.cat([x, weight @ take_rows(tokens, prefix + gone)], dim=1)
            held = None if held is None else torch.cat([held, torch.ones_like(held[:, :1])], dim=1)
        stays = ranks(order) < count
        place = stays.long().cumsum(dim=1) + (prefix - 1)
        moved = torch.where(stays, place, prefix + count if self.fuse else -1)
        return GraphReduced(x, held, torch.cat([head, moved], dim=1))


def one_class_token(shape: ModelShape, method: str) -> None:
    """UnsupportedModelError for a model whose patches do not stand behind a class token alone."""
    if shape.prefix == 1:
        return
    found = (
        f"{shape.prefix} tokens ahead of its patches (a distillation token or registers)"
        if shape.prefix
        else "none"
    )
    raise UnsupportedModelError(
        f"method {method} ranks patches by a class token that stands alone ahead of them; this "
        f"model has {found}; take --method atm or tome"
    )
