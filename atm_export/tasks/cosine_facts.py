"""What judges of directions share: facts of cosines, and rows of numbers in a journal."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atm_export.shapes import fields, number

WORST = 0.01  # the share of cosines that is called the worst
COSINE = fields({name: number(-1.001, 1.001) for name in ("median", "worst_percent", "least")})


def cosine_facts(found: NDArray[Any]) -> dict[str, float]:
    """Of cosines the median, the one that all but the worst 1 % reach, and the least (`COSINE`)."""
    median, worst = np.quantile(found, (0.5, WORST))
    values = {"median": median, "worst_percent": worst, "least": found.min()}
    return {name: round(float(value), 8) for name, value in values.items()}


def packed_rows(rows: NDArray[Any]) -> list[Any]:
    """Rows [n, k] as text, in FP32."""
    return [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in rows]


def unpacked_rows(values: Sequence[Any], what: str) -> NDArray[np.float32]:
    """What `packed_rows` was given, [n, k] in FP32; ValueError for other values, which are no
    `what`."""
    if not all(isinstance(value, str) for value in values):
        raise ValueError(f"no {what}")
    rows = [np.frombuffer(base64.b64decode(value, validate=True), "<f4") for value in values]
    if len({len(row) for row in rows}) != 1:
        raise ValueError(f"{what} of several lengths")
    return np.stack(rows).astype(np.float32)
