"""Tiny models of every kind with their plans, exported once a session."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import onnx

from atm_export.backends.onnxruntime import OnnxRuntimeRunner
from atm_export.backends.runner import Array
from atm_export.graph.assemble import onnx_from_model
from atm_export.graph.optimize import optimize, with_outputs
from atm_export.model.schedule import MergePlan
from atm_export.model.vit import TimmBackbone
from tests.tiny import (
    MEAN,
    STD,
    adaptive_plan,
    class_token_vit,
    frozen_plan,
    no_merges,
    tiny_vit,
    tome_plan,
)

Planner = Callable[[TimmBackbone], MergePlan]


@dataclass(frozen=True)
class Exported:
    """A tiny model, its plan, the assembled graph, and the optimised one."""

    backbone: TimmBackbone
    plan: MergePlan
    assembled: onnx.ModelProto
    traced: onnx.ModelProto

    @property
    def shipped(self) -> onnx.ModelProto:
        return with_outputs(self.traced, ["logits"])


@dataclass(frozen=True)
class Variant:
    """How to build one of the exports."""

    options: Mapping[str, Any]
    plan: Planner = adaptive_plan
    uint8: bool = False


def _frozen(*r: int) -> Planner:
    return lambda backbone: frozen_plan(backbone, r)


def _tome(r: int) -> Planner:
    return lambda backbone: tome_plan(backbone, r)


def _per_image(backbone: TimmBackbone) -> MergePlan:
    return replace(adaptive_plan(backbone), per_image=True)


def _not_proportional(backbone: TimmBackbone) -> MergePlan:
    return adaptive_plan(backbone, proportional=False)


AVG = {"global_pool": "avg"}
NO_PREFIX = {**AVG, "class_token": False}
ADAPTIVE = {
    "class token": Variant({}),
    "no prefix": Variant(NO_PREFIX),
    "distilled": Variant({"distilled": True}),
    "registers": Variant({"reg_tokens": 4}),
    "qk norm, layer scale, avg pool": Variant({**AVG, "qk_norm": True, "init_values": 0.5}),
    "registers, avg pool": Variant({**AVG, "reg_tokens": 4, "depth": 2}),
    "map pool": Variant({**NO_PREFIX, "global_pool": "map", "depth": 2}),
    "max pool": Variant({**NO_PREFIX, "global_pool": "avgmax", "depth": 2}),
    "attention norm, no bias": Variant({"scale_attn_norm": True, "qkv_bias": False, "depth": 3}),
    "even batch of patches": Variant({"img_size": (24, 40), "depth": 3}),
    "not proportional": Variant({"depth": 3}, _not_proportional),
}
FIXED = {
    "frozen": Variant({}, _frozen(7, 0, 3, 0)),
    "frozen, r = 0": Variant({}, _frozen(0, 0, 0, 0)),
    "frozen, r = max": Variant({}, _frozen(99, 99, 99, 0)),
    "frozen, r = max, no prefix": Variant(NO_PREFIX, _frozen(99, 99, 0, 99)),
    "frozen, r = max, distilled": Variant({"distilled": True}, _frozen(99, 3, 99, 0)),
    "tome": Variant({}, _tome(5)),
    "tome, r = max": Variant({}, _tome(99)),
    "tome, r = max, registers": Variant({"reg_tokens": 4}, _tome(99)),
}
OTHERS = {
    "uint8": Variant({}, uint8=True),
    "unmerged": Variant({}, no_merges),
    "per image": Variant({}, _per_image),
}
VARIANTS = {**ADAPTIVE, **FIXED, **OTHERS}


@cache
def exported(name: str) -> Exported:
    """The export of a variant, made on first use."""
    variant = VARIANTS[name]
    backbone = tiny_vit(**variant.options) if variant.options else class_token_vit()
    return export(backbone, variant.plan(backbone), uint8=variant.uint8)


def export(backbone: TimmBackbone, plan: MergePlan, *, uint8: bool = False) -> Exported:
    """Assemble and optimise."""
    assembled = onnx_from_model(backbone, plan, mean=MEAN, std=STD, uint8_input=uint8)
    return Exported(backbone, plan, assembled, optimize(assembled))


def run_onnx(model: onnx.ModelProto, image: Array) -> dict[str, Array]:
    """Outputs by name, from ONNX Runtime."""
    with OnnxRuntimeRunner(model) as runner:
        return dict(runner.run(np.ascontiguousarray(image)))
