"""Keep some outputs of a traced graph, and only the nodes that they need."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import onnx_ir as ir
import onnx_ir.passes.common as common

log = logging.getLogger(__name__)


class KeepOutputs(ir.passes.InPlacePass):
    """Fires where the graph has outputs besides `names`."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        outputs = model.graph.outputs
        kept = [value for value in outputs if value.name in self.names]
        modified = len(kept) != len(outputs)
        if modified:
            outputs[:] = kept
            common.RemoveUnusedNodesPass()(model)
        else:
            log.info("did not fire: the graph has no other outputs")
        return ir.passes.PassResult(model, modified=modified)
