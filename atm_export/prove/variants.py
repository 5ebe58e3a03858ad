"""The plan of a run, and where counts are decided at run time its extremes, with their graphs."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from atm_export.methods.bipartite.rule import with_theta
from atm_export.methods.plan import MergePlan
from atm_export.rewrite.operators import similarity_limit


def variants(
    plan: MergePlan, traced: onnx.ModelProto, shipped: onnx.ModelProto
) -> list[tuple[str, MergePlan, onnx.ModelProto, onnx.ModelProto]]:
    """As configured; and where thresholds decide, with those that merge nothing and everything."""
    found = [("", plan, traced, shipped)]
    if plan.adaptive:
        for label, theta in (("r = 0, ", 2.0), ("r = max, ", -2.0)):
            graphs = [_with_limit(g, similarity_limit(theta)) for g in (traced, shipped)]
            found.append((label, with_theta(plan, theta), graphs[0], graphs[1]))
    return found


def _with_limit(model: onnx.ModelProto, limit: int) -> onnx.ModelProto:
    """The same graph with another threshold in every block."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for tensor in changed.graph.initializer:
        if not tensor.name.endswith(".limit"):
            continue
        old = numpy_helper.to_array(tensor)
        if int(old[0]) < similarity_limit(1.0):  # as `MergePlan.with_theta`
            tensor.CopyFrom(numpy_helper.from_array(np.array([limit], old.dtype), tensor.name))
    return changed
