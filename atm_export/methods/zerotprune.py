"""A precursor of Zero-TPrune: after some blocks the tokens go that little attention flows to. The
method of arXiv 2305.17328 itself has no released code and is not this: it also prunes similar
tokens, and filters heads. This is the importance stage alone, as in Hongjiew/Transformer_pruning
at 52a46074 (tokenrank_vit_em.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from atm_export.errors import ConfigError
from atm_export.methods.base import (
    Knob,
    Method,
    MethodSettings,
    ModelShape,
    SearchSpace,
    shown,
)
from atm_export.methods.keep import KeepBest, one_class_token
from atm_export.methods.moves import Blocks, within
from atm_export.methods.plan import MergePlan
from atm_export.methods.rule import GraphSignals, Signal, Signals

if TYPE_CHECKING:
    from torch import Tensor

STEPS = 5
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Shares = Annotated[
    tuple[Share, ...], BeforeValidator(lambda x: (x,) if isinstance(x, int | float) else x)
]


class ZerotpruneSettings(MethodSettings):
    """blocks, counted from 0: where; keep: the share of patches that each of them keeps, or one for
    all."""

    name: Literal["zerotprune"] = "zerotprune"
    blocks: Blocks = (2, 5, 8)
    keep: Shares = (0.9, 0.8, 0.7)


@dataclass(frozen=True)
class KeepImportant(KeepBest):
    """Importance flows along the attention of each head, from all tokens alike, in five steps.

    The authors' own code prunes behind the block's MLP. That works on each token alone, so pruning
    ahead of it leaves the same tokens for less.
    """

    asks: ClassVar[tuple[Signal, ...]] = ("attention",)
    fuse = False

    keep: float

    def kept(self, body: int) -> int:
        """Truncated, in double precision."""
        return max(1, int(body * self.keep))

    def score(self, signals: Signals | GraphSignals) -> Tensor:
        """The root mean square over heads, divided by the root of their number: then all scores
        together are at most 1, and their order is the same."""
        import torch

        assert signals.attention is not None
        # A softmax at half the temperature: its square, normalised.
        sharp = signals.attention * signals.attention
        total = sharp.sum(dim=3).unsqueeze(2)
        heads, n = sharp.shape[1:3]
        share = torch.full_like(total, 1 / n)
        for _ in range(STEPS):
            share = (share / total) @ sharp
        important = (share * share).sum(dim=1).sqrt() * (1 / heads)
        return important[:, 0, signals.prefix :]


class Zerotprune(Method):
    """Keeps what attention flows to."""

    name = "zerotprune"
    settings = ZerotpruneSettings
    about = (
        "A precursor of Zero-TPrune (its importance stage, from released code): not the method of "
        "arXiv 2305.17328, which has none."
    )
    ignores = ("proportional",)

    def plan(self, settings: ZerotpruneSettings, shape: ModelShape) -> MergePlan:
        one_class_token(shape, self.name)
        at = self._shares(settings, shape.depth)
        rules = tuple(
            KeepImportant(at[i]) if at.get(i, 1) < 1 else None for i in range(shape.depth)
        )
        return MergePlan(rules, proportional=False)

    def _shares(self, settings: ZerotpruneSettings, depth: int) -> dict[int, float]:
        """The share that stays, by block."""
        blocks, keep = settings.blocks, settings.keep
        if len(keep) not in (1, len(blocks)):
            raise ConfigError(
                f"keep={shown(keep)} gives {len(keep)} shares for {len(blocks)} blocks; give one, "
                "or one for each"
            )
        within(blocks, depth)
        return dict(zip(blocks, keep if len(keep) > 1 else keep * len(blocks), strict=True))

    def facts(self, settings: ZerotpruneSettings, plan: MergePlan) -> dict[str, Any]:
        shares = self._shares(settings, len(plan.blocks))
        return {"precursor": True, "blocks": list(shares), "keep": list(shares.values())}

    def summary(self, settings: ZerotpruneSettings, plan: MergePlan, origin: str | None) -> str:
        at, keep = shown(settings.blocks), shown(settings.keep)
        return f"precursor of Zero-TPrune (importance stage), keep {keep} at blocks {at} (from 0)"

    def label(self, settings: ZerotpruneSettings) -> str:
        numbers = (*settings.blocks, *settings.keep)
        return f"zerotprune-precursor-{'-'.join(f'{n:g}' for n in numbers)}"

    def search_space(self, shape: ModelShape, settings: Any = None) -> SearchSpace:
        """One share for all blocks."""
        return SearchSpace((Knob("keep", 0.5, 1.0, 0.01),), ({"keep": 0.8},))
