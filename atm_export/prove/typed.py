"""The graph of a run in a lower precision, with the proof that it is still the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from atm_export.backends.runner import Array
from atm_export.backends.tensorrt.settings import Precision
from atm_export.errors import ParityError
from atm_export.graph.optimize import emulated, quantized, with_precision
from atm_export.prove.calibration import linear_inputs, ranges
from atm_export.prove.matching import require_matching
from atm_export.prove.precision import PrecisionProof, compare_precision
from atm_export.tasks.base import Output

Progress = Callable[[str], None]


def typed_graph(
    reference: ir.Model,
    feeds: Sequence[Array],
    precision: Precision,
    outputs: Sequence[Output],
    progress: Progress,
) -> tuple[ir.Model, PrecisionProof]:
    """The traced graph in `precision`, and how it compares with the FP32 one."""
    name = precision.value
    if precision is Precision.FP32:
        return reference, compare_precision(reference, reference, feeds, name, outputs)
    low = "fp16" if precision in (Precision.INT8, Precision.FP8) else name
    try:
        typed = with_precision(reference, low)
    except OverflowError as error:
        raise ParityError(
            f"{low} cannot hold this model: {error}; nothing was built; "
            "take --precision bf16 or fp32"
        ) from error
    if low != name:
        progress(f"calibrating {name}")
        typed = quantized(typed, ranges(reference, linear_inputs(reference), feeds), name)
    require_matching(typed, name)
    progress(f"comparing {name} with FP32")
    return typed, compare_precision(reference, emulated(typed, low), feeds, name, outputs)
