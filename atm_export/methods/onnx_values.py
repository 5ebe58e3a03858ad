"""Values of an ONNX graph under construction: constants, lengths, slices, sorted orders.

What builders accept: lengths read off shapes, constant tables cut to length, sort keys that are
unique and fit 32 bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnxscript import opset18 as op

from atm_export.methods.tokens import Capacity

Value = Any  # an onnxscript tensor of the graph under construction
FLOAT, INT32, INT64 = (onnx.TensorProto.DataType.Value(n) for n in ("FLOAT", "INT32", "INT64"))
END = 2**31 - 1


def top(x: Value, k: Value, largest: int) -> tuple[Value, Value]:
    return op.TopK(x, k, axis=1, largest=largest, sorted=1)


def ramp(length: Value, capacity: Capacity) -> Value:
    """0, 1, 2, ... of `length` [1]."""
    return head_of(tensor(np.arange(capacity.places)), length)


def head_of(values: Value, length: Value) -> Value:
    return op.Slice(values, ints(0), length, ints(0))


def every_other(x: Value, start: int) -> Value:
    return op.Slice(x, ints(start), ints(END), ints(1), ints(2))


def length_of(x: Value) -> Value:
    """Length of axis 1, [1]."""
    return op.Shape(x, start=1, end=2)


def batch_of(x: Value) -> Value:
    """Length of axis 0, [1]."""
    return op.Shape(x, start=0, end=1)


def transposed(x: Value) -> Value:
    return op.Transpose(x, perm=[0, 2, 1])


def tensor(array: Any) -> Value:
    """A constant."""
    return op.Constant(value=numpy_helper.from_array(np.ascontiguousarray(array)))


def ints(*values: int) -> Value:
    """A constant int64 vector."""
    return tensor(np.array(values, dtype=np.int64))


def scalar(value: int | float) -> Value:
    """A constant scalar: int64 from an int, float32 from a float."""
    return op.Constant(
        value=numpy_helper.from_array(
            np.array(value, dtype=np.float32 if isinstance(value, float) else np.int64)
        )
    )
