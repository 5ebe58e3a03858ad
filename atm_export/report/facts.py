"""The facts that travel with an artifact: in the manifest and in the ONNX metadata alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atm_export.config import MergePolicy, MethodName, RunConfig
from atm_export.measure.job import schedule_from
from atm_export.model.backbone import LoadedModel
from atm_export.model.schedule import MergePlan


def manifest_facts(config: RunConfig, model: LoadedModel, plan: MergePlan) -> dict[str, Any]:
    """Model, weights, method, interface, preprocessing, labels and licence."""
    backbone = model.backbone
    height, width = backbone.image_size
    image = ["batch", height, width, 3] if config.uint8_input else ["batch", 3, height, width]
    return {
        "model": model.name,
        "config": config.model_dump(mode="json"),
        "weights": dict(model.weights),
        "method": summarize_method(config, plan),
        "interface": {
            "input": {
                "name": "image",
                "shape": image,
                "dtype": "uint8" if config.uint8_input else "float32",
                "normalised": not config.uint8_input,
            },
            "outputs": _outputs(config, model, plan),
        },
        "opset": config.opset,
        "preprocessing": model.preprocessing.facts(),
        "labels": list(model.labels) if model.labels else None,
        "licence": model.licence,
        "notes": list(model.notes),
    }


def _outputs(config: RunConfig, model: LoadedModel, plan: MergePlan) -> dict[str, Any]:
    backbone = model.backbone
    outputs: dict[str, Any] = {
        "logits": {"shape": ["batch", backbone.classes], "dtype": "float32"},
    }
    if config.trace:
        blocks = len(plan.blocks)
        outputs["tokens_per_block"] = {
            "shape": ["batch", blocks] if plan.per_image else [blocks],
            "dtype": "int64",
        }
        outputs["patch_to_token"] = {
            "shape": ["batch", backbone.patches],
            "dtype": "int64",
        }
    return outputs


def summarize_method(config: RunConfig, plan: MergePlan) -> dict[str, Any]:
    """The operating point, what it means for each block, and one line that says it."""
    method = config.method
    facts: dict[str, Any] = {
        "name": method.name.value,
        "merge": method.merge.value if method.name is MethodName.ATM else "frozen",
        "preset": method.preset,
        "operating_point": method.point.model_dump() if method.point else None,
        "proportional_attention": plan.proportional,
        "groups_per_block": [block.grouping if block else None for block in plan.blocks],
        "theta_per_block": [block.theta if block else None for block in plan.blocks],
        "r_per_block": [block.r if block else None for block in plan.blocks],
        "r_from": schedule_from(config) if method.merge is MergePolicy.FROZEN else None,
    }
    nothing = "; nothing merges" if plan.merges and plan.idle else ""
    return {**facts, "summary": _line(facts, plan) + nothing}


def _line(facts: Mapping[str, Any], plan: MergePlan) -> str:
    if facts["name"] == "none":
        return "unmerged"
    r = [0 if count is None else count for count in facts["r_per_block"]]
    if facts["name"] == "tome":
        return f"ToMe, r = {' '.join(map(str, r))}"
    point = facts["operating_point"]
    numbers = f"alpha {point['alpha']:g}, beta {point['beta']:g}, theta_min {point['theta_min']:g}"
    policy = facts["merge"] if plan.adaptive else f"frozen, r = {' '.join(map(str, r))}"
    preset = f"{facts['preset']}: " if facts["preset"] else ""
    origin = f" (from {facts['r_from']})" if facts["r_from"] else ""
    return f"ATM {preset}{numbers}, {policy}{origin}"
