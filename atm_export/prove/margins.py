"""How firmly the reference took its decisions: the least change of a score that alters one.

FP32 backends differ in the last bits of a score. Where a decision hangs on less than that, no two
correct implementations need agree, so parity is proven on inputs with a margin.
"""

from __future__ import annotations

import torch
from torch import Tensor

from atm_export.comparison import smallest
from atm_export.model.reference import Trace


def trace_margin(trace: Trace) -> float:
    """The smallest margin of all blocks and images, as a cosine; 0 where scores tie."""
    decisions = [d for block in trace.decisions for d in block if d is not None]
    return smallest(decision.margin() for decision in decisions)


def first_difference(ours: Tensor, theirs: Tensor) -> tuple[int, int] | None:
    """Block and image where two token maps [blocks, B, N0] first differ."""
    differs = (ours != theirs).any(dim=2)
    if not bool(differs.any()):
        return None
    block, image = torch.nonzero(differs)[0].tolist()
    return block, image
