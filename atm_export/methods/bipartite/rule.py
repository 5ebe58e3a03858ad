"""Merge the most similar pairs of a block: by a cosine threshold, or a fixed number of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from atm_export.errors import ManifestError
from atm_export.methods.bipartite.terms import Grouping, most_merges
from atm_export.methods.plan import MergePlan
from atm_export.methods.rule import (
    BlockRule,
    Extreme,
    GraphReduced,
    GraphSignals,
    Reduced,
    Signal,
    Signals,
)

if TYPE_CHECKING:
    from torch import Tensor

    from atm_export.methods.bipartite.decision import PairDecision


@dataclass(frozen=True)
class BlockMerge(BlockRule):
    """The merge of one block: either a cosine threshold `theta` or a fixed count `r`."""

    asks: ClassVar[tuple[Signal, ...]] = ("key_metric",)
    spares_tokens: ClassVar[bool] = True

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
    def form(self) -> str:
        return f"{self.grouping} fixed={self.r is not None}"

    def tokens_after(self, tokens: int, prefix: int) -> int | None:
        return None if self.r is None else tokens - self._merges(tokens, prefix)

    def _merges(self, tokens: int, prefix: int) -> int:
        """A fixed r, cut to what `tokens` tokens allow."""
        assert self.r is not None
        return min(self.r, (tokens - prefix) // 2, most_merges(tokens, prefix))

    def frozen(self, count: int) -> BlockMerge:
        return replace(self, theta=None, r=count)

    def above(self, theta: float) -> BlockMerge:
        return replace(self, theta=theta, r=None)

    def with_theta(self, theta: float) -> BlockMerge:
        """Another threshold (2: merge nothing; -2: merge all), but where no cosine exceeds its own
        or there is none."""
        if self.theta is None or self.theta >= 1:
            return self
        return replace(self, theta=theta)

    def extremes(self) -> Mapping[str, Extreme]:
        if not self.adaptive:
            return {}
        ends = {"r = 0": self.with_theta(2.0), "r = max": self.with_theta(-2.0)}
        return {label: Extreme(rule, rule.constants(None, 0)) for label, rule in ends.items()}

    def decide(self, signals: Signals) -> PairDecision:
        from atm_export.methods.bipartite.decision import decide

        return decide(signals.keys, signals.sizes, signals.prefix, self, signals.margins)

    def reduce(self, tokens: Tensor, sizes: Tensor, decision: PairDecision, prefix: int) -> Reduced:
        from atm_export.methods.bipartite.matching import merge

        return merge(tokens, sizes, decision.pairs, decision.r, prefix)

    def follow(self, signals: Signals, moved_to: Tensor) -> tuple[PairDecision, float]:
        from atm_export.methods.bipartite.following import forced

        return forced(signals, moved_to, self)

    def constants(self, tokens: int | None, prefix: int) -> dict[str, Tensor]:
        """limit [1]: r (int64), or a similarity on the grid (int32)."""
        import torch

        from atm_export.methods.bipartite.operators import similarity_limit

        if self.theta is not None:
            limit = torch.tensor([similarity_limit(self.theta)], dtype=torch.int32)
        else:
            assert tokens is not None
            limit = torch.tensor([self._merges(tokens, prefix)])
        return {"limit": limit}

    def order(self, tokens: int, prefix: int) -> Tensor | None:
        """Where nothing merges, alternate groups still change their order, the same way always."""
        from atm_export.methods.bipartite.operators import alternate_order

        if self.grouping != "alternate" or not self.idle:
            return None
        return alternate_order(tokens, prefix)

    def reorder(self, x: Tensor, prefix: int) -> Tensor:
        from atm_export.methods.bipartite.operators import reorder

        return reorder(x, prefix)

    def apply(self, signals: GraphSignals) -> GraphReduced:
        from atm_export.methods.bipartite.operators import merge

        sizes, moving = _moving(signals)
        fixed, by_size = self.r is not None, self.grouping == "size"
        limit, metric = signals.constants["limit"], signals.key_metric
        assert metric is not None
        return GraphReduced(
            *merge(moving, sizes, metric, limit, fixed, signals.prefix, by_size, signals.most)
        )

    def apply_each(self, signals: GraphSignals) -> GraphReduced:
        from atm_export.methods.bipartite.ragged import merge_each

        sizes, moving = _moving(signals)
        by_size, prefix, most = self.grouping == "size", signals.prefix, signals.most
        limit, metric = signals.constants["limit"], signals.key_metric
        assert metric is not None
        return GraphReduced(*merge_each(moving, sizes, metric, limit, prefix, by_size, most))

    def takes_steps(self, tokens: int) -> bool:
        """Its sort key is one number."""
        from atm_export.methods.tokens import Capacity

        return self.adaptive and Capacity(tokens).one_key

    def apply_stepped(self, signals: GraphSignals, step: int, each: bool) -> GraphReduced:
        from atm_export.methods.bipartite.ragged import merge_stepped

        sizes, moving = _moving(signals)
        limit, metric = signals.constants["limit"], signals.key_metric
        assert metric is not None
        by_size, prefix, most = self.grouping == "size", signals.prefix, signals.most
        return GraphReduced(
            *merge_stepped(moving, sizes, metric, limit, each, prefix, by_size, most, step)
        )

    def translations(self) -> Mapping[Callable[..., Any], Callable[..., Any]]:
        from atm_export.methods.bipartite import onnx, onnx_ragged, onnx_stepped

        return {**onnx.TABLE, **onnx_ragged.TABLE, **onnx_stepped.TABLE}


def _moving(signals: GraphSignals) -> tuple[Tensor, Tensor]:
    """Merging sizes, and what moves: the tokens, or where nothing reads those the sizes."""
    import torch

    sizes = signals.sizes
    if sizes is None:
        assert signals.key_metric is not None
        sizes = torch.ones_like(signals.key_metric[..., :1])
    return sizes, sizes if signals.tokens is None else signals.tokens


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
