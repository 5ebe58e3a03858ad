"""A toy method: at one block, of each two neighbours the one stays that the class token attends to
more; the other is dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from atm_export.errors import ConfigError, UnsupportedModelError
from atm_export.methods import methods
from atm_export.methods.base import Knob, Method, MethodSettings, ModelShape, SearchSpace
from atm_export.methods.plan import MergePlan
from atm_export.methods.rule import (
    BlockRule,
    Decision,
    GraphReduced,
    GraphSignals,
    NotFollowed,
    Reduced,
    Signal,
    Signals,
)
from atm_export.methods.tokens import rows, take_rows


class HalveSettings(MethodSettings):
    """at: the block that halves, counted from 1."""

    name: Literal["halve"] = "halve"
    at: Annotated[int, Field(ge=1)] = 2


@dataclass(frozen=True)
class Chosen(Decision):
    """second [B, P]: whether the second of a pair stays; ahead [B, P]: by how much it leads."""

    second: Tensor
    ahead: Tensor

    def margin(self) -> float:
        return float(self.ahead.abs().min())


@dataclass(frozen=True)
class KeepTheBetter(BlockRule):
    """Half of the patch tokens stay, in their order; of an odd number the last one too."""

    asks: ClassVar[tuple[Signal, ...]] = ("attention",)
    drops: ClassVar[bool] = True
    static: ClassVar[bool] = True

    adaptive = False

    def tokens_after(self, tokens: int, prefix: int) -> int:
        return prefix + (tokens - prefix + 1) // 2

    def decide(self, signals: Signals) -> Chosen:
        assert signals.attention is not None
        ahead = _lead(signals.attention, signals.prefix)
        return Chosen(ahead > 0, ahead)

    def reduce(self, tokens: Tensor, sizes: Tensor, decision: Chosen, prefix: int) -> Reduced:
        kept = _kept(decision.second, tokens.shape[1], prefix)
        moved_to = _moved_to(decision.second, tokens.shape[1], prefix)
        return Reduced(rows(tokens, kept), rows(sizes, kept), moved_to)

    def follow(self, signals: Signals, moved_to: Tensor) -> tuple[Chosen, float]:
        own = self.decide(signals)
        pairs = 2 * own.second.shape[1]
        second = moved_to[:, signals.prefix + 1 : signals.prefix + pairs : 2] >= 0
        if not torch.equal(_moved_to(second, moved_to.shape[1], signals.prefix), moved_to):
            raise NotFollowed("not one of each pair stays")
        worse = second != own.second
        return Chosen(second, own.ahead), float((own.ahead.abs() * worse).max())

    def apply(self, signals: GraphSignals) -> GraphReduced:
        tokens, sizes = signals.tokens, signals.sizes
        assert tokens is not None and signals.attention is not None
        n, prefix = tokens.shape[1], signals.prefix
        second = _lead(signals.attention, prefix) > 0
        kept = _kept(second, n, prefix)
        return GraphReduced(
            take_rows(tokens, kept),
            None if sizes is None else take_rows(sizes, kept),
            _moved_to(second, n, prefix),
        )


def _lead(attention: Tensor, prefix: int) -> Tensor:
    """How far the second of each pair is ahead in the class token's attention, in units of its
    mean over all tokens; [B, P]."""
    score = attention[:, :, 0, prefix:].mean(dim=1) * attention.shape[3]
    pairs = score.shape[1] // 2
    return score[:, 1 : 2 * pairs : 2] - score[:, 0 : 2 * pairs : 2]


def _kept(second: Tensor, n: int, prefix: int) -> Tensor:
    """Old positions of the tokens that stay, in order."""
    batch, pairs = second.shape
    better = prefix + 2 * torch.arange(pairs) + second.long()
    ahead = torch.arange(prefix).expand(batch, -1)
    last = torch.arange(prefix + 2 * pairs, n).expand(batch, -1)
    return torch.cat([ahead, better, last], dim=1)


def _moved_to(second: Tensor, n: int, prefix: int) -> Tensor:
    """New position of every old one; -1: dropped."""
    batch, pairs = second.shape
    new = prefix + torch.arange(pairs)
    both = torch.stack([torch.where(second, -1, new), torch.where(second, new, -1)], dim=2)
    ahead = torch.arange(prefix).expand(batch, -1)
    last = (torch.arange(n - prefix - 2 * pairs) + prefix + pairs).expand(batch, -1)
    return torch.cat([ahead, both.reshape(batch, 2 * pairs), last], dim=1)


class Halve(Method):
    """Half of the patches, once."""

    name = "halve"
    settings = HalveSettings
    about = "Of each two neighbours the class token's favourite stays."

    def plan(self, settings: HalveSettings, shape: ModelShape) -> MergePlan:
        if not shape.prefix:
            raise UnsupportedModelError("method halve needs a class token, this model has none")
        if settings.at > shape.depth:
            raise ConfigError(f"at={settings.at} lies beyond the model's {shape.depth} blocks")
        rule = KeepTheBetter()
        blocks = tuple(rule if i + 1 == settings.at else None for i in range(shape.depth))
        return MergePlan(blocks, proportional=False)

    def facts(self, settings: HalveSettings, plan: MergePlan) -> dict[str, Any]:
        return {"at": settings.at}

    def summary(self, settings: HalveSettings, plan: MergePlan, origin: str | None) -> str:
        return f"halved at block {settings.at}"

    def label(self, settings: HalveSettings) -> str:
        return f"halve-{settings.at}"

    def search_space(self, shape: ModelShape, settings: Any = None) -> SearchSpace:
        return SearchSpace((Knob("at", 1, shape.depth - 1, 1, whole=True),), ({"at": 6},))


methods.add(Halve.name, Halve())
