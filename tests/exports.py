"""Tiny models of every kind with their plans, exported once a session."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir
from torch import Tensor

from atm_export.backends.onnxruntime.runner import OnnxRuntimeRunner
from atm_export.backends.runner import Array
from atm_export.graph.assemble import onnx_from_model
from atm_export.graph.optimize import optimize, with_outputs
from atm_export.graph.saving import in_memory
from atm_export.inputs import InputSpec, Preprocessing
from atm_export.methods.plan import MergePlan
from atm_export.model.reference import Trace, run_reference
from atm_export.model.vit import TimmBackbone
from tests.tiny import (
    MEAN,
    STD,
    adaptive_plan,
    class_token_vit,
    decided_images,
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
    assembled: ir.Model
    traced: ir.Model

    @property
    def shipped(self) -> ir.Model:
        return with_outputs(self.traced, ["logits"])


@dataclass(frozen=True)
class Variant:
    """How to build one of the exports."""

    options: Mapping[str, Any]
    plan: Planner = adaptive_plan
    uint8: bool = False
    opset: int = 20


def _frozen(*r: int) -> Planner:
    return lambda backbone: frozen_plan(backbone, r)


def _tome(r: int) -> Planner:
    return lambda backbone: tome_plan(backbone, r)


def _per_image(backbone: TimmBackbone) -> MergePlan:
    return replace(adaptive_plan(backbone), per_image=True)


def _first_reorders(backbone: TimmBackbone) -> MergePlan:
    return adaptive_plan(backbone, first=1.0)


def _first_reorders_per_image(backbone: TimmBackbone) -> MergePlan:
    return replace(adaptive_plan(backbone, first=1.0), per_image=True)


def _merge_alike(backbone: TimmBackbone) -> MergePlan:
    return threshold_plan(backbone, 0.99)


def _not_proportional(backbone: TimmBackbone) -> MergePlan:
    return adaptive_plan(backbone, proportional=False)


NO_PREFIX = {"global_pool": "avg", "class_token": False}
# Depth 4: alternate, alternate, size, and the last block. Depth 3: alternate, size, last. A model
# that pools merges in the last block too, so that depth 2 has an alternate and a size block.
ADAPTIVE = {
    "class token": Variant({}),
    "no prefix": Variant(NO_PREFIX),
    "distilled": Variant({"distilled": True, "depth": 3}),
    "registers, first block reorders": Variant({"reg_tokens": 4}, _first_reorders),
    "qk norm, layer scale, avg pool": Variant(
        {"global_pool": "avg", "qk_norm": True, "init_values": 0.5, "depth": 2}, opset=23
    ),
    "map pool, other attention, not square": Variant(
        {
            **NO_PREFIX,
            "global_pool": "map",
            "scale_attn_norm": True,
            "qkv_bias": False,
            "img_size": (24, 40),
            "depth": 2,
        },
        _not_proportional,
    ),
    "per image": Variant({"depth": 3}, _per_image),
    "per image, registers, avgmax pool": Variant(
        {"global_pool": "avgmax", "reg_tokens": 4, "depth": 3}, _first_reorders_per_image
    ),
}
FIXED = {
    "frozen": Variant({"depth": 3}, _frozen(5, 99, 0)),
    "frozen, r = 0, distilled": Variant({"distilled": True, "depth": 3}, _frozen(0, 0, 0)),
    "frozen, r = max, no prefix": Variant({**NO_PREFIX, "depth": 2}, _frozen(99, 99)),
    "tome, registers": Variant({"reg_tokens": 4, "depth": 3}, _tome(6)),
}
VARIANTS = {
    **ADAPTIVE,
    **FIXED,
    "alike": Variant({"positions": False, "depth": 3}, _merge_alike),
    "uint8": Variant({"depth": 2}, uint8=True),
    "unmerged": Variant({}, no_merges),
    "unmerged, opset 23": Variant({"depth": 2}, no_merges, opset=23),
}


@dataclass(frozen=True)
class Decided:
    """Images that the reference decides with a margin, and what it makes of them."""

    images: Tensor
    trace: Trace


@cache
def decided(name: str, batch: int) -> Decided:
    """Such images for a variant."""
    made = exported(name)
    images = decided_images(made.backbone, made.plan, batch)
    return Decided(images, run_reference(made.backbone, made.plan, images))


@cache
def exported(name: str) -> Exported:
    """The export of a variant, made on first use."""
    variant = VARIANTS[name]
    backbone = tiny_vit(**variant.options) if variant.options else class_token_vit()
    return export(backbone, variant.plan(backbone), uint8=variant.uint8, opset=variant.opset)


def export(
    backbone: TimmBackbone, plan: MergePlan, *, uint8: bool = False, opset: int = 20
) -> Exported:
    """Assemble and optimise."""
    how = Preprocessing(backbone.image_size, 1.0, "bicubic", MEAN, STD)
    spec = InputSpec(how, "uint8" if uint8 else "float32")
    assembled = onnx_from_model(backbone, plan, spec, opset=opset)
    return Exported(backbone, plan, assembled, optimize(assembled))


def run_onnx(model: ir.Model, image: Array) -> dict[str, Array]:
    """Outputs by name, from ONNX Runtime."""
    with OnnxRuntimeRunner(in_memory(model)) as runner:
        return dict(runner.run(np.ascontiguousarray(image)))
