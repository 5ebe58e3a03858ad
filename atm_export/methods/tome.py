"""Token Merging (arXiv 2210.09461): the same number of pairs in every image, the static peer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from atm_export.errors import ConfigError
from atm_export.methods.base import Method, MethodSettings, ModelShape, proportional
from atm_export.methods.bipartite.rule import BlockMerge, counts, merge_facts
from atm_export.methods.plan import MergePlan
from atm_export.methods.sparse import MergeBlocks, blocks_label, blocks_words, merging

ScheduleShape = Literal["constant", "decreasing", "increasing"]


def _several(value: Any) -> Any:
    return (value,) if type(value) is int else value


class TomeSettings(MethodSettings):
    """r: tokens merged per block, one number or one a block; schedule: how one number spreads;
    merge_blocks: where they merge (None: in every block)."""

    name: Literal["tome"] = "tome"
    r: Annotated[
        tuple[Annotated[int, Field(ge=0, le=65_536)], ...] | None, BeforeValidator(_several)
    ] = None
    schedule: ScheduleShape = "constant"
    merge_blocks: MergeBlocks = None

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
    usual: ClassVar[Mapping[str, Any]] = {"r": (8,)}
    about = "ToMe (arXiv 2210.09461), the static method that the paper compares with."

    def plan(self, settings: TomeSettings, shape: ModelShape) -> MergePlan:
        at = merging(settings.merge_blocks, shape, shape.depth)
        rules = {ell: BlockMerge("alternate", r=r) for ell, r in _r_by_block(settings, at)}
        blocks = tuple(rules.get(ell) for ell in range(1, shape.depth + 1))
        return MergePlan(blocks, proportional(settings, shape))

    def dial(self, settings: TomeSettings, shape: ModelShape) -> Sequence[Mapping[str, Any]]:
        """One r for all blocks that merge."""
        return [{"r": (r,)} for r in range((shape.tokens - shape.prefix) // 2, -1, -1)]

    def facts(self, settings: TomeSettings, plan: MergePlan) -> dict[str, Any]:
        return {"operating_point": None, **merge_facts(plan)}

    def summary(self, settings: TomeSettings, plan: MergePlan, origin: str | None) -> str:
        return f"ToMe, r = {counts(plan)}{blocks_words(settings.merge_blocks, plan.at)}"

    def shorthand(self, text: str) -> TomeSettings:
        try:
            return TomeSettings(r=tuple(int(part) for part in text.split(",")))
        except ValueError:
            raise ConfigError("give tome:8, or one r a block") from None

    def label(self, settings: TomeSettings) -> str:
        r = settings.given
        label = f"tome-r{'-'.join(map(str, r)) if len(r) < 4 else 'list'}"
        label += "" if settings.schedule == "constant" else f"-{settings.schedule}"
        return label + blocks_label(settings.merge_blocks)


def spread(r: int, depth: int, shape: ScheduleShape) -> tuple[int, ...]:
    """Fixed r per block with mean r: constant, or a line from 2r to 0 or back (ToMe appendix)."""
    if shape == "constant":
        return (r,) * depth
    first = 2 * r if shape == "decreasing" else 0
    step = (2 * r - 2 * first) / max(depth - 1, 1)
    return tuple(int(first + step * i) for i in range(depth))


def _r_by_block(settings: TomeSettings, at: tuple[int, ...]) -> Iterable[tuple[int, int]]:
    """Blocks that merge, and r of each."""
    r = settings.given
    if len(r) == 1:
        r = spread(r[0], len(at), settings.schedule)
    if len(r) != len(at):
        there = "the model has {} blocks" if settings.merge_blocks is None else "{} blocks merge"
        raise ConfigError(
            f"-r lists {len(r)} counts, but {there.format(len(at))}; give one count or {len(at)}"
        )
    return zip(at, r, strict=True)
