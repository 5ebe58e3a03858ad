"""Ranges of the linear layers' inputs, measured over images by running the FP32 graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from atm_export.backends.onnxruntime.runner import OnnxRuntimeRunner
from atm_export.backends.runner import Array
from atm_export.rewrite.names import may_be_quantized

# Percentile; what lies above is clipped, which costs less than a coarser grid. At 99.99 pictures of
# other content than most lost what tells them apart (ViT-Tiny: gravel, logits cosine 0.74).
CLIPPED = 99.999


def linear_inputs(model: onnx.ModelProto) -> Mapping[str, str]:
    """Name of the blocks' linear layers (their weights) to the values that they read."""
    weights = {tensor.name for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type not in ("Gemm", "MatMul") or node.input[1] not in weights:
            continue
        name = node.input[1]
        if may_be_quantized(name):
            found[name] = node.input[0]
    return found


def ranges(
    model: onnx.ModelProto, linear: Mapping[str, str], feeds: Sequence[Array]
) -> dict[str, tuple[float, float]]:
    """(percentile, largest) absolute value of each linear layer's input, over all batches."""
    values = sorted(set(linear.values()))
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    for value in values:
        probe.graph.output.append(
            onnx.helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, None)
        )
    high = dict.fromkeys(values, 0.0)
    most = dict.fromkeys(values, 0.0)
    with OnnxRuntimeRunner(probe) as runner:
        for feed in feeds:
            for name, array in runner.run(feed).items():
                size = np.abs(array)
                high[name] = max(high[name], float(np.percentile(size, CLIPPED)))
                most[name] = max(most[name], float(size.max()))
    return {layer: (high[value], most[value]) for layer, value in linear.items()}
