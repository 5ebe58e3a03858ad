"""The FP32 graph that everything else is derived from."""

from __future__ import annotations

import onnx_ir as ir

from atm_export.config import RunConfig
from atm_export.graph.assemble import onnx_from_model
from atm_export.graph.optimize import optimize
from atm_export.methods.plan import Form, MergePlan
from atm_export.model.backbone import LoadedModel


def traced_graph(
    config: RunConfig, model: LoadedModel, plan: MergePlan, form: Form = "plain"
) -> ir.Model:
    """Translate and optimise a model under a plan; all trace outputs on."""
    spec = model.input(uint8=config.uint8_input)
    return optimize(onnx_from_model(model.backbone, plan, spec, opset=config.opset, form=form))
