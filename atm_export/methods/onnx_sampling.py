"""The ONNX of the operators that keep another number of tokens in each image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from onnxscript import opset18 as op

import atm_export.methods.sampling  # noqa: F401  (registers the operators named below)
from atm_export.methods.onnx_values import (
    FLOAT,
    INT32,
    INT64,
    Value,
    head_of,
    ints,
    length_of,
    ramp,
    scalar,
    tensor,
    top,
)
from atm_export.methods.sampling import DIGITS, WHOLE
from atm_export.methods.tokens import Capacity


def rising(score: Value) -> Value:
    """Two sorts, by the low digits and by the high ones."""
    n, places = length_of(score), 2**14
    position = head_of(tensor(np.arange(places, dtype=np.int32)), n)

    def order(value: Value, stride: int) -> Value:
        key = op.Mul(op.Cast(value, to=INT32), tensor(np.array(stride, dtype=np.int32)))
        return top(op.Add(key, position), n, largest=0)[1]

    high = op.Floor(op.Div(score, scalar(float(DIGITS))))
    low = op.Sub(score, op.Mul(high, scalar(float(DIGITS))))
    low = op.Clip(low, scalar(0.0), scalar(DIGITS - 1.0))  # these two say bounds; nothing changes
    high = op.Clip(high, scalar(0.0), scalar(2.0 * WHOLE / DIGITS))
    first = order(low, places)
    second = order(op.GatherElements(high, first, axis=1), places)
    return op.GatherElements(first, second, axis=1)


def inverse(order: Value) -> Value:
    return top(order, length_of(order), largest=0)[1]


def left(alive: Value, most: int) -> tuple[Value, Value]:
    """Counts are summed in float: builders bound those."""
    capacity = Capacity(most)
    count = op.ReduceSum(op.Cast(alive, to=FLOAT), ints(1), keepdims=0)
    longest = op.Cast(op.ReduceMax(count, ints(0), keepdims=1), to=INT64)
    position = ramp(length_of(alive), capacity)
    place = op.Where(alive, position, op.Add(position, scalar(capacity.places)))
    return top(place, op.Max(longest, ints(1)), largest=0)[1], op.Cast(count, to=INT64)


TABLE: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.atm_export.rising.default: rising,
    torch.ops.atm_export.inverse.default: inverse,
    torch.ops.atm_export.left.default: left,
}
