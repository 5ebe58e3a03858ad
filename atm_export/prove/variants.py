"""The plan of a run, and where counts are decided at run time its extremes, with what their graphs
hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from atm_export.graph.reading import copied
from atm_export.methods.plan import MergePlan
from atm_export.rewrite.names import of_block

Constants = Mapping[str, Any]  # numbers of blocks, by name


def variants(plan: MergePlan) -> list[tuple[str, MergePlan, Constants]]:
    """As configured; and the ends of what its rules may decide (merge nothing, merge all)."""
    found: list[tuple[str, MergePlan, Constants]] = [("", plan, {})]
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
        found.append((f"{label}, ", replace(plan, blocks=rules), constants))
    return found


def with_constants(model: ir.Model, constants: Constants) -> ir.Model:
    """The same graph with other numbers in its blocks; weights are shared."""
    if not constants:
        return model
    changed = copied(model)
    for name, value in constants.items():
        held = changed.graph.initializers.get(name)
        if held is not None and held.const_value is not None:
            array = np.asarray(value, held.const_value.numpy().dtype)
            held.const_value = ir.tensor(array, name=name)
    return changed
