"""No reduction: the model's own forward pass, exported the same way."""

from __future__ import annotations

from typing import Any, Literal

from atm_export.methods.base import Method, MethodSettings, ModelShape
from atm_export.methods.bipartite.rule import merge_facts
from atm_export.methods.plan import MergePlan


class NoneSettings(MethodSettings):
    """Nothing to set."""

    name: Literal["none"] = "none"


class Unmerged(Method):
    """Every token stays."""

    name = "none"
    settings = NoneSettings
    about = "The unmerged model."
    ignores = ("proportional",)

    def plan(self, settings: NoneSettings, shape: ModelShape) -> MergePlan:
        return MergePlan.unmerged(shape.depth)

    def facts(self, settings: NoneSettings, plan: MergePlan) -> dict[str, Any]:
        return {"operating_point": None, **merge_facts(plan)}

    def summary(self, settings: NoneSettings, plan: MergePlan, origin: str | None) -> str:
        return "unmerged"

    def label(self, settings: NoneSettings) -> str:
        return "none"
