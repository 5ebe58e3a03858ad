"""The ONNX of the operators that scores need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset18 as op

import atm_export.methods.scores  # noqa: F401  (registers the operator named below)
from atm_export.methods.onnx_values import Value


def unit_rows(x: Value) -> Value:
    return op.LpNormalization(x, axis=-1, p=2)


TABLE: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.atm_export.unit_rows.default: unit_rows,
}
