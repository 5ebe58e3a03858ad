"""Which blocks of a backbone reduce tokens, and how: for a new export, and for a finished one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atm_export.errors import ConfigError
from atm_export.methods import methods
from atm_export.methods.base import MethodSettings, ModelShape
from atm_export.methods.plan import MergePlan
from atm_export.model.backbone import Backbone


def shape_of(backbone: Backbone) -> ModelShape:
    """What a method needs to know of a backbone."""
    parts = backbone.parts()
    return ModelShape(
        depth=len(parts),
        tokens=backbone.tokens,
        prefix=backbone.prefix,
        pooled=backbone.pooled,
        proportional=backbone.proportional,
        width=parts[0].qkv.in_features,
    )


def plan_for(backbone: Backbone, method: MethodSettings) -> MergePlan:
    """The plan of `method` for this backbone; ConfigError where it drops tokens that the backbone
    must give back."""
    plan = methods[method.name].plan(method, shape_of(backbone))
    if backbone.unmerges and any(rule is not None and rule.drops for rule in plan.blocks):
        raise ConfigError(
            f"--method {method.name} drops patches, which then have no features: --task "
            f"{backbone.task} takes methods that merge (atm, tome, pitome, mctf)"
        )
    return plan


def exported_plan(
    backbone: Backbone, method: MethodSettings, exported: Mapping[str, Any]
) -> MergePlan:
    """The plan of a finished run; `exported` is its manifest's "method", which holds the r of a
    frozen schedule."""
    return methods[method.name].exported(plan_for(backbone, method), exported)
