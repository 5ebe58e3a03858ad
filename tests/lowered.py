"""Typed graphs as a builder without FP32 islands would make them: the matching is low too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import onnx_ir as ir
import pytest

from atm_export.graph.passes import set_precision


@contextmanager
def lowering() -> Iterator[None]:
    """Inside, `with_precision` lowers every operator, and constants too large are infinite."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(set_precision, "HIGH_ONLY", frozenset())
        patch.setattr(set_precision, "_rounded", _saturated)
        yield


def _saturated(value: ir.Value, kind: ir.DataType, name: str) -> ir.TensorProtocol:
    assert value.const_value is not None
    with np.errstate(over="ignore"):
        array = value.const_value.numpy().astype(np.float32).astype(kind.numpy())
    return ir.tensor(array, dtype=kind, name=name)
