"""Adaptive Token Merging (arXiv 2505.15160): thresholds that fall from block to block decide how
many pairs merge."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from atm_export.errors import ConfigError
from atm_export.methods.base import (
    Knob,
    MergePolicy,
    Method,
    MethodSettings,
    ModelShape,
    SearchSpace,
    proportional,
)
from atm_export.methods.bipartite.rule import BlockMerge, counts, merge_facts, refrozen
from atm_export.methods.plan import MergePlan
from atm_export.methods.sparse import (
    MergeBlocks,
    blocks_label,
    blocks_words,
    merging,
    worth_a_trial,
)
from atm_export.settings import Cosine, Settings

STEP = 0.005
KNOBS = (  # the paper's grid; theta_min goes lower than its 0.8, which few merges need
    Knob("alpha", 0.945, 1.0, STEP),
    Knob("beta", 0.015, 0.05, STEP),
    Knob("theta_min", 0.75, 0.945, STEP),
)
# Lossless for DeiT-T in table A2, and for ViT-Tiny as measured in the README; others should tune.
USUAL = {"alpha": 1.0, "beta": 0.035, "theta_min": 0.88}
STARTS = (  # near-lossless rows of table A2, worth a trial on any model
    {"alpha": 0.995, "beta": 0.025, "theta_min": 0.895},
    {"alpha": 0.975, "beta": 0.025, "theta_min": 0.91},
    {"alpha": 0.985, "beta": 0.025, "theta_min": 0.885},
    {"alpha": 0.995, "beta": 0.02, "theta_min": 0.91},
)


class OperatingPoint(Settings):
    """ATM's three numbers: theta_l = max(alpha - (exp(beta (l - 1)) - 1), theta_min)."""

    alpha: Cosine
    beta: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]
    theta_min: Cosine
    split: Annotated[int, Field(ge=0)] | None = None


class AtmSettings(MethodSettings):
    """An operating point, who shares the number of merges that it gives, and where it merges
    (None: in every block)."""

    name: Literal["atm"] = "atm"
    merge: MergePolicy = MergePolicy.ADAPTIVE
    point: OperatingPoint | None = None
    merge_blocks: MergeBlocks = None

    @property
    def policy(self) -> MergePolicy:
        return self.merge


class Atm(Method):
    """Pairs whose keys have a cosine above the block's threshold merge."""

    name = "atm"
    settings = AtmSettings
    usual = USUAL

    def plan(self, settings: AtmSettings, shape: ModelShape) -> MergePlan:
        """Merges in the last block only if the head pools: else the class token alone leaves it."""
        point, depth = settings.point, shape.depth
        if point is None:
            raise ConfigError(
                "method atm needs alpha, beta and theta_min: give --preset, or all three"
            )
        split = default_split(depth) if point.split is None else point.split
        if split > depth:
            raise ConfigError(f"--split {split} lies beyond the model's {depth} blocks")
        theta = thresholds(point.alpha, point.beta, point.theta_min, depth)
        at = merging(settings.merge_blocks, shape, depth if shape.pooled else depth - 1)
        blocks = tuple(
            BlockMerge("alternate" if ell <= split else "size", theta=theta[ell - 1])
            if ell in at
            else None
            for ell in range(1, depth + 1)
        )
        per_image = settings.merge is MergePolicy.PER_IMAGE
        return MergePlan(blocks, proportional(settings, shape), per_image)

    def facts(self, settings: AtmSettings, plan: MergePlan) -> dict[str, Any]:
        point = settings.point.model_dump() if settings.point else None
        return {"operating_point": point, **merge_facts(plan)}

    def summary(self, settings: AtmSettings, plan: MergePlan, origin: str | None) -> str:
        point = settings.point
        assert point is not None
        numbers = f"alpha {point.alpha:g}, beta {point.beta:g}, theta_min {point.theta_min:g}"
        policy = plan.policy if plan.adaptive else f"frozen, r = {counts(plan)}"
        preset = f"{settings.preset}: " if settings.preset else ""
        blocks = blocks_words(settings.merge_blocks, plan.at)
        return f"ATM {preset}{numbers}{blocks}, {policy}{f' (from {origin})' if origin else ''}"

    def label(self, settings: AtmSettings) -> str:
        if settings.preset is not None:
            return settings.preset
        assert settings.point is not None
        values = settings.point.model_dump().values()
        numbers = "-".join(f"{value:g}" for value in values if value is not None)
        return numbers + blocks_label(settings.merge_blocks)

    def exported(self, plan: MergePlan, facts: Mapping[str, Any]) -> MergePlan:
        if not plan.adaptive or facts["merge"] != "frozen":
            return plan
        return refrozen(plan, facts.get("r_per_block", ()))

    def columns(self, settings: Mapping[str, Any]) -> Mapping[str, str]:
        split, blocks = settings.get("split"), settings.get("merge_blocks")
        shown = {**settings, "split": "3/4" if split is None else split}
        if blocks is None:
            shown.pop("merge_blocks", None)
        return super().columns(shown)

    def dial(self, settings: AtmSettings, shape: ModelShape) -> Sequence[Mapping[str, Any]]:
        """theta_min, in steps that are finer than the paper's grid."""
        return [{"theta_min": round(0.3 + i * 0.0005, 4)} for i in range(1401)]

    def search_space(self, shape: ModelShape, settings: Any = None) -> SearchSpace:
        """The paper's grid, the last block that groups alternately, and which blocks merge."""
        usual = default_split(shape.depth)
        split = Knob("split", shape.depth // 2, shape.depth - 1, 1, whole=True, usual=usual)
        blocks = Knob("merge_blocks", usual="all", choices=worth_a_trial(shape.depth))
        return SearchSpace((*KNOBS, split, blocks), STARTS)


def thresholds(alpha: float, beta: float, theta_min: float, depth: int) -> tuple[float, ...]:
    """theta_l = max(alpha - (exp(beta (l - 1)) - 1), theta_min) for l = 1..depth."""
    return tuple(
        max(alpha - math.expm1(beta * (ell - 1)), theta_min) for ell in range(1, depth + 1)
    )


def default_split(depth: int) -> int:
    """l_s, the last block that groups alternately: 3/4 of the depth, halves to even (14 -> 10)."""
    return round(depth * 0.75)
