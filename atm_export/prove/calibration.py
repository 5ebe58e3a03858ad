"""Ranges of the linear layers' inputs, measured over images by running the FP32 graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from atm_export.backends.onnxruntime.runner import OnnxRuntimeRunner
from atm_export.backends.runner import Array
from atm_export.graph.reading import copied
from atm_export.graph.saving import in_memory
from atm_export.rewrite.names import may_be_quantized

# Percentile; what lies above is clipped, which costs less than a coarser grid. At 99.99 pictures of
# other content than most lost what tells them apart (ViT-Tiny: gravel, logits cosine 0.74).
CLIPPED = 99.999


def linear_inputs(model: ir.Model, *, keys: bool = False) -> Mapping[str, str]:
    """Name of the blocks' linear layers (their weights) to the values that they read; keys: those
    that make keys too."""
    found = {}
    for node in model.graph:
        source, weight = node.inputs[:2] if node.op_type in ("Gemm", "MatMul") else (None, None)
        if source is None or weight is None or not weight.is_initializer():
            continue
        if may_be_quantized(str(weight.name), keys=keys):
            found[str(weight.name)] = str(source.name)
    return found


def ranges(
    model: ir.Model, linear: Mapping[str, str], feeds: Sequence[Array]
) -> dict[str, tuple[float, float]]:
    """(percentile, largest) absolute value of each linear layer's input, over all batches."""
    high: dict[str, float] = {}
    most: dict[str, float] = {}
    for name, array in _inputs(model, linear, feeds):
        size = np.abs(array)
        high[name] = max(high.get(name, 0.0), float(np.percentile(size, CLIPPED)))
        most[name] = max(most.get(name, 0.0), float(size.max()))
    return {layer: (high[value], most[value]) for layer, value in linear.items()}


def spans(
    model: ir.Model, linear: Mapping[str, str], feeds: Sequence[Array]
) -> dict[str, tuple[float, float]]:
    """(least, largest) value of each linear layer's input, over all batches, clipped on either
    side; 0 lies within."""
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    for name, array in _inputs(model, linear, feeds):
        least, largest = np.percentile(array.astype(np.float32), (100 - CLIPPED, CLIPPED))
        low[name] = min(low.get(name, 0.0), float(least))
        high[name] = max(high.get(name, 0.0), float(largest))
    return {layer: (low[value], high[value]) for layer, value in linear.items()}


def _inputs(
    model: ir.Model, linear: Mapping[str, str], feeds: Sequence[Array]
) -> Iterator[tuple[str, Array]]:
    """Each value that a linear layer reads, by name, batch after batch."""
    values = sorted(set(linear.values()))
    if not values:
        return
    probe = copied(model)
    made = {value.name: value for node in probe.graph for value in node.outputs}
    probe.graph.outputs[:] = [_float(made[name]) for name in values]
    with OnnxRuntimeRunner(in_memory(probe)) as runner:
        for feed in feeds:
            yield from runner.run(feed).items()


def _float(value: ir.Value) -> ir.Value:
    """What an output says of itself: its type, and no shape that a batch may not have."""
    value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), None
    return value
