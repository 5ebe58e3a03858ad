"""Write facts (model, weights, operating point, preprocessing) into the model's metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

PREFIX = "atm_export."


class Stamp(ir.passes.InPlacePass):
    """Fires where a fact is not there yet; values are JSON."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        super().__init__()
        self.facts = {
            PREFIX + key: value if isinstance(value, str) else json.dumps(value, sort_keys=True)
            for key, value in facts.items()
        }

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = any(model.metadata_props.get(k) != v for k, v in self.facts.items())
        model.metadata_props.update(self.facts)
        return ir.passes.PassResult(model, modified=modified)
