"""Which blocks of a backbone merge, and how: for a new export, and for one that is finished."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atm_export.config import Method
from atm_export.errors import ManifestError
from atm_export.model.backbone import Backbone
from atm_export.model.schedule import MergePlan, plan_merges


def plan_for(backbone: Backbone, method: Method) -> MergePlan:
    """The plan of `method` for this backbone."""
    return plan_merges(
        method,
        len(backbone.parts()),
        pooled=backbone.pooled,
        proportional=backbone.proportional,
    )


def exported_plan(backbone: Backbone, method: Method, exported: Mapping[str, Any]) -> MergePlan:
    """The plan of a finished run; `exported` is its manifest's "method", which holds the r of a
    frozen schedule."""
    plan = plan_for(backbone, method)
    if not plan.adaptive or exported["merge"] != "frozen":
        return plan
    r = exported["r_per_block"]
    if len(r) != len(plan.blocks):
        raise ManifestError(
            f"the manifest's method tells of {len(r)} blocks, the model has {len(plan.blocks)}; "
            "export again with --force"
        )
    return plan.frozen([count or 0 for count in r])
