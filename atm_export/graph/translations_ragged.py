"""The ONNX of the operators for images that keep different numbers of tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset18 as op

import atm_export.rewrite.ragged  # noqa: F401  (registers the operators named below)
from atm_export.methods.onnx_values import (
    FLOAT,
    INT64,
    Value,
    batch_of,
    ints,
    length_of,
    ramp,
    scalar,
)
from atm_export.methods.tokens import TINY, Capacity


def ragged_layout(sizes: Value, most: int) -> tuple[Value, Value]:
    """See `rewrite.ragged.ragged_layout`. Counts are summed in float: builders bound those."""
    present = op.Cast(op.Greater(sizes, scalar(0.0)), to=FLOAT)
    count = op.Cast(op.ReduceSum(present, ints(1, 2), keepdims=0), to=INT64)
    ends = op.CumSum(count, scalar(0))
    start = op.Sub(ends, count)
    n = length_of(sizes)
    last = op.Sub(op.Unsqueeze(count, ints(1)), scalar(1))
    slots = op.Add(op.Unsqueeze(start, ints(1)), op.Min(ramp(n, Capacity(most)), last))
    total = op.Cast(op.ReduceSum(present, ints(0, 1, 2), keepdims=0), to=INT64)
    packed = op.Range(scalar(0), total, scalar(1))
    passed = op.GreaterOrEqual(op.Unsqueeze(packed, ints(1)), ends)
    image = op.Cast(op.ReduceSum(op.Cast(passed, to=FLOAT), ints(1), keepdims=0), to=INT64)
    images = op.Range(scalar(0), op.Squeeze(batch_of(sizes), ints(0)), scalar(1))
    gap = op.Sub(op.Mul(images, n), start)
    return op.Unsqueeze(op.Add(packed, op.Gather(gap, image, axis=0)), ints(0)), slots


def pack(x: Value, rows: Value) -> Value:
    """Rows of the flattened padded tensor."""
    return op.Gather(_flat(x), rows, axis=0)


def unpack(x: Value, slots: Value) -> Value:
    """Padded from packed."""
    return op.Gather(_flat(x), slots, axis=0)


def unpack_heads(x: Value, slots: Value, heads: int) -> Value:
    """Padded from packed, heads apart."""
    return op.Reshape(op.Gather(_flat(x), slots, axis=0), ints(0, 0, heads, x.shape[2] // heads))


def _flat(x: Value) -> Value:
    """[B, n, D] to [B * n, D]."""
    return op.Reshape(x, ints(-1, x.shape[2]))


def log_sizes(sizes: Value, proportional: bool) -> Value:
    """log of sizes, or of 1; TINY keeps padding from -inf."""
    clipped = sizes if proportional else op.Min(sizes, scalar(1.0))
    return op.Log(op.Max(clipped, scalar(TINY)))


TABLE: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.atm_export.ragged_layout.default: ragged_layout,
    torch.ops.atm_export.pack.default: pack,
    torch.ops.atm_export.unpack.default: unpack,
    torch.ops.atm_export.unpack_heads.default: unpack_heads,
    torch.ops.atm_export.log_sizes.default: log_sizes,
}
