"""The facts that travel with an artifact: in the manifest and in the ONNX metadata alike."""

from __future__ import annotations

from typing import Any

from atm_export.config import RunConfig, stamped
from atm_export.methods import methods
from atm_export.methods.base import MergePolicy
from atm_export.methods.plan import MergePlan
from atm_export.model.backbone import LoadedModel
from atm_export.subject import Subject, schedule_from
from atm_export.tasks import tasks
from atm_export.tasks.stated import CLASSIFIER


def manifest_facts(config: RunConfig, model: LoadedModel, plan: MergePlan) -> dict[str, Any]:
    """Model, task, weights, method, interface, preprocessing, labels and licence."""
    return {
        "model": model.name,
        "task": task_of(model),
        "config": config.model_dump(mode="json"),
        "weights": dict(model.weights),
        "method": summarize_method(config, plan),
        "interface": {
            "input": model.input(uint8=config.uint8_input).facts(),
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
    outputs: dict[str, Any] = {spec.name: spec.facts() for spec in backbone.outputs}
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


def shipped_outputs(subject: Subject) -> list[str]:
    """Names of the outputs that ship."""
    return list(_outputs(subject.config, subject.model, subject.plan))


def graph_facts(config: RunConfig, model: LoadedModel, plan: MergePlan) -> dict[str, Any]:
    """The same facts as a graph's metadata states them."""
    facts = {**manifest_facts(config, model, plan), "config": stamped(config)}
    if facts["task"] == CLASSIFIER:  # a graph without a word about its task is a classifier's
        del facts["task"]
    return facts


def task_of(model: LoadedModel) -> dict[str, Any]:
    """What the model answers."""
    backbone = model.backbone
    return tasks[backbone.task].facts(backbone.outputs)


def summarize_method(config: RunConfig, plan: MergePlan) -> dict[str, Any]:
    """What the method does in each block, and one line that says it."""
    settings, method = config.method, methods[config.method.name]
    origin = schedule_from(config) if settings.policy is MergePolicy.FROZEN else None
    nothing = "; nothing merges" if plan.merges and plan.idle else ""
    return {
        "name": settings.name,
        "merge": plan.policy,
        "preset": settings.preset,
        "r_from": origin,
        **method.facts(settings, plan),
        "summary": method.summary(settings, plan, origin) + nothing,
    }
