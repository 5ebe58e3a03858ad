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
    threshold_plan,
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


def _merge_alike(backbone: TimmBackbone) -> MergePlan:
    return threshold_plan(backbone, 0.99)


def _not_proportional(backbone: TimmBackbone) -> MergePlan:
    return adaptive_plan(backbone, proportional=False)


AVG = {"global_pool": "avg"}
NO_PREFIX = {**AVG, "class_token": False}
PLAIN_ATTENTION = {"scale_attn_norm": True, "qkv_bias": False, "img_size": (24, 40), "depth": 3}
# Depth 4: alternate, alternate, size, and the last block. Depth 3: alternate, size, last. A model
# that pools merges in the last block too, so that depth 2 has an alternate and a size block.
ADAPTIVE = {
    "class token": Variant({}),
    "no prefix": Variant(NO_PREFIX),
    "distilled": Variant({"distilled": True, "depth": 3}),
    "registers": Variant({"reg_tokens": 4, "depth": 3}),
    "qk norm, layer scale, avg pool": Variant(
        {**AVG, "qk_norm": True, "init_values": 0.5, "depth": 2}
    ),
    "registers, avgmax pool": Variant({"global_pool": "avgmax", "reg_tokens": 4, "depth": 2}),
    "map pool": Variant({**NO_PREFIX, "global_pool": "map", "depth": 2}),
    "attention norm, not proportional, not square": Variant(PLAIN_ATTENTION, _not_proportional),
    "per image": Variant({"depth": 3}, _per_image),
    "per image, no prefix": Variant({**NO_PREFIX, "depth": 2}, _per_image),
}
FIXED = {
    "frozen": Variant({"depth": 3}, _frozen(5, 99, 0)),
    "frozen, r = 0": Variant({"depth": 3}, _frozen(0, 0, 0)),
    "frozen, r = max, no prefix": Variant({**NO_PREFIX, "depth": 2}, _frozen(99, 99)),
    "frozen, r = max, distilled": Variant({"distilled": True, "depth": 3}, _frozen(99, 3, 0)),
    "tome, registers": Variant({"reg_tokens": 4, "depth": 3}, _tome(6)),
    "tome, r = max": Variant({"depth": 3}, _tome(99)),
}
VARIANTS = {
    **ADAPTIVE,
    **FIXED,
    "alike": Variant({"positions": False}, _merge_alike),
    "alike, no prefix": Variant({**NO_PREFIX, "positions": False, "depth": 2}, _merge_alike),
    "uint8": Variant({"depth": 2}, uint8=True),
    "unmerged": Variant({}, no_merges),
}


@cache
def exported(name: str) -> Exported:
    """The export of a variant, made on first use."""
    variant = VARIANTS[name]
    backbone = tiny_vit(**variant.options) if variant.options else class_token_vit()
    return export(backbone, variant.plan(backbone), uint8=variant.uint8)


def export(
    backbone: TimmBackbone, plan: MergePlan, *, uint8: bool = False, opset: int = 20
) -> Exported:
    """Assemble and optimise."""
    assembled = onnx_from_model(
        backbone, plan, mean=MEAN, std=STD, uint8_input=uint8, opset=opset
    )
    return Exported(backbone, plan, assembled, optimize(assembled))


def run_onnx(model: onnx.ModelProto, image: Array) -> dict[str, Array]:
    """Outputs by name, from ONNX Runtime."""
    with OnnxRuntimeRunner(model) as runner:
        return dict(runner.run(np.ascontiguousarray(image)))
