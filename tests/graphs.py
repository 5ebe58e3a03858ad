"""The graph that a run would ship, without proving or measuring it."""

from __future__ import annotations

from typing import Any

import onnx

from atm_export.choice import Choice
from atm_export.graph.optimize import with_facts, with_outputs
from atm_export.measure.data.images import load_images
from atm_export.model.zoo import load_model
from atm_export.report.facts import graph_facts, shipped_outputs
from atm_export.resolve import resolve
from atm_export.subject import subject_of


def shipped_graph(**options: Any) -> onnx.ModelProto:
    """`model.onnx` of a choice (the main command's options), proven or not."""
    config = resolve(Choice(**options))
    model = load_model(config.model)
    images = load_images(None, model.preprocessing, model.own_images)
    subject = subject_of(config, model, images.pixels)
    graph = with_outputs(subject.graph(subject.plan), shipped_outputs(subject))
    return with_facts(graph, graph_facts(config, model, subject.plan))
