"""From an operating point to what each block does: thresholds, fixed r, groups.

Blocks are counted l = 1..L as in arXiv 2505.15160; tuples here hold block l at index l - 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from atm_export.config import MergePolicy, Method, MethodName, ScheduleShape
from atm_export.errors import ConfigError
from atm_export.model.merging import Grouping


@dataclass(frozen=True)
class BlockMerge:
    """The merge of one block: either a cosine threshold `theta` or a fixed count `r`."""

    grouping: Grouping
    theta: float | None = None
    r: int | None = None

    @property
    def never(self) -> bool:
        """No pair can merge here: no cosine exceeds 1. The tokens still change their order."""
        return self.grouping == "alternate" and (
            self.r == 0 or (self.theta is not None and self.theta >= 1)
        )


@dataclass(frozen=True)
class MergePlan:
    """What every block does; None: no merge there. `per_image`: r is decided for each image."""

    blocks: tuple[BlockMerge | None, ...]
    proportional: bool
    per_image: bool = False

    @classmethod
    def unmerged(cls, depth: int) -> MergePlan:
        """The plan that merges nothing."""
        return cls((None,) * depth, proportional=False)

    @property
    def merges(self) -> bool:
        return any(block is not None for block in self.blocks)

    @property
    def idle(self) -> bool:
        """True where no block can merge anything: no cosine exceeds 1, or r is 0."""
        return all(
            block is None or block.r == 0 or (block.theta is not None and block.theta >= 1)
            for block in self.blocks
        )

    @property
    def adaptive(self) -> bool:
        """True where r is decided at run time."""
        return any(block is not None and block.theta is not None for block in self.blocks)

    def frozen(self, r: Sequence[int]) -> MergePlan:
        """The same groups with fixed r per block (merge order and pairs stay data-dependent)."""
        blocks = tuple(
            None if block is None else replace(block, theta=None, r=int(count))
            for block, count in zip(self.blocks, r, strict=True)
        )
        return replace(self, blocks=blocks, per_image=False)

    def with_theta(self, theta: float) -> MergePlan:
        """The same plan with one threshold everywhere (2: merge nothing; -2: merge all), but in
        blocks whose threshold no cosine exceeds."""
        blocks = tuple(
            block
            if block is None or block.theta is None or block.theta >= 1
            else replace(block, theta=theta)
            for block in self.blocks
        )
        return replace(self, blocks=blocks)


def thresholds(alpha: float, beta: float, theta_min: float, depth: int) -> tuple[float, ...]:
    """theta_l = max(alpha - (exp(beta (l - 1)) - 1), theta_min) for l = 1..depth."""
    return tuple(
        max(alpha - math.expm1(beta * (ell - 1)), theta_min) for ell in range(1, depth + 1)
    )


def default_split(depth: int) -> int:
    """l_s, the last block that groups alternately: 3/4 of the depth, halves to even (14 -> 10)."""
    return round(depth * 0.75)


def spread(r: int, depth: int, shape: ScheduleShape) -> tuple[int, ...]:
    """Fixed r per block with mean r: constant, or a line from 2r to 0 or back (ToMe appendix)."""
    if shape == "constant":
        return (r,) * depth
    first = 2 * r if shape == "decreasing" else 0
    step = (2 * r - 2 * first) / max(depth - 1, 1)
    return tuple(int(first + step * i) for i in range(depth))


def plan_merges(method: Method, depth: int, *, pooled: bool, proportional: bool) -> MergePlan:
    """The plan of `method` for a model of `depth` blocks.

    pooled: the head averages tokens, so ATM merges in the last block too; otherwise only the
    class token leaves the last block and nothing merges there.
    """
    if method.proportional is not None:
        proportional = method.proportional
    if method.name is MethodName.NONE:
        return MergePlan.unmerged(depth)
    if method.name is MethodName.TOME:
        return MergePlan(
            tuple(BlockMerge("alternate", r=r) for r in _tome_r(method, depth)), proportional
        )
    point = method.point
    if point is None:
        raise ConfigError("method atm needs alpha, beta and theta_min: give --preset, or all three")
    split = default_split(depth) if point.split is None else point.split
    if split > depth:
        raise ConfigError(f"--split {split} lies beyond the model's {depth} blocks")
    theta = thresholds(point.alpha, point.beta, point.theta_min, depth)
    blocks: list[BlockMerge | None] = [
        BlockMerge("alternate" if ell <= split else "size", theta=theta[ell - 1])
        for ell in range(1, depth + 1)
    ]
    if not pooled:
        blocks[-1] = None
    per_image = method.merge is MergePolicy.PER_IMAGE
    return MergePlan(tuple(blocks), proportional, per_image)


def _tome_r(method: Method, depth: int) -> tuple[int, ...]:
    assert method.r is not None
    if len(method.r) == 1:
        return spread(method.r[0], depth, method.schedule)
    if len(method.r) != depth:
        raise ConfigError(
            f"-r lists {len(method.r)} counts, but the model has {depth} blocks; "
            f"give one count or {depth}"
        )
    return method.r
