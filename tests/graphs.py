"""Graphs: what a run would ship, as protobuf has it, and with other numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from atm_export.choice import Choice
from atm_export.graph.optimize import with_facts, with_outputs
from atm_export.measure.data.images import load_images
from atm_export.model.zoo import load_model
from atm_export.report.facts import graph_facts, shipped_outputs
from atm_export.resolving import resolve
from atm_export.subject import subject_of


def shipped_graph(**options: Any) -> ir.Model:
    """`model.onnx` of a choice (the main command's options), proven or not."""
    config = resolve(Choice(**options))
    model = load_model(config.model)
    images = load_images(None, model.preprocessing, model.own_images)
    subject = subject_of(config, model, images.pixels)
    graph = with_outputs(subject.graph(subject.plan), shipped_outputs(subject))
    return with_facts(graph, graph_facts(config, model, subject.plan))


def proto(graph: ir.Model) -> onnx.ModelProto:
    """A copy of the graph, as protobuf has it."""
    return ir.to_proto(graph)


def changed(graph: ir.Model, name: str, change: Callable[[np.ndarray], np.ndarray]) -> ir.Model:
    """The graph with one initializer changed."""
    copy = graph.clone()
    value = copy.graph.initializers[name]
    assert value.const_value is not None
    value.const_value = ir.tensor(change(value.const_value.numpy().copy()), name=name)
    return copy
