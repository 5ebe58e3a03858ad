"""Weights beside a graph, for OpenVINO, which reads such files itself, by path.

So that what was hashed is what runs, they become inputs of the graph; `door` then puts constants
over the checked bytes in their place. By the wire format of protocol buffers and the field numbers
of onnx.proto (github.com/onnx/onnx), as in `runs.graphs`: services have no onnx package.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from atm_export.backends.runner import Array
from atm_export.errors import AtmExportError
from atm_export.runs.graphs import Buffer, Record, entry_of, locations, records

GRAPH, INITIALIZER, INPUT = 7, 5, 11  # of a model; of a graph
DIMS, TYPE, NAME, ENTRY = 1, 2, 8, 13  # of a tensor
DTYPES = {
    1: "float32",
    2: "uint8",
    3: "int8",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
}

Value = memoryview | int | None


@dataclass(frozen=True)
class Weight:
    """An initializer that lies in a file beside its graph. type: of TensorProto; offset, length: in
    bytes."""

    name: str
    shape: tuple[int, ...]
    type: int
    location: str
    offset: int
    length: int


def weights_as_inputs(graph: bytes) -> tuple[bytes, list[Weight]]:
    """A serialized model whose initializers beside it are inputs, and what they are.

    AtmExportError where other tensors lie beside it.
    """
    found: list[Weight] = []
    changed = b"".join(
        _field(GRAPH, _graph(record.value, found))
        if record.number == GRAPH and isinstance(record.value, memoryview)
        else record.whole
        for record in records(memoryview(graph))
    )
    if locations(changed):
        raise AtmExportError("OpenVINO takes weights beside the graph as initializers alone")
    return changed, found


def array_of(weight: Weight, beside: Mapping[str, Buffer]) -> Array:
    """The weight over the bytes of its file, without a copy; AtmExportError where it does not lie
    in it."""
    data = memoryview(beside.get(weight.location, b""))
    dtype, count = DTYPES.get(weight.type), math.prod(weight.shape)
    if (
        dtype is None
        or weight.length != count * np.dtype(dtype).itemsize
        or not 0 <= weight.offset <= weight.offset + weight.length <= len(data)
    ):
        raise AtmExportError(f"{weight.name} does not lie in {weight.location}; export again")
    return np.frombuffer(data, dtype, count, weight.offset).reshape(weight.shape)


def _graph(data: memoryview, found: list[Weight]) -> bytes:
    """A graph with inputs in place of its initializers beside it, which go into `found`."""
    parts: list[bytes | memoryview] = []
    for record in records(data):
        weight = _weight(record.value) if record.number == INITIALIZER else None
        if weight is None:
            parts.append(record.whole)
        else:
            found.append(weight)
            parts.append(_field(INPUT, _value_info(weight)))
    return b"".join(parts)


def _weight(tensor: Value) -> Weight | None:
    """None for one whose values lie in the graph."""
    fields = list(records(tensor)) if isinstance(tensor, memoryview) else []
    entries = dict(
        entry_of(each.value)
        for each in fields
        if each.number == ENTRY and isinstance(each.value, memoryview)
    )
    if "location" not in entries:
        return None
    last = {each.number: each.value for each in fields}
    name, kind = last.get(NAME), last.get(TYPE)
    return Weight(
        bytes(name).decode() if isinstance(name, memoryview) else "",
        _shape(fields),
        kind if isinstance(kind, int) else 0,
        entries["location"],
        int(entries.get("offset", 0)),
        int(entries.get("length", -1)),
    )


def _shape(fields: list[Record]) -> tuple[int, ...]:
    """Dimensions, one a field or packed into one."""
    shape: list[int] = []
    for each in fields:
        if each.number != DIMS:
            continue
        if isinstance(each.value, int):
            shape.append(each.value)
        elif each.value is not None:
            shape += _numbers(each.value)
    return tuple(shape)


def _numbers(packed: memoryview) -> list[int]:
    numbers, value, shift = [], 0, 0
    for byte in packed:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            numbers.append(value)
            value, shift = 0, 0
    return numbers


def _value_info(weight: Weight) -> bytes:
    """A ValueInfoProto: name, and the type of a tensor of that shape."""
    dims = b"".join(_field(1, _number(1, size)) for size in weight.shape)
    tensor = _number(1, weight.type) + _field(2, dims)
    return _field(1, weight.name.encode()) + _field(2, _field(1, tensor))


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
