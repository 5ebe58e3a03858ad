"""Multiply-adds of a forward pass from its token counts, per image, in units of 1e9 (GFLOPs).

The paper's count: embedding + per block 4 n D^2 + 2 n^2 D (attention, n tokens in) + MLP on m
tokens + head. Where a rule merges the attention map, queries, keys and map count n tokens, values,
their product with the map and the projection those that stay (arXiv 2403.10030). Merging itself,
norms and activations are left out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atm_export.model.backbone import Backbone
from atm_export.model.reference import Trace


def linear_weights(module: nn.Module) -> int:
    """Multiply-adds per token: the weights of all linear layers in `module`."""
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


@torch.no_grad()
def module_macs(module: nn.Module, sample: Tensor) -> int:
    """Multiply-adds of the convolutions and linear layers that `sample` passes in `module`."""
    total = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        weight = layer.weight
        assert isinstance(weight, Tensor)
        places = output.numel() // weight.shape[0]
        total += places * weight.numel()

    layers = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        module(sample)
    finally:
        for hook in hooks:
            hook.remove()
    return total


def count_gmacs(
    backbone: Backbone, tokens_in: Tensor, mlp_tokens: Tensor, attended: Tensor | None = None
) -> Tensor:
    """GFLOPs [B] of each image; tokens_in, mlp_tokens and attended (see `Trace`; None: as
    tokens_in) [blocks, B]."""
    attended = tokens_in if attended is None else attended
    counts = (tokens_in.double(), attended.double(), mlp_tokens.double())
    total = torch.full(tokens_in.shape[1:], backbone.stem_gmacs() * 1e9, dtype=torch.float64)
    parts = backbone.parts()
    deepest = backbone.read_after[0] if backbone.unmerges else len(parts) - 1
    # Blocks behind the deepest one that is read are in no graph, but for trace outputs.
    for part, n, k, m in list(zip(parts, *counts, strict=True))[: deepest + 1]:
        third = part.qkv.weight.numel() / 3
        total += n * 2 * third + k * (third + part.proj.weight.numel())
        total += (n * n + k * k) * part.heads * part.head_dim
        total += m * linear_weights(part.mlp)
    last = mlp_tokens[-1].double()
    return (total + backbone.head_macs(last)) / 1e9


def trace_gmacs(backbone: Backbone, trace: Trace, merges: bool = True) -> Tensor:
    """GFLOPs [B] of a traced pass; the last MLP sees only the rows that the head reads."""
    mlp_tokens = trace.tokens_out.clone()
    if merges and backbone.head_rows is not None:
        mlp_tokens[-1] = backbone.head_rows
    return count_gmacs(backbone, trace.tokens_in, mlp_tokens, trace.attended)


def unmerged_gmacs(backbone: Backbone) -> float:
    """GFLOPs an image of the model without merging."""
    n = torch.full((len(backbone.parts()), 1), backbone.tokens)
    return float(count_gmacs(backbone, n, n)[0])
