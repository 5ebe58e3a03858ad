"""The graph that a run would ship, without proving or measuring it."""

from __future__ import annotations

from typing import Any

import onnx

from atm_export.graph.optimize import with_facts, with_outputs
from atm_export.measure.data.images import load_images
from atm_export.measure.job import plan_job
from atm_export.model.zoo import load_model
from atm_export.report.facts import graph_facts
from atm_export.resolve import Choice, resolve


def shipped_graph(**options: Any) -> onnx.ModelProto:
    """`model.onnx` of a choice (the main command's options), proven or not."""
    config = resolve(Choice(**options))
    model = load_model(config.model)
    images = load_images(None, config.model.name, model.preprocessing)
    job = plan_job(config, model, images, images)
    outputs = ["logits", *(["tokens_per_block", "patch_to_token"] if config.trace else [])]
    graph = with_outputs(job.graph(job.plan), outputs)
    return with_facts(graph, graph_facts(config, model, job.plan))
