"""Merge the most similar pairs of a block: by a cosine threshold, or a fixed number of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from atm_export.errors import ManifestError
from atm_export.methods.plan import MergePlan
from atm_export.methods.rule import BlockRule

Grouping = Literal["alternate", "size"]


@dataclass(frozen=True)
class BlockMerge(BlockRule):
    """The merge of one block: either a cosine threshold `theta` or a fixed count `r`."""

    grouping: Grouping
    theta: float | None = None
    r: int | None = None

    @property
    def adaptive(self) -> bool:
        return self.theta is not None

    @property
    def idle(self) -> bool:
        """No cosine exceeds 1."""
        return self.r == 0 or (self.theta is not None and self.theta >= 1)

    @property
    def never(self) -> bool:
        """Nothing can merge here; the tokens still change their order, the same way always."""
        return self.grouping == "alternate" and self.idle

    def frozen(self, count: int) -> BlockMerge:
        return replace(self, theta=None, r=count)

    def with_theta(self, theta: float) -> BlockMerge:
        """Another threshold (2: merge nothing; -2: merge all), but where no cosine exceeds its own
        or there is none."""
        if self.theta is None or self.theta >= 1:
            return self
        return replace(self, theta=theta)


def with_theta(plan: MergePlan, theta: float) -> MergePlan:
    """The same plan with one threshold everywhere that pairs can merge by one."""
    blocks = tuple(
        block.with_theta(theta) if isinstance(block, BlockMerge) else block for block in plan.blocks
    )
    return replace(plan, blocks=blocks)


def merge_facts(plan: MergePlan) -> dict[str, Any]:
    """Groups, thresholds and counts of each block, for manifest and report."""
    blocks = [block if isinstance(block, BlockMerge) else None for block in plan.blocks]
    return {
        "proportional_attention": plan.proportional,
        "groups_per_block": [block and block.grouping for block in blocks],
        "theta_per_block": [block and block.theta for block in blocks],
        "r_per_block": [block and block.r for block in blocks],
    }


def counts(plan: MergePlan) -> str:
    """r of each block as words."""
    return " ".join(str(r or 0) for r in merge_facts(plan)["r_per_block"])


def refrozen(plan: MergePlan, r: Any) -> MergePlan:
    """A plan with the r per block that a manifest holds; ManifestError where they do not fit."""
    if len(r) != len(plan.blocks):
        raise ManifestError(
            f"the manifest's method tells of {len(r)} blocks, the model has {len(plan.blocks)}; "
            "export again with --force"
        )
    return plan.frozen([count or 0 for count in r])
