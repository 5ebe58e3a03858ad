"""Token Merging (arXiv 2210.09461): the same number of pairs in every image, the static peer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from atm_export.errors import ConfigError
from atm_export.methods.base import Method, MethodSettings, ModelShape, proportional
from atm_export.methods.bipartite.rule import BlockMerge, counts, merge_facts
from atm_export.methods.plan import MergePlan

ScheduleShape = Literal["constant", "decreasing", "increasing"]


class TomeSettings(MethodSettings):
    """r: tokens merged per block, one number or one a block; schedule: how one number spreads."""

    name: Literal["tome"] = "tome"
    r: tuple[Annotated[int, Field(ge=0, le=65_536)], ...] | None = None
    schedule: ScheduleShape = "constant"

    @model_validator(mode="after")
    def _needs_r(self) -> TomeSettings:
        if not self.r:
            raise ValueError("method tome needs -r, the tokens merged per block (for example -r 8)")
        if len(self.r) > 1 and self.schedule != "constant":
            raise ValueError("a schedule belongs to an r of one number")
        return self

    @property
    def given(self) -> tuple[int, ...]:
        """r as it was given."""
        assert self.r is not None
        return self.r


class Tome(Method):
    """r pairs merge in each block, in alternate groups."""

    name = "tome"
    settings = TomeSettings
    about = "ToMe (arXiv 2210.09461), the static method that the paper compares with."

    def plan(self, settings: TomeSettings, shape: ModelShape) -> MergePlan:
        rules = tuple(BlockMerge("alternate", r=r) for r in _r_per_block(settings, shape.depth))
        return MergePlan(rules, proportional(settings, shape))

    def facts(self, settings: TomeSettings, plan: MergePlan) -> dict[str, Any]:
        return {"operating_point": None, **merge_facts(plan)}

    def summary(self, settings: TomeSettings, plan: MergePlan, origin: str | None) -> str:
        return f"ToMe, r = {counts(plan)}"

    def shorthand(self, text: str) -> TomeSettings:
        try:
            return TomeSettings(r=tuple(int(part) for part in text.split(",")))
        except ValueError:
            raise ConfigError("give tome:8, or one r a block") from None

    def label(self, settings: TomeSettings) -> str:
        r = settings.given
        label = f"tome-r{'-'.join(map(str, r)) if len(r) < 4 else 'list'}"
        return label + ("" if settings.schedule == "constant" else f"-{settings.schedule}")


def spread(r: int, depth: int, shape: ScheduleShape) -> tuple[int, ...]:
    """Fixed r per block with mean r: constant, or a line from 2r to 0 or back (ToMe appendix)."""
    if shape == "constant":
        return (r,) * depth
    first = 2 * r if shape == "decreasing" else 0
    step = (2 * r - 2 * first) / max(depth - 1, 1)
    return tuple(int(first + step * i) for i in range(depth))


def _r_per_block(settings: TomeSettings, depth: int) -> tuple[int, ...]:
    r = settings.given
    if len(r) == 1:
        return spread(r[0], depth, settings.schedule)
    if len(r) != depth:
        raise ConfigError(
            f"-r lists {len(r)} counts, but the model has {depth} blocks; give one count or {depth}"
        )
    return r
