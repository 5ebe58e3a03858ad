"""The plan of a run, and where counts are decided at run time its extremes, with their graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from atm_export.methods.plan import MergePlan
from atm_export.rewrite.names import of_block


def variants(
    plan: MergePlan, traced: onnx.ModelProto, shipped: onnx.ModelProto
) -> list[tuple[str, MergePlan, onnx.ModelProto, onnx.ModelProto]]:
    """As configured; and the ends of what its rules may decide (merge nothing, merge all)."""
    found = [("", plan, traced, shipped)]
    ends = [{} if rule is None else rule.extremes() for rule in plan.blocks]
    for label in dict.fromkeys(label for each in ends for label in each):
        rules = tuple(
            each[label].rule if label in each else rule
            for each, rule in zip(ends, plan.blocks, strict=True)
        )
        constants = {
            of_block(i, name): value
            for i, each in enumerate(ends)
            if label in each
            for name, value in each[label].constants.items()
        }
        graphs = [_with_constants(graph, constants) for graph in (traced, shipped)]
        found.append((f"{label}, ", replace(plan, blocks=rules), graphs[0], graphs[1]))
    return found


def _with_constants(model: onnx.ModelProto, constants: Mapping[str, Any]) -> onnx.ModelProto:
    """The same graph with other numbers in its blocks."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if tensor.name in constants:
            old = numpy_helper.to_array(tensor)
            value = np.asarray(constants[tensor.name], old.dtype)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return changed
