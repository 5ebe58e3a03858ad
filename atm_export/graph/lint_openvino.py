"""What OpenVINO computes otherwise, in silence."""

from __future__ import annotations

import onnx_ir as ir

from atm_export.graph.lint import report
from atm_export.graph.lint_bounds import fits_32_bits


def check_for_openvino(model: ir.Model) -> None:
    """GraphLintError for the first integer that may leave 32 bits: the CPU plugin computes int64 as
    int32 (openvino #35824; a test says when it no longer does)."""
    report(list(fits_32_bits(model.graph)))
