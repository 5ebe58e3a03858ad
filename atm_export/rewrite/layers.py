"""Linear layers rewritten: taken apart, scaled, without a bias or with another one."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def thirds(qkv: nn.Linear, scale: float) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    """q, k and v as layers of their own, the softmax scale folded into q."""
    weights = qkv.weight.chunk(3)
    biases = (None,) * 3 if qkv.bias is None else qkv.bias.chunk(3)
    layers = []
    for weight, bias, factor in zip(weights, biases, (scale, 1.0, 1.0), strict=True):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        layer.weight = nn.Parameter(weight * factor, requires_grad=False)
        if bias is not None:
            layer.bias = nn.Parameter(bias * factor, requires_grad=False)
        layers.append(layer)
    return layers[0], layers[1], layers[2]


def without_bias(layer: nn.Linear) -> nn.Linear:
    made = nn.Linear(layer.in_features, layer.out_features, bias=False)
    made.weight = layer.weight
    return made


def shifted(layer: nn.Linear, shift: Tensor | None) -> nn.Linear:
    """The layer as if `shift` [in_features] were added to its input."""
    if shift is None:
        return layer
    made = nn.Linear(layer.in_features, layer.out_features)
    made.weight = layer.weight
    bias = (layer.weight.double() @ shift.double()).float()
    made.bias = nn.Parameter(bias if layer.bias is None else bias + layer.bias, requires_grad=False)
    return made


def stacked(*layers: nn.Linear) -> nn.Linear:
    """Layers of one input as one, their outputs one after the other."""
    weight = torch.cat([layer.weight for layer in layers])
    made = nn.Linear(weight.shape[1], weight.shape[0])
    biases: list[Tensor] = [
        torch.zeros(layer.out_features) if layer.bias is None else layer.bias for layer in layers
    ]
    made.weight = nn.Parameter(weight, requires_grad=False)
    made.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    return made
