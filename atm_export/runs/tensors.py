"""Named arrays in one file: the safetensors format, with NumPy alone. No pickle, no code.

8 bytes of header length (little-endian), a JSON header {name: {dtype, shape, data_offsets}}, then
the arrays' bytes. Source: the format's README, github.com/huggingface/safetensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atm_export.errors import RunFolderError
from atm_export.shapes import fields, items, one_of, whole
from atm_export.strict_json import loads

Array = NDArray[Any]
_DTYPES = {"U8": np.uint8, "I64": np.int64, "F16": np.float16, "F32": np.float32}
MOST_HEADER = 2**20
_ENTRY = fields(
    {
        "dtype": one_of(*_DTYPES),
        "shape": items(whole(0, 2**31), 0, 8),
        "data_offsets": items(whole(), 2, 2),
    }
)
_NAMES = {np.dtype(kind): name for name, kind in _DTYPES.items()}


def packed(arrays: Mapping[str, Array]) -> bytes:
    """The bytes of a safetensors file; the same for the same arrays."""
    header: dict[str, Any] = {}
    parts: list[bytes] = []
    end = 0
    for name in sorted(arrays):
        data = np.ascontiguousarray(arrays[name]).tobytes()
        header[name] = {
            "dtype": _NAMES[arrays[name].dtype],
            "shape": list(arrays[name].shape),
            "data_offsets": [end, end + len(data)],
        }
        parts.append(data)
        end += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def unpacked(data: bytes, name: str) -> dict[str, Array]:
    """The arrays of a safetensors file, read-only; RunFolderError names the damaged file."""
    try:
        start = 8 + int.from_bytes(data[:8], "little")
        if start > len(data):
            raise ValueError("its header is longer than the file")
        header = loads(data[8:start], dict, most=MOST_HEADER)
        return {
            key: _view(data, start, key, facts) for key, facts in header.items() if key[:2] != "__"
        }
    except ValueError as error:
        raise RunFolderError(f"{name} is no safetensors file ({error}); export again") from error


def _view(data: bytes, start: int, key: str, facts: Any) -> Array:
    _ENTRY(facts, key[:80])
    begin, end = facts["data_offsets"]
    kind = np.dtype(_DTYPES[facts["dtype"]])
    count = math.prod(facts["shape"])
    if not begin <= end <= len(data) - start or count * kind.itemsize != end - begin:
        raise ValueError(f"{key[:80]}: sizes do not fit")
    return np.frombuffer(data, kind, count, start + begin).reshape(facts["shape"])
