"""EViT (arXiv 2202.07800): at three blocks the patches stay that the class token attends to most;
the others become one token, or are dropped."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from atm_export.methods.base import Knob, Method, MethodSettings, ModelShape, SearchSpace
from atm_export.methods.keep import KeepBest, one_class_token
from atm_export.methods.moves import Blocks, within
from atm_export.methods.plan import MergePlan
from atm_export.methods.rule import GraphSignals, Signal, Signals

if TYPE_CHECKING:
    from torch import Tensor

# 0.77 and 0.93 meet the paper's GFLOPs on DeiT-T (0.9) and on DeiT-S without loss (4.2).
STARTS = ({"keep": 0.93}, {"keep": 0.77}, {"keep": 0.7})


class EvitSettings(MethodSettings):
    """keep: share of the tokens behind the class token that stay; fuse: those that go become one
    token; blocks, counted from 0: where (L/4, L/2 and 3L/4)."""

    name: Literal["evit"] = "evit"
    keep: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.7
    fuse: bool = True
    blocks: Blocks | None = None


@dataclass(frozen=True)
class KeepAttended(KeepBest):
    """The tokens with the most class attention stay. Its weights are not normalised: a fused token
    is small until later blocks add to it, as in the authors' own code."""

    asks: ClassVar[tuple[Signal, ...]] = ("class_attention",)

    keep: float
    fuse: bool

    def kept(self, body: int) -> int:
        """In double precision: 0.7 of 140 are 98."""
        return math.ceil(self.keep * body)

    def score(self, signals: Signals | GraphSignals) -> Tensor:
        assert signals.class_attention is not None
        return signals.class_attention[:, signals.prefix :]


class Evit(Method):
    """Keeps what the class token attends to."""

    name = "evit"
    settings = EvitSettings
    about = "EViT (arXiv 2202.07800), without training: patches with little class attention go."
    ignores = ("proportional",)

    def plan(self, settings: EvitSettings, shape: ModelShape) -> MergePlan:
        """Nothing where every token would stay."""
        one_class_token(shape, self.name)
        rule = KeepAttended(settings.keep, settings.fuse) if settings.keep < 1 else None
        at = _blocks(settings, shape.depth)
        return MergePlan(
            tuple(rule if i in at else None for i in range(shape.depth)), proportional=False
        )

    def facts(self, settings: EvitSettings, plan: MergePlan) -> dict[str, Any]:
        at = _blocks(settings, len(plan.blocks))
        return {"keep": settings.keep, "fuse": settings.fuse, "blocks": list(at)}

    def summary(self, settings: EvitSettings, plan: MergePlan, origin: str | None) -> str:
        if settings.keep == 1:
            return "EViT, keep 1: every token stays"
        at = " ".join(map(str, _blocks(settings, len(plan.blocks))))
        rest = "the others become one token" if settings.fuse else "the others are dropped"
        return f"EViT, keep {settings.keep:g} at blocks {at} (from 0); {rest}"

    def label(self, settings: EvitSettings) -> str:
        at = "" if settings.blocks is None else f"-at-{'-'.join(map(str, settings.blocks))}"
        return f"evit-{settings.keep:g}{'' if settings.fuse else '-dropped'}{at}"

    def search_space(self, shape: ModelShape, settings: Any = None) -> SearchSpace:
        return SearchSpace((Knob("keep", 0.4, 1.0, 0.01),), STARTS)


def _blocks(settings: EvitSettings, depth: int) -> tuple[int, ...]:
    usual = (depth // 4, depth // 2, 3 * depth // 4)
    if settings.blocks is None:
        return tuple(sorted(set(usual)))
    return within(settings.blocks, depth)
